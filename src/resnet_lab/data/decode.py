"""One picture from disk to RGB, and to a square of the wanted size."""

import math

import numpy as np
from PIL import Image, ImageOps

# The aspects of a random-resized-crop: Szegedy et al. 2014 (arXiv 1409.4842, section 6).
ASPECT = (3 / 4, 4 / 3)


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture a viewer would show: 8-bit RGB, upright by its EXIF orientation.

    Transparent pixels are laid over white. 16-bit grey is scaled to 8 bits (65535 becomes 255),
    where PIL's own conversion would clip everything above 255. Of an animation, the first frame.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image, dtype=np.int64).clip(0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, size: int, zoom: float = 1.0) -> Image.Image:
    """The central square of the image, `zoom` times its shorter side, resized to size x size.

    The same as resizing the shorter side to size / zoom and cropping the centre, in one step;
    antialiased bilinear. An image that is already size x size comes back as it is (zoom 1).
    """
    if zoom == 1.0 and image.size == (size, size):
        return image
    width, height = image.size
    side = min(width, height) * zoom
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def random_resized_crop(
    image: Image.Image,
    size: int,
    scale: tuple[float, float],
    top: float,
    left: float,
    area: float,
    ratio: float,
) -> Image.Image:
    """A rectangle of random area and aspect, resized to size x size (arXiv 1409.4842, section 6).

    Args:
        scale: smallest and largest share of the image's area.
        top, left, area, ratio: the draws, each in [0, 1). The aspect is log-uniform in `ASPECT`.

    torchvision draws anew where the rectangle does not fit; here its longer side is cut to the
    image, so that one draw always gives one crop.
    """
    width, height = image.size
    pixels = width * height * (scale[0] + (scale[1] - scale[0]) * area)
    aspect = math.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * ratio)
    crop_width = min(max(round(math.sqrt(pixels * aspect)), 1), width)
    crop_height = min(max(round(math.sqrt(pixels / aspect)), 1), height)
    x = int(left * (width - crop_width + 1))
    y = int(top * (height - crop_height + 1))
    crop = image.crop((x, y, x + crop_width, y + crop_height))
    return crop.resize((size, size), Image.Resampling.BILINEAR)

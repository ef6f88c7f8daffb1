"""One picture from disk to RGB, and to a square of the wanted size."""

import math
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from resnet_lab.files import printable

# Which files are taken for images by their name, and the format that each should be in.
FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG2000"),
    ".webp": "WEBP",
    ".gif": "GIF",
    ".avif": "AVIF",
}
EXTENSIONS = tuple(FORMATS)
SMALL = 64  # pixels a side: up to here images are kept in memory

# The most that is ever decoded: 400 MB as RGB, a camera of 100 megapixels and a third more. A file
# of a few kilobytes can declare a thousand times that (a decompression bomb).
MOST_PIXELS = 2**27
Image.MAX_IMAGE_PIXELS = None  # `open_image` looks itself: PIL merely warns, and that from 2/3 on

MOST_BYTES = 2**30  # of a file: such an image in 16 bits a channel, not compressed
LARGE, STRIP = 2**24, 2**20  # pixels: decoded one at a time; converted at a time
_turn = threading.RLock()

# The aspects of a random-resized-crop: Szegedy et al. 2014 (arXiv 1409.4842, section 6).
ASPECT = (3 / 4, 4 / 3)


@cache
def _kinds() -> list[str]:
    """The kinds of `FORMATS` that this Pillow was built with."""
    Image.init()
    return sorted(set(FORMATS.values()) & set(Image.OPEN))


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file, its header read and no pixel decoded yet.

    Only the kinds of `FORMATS` are tried, whatever the file is called: Pillow knows others that
    start programs, PostScript for one.

    Raises:
        ValueError, or one of Pillow's errors: the file is no regular one (a pipe would be waited
            for), no such picture, or above `MOST_PIXELS`.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if fault := too_large(status.st_size):
        raise ValueError(fault)
    image = Image.open(path, formats=_kinds())
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(
            f"it declares too many pixels ({image.width} x {image.height}; "
            f"at most {MOST_PIXELS:,} are decoded)"
        )
    return image


def too_large(n_bytes: int) -> str | None:
    """What is wrong with a file of so many bytes."""
    if n_bytes <= MOST_BYTES:
        return None
    return f"it has {n_bytes:,} bytes, and at most {MOST_BYTES:,} are read"


def reason(error: Exception) -> str:
    """Why a file could not be decoded, in one line."""
    if isinstance(error, UnidentifiedImageError):
        kinds = ", ".join(_kinds())
        return f"its content is no image (of {kinds})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(" ".join(str(error).split())) or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture a viewer would show: 8-bit RGB, upright by its EXIF orientation.

    Transparent pixels are laid over white. 16-bit grey is scaled to 8 bits (65535 becomes 255),
    where PIL's own conversion would clip everything above 255. Of an animation, the first frame.

    Raises:
        ValueError: the range of the pixels is unknown. A damaged file: any of Pillow's errors.
    """
    # In place, and no conversion of what is RGB: the copies would take a tenth of the time.
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    image.load()  # what is opened lazily must not depend on its file any more
    deep = image.mode == "I" or image.mode.startswith("I;16")
    convert = _from_16_bits if deep else _over_white if image.has_transparency_data else None
    if convert is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.width * image.height <= LARGE:
        return convert(image)
    rgb = Image.new("RGB", image.size)  # in strips: what lies between takes many bytes a pixel
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(convert(strip), (0, top))
    return rgb


def _from_16_bits(image: Image.Image) -> Image.Image:
    grey = np.asarray(image, dtype=np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("its pixels go beyond 16 bits; save it with 8 or 16")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


@contextmanager
def in_turn(image: Image.Image) -> Iterator[None]:
    """Of large images, the threads of a process hold one at a time: it may take a gigabyte."""
    if image.width * image.height <= LARGE:
        yield
        return
    with _turn:
        yield


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as `to_rgb` gives them, from the header alone."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def cut(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    """The part `box` (left, top, right, bottom, in upright pixels) as RGB of size x size.

    Antialiased bilinear. A JPEG is decoded at a half, a quarter or an eighth of its size where
    that is still no coarser than the result, which saves most of the time on large photographs.
    """
    width, height = upright_size(image)
    left, top, right, bottom = box
    shrink = min(right - left, bottom - top) / size
    if shrink >= 2:
        image.draft(None, (math.ceil(image.width / shrink), math.ceil(image.height / shrink)))
    with in_turn(image):
        rgb = to_rgb(image)
        x, y = rgb.width / width, rgb.height / height
        box = (left * x, top * y, right * x, bottom * y)
        return rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)


def fit(image: Image.Image, size: int, zoom: float = 1.0) -> Image.Image:
    """The central square of the image, `zoom` times its shorter side, as RGB of size x size.

    The same as resizing the shorter side to size / zoom and cropping the centre, in one step. The
    pixels of an image that is already size x size stay as they are (zoom 1).
    """
    width, height = upright_size(image)
    if zoom == 1.0 and (width, height) == (size, size):
        return to_rgb(image)
    side = min(width, height) * zoom
    left, top = (width - side) / 2, (height - side) / 2
    return cut(image, (left, top, left + side, top + side), size)


def evaluation_zoom(size: int) -> float:
    """The share of the shorter side that a net fed size x size sees when it is not training.

    224/256 above 64 pixels (He et al. 2015, arXiv 1512.03385, section 3.4), all of it below.
    """
    return 224 / 256 if size > 64 else 1.0


def random_resized_crop(
    image: Image.Image,
    size: int,
    scale: tuple[float, float],
    top: float,
    left: float,
    area: float,
    ratio: float,
    mirrored: bool,
) -> Image.Image:
    """A rectangle of random area and aspect, as RGB of size x size (arXiv 1409.4842, section 6).

    torchvision draws anew where the rectangle does not fit; here its longer side is cut to the
    image, so that one draw always gives one crop.

    Args:
        scale: smallest and largest share of the image's area.
        top, left, area, ratio: the draws, each in [0, 1). The aspect is log-uniform in `ASPECT`.
        mirrored: left becomes right; here rather than in `augment`, where it would take ten times
            as long as on a picture that PIL has just made.
    """
    width, height = upright_size(image)
    pixels = width * height * (scale[0] + (scale[1] - scale[0]) * area)
    aspect = math.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * ratio)
    crop_width = min(max(round(math.sqrt(pixels * aspect)), 1), width)
    crop_height = min(max(round(math.sqrt(pixels / aspect)), 1), height)
    x = int(left * (width - crop_width + 1))
    y = int(top * (height - crop_height + 1))
    crop = cut(image, (x, y, x + crop_width, y + crop_height), size)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop

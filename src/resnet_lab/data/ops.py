"""The operations of AutoAugment and its successors, one of them for each image of a batch.

What `torchvision.transforms.v2.functional` does to one image, done to a whole uint8 batch at once,
wherever it is: geometry by one gather, tones by tables of 256 entries for each image and channel,
saturation and sharpness by one blend. There is no loop over images, shapes are fixed and nothing
waits for the device.

Images are uint8 [b, h, w, 3].
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, ops, magnitudes

# Cubuk et al. 2018, arXiv 1805.09501, Table 6.
OPS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Contrast", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"),
    *("Color", "Sharpness"),
)
NUMBER = {name: i for i, name in enumerate(OPS)}
# Those that work alike.
GEOMETRY = frozenset(OPS[1:6])
LEVELS = frozenset(("Brightness", "Contrast", "Posterize", "Solarize", "Invert"))
HISTOGRAM = frozenset(("AutoContrast", "Equalize"))


def doubles(device: torch.device) -> torch.dtype:
    """The finest floating numbers of a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def apply(
    images: Tensor, ops: Tensor, magnitudes: Tensor, among: frozenset[str] = frozenset(OPS)
) -> Tensor:
    """Each image after its own operation.

    Args:
        images: uint8 [b, h, w, 3].
        ops: int64 [b], positions in `OPS`.
        magnitudes: floating [b]. Shears: the tangent of the angle. Translations: pixels, to the
            right or down. Rotate: degrees against the clock. Brightness, Contrast, Color and
            Sharpness: the factor less 1. Posterize: bits that are kept. Solarize: the threshold as
            a share of 255. Others take none.
        among: the operations that there can be; others cost no time.
    """
    steps: tuple[tuple[frozenset[str], Step], ...] = (
        (GEOMETRY, _moved),
        (LEVELS, _levels),
        (HISTOGRAM, _by_histogram),
        (frozenset(("Color",)), _coloured),
        (frozenset(("Sharpness",)), _sharpened),
    )
    for names, step in steps:
        if names & among:
            numbers = [NUMBER[name] for name in sorted(names & among)]
            mask = functools.reduce(torch.logical_or, [ops == number for number in numbers])
            images = _some(images, mask, step, ops, magnitudes)
    return images


def _some(images: Tensor, mask: Tensor, step: Step, ops: Tensor, m: Tensor) -> Tensor:
    """`step` of the images of a mask, bool [b].

    A CPU does it to those alone. Elsewhere to ask how many they are would wait for the device: it
    is done to all, and the others stay as they were.
    """
    if images.device.type != "cpu":
        return torch.where(mask[:, None, None, None], step(images, ops, m), images)
    rows = mask.nonzero()[:, 0]
    return images.index_copy(0, rows, step(images[rows], ops[rows], m[rows]))


def _moved(images: Tensor, ops: Tensor, m: Tensor) -> Tensor:
    """Nearest pixel, black where there is none: `F.affine` and `F.rotate`."""
    b, h, w, _ = images.shape
    zero = torch.zeros_like(m)

    def of(name: str, value: Tensor, otherwise: Tensor = zero) -> Tensor:
        return torch.where(ops == NUMBER[name], value, otherwise)

    # Where a pixel comes from, from the image's centre: x' = a x + b y + c, and y' = d x + e y + f.
    angle = torch.deg2rad(of("Rotate", -m))
    cos, sin = angle.cos(), angle.sin()
    shear_x, shear_y = of("ShearX", m), of("ShearY", m)
    a, b_, c, d, e, f = (
        numbers.to(torch.float32)[:, None, None]
        for numbers in (
            cos,
            sin + shear_x,
            of("TranslateX", -m.trunc(), shear_x * (h / 2)),
            shear_y - sin,
            cos,
            of("TranslateY", -m.trunc(), shear_y * (w / 2)),
        )
    )

    def centred(n: int) -> Tensor:
        return torch.linspace((1.0 - n) * 0.5, (n - 1.0) * 0.5, n, device=images.device)

    x, y = centred(w)[None, None, :], centred(h)[None, :, None]
    half_w, half_h = 0.5 * w, 0.5 * h
    # By way of -1..1 as torch's grid_sample, so that halves are rounded as there.
    column = ((x * (a / half_w) + y * (b_ / half_w) + c / half_w) + 1) * half_w - 0.5
    row = ((x * (d / half_h) + y * (e / half_h) + f / half_h) + 1) * half_h - 0.5
    column, row = column.round_().int(), row.round_().int()
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    # The last pixel of all is black. A pixel and a fourth byte make one int32: one index_select.
    packed = F.pad(images, (0, 1)).view(torch.int32).flatten()
    packed = torch.cat((packed, packed.new_zeros(1)))
    first = torch.arange(0, b * h * w, h * w, dtype=torch.int32, device=images.device)
    pixels = torch.where(inside, first[:, None, None] + row * w + column, b * h * w)
    moved = packed.index_select(0, pixels.flatten())
    return moved.view(torch.uint8).view(b, h, w, 4)[..., :3]


def floor_gray(images: Tensor) -> Tensor:
    """float32 [b, h, w] of whole numbers, with the weights of torchvision's `rgb_to_grayscale`."""
    red, green, blue = images.float().unbind(-1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _blend(images: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    """float32: factor * images + (1 - factor) * others, from 0 to 255."""
    scaled = images * factor.float()
    return torch.addcmul(scaled, others, (1 - factor).float()).clamp_(0, 255)


def _levels(images: Tensor, ops: Tensor, m: Tensor) -> Tensor:
    """What one table of 256 entries an image does."""
    level = torch.arange(256, dtype=torch.float32, device=images.device)[None]
    m = m[:, None]
    whole, cut = level.int(), torch.pow(2, 8 - m.clamp(0, 8).trunc()).int()
    mean = floor_gray(images).mean(dim=(1, 2))[:, None]
    tables = {
        "Brightness": (level * (1 + m).float()).clamp_(0, 255),
        "Contrast": _blend(level, mean, 1 + m),
        "Posterize": (whole - whole % cut).float(),
        "Solarize": torch.where(level >= (255.0 * m).float(), 255 - level, level),
    }
    table = (255 - level).expand(len(images), 256)  # Invert
    for name, values in tables.items():
        table = torch.where((ops == NUMBER[name])[:, None], values, table)
    return _looked_up(images, table)


def _looked_up(images: Tensor, tables: Tensor) -> Tensor:
    """The entries, cut to whole numbers, of [b, 256], or of [b, 3 * 256] by channel."""
    b, _, _, c = images.shape
    numbers = torch.arange(b, dtype=torch.int32, device=images.device).view(b, 1, 1, 1)
    places = numbers * tables.shape[1] + images
    if tables.shape[1] > 256:
        places = places + _channels(c, images.device)
    entries = tables.to(torch.uint8).flatten()
    return entries.index_select(0, places.flatten()).view(images.shape)


def _channels(c: int, device: torch.device) -> Tensor:
    return torch.arange(0, c * 256, 256, dtype=torch.int32, device=device)


def _by_histogram(images: Tensor, ops: Tensor, m: Tensor) -> Tensor:
    """AutoContrast and Equalize, channel by channel."""
    b, h, w, c = images.shape
    first = torch.arange(0, b * c * 256, c * 256, dtype=torch.int32, device=images.device)
    places = (first.view(b, 1, 1, 1) + _channels(c, images.device) + images).flatten()
    if images.device.type == "cpu":
        counts = torch.bincount(places, minlength=b * c * 256).int()
    else:  # which `bincount` would wait for; whole numbers add up alike in any order
        counts = torch.zeros(b * c * 256, dtype=torch.int32, device=images.device)
        counts.scatter_add_(0, places.long(), counts.new_ones(1).expand(len(places)))
    counts = counts.view(b, c, 256)
    level = torch.arange(256, dtype=torch.float32, device=images.device)
    stretch = (ops == NUMBER["AutoContrast"])[:, None, None]
    tables = torch.where(stretch, _stretched(level, counts), _equalised(level, counts, h * w))
    return _looked_up(images, tables.flatten(1))


def _stretched(level: Tensor, counts: Tensor) -> Tensor:
    """The table that takes the least value there is to 0 and the largest to 255."""
    there = (counts > 0).int()
    low = there.argmax(-1, keepdim=True).float()
    high = 255 - there.flip(-1).argmax(-1, keepdim=True).float()
    flat = high == low
    scale = torch.where(flat, 1.0, (high - low) * (1.0 / 255))
    return ((level - torch.where(flat, 0.0, low)) / scale).clamp_(0, 255)


def _equalised(level: Tensor, counts: Tensor, pixels: int) -> Tensor:
    """The table after which all values are about as frequent, as Pillow makes it."""
    total = counts.cumsum(-1, dtype=torch.int32)
    highest = 255 - (counts > 0).int().flip(-1).argmax(-1, keepdim=True)
    step = (pixels - counts.gather(-1, highest)).div(255, rounding_mode="floor")
    table = (total[..., :-1] + step // 2).div(step.clamp(min=1), rounding_mode="floor")
    return torch.where(step > 0, F.pad(table.clamp_(0, 255), (1, 0)).float(), level)


def _coloured(images: Tensor, ops: Tensor, m: Tensor) -> Tensor:
    """Away from the gray image, or towards it."""
    gray = floor_gray(images)[..., None]
    return _blend(images, gray, (1 + m)[:, None, None, None]).to(torch.uint8)


def _sharpened(images: Tensor, ops: Tensor, m: Tensor) -> Tensor:
    """Away from the smoothed image, or towards it; the outermost pixels stay."""
    if min(images.shape[1:3]) < 3:
        return images
    values = images.float()
    inner = values[:, 1:-1, 1:-1]
    across = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    box = across[:, :-2] + across[:, 1:-1] + across[:, 2:]
    smooth = (box + 4 * inner).div_(13).round_()
    share = -m.float()[:, None, None, None]
    sharp = torch.addcmul(inner, smooth.sub_(inner), share).clamp_(0, 255)
    result = images.clone()
    result[:, 1:-1, 1:-1] = sharp.to(torch.uint8)
    return result


def grayscale(images: Tensor) -> Tensor:
    """uint8 [b, h, w, 3], its channels equal: `F.rgb_to_grayscale` to three channels."""
    return floor_gray(images).to(torch.uint8)[..., None].expand(images.shape)


def shift_hue(images: Tensor, by: Tensor) -> Tensor:
    """The hue of each image turned by a share of the circle, floating [b]: `F.adjust_hue`."""
    values = images.float().div_(255)
    red, green, _ = values.unbind(-1)
    low, high = values.amin(-1), values.amax(-1)
    spread = high - low
    gray = spread == 0
    saturation = spread / torch.where(gray, 1.0, high)
    r, g, b = ((high[..., None] - values) / torch.where(gray, 1.0, spread)[..., None]).unbind(-1)
    sixth = torch.where(high == red, b - g, torch.where(high == green, 2 + r - b, 4 + g - r))
    hue = torch.where(gray, 0.0, sixth / 6 + 1).fmod(1.0)
    sixth = (hue + by.float()[:, None, None]).remainder(1.0) * 6
    # The channel n of a colour: V - V S max(0, min(k, 4 - k, 1)), k = (n + 6 H) mod 6.
    channels = []
    for n in (5, 3, 1):
        k = (n + sixth).remainder(6)
        down = torch.minimum(k, 4 - k).clamp(0, 1)
        channels.append(high * (1 - saturation * down))
    return torch.stack(channels, -1).mul_(255.0 + 1 - 1e-3).clamp_(0, 255).to(torch.uint8)


def blur(images: Tensor, sigma: Tensor, size: int) -> Tensor:
    """Each image by its own Gaussian: `F.gaussian_blur`, within a level of it.

    Args:
        sigma: floating [b], in pixels.
        size: of the kernel, odd.
    """
    reach = (size - 1) / (2 * math.sqrt(2.0))
    x = torch.linspace(-reach, reach, size, device=images.device)
    weights = (-((x / sigma.float()[:, None]) ** 2)).softmax(1)  # [b, size]
    values = images.float().permute(0, 3, 1, 2)
    values = F.pad(values, [size // 2] * 4, mode="reflect").permute(0, 2, 3, 1)
    _, h, w, _ = images.shape

    def along(values: Tensor, dim: int, n: int) -> Tensor:
        total: Any = 0
        for i in range(size):
            total = total + values.narrow(dim, i, n) * weights[:, i, None, None, None]
        return total

    smooth = along(along(values, 1, h), 2, w)
    return smooth.round_().clamp_(0, 255).to(torch.uint8)

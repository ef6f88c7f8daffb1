"""Augmentation of whole uint8 batches, on whatever device they are, with no host sync.

Every image has its own draws: int32, uniform in [0, 2**31). A draw modulo k is uniform over
0..k-1 to within k / 2**31.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop_flip(images: Tensor, draws: Tensor, padding: int, flip: bool) -> Tensor:
    """Pad with black, crop to the old size at one of (2 * padding + 1)^2 places, mirror half.

    He et al. 2015 (arXiv 1512.03385, section 4.2), with padding 4.

    Args:
        images: uint8 [b, h, w, 3].
        draws: int32 [b, 3], for the top, the left and the mirroring of each image.

    Returns:
        uint8 [b, h, w, 3], not contiguous.
    """
    if not padding and not flip:
        return images
    b, h, w, _ = images.shape
    # A pixel and a fourth byte make one int32, so one index_select moves a whole batch.
    packed = F.pad(images, (0, 1, padding, padding, padding, padding)).view(torch.int32)
    top, left = (draws[:, :2] % (2 * padding + 1)).unbind(1)

    def count(n: int) -> Tensor:
        return torch.arange(n, dtype=torch.int32, device=images.device)

    rows = top[:, None] + count(h)  # [b, h]
    columns = count(w).expand(b, w)
    if flip:
        mirrored = (draws[:, 2:3] & 1).bool()
        columns = torch.where(mirrored, w - 1 - columns, columns)
    columns = left[:, None] + columns  # [b, w]
    height, width = h + 2 * padding, w + 2 * padding
    rows = rows + height * count(b)[:, None]
    pixels = rows[:, :, None] * width + columns[:, None, :]  # [b, h, w]
    cropped = packed.flatten().index_select(0, pixels.flatten())
    return cropped.view(torch.uint8).view(b, h, w, 4)[..., :3]


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 [b, h, h, 3] -> [b, side, side, 3], bilinear, without aliasing."""
    if images.shape[1] == side:
        return images
    values = images.permute(0, 3, 1, 2).float()
    values = F.interpolate(values, size=(side, side), mode="bilinear", antialias=True)
    return values.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def scale_and_shift(
    mean: Sequence[float], std: Sequence[float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Two float32 [c] for `normalise`, from statistics of pixels that run from 0 to 1."""
    pairs = list(zip(mean, std, strict=True))
    scale, shift = [1 / (255 * s) for _, s in pairs], [-m / s for m, s in pairs]
    options: Any = {"dtype": torch.float32, "device": device}
    return torch.tensor(scale, **options), torch.tensor(shift, **options)


def gray(images: Tensor) -> Tensor:
    """uint8 [b, h, w, 3] -> [b, h, w, 1]: luma (ITU-R BT.601), to the bit as Pillow computes it."""
    red, green, blue = images.int().unbind(-1)
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).to(torch.uint8)[..., None]


def normalise(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(pixel / 255 - mean) / std, as one multiply-add.

    Args:
        images: uint8 [b, h, w, 3].
        scale, shift: float32 [c] of `scale_and_shift`; with one channel the images become `gray`.

    Returns:
        float32 [b, c, h, w], channels_last in memory.
    """
    channels = len(scale)
    if channels == 1:
        images = gray(images)
    b, h, w, _ = images.shape
    # By rows of w * c numbers: an inner dimension of 3 is too short to vectorise.
    lines = images.reshape(b * h, w * channels).float()
    # In place, because fresh memory of this size costs more than the arithmetic.
    torch.addcmul(shift.repeat(w), lines, scale.repeat(w), out=lines)
    return lines.view(b, h, w, channels).permute(0, 3, 1, 2)


def cutout(images: Tensor, draws: Tensor, size: int) -> Tensor:
    """Set a square of size x size to 0, the mean colour of normalised images.

    DeVries and Taylor 2017 (arXiv 1708.04552, section 3): the centre is any pixel of the image,
    so the square may hang over the border.

    Args:
        images: float32 [b, c, h, w], normalised.
        draws: int32 [b, 2], for the row and the column of each centre.
        size: side of the square in pixels.
    """
    h, w = images.shape[-2:]
    top, left = draws[:, 0] % h - size // 2, draws[:, 1] % w - size // 2
    return cutout_of(images, top, torch.full_like(top, size), left, torch.full_like(left, size))


def cutout_of(images: Tensor, top: Tensor, height: Tensor, left: Tensor, width: Tensor) -> Tensor:
    """Set a rectangle of each image to 0; it may hang over the border. All but images are [b]."""
    h, w = images.shape[-2:]
    above, across = within(top, height, h), within(left, width, w)
    hole = (above[:, :, None] & across[:, None, :])[:, None]  # [b, 1, h, w]
    return torch.where(hole, 0.0, images)  # keeps channels_last, as masked_fill would not


def within(start: Tensor, length: Tensor, n: int) -> Tensor:
    """bool [b, n]: which places are among the `length` from `start` on."""
    places = torch.arange(n, device=start.device)
    return (places >= start[:, None]) & (places < (start + length)[:, None])

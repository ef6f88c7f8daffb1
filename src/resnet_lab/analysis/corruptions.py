"""Corrupted images in five levels, after Hendrycks and Dietterich 2019, arXiv 1903.12261.

Their kinds of corruption, but made here and with strengths of our own: the images are not those of
CIFAR-10-C, and figures cannot be compared with published ones. Lengths (of a blur, of a coarse
pixel) are for images of 32 pixels and grow with the image.
"""

import io
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

LEVELS = 5  # besides level 0, the image as it is
SIDE = 32  # pixels, for which the lengths below are

# x is float32 [n, channels, h, w] from 0 to 1; the generators are one for each image.
Generators = list[np.random.Generator]


def gaussian_noise(x: Tensor, sd: float, draws: Generators) -> Tensor:
    """Noise of a standard deviation, as in poor light."""
    noise = [one.standard_normal(x.shape[1:], dtype=np.float32) for one in draws]
    return x + sd * torch.from_numpy(np.stack(noise))


def shot_noise(x: Tensor, photons: float, draws: Generators) -> Tensor:
    """Counted photons: so many of them are white."""
    counts = [one.poisson(photons * image.numpy()) for one, image in zip(draws, x, strict=True)]
    return torch.from_numpy(np.stack(counts)).float() / photons


def impulse_noise(x: Tensor, share: float, draws: Generators) -> Tensor:
    """A share of the values becomes 0 or 1, as from dead pixels."""
    u = torch.from_numpy(np.stack([one.random(x.shape[1:]) for one in draws]))
    return torch.where(u < share, (u < share / 2).float(), x)


def gaussian_blur(x: Tensor, sigma: float, draws: Generators) -> Tensor:
    """A Gaussian of so many pixels."""
    sigma *= _scale(x)
    reach = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    line = torch.exp(-(reach**2) / (2 * sigma**2))
    return _filtered(x, line[:, None] * line)


def defocus_blur(x: Tensor, radius: float, draws: Generators) -> Tensor:
    """The disk of a lens out of focus, its edge smooth over a pixel."""
    radius *= _scale(x)
    reach = torch.arange(-math.ceil(radius), math.ceil(radius) + 1)
    distance = torch.hypot(reach[:, None].float(), reach[None].float())
    return _filtered(x, (radius + 0.5 - distance).clamp(0, 1))


def motion_blur(x: Tensor, length: float, draws: Generators) -> Tensor:
    """The mean along a line of so many pixels, in each image of a direction of its own."""
    n, _, h, w = x.shape
    angles = torch.tensor([one.uniform(0, math.pi) for one in draws], dtype=torch.float32)
    length *= _scale(x)
    steps = 2 * math.ceil(length) + 1
    shift = torch.zeros(n, 2, 3) + torch.eye(2, 3)
    total = torch.zeros_like(x)
    for place in torch.linspace(-length / 2, length / 2, steps).tolist():
        # A shift of 2 is the whole side.
        shift[:, 0, 2], shift[:, 1, 2] = 2 * place * angles.cos() / w, 2 * place * angles.sin() / h
        grid = F.affine_grid(shift, list(x.shape), align_corners=False)
        total += F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return total / steps


def fog(x: Tensor, thickness: float, draws: Generators) -> Tensor:
    """A white veil, thinner in some places than in others; coarse and fine clouds in it."""
    clouds = torch.zeros(len(x), 1, *x.shape[2:])
    for cells in (2, 4, 8):
        coarse = torch.from_numpy(np.stack([one.random((1, cells, cells)) for one in draws]))
        clouds += F.interpolate(coarse.float(), x.shape[2:], mode="bicubic") / cells
    low, high = clouds.amin((1, 2, 3), keepdim=True), clouds.amax((1, 2, 3), keepdim=True)
    veil = thickness * (0.6 + 0.4 * (clouds - low) / (high - low).clamp(min=1e-6))
    return x * (1 - veil) + veil


def brightness(x: Tensor, added: float, draws: Generators) -> Tensor:
    """All values larger by so much."""
    return x + added


def contrast(x: Tensor, kept: float, draws: Generators) -> Tensor:
    """Only a share of each channel's distance to its mean over the image is kept."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + kept * (x - mean)


def pixelate(x: Tensor, size: float, draws: Generators) -> Tensor:
    """Coarse pixels, each the mean of an area of so many pixels a side."""
    for dim in (2, 3):
        fine = x.shape[dim]
        coarse = max(1, round(fine / max(1.0, size * _scale(x))))
        # [coarse, fine]: how much of each fine pixel lies in each coarse one
        edges = torch.arange(coarse + 1)[:, None] * (fine / coarse) - torch.arange(fine)
        inside = edges.clamp(0, 1).diff(dim=0)
        through = inside.T @ inside / inside.sum(dim=1).mean()
        x = torch.tensordot(x, through, dims=([dim], [0])).movedim(-1, dim)
    return x


def jpeg(x: Tensor, quality: float, draws: Generators) -> Tensor:
    """Saved as JPEG of this quality, by Pillow; images of neither 1 nor 3 channels by channel."""
    pixels = _to_uint8(x).permute(0, 2, 3, 1)
    if x.shape[1] not in (1, 3):
        return torch.cat([jpeg(x[:, [n]], quality, draws) for n in range(x.shape[1])], dim=1)
    found = []
    for image in pixels.numpy():
        file = io.BytesIO()
        Image.fromarray(image if x.shape[1] == 3 else image[..., 0]).save(
            file, "JPEG", quality=round(quality)
        )
        found.append(np.array(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class Corruption:
    """One kind: `strengths` of levels 1 to 5 for `make`."""

    name: str
    make: Callable[[Tensor, float, Generators], Tensor]
    strengths: tuple[float, ...]


CORRUPTIONS = tuple(
    Corruption(make.__name__, make, strengths)
    for make, strengths in (
        (gaussian_noise, (0.03, 0.05, 0.08, 0.12, 0.18)),
        (shot_noise, (500, 180, 70, 30, 12)),
        (impulse_noise, (0.01, 0.02, 0.04, 0.08, 0.15)),
        (gaussian_blur, (0.4, 0.55, 0.75, 1.0, 1.4)),
        (defocus_blur, (0.6, 0.9, 1.25, 1.7, 2.3)),
        (motion_blur, (1.5, 2.5, 3.5, 5.0, 7.0)),
        (fog, (0.25, 0.4, 0.55, 0.7, 0.8)),
        (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
        (contrast, (0.7, 0.5, 0.35, 0.22, 0.12)),
        (pixelate, (1.25, 1.6, 2.0, 2.7, 4.0)),
        (jpeg, (60, 40, 25, 15, 8)),
    )
)


def corrupt(pixels: Tensor, corruption: Corruption, level: int, seed: int = 0) -> Tensor:
    """The images, corrupted.

    What is random depends on the seed, the kind and the image itself: an image is corrupted alike
    alone and among others, and its levels share their draws.

    Args:
        pixels: uint8 [n, h, w, channels].
        level: 0 (as they are) to 5.

    Returns:
        uint8 [n, h, w, channels], a new tensor.
    """
    if level == 0:
        return pixels.clone()
    kind = zlib.crc32(corruption.name.encode())
    draws = [
        np.random.default_rng([seed, kind, zlib.crc32(image.tobytes())])
        for image in np.ascontiguousarray(pixels.numpy())
    ]
    x = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
    made = corruption.make(x, corruption.strengths[level - 1], draws)
    return _to_uint8(made).permute(0, 2, 3, 1).contiguous()


def conditions() -> Iterator[tuple[Corruption, int]]:
    """Every kind at every level but 0."""
    for corruption in CORRUPTIONS:
        for level in range(1, LEVELS + 1):
            yield corruption, level


@dataclass(frozen=True)
class Robustness:
    """Accuracies of one net, from 0 to 1.

    Attributes:
        clean: on the images as they are.
        levels: by the name of each corruption, of levels 1 to 5.
    """

    clean: float
    levels: dict[str, tuple[float, ...]]

    @property
    def means(self) -> dict[str, float]:
        """By the name of each corruption, the mean over its levels."""
        return {name: sum(found) / len(found) for name, found in self.levels.items()}

    @property
    def mean(self) -> float:
        """The mean over all corruptions and levels."""
        return sum(self.means.values()) / len(self.levels)

    @property
    def by_level(self) -> tuple[float, ...]:
        """The mean over the corruptions, of each level."""
        columns = zip(*self.levels.values(), strict=True)
        return tuple(sum(column) / len(column) for column in columns)


def study(
    accuracy: Callable[[Tensor], float],
    pixels: Tensor,
    seed: int,
    over: Callable[[list[tuple[Corruption, int]]], Iterable[tuple[Corruption, int]]] = iter,
) -> Robustness:
    """Measure a net on every corruption.

    Args:
        accuracy: of the net on uint8 images [n, h, w, channels] that stand for `pixels`.
        over: gives the conditions on, and may show how far they are.
    """
    clean = accuracy(pixels)
    found: dict[str, list[float]] = {}
    for corruption, level in over(list(conditions())):
        corrupted = corrupt(pixels, corruption, level, seed)
        found.setdefault(corruption.name, []).append(accuracy(corrupted))
    return Robustness(clean, {name: tuple(levels) for name, levels in found.items()})


def _scale(x: Tensor) -> float:
    """The side of the images beside one of 32 pixels."""
    return min(x.shape[2:]) / SIDE


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel convolved with `kernel` [k, k], brought to sum 1; edges are repeated."""
    n, channels, h, w = x.shape
    planes = x.reshape(n * channels, 1, h, w)
    reach = len(kernel) // 2
    padded = F.pad(planes, (reach,) * 4, mode="replicate")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None]).reshape(x.shape)


def _to_uint8(x: Tensor) -> Tensor:
    return (255 * x).round().clamp(0, 255).to(torch.uint8)

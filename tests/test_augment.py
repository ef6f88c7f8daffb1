"""Augmentation of batches against plain NumPy, and its exact range."""

import numpy as np
import pytest
import torch

from resnet_lab.data.augment import cutout, normalise, random_crop_flip, scale_and_shift
from resnet_lab.data.plan import TrainPlan


def random_images(b: int, h: int, w: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (b, h, w, 3), dtype=np.uint8))


def draws_of(n: int, columns: int) -> torch.Tensor:
    return torch.from_numpy(TrainPlan(n, 1, seed=0, epoch=0).draws[:, :columns].copy())


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(32, 32), (5, 7)])
def test_crop_and_flip_equal_numpy(padding: int, flip: bool, shape: tuple[int, int]) -> None:
    images, draws = random_images(64, *shape), draws_of(64, 3)
    h, w = shape
    border = (padding, padding)
    wanted = []
    for image, (top, left, mirror) in zip(images.numpy(), draws.tolist(), strict=True):
        padded = np.pad(image, (border, border, (0, 0)))
        y, x = top % (2 * padding + 1), left % (2 * padding + 1)
        crop = padded[y : y + h, x : x + w]
        wanted.append(crop[:, ::-1] if flip and mirror % 2 else crop)
    got = random_crop_flip(images, draws, padding, flip)
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got.numpy(), np.stack(wanted))


def test_all_81_offsets_occur_uniformly_and_half_are_mirrored() -> None:
    n = 16200  # 200 for each offset
    # Each pixel says where it is, so the crop says where it was taken.
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    image = torch.stack([rows + 1, columns + 1, torch.zeros_like(rows)], dim=-1).to(torch.uint8)
    crops = random_crop_flip(image.expand(n, 9, 9, 3), draws_of(n, 3), 4, flip=True)
    centre = crops[:, 4, 4].long() - 1  # the middle column stays in the middle when mirrored
    offsets = centre[:, 0] * 9 + centre[:, 1]
    counts = torch.bincount(offsets, minlength=81)
    assert counts.shape == (81,)
    assert ((counts - 200) ** 2 / 200).sum() < 124.8  # 80 degrees of freedom, 1 in 1,000
    mirrored = crops[:, 4, 3, 1].long() > crops[:, 4, 5, 1].long()
    # A column of padding hides the direction at the extreme offsets; look at the others.
    seen = (centre[:, 1] > 0) & (centre[:, 1] < 8)
    assert mirrored[seen].float().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout_equals_numpy(size: int) -> None:
    images, draws = torch.rand(50, 3, 8, 6) + 1, draws_of(50, 2)
    wanted = images.numpy().copy()
    for image, (row, column) in zip(wanted, draws.tolist(), strict=True):
        top, left = row % 8 - size // 2, column % 6 - size // 2
        image[:, max(top, 0) : top + size, max(left, 0) : left + size] = 0
    np.testing.assert_array_equal(cutout(images, draws, size).numpy(), wanted)


def test_cutout_centres_are_any_pixel() -> None:
    holes = cutout(torch.ones(4000, 3, 5, 5), draws_of(4000, 2), 1) == 0
    assert (holes.flatten(1).sum(dim=1) == 3).all()
    counts = holes[:, 0].sum(dim=0).flatten()  # 160 for each of 25
    assert ((counts - 160) ** 2 / 160).sum() < 51.2  # 24 degrees of freedom, 1 in 1,000


def test_normalise_is_exact_and_channels_last() -> None:
    images = random_images(16, 5, 7)
    mean, std = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
    got = normalise(images, *scale_and_shift(mean, std, images.device))
    wanted = (images.double().numpy() / 255 - mean) / std
    assert got.shape == (16, 3, 5, 7)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), wanted, atol=1e-6)


def test_an_image_keeps_its_augmentation_in_any_batch() -> None:
    images, draws = random_images(12, 8, 8), draws_of(12, 3)
    whole = random_crop_flip(images, draws, 2, flip=True)
    parts = [random_crop_flip(images[i : i + 4], draws[i : i + 4], 2, True) for i in (0, 4, 8)]
    assert torch.equal(whole, torch.cat(parts))

"""Contenders that make batches and do nothing with them: the data pipeline alone."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from resnet_lab.bench.common import train_loader
from resnet_lab.bench.gate import Gate
from resnet_lab.bench.noise import MEAN, STD, Noise
from resnet_lab.bench.training import SKIP
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.data.sources import ImageFolder

PHOTO_SIZE = 224
PHOTO_BATCH = 32


def small(gate: Gate, work: Path, style: str, workers: int, steps: int) -> None:
    """Batches of 128 images of 32x32, cropped by padding 4, flipped and normalised."""
    source = Noise(str(work), str(work / "cache"))
    if style == "ours":
        data = ImageDataModule(source=source, mean=MEAN, std=STD, cache_dir=source.cache_dir)
        data.setup("fit")
        batches = _augmented(data)
    elif style == "torchvision":
        batches = _repeated(train_loader(source, workers))
    else:
        images = torch.from_numpy(source.images("train", 32).transpose(0, 3, 1, 2).copy())
        batches = masked(images)
    _run(gate, batches, steps)


def photos(gate: Gate, root: Path, style: str, workers: int, steps: int) -> None:
    """Batches of 32 photographs, random-resized-cropped to 224 pixels, flipped and normalised."""
    if style == "ours":
        data = ImageDataModule(
            source=ImageFolder(str(root), str(root / "cache")),
            batch_size=PHOTO_BATCH,
            image_size=PHOTO_SIZE,
            mean=MEAN,
            std=STD,
            val_size=0,
            workers=workers,
        )
        data.setup("fit")
        batches = _augmented(data)
    else:
        transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(PHOTO_SIZE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )
        batches = _repeated(
            DataLoader(
                datasets.ImageFolder(str(root / "train"), transform),
                batch_size=PHOTO_BATCH,
                shuffle=True,
                drop_last=True,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
        )
    _run(gate, batches, steps)


def _run(gate: Gate, batches: Iterator[Any], steps: int) -> None:
    gate.wait()
    while True:
        for _ in range(SKIP):  # made ahead by workers, while the others had their turns
            next(batches)
        images = 0
        began = time.perf_counter()
        for _ in range(steps):
            images += len(next(batches)[1])
        gate.wait(seconds=time.perf_counter() - began, images=images, steps=steps)


def _augmented(data: ImageDataModule) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches by the path that the trainer takes, one epoch after another."""
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            yield data.on_after_batch_transfer(batch)


def _repeated(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def masked(images: Tensor, batch_size: int = 128, padding: int = 4) -> Iterator[tuple[Any, Any]]:
    """A crop for a whole batch by masks: for each offset, all images that drew it are cut at once.

    First the rows, then the columns, 9 masks each rather than 81 for both; in uint8, which is
    quicker than after normalising.

    Args:
        images: uint8 [n, 3, h, w].
    """
    n, _, height, width = images.shape
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (MEAN, STD))
    while True:
        order = torch.randperm(n)
        for start in range(0, n - batch_size + 1, batch_size):
            indices = order[start : start + batch_size]
            batch = F.pad(images[indices], (padding,) * 4)
            top, left = torch.randint(0, 2 * padding + 1, (2, batch_size))
            rows = torch.empty(batch_size, 3, height, width + 2 * padding, dtype=torch.uint8)
            cropped = torch.empty(batch_size, 3, height, width, dtype=torch.uint8)
            for offset in range(2 * padding + 1):
                mask = top == offset
                rows[mask] = batch[mask, :, offset : offset + height]
            for offset in range(2 * padding + 1):
                mask = left == offset
                cropped[mask] = rows[mask, :, :, offset : offset + width]
            flip = torch.rand(batch_size, 1, 1, 1) < 0.5
            flipped = torch.where(flip, cropped.flip(3), cropped)
            yield (flipped / 255 - mean) / std, indices

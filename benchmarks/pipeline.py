"""Contenders that make batches and do nothing with them: the data pipeline alone."""

import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.common import train_loader
from benchmarks.data import MEAN, STD, Noise
from benchmarks.training import SKIP
from benchmarks.turns import Gate
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.data.sources import ImageFolder

PHOTO_SIZE = 224
PHOTO_BATCH = 32


def small(
    gate: Gate, work: Path, style: str, workers: int, steps: int, policy: str | None = None
) -> None:
    """Batches of 128 images of 32x32, cropped by padding 4, flipped and normalised.

    Args:
        style: torchvision, image by image; kornia, batch by batch; else this project's.
        policy: what is done besides, as `data.augment.policy`.
    """
    source = Noise(str(work), str(work / "cache"))
    if style == "torchvision":
        _run(gate, _repeated(train_loader(source, workers, policy=policy)), steps)
    data = ImageDataModule(
        source=source,
        mean=MEAN,
        std=STD,
        cache_dir=source.cache_dir,
        augment={"policy": None if style == "kornia" else policy},
    )
    batches = _augmented(data)
    _run(gate, _by_kornia(batches, str(policy)) if style == "kornia" else batches, steps)


def _by_kornia(batches: Iterator[tuple[Tensor, Tensor]], policy: str) -> Iterator[Any]:
    """The same batches with kornia's policy on top, which takes floats from 0 to 1."""
    auto = importlib.import_module("kornia.augmentation.auto")
    policies = {"trivial": auto.TrivialAugment, "auto_cifar10": lambda: auto.AutoAugment("cifar10")}
    change = {**policies, "rand": lambda: auto.RandAugment(n=2, m=9)}[policy]()
    for images, labels in batches:
        yield change(images.clamp(0, 1).contiguous()), labels


def photos(gate: Gate, root: Path, style: str, workers: int, steps: int) -> None:
    """Batches of 32 photographs, random-resized-cropped to 224 pixels, flipped and normalised."""
    if style == "torchvision":
        transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(PHOTO_SIZE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )
        loader: DataLoader[Any] = DataLoader(
            datasets.ImageFolder(str(root / "train"), transform),
            batch_size=PHOTO_BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        _run(gate, _repeated(loader), steps)
    data = ImageDataModule(
        source=ImageFolder(str(root), str(root / "cache")),
        batch_size=PHOTO_BATCH,
        image_size=PHOTO_SIZE,
        mean=MEAN,
        std=STD,
        val_size=0,
        workers=workers,
    )
    _run(gate, _augmented(data), steps)


def _run(gate: Gate, batches: Iterator[Any], steps: int) -> None:
    """Turns without end."""
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
    """Training batches as the trainer gets them, one epoch after another."""
    data.setup("fit")
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            yield data.prepare(batch)


def _repeated(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader

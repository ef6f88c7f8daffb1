"""Synthetic data of real shapes, so that the benchmark downloads nothing; imports no torch."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from resnet_lab.data.cache import digest
from resnet_lab.data.sources import CIFAR10
from resnet_lab.data.sources.arrays import Arrays

MEAN, STD = [0.5, 0.5, 0.5], [0.289, 0.289, 0.289]  # of pixels uniform in 0..1
NOISE = ("data=cifar10", "data.source._target_=benchmarks.data.Noise")  # overrides of train.py


class Noise(CIFAR10):
    """CIFAR-10 with noise for pixels: `n` training and n / 5 test images, cached as CIFAR-10 is."""

    name = "noise"

    def __init__(self, root: str, cache_dir: str, n: int = 50_000) -> None:
        super().__init__(root, cache_dir)
        self.n = n

    def fingerprint(self, split: str) -> str:
        return digest(self.name, split, self.n)

    def _load(self, split: str) -> Arrays:
        n = self.n if split == "train" else self.n // 5
        random = np.random.default_rng(0 if split == "train" else 1)
        images = random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(n, dtype=np.int64) % self.num_classes
        return Arrays(images, labels, [f"class{i}" for i in range(self.num_classes)])


def photographs(root: Path, n: int, copies: int, classes: int = 10) -> None:
    """An image folder (train/ and test/) of n JPEG files from 400x300 to 1600x1200 pixels.

    Smoothed noise of several scales, which compresses about as photographs do at quality 90. Every
    file of train/ is there `copies` times, by hard links: an epoch can be long while the disk and
    the page cache hold each photograph once.
    """
    random = np.random.default_rng(0)
    for i in range(n):
        width = int(random.integers(400, 1601))
        size = (width, width * 3 // 4)
        image = Image.new("RGB", size)
        for cells, weight in ((4, 1.0), (16, 0.5), (64, 0.35), (256, 0.2)):
            coarse = random.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
            layer = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            image = Image.blend(image, layer, weight)
        paths = [
            root / split / f"class{i % classes}" / f"{i:04}.jpg" for split in ("train", "test")
        ]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        image.filter(ImageFilter.UnsharpMask()).save(paths[0], quality=90)
        for copy in range(1, copies):
            os.link(paths[0], paths[0].with_name(f"{i:04}-{copy}.jpg"))
        if i < classes:
            os.link(*paths)

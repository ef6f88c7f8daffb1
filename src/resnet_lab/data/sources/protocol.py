"""What every source of images offers, and how it sees that a file has changed."""

import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
from PIL import Image

from resnet_lab.data.decode import to_rgb

Make = Callable[[Image.Image], Image.Image]


class Source(Protocol):
    """What the datamodule asks of a set of images. They keep their index from run to run."""

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train" and "test", and "val" where the set brings its own."""

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> list[str]:
        """In the order of the labels, and `files.printable`."""

    @property
    def own_size(self) -> int | None:
        """The side in pixels where every training image is a square of that side, else None."""

    def fingerprint(self, split: str) -> str:
        """A word that changes whenever a file of the split does (path, size or mtime)."""

    def labels(self, split: str) -> np.ndarray:
        """int64 [n], the class of every image."""

    def images(self, split: str, image_size: int) -> np.ndarray:
        """uint8 [n, image_size, image_size, 3], read-only, memory-mapped from the cache."""

    def read(self, split: str, index: int, make: Make = to_rgb) -> Image.Image:
        """What `make` gives for one image, opened but not decoded: it may need less than all."""

    def describe(self, split: str, index: int) -> str:
        """A name for one image, `files.printable`: its path under the root, or "train[17]"."""


def stamp(name: str, stat: os.stat_result) -> tuple[str, int, int]:
    """What a fingerprint takes from a file."""
    return name, stat.st_size, stat.st_mtime_ns

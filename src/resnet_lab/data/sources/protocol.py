"""What every source of images offers, and how it sees that a file has changed."""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from resnet_lab.data.cache import CACHE_FORMAT, digest
from resnet_lab.data.decode import to_rgb
from resnet_lab.data.statistics import evenly_spaced

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
        """A word that changes whenever a file of the split does (see `fingerprint`)."""

    def labels(self, split: str) -> np.ndarray:
        """int64 [n], the class of every image."""

    def images(self, split: str, image_size: int) -> np.ndarray:
        """uint8 [n, image_size, image_size, 3], read-only, memory-mapped from the cache."""

    def read(self, split: str, index: int, make: Make = to_rgb) -> Image.Image:
        """What `make` gives for one image, opened but not decoded: it may need less than all."""

    def describe(self, split: str, index: int) -> str:
        """A name for one image, `files.printable`: its path under the root, or "train[17]"."""


Stamp = tuple[str, int, int, int, int]
SAMPLE, SAMPLE_BYTES = 16, 2**16  # files of a split whose content counts, and how much of each


def stamp(name: str, stat: os.stat_result) -> Stamp:
    """What a fingerprint takes from a file: a copy that keeps size and mtime has another inode, and
    one that was written in place another ctime."""
    return name, stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns


def fingerprint(root: str, stamps: Sequence[Stamp], *more: object) -> str:
    """What names the files of a split below `root`: where they lie, their stamps, and what a few of
    them hold. `more` are other parts of the name."""
    contents = []
    for index in evenly_spaced(len(stamps), SAMPLE):
        try:
            with open(os.path.join(root, stamps[index][0]), "rb") as file:
                contents.append(hashlib.blake2b(file.read(SAMPLE_BYTES)).hexdigest())
        except OSError as error:  # which is named where the image is read
            contents.append(str(error.errno))
    return digest(CACHE_FORMAT, *more, os.path.realpath(root), stamps, contents)

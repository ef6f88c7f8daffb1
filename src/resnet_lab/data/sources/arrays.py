"""Sets that come as arrays of one size rather than as files, one per image; digits are one."""

import json
import os
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image

from resnet_lab.data.cache import CACHE_FORMAT, cached, cached_images, digest, entry, open_images
from resnet_lab.data.decode import fit, to_rgb
from resnet_lab.data.plan import split_validation
from resnet_lab.data.sources.protocol import Make
from resnet_lab.files import read_json


class Arrays(NamedTuple):
    """One split of a set."""

    images: np.ndarray  # uint8 [n, own_size, own_size, 3]
    labels: np.ndarray  # int64 [n]
    class_names: list[str]


class ArraySource:
    """A `Source` but for `fingerprint` and `_load`, which a set adds."""

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    num_classes: ClassVar[int]
    own_size: ClassVar[int] = 32

    def __init__(self, cache_dir: str) -> None:
        self.cache_dir = os.path.expanduser(cache_dir)
        self._open: dict[str, Arrays] = {}

    def fingerprint(self, split: str) -> str:
        raise NotImplementedError

    def _load(self, split: str) -> Arrays:
        """The arrays from where they come from: slow, done once."""
        raise NotImplementedError

    def _arrays(self, split: str) -> Arrays:
        if split not in self._open:

            def write(folder: Path) -> None:
                images, labels, class_names = self._load(split)
                np.save(folder / "images.npy", images)
                np.save(folder / "labels.npy", labels)
                (folder / "classes.json").write_text(json.dumps(class_names))

            def read(folder: Path) -> Arrays:
                labels: np.ndarray = np.load(folder / "labels.npy")
                images = open_images(folder, len(labels), self.own_size)
                return Arrays(images, labels, read_json(folder / "classes.json"))

            folder = entry(self.cache_dir, f"{self.name}-{split}", self.fingerprint(split))
            self._open[split] = cached(folder, write, read)
        return self._open[split]

    @property
    def class_names(self) -> list[str]:
        return self._arrays("train").class_names

    def labels(self, split: str) -> np.ndarray:
        return self._arrays(split).labels

    def images(self, split: str, image_size: int) -> np.ndarray:
        images = self._arrays(split).images
        if image_size == self.own_size:
            return images
        what = f"{self.name}-{split}-{image_size}"
        folder = entry(self.cache_dir, what, self.fingerprint(split))
        decode = partial(self.read, split, make=partial(fit, size=image_size))
        return cached_images(folder, len(images), image_size, decode, what)

    def read(self, split: str, index: int, make: Make = to_rgb) -> Image.Image:
        return make(Image.fromarray(np.asarray(self._arrays(split).images[index])))

    def describe(self, split: str, index: int) -> str:
        return f"{split}[{index}]"


class Digits(ArraySource):
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8, brought to 32x32 RGB.

    They come with scikit-learn, so nothing is downloaded. A fifth, stratified and the same
    whatever the run's seed, is the test split. Source: E. Alpaydin and C. Kaynak, "Optical
    Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """

    name = "digits"
    num_classes = 10

    def fingerprint(self, split: str) -> str:
        return digest(CACHE_FORMAT, self.name, split)

    def _load(self, split: str) -> Arrays:
        from sklearn.datasets import load_digits

        digits = load_digits()
        labels = digits.target.astype(np.int64)
        train, test = split_validation(labels, 0.2, seed=0)
        indices = train if split == "train" else test
        grey = np.rint(digits.images[indices] * (255 / 16)).astype(np.uint8)
        images = np.stack([np.asarray(fit(Image.fromarray(g).convert("RGB"), 32)) for g in grey])
        return Arrays(images, labels[indices], [str(name) for name in digits.target_names])

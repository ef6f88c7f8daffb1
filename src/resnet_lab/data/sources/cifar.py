"""CIFAR-10 and CIFAR-100, which torchvision downloads, verifies and unpacks."""

import os
import warnings
from contextlib import ExitStack, suppress
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from resnet_lab.config.errors import UserError
from resnet_lab.data.cache import CACHE_FORMAT, digest
from resnet_lab.data.sources.arrays import Arrays, ArraySource
from resnet_lab.data.sources.protocol import stamp
from resnet_lab.files import printable


class CIFAR10(ArraySource):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in ten classes.

    The archive is taken from `root`, or downloaded into it where `download` is set. torchvision
    verifies the checksum of every file in it before it unpickles any. Source: A. Krizhevsky,
    "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    name = "cifar10"
    num_classes = 10

    def __init__(self, root: str, cache_dir: str, download: bool = True) -> None:
        super().__init__(cache_dir)
        self.root = os.path.expanduser(root)
        self.download = download

    def fingerprint(self, split: str) -> str:
        if not all(path.exists() for path in self._files):
            self._unpack()
        lock = Path(self.root, f"{self._torchvision.filename}.lock")
        if lock.exists():  # another process may still be unpacking the last file
            with suppress(OSError), FileLock(lock):
                pass
        # Name, size and mtime alone: whatever gets into the cache has the right checksum.
        stamps = [stamp(path.name, path.stat())[:3] for path in self._files]
        return digest(CACHE_FORMAT, self.name, split, stamps)

    @cached_property
    def _torchvision(self) -> Any:
        import torchvision

        return getattr(torchvision.datasets, self.name.upper())

    @property
    def _files(self) -> list[Path]:
        cifar = self._torchvision
        names = [name for name, _ in cifar.train_list + cifar.test_list] + [cifar.meta["filename"]]
        return [Path(self.root, cifar.base_folder, name) for name in names]

    def _unpack(self) -> None:
        """Have the files unpacked from the archive, which is downloaded where it is not there."""
        from torchvision.datasets.utils import check_integrity

        cifar, root = self._torchvision, Path(self.root).resolve()
        archive, shown = root / cifar.filename, printable(str(root))
        if not (self.download or archive.exists()):
            raise UserError(
                f"{shown} holds neither {cifar.base_folder} nor {archive.name}; give "
                "data.root=... where one of them is"
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{archive}.lock"), ExitStack() as after:
                if not archive.exists():  # what a broken download leaves is not the archive
                    after.callback(archive.unlink, missing_ok=True)
                elif not check_integrity(archive, cifar.tgz_md5):  # torchvision overwrites such
                    raise UserError(f"{shown}/{archive.name} has the wrong checksum; replace it")
                self._dataset(download=True)
                after.pop_all()  # it is whole
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(
                f"cannot download or unpack {cifar.url} ({error}); put {archive.name} into "
                f"{shown}, or use data=digits, which needs no network"
            ) from error

    def _dataset(self, **options: bool) -> Any:
        with warnings.catch_warnings():
            # The archive was pickled by a NumPy that wrote 0 for False; 2.4.0 to 2.4.4 mind.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            # Earlier torchvision under Python 3.12: the checksum says more than a filter.
            warnings.filterwarnings("ignore", "Python 3.14 will.*filter", DeprecationWarning)
            return self._torchvision(self.root, **options)

    def _load(self, split: str) -> Arrays:
        try:
            cifar = self._dataset(train=split == "train")
        except RuntimeError as error:  # torchvision's word for a wrong checksum
            raise UserError(
                f"a file in {printable(str(self._files[0].parent))} has the wrong checksum; remove "
                "that folder, and it is unpacked again"
            ) from error
        return Arrays(cifar.data, np.array(cifar.targets, dtype=np.int64), cifar.classes)


class CIFAR100(CIFAR10):
    """CIFAR-100: as CIFAR-10, in a hundred classes (the "fine" labels)."""

    name = "cifar100"
    num_classes = 100

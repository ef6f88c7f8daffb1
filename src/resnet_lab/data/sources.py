"""Sources: something on disk turned into uint8 images and labels, decoded once and cached."""

import hashlib
import json
import os
import socket
import tarfile
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import cached_property, partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from PIL import Image

from resnet_lab.config.errors import UserError
from resnet_lab.data.cache import cached, cached_json, open_images, progress, write_images
from resnet_lab.data.decode import EXTENSIONS, fit, open_image, reason, to_rgb
from resnet_lab.data.plan import split_validation

Make = Callable[[Image.Image], Image.Image]

CACHE_FORMAT = 2  # part of every key: raise it when the same files are to give other pixels
STRAY_FOLDERS = {"__MACOSX", "@eaDir", "lost+found"}  # what systems leave behind, hidden ones apart
MOST_NAMED = 20  # in an error; who has more faults than that sees how many


class Source(Protocol):
    """What the datamodule asks of a set of labelled images.

    Splits are "train" and "test", and "val" where the set brings its own. Images keep their
    index in a split from run to run.
    """

    @property
    def splits(self) -> tuple[str, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> list[str]: ...

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
        """A name for one image: its path under the root, or "train[17]"."""


def entry(cache_dir: str, what: str, key: str) -> Path:
    return Path(cache_dir) / f"{what}-{key}"


def digest(*parts: object) -> str:
    """A short key that differs when any of the parts does."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def stamp(name: str, stat: os.stat_result) -> tuple[str, int, int]:
    return name, stat.st_size, stat.st_mtime_ns


class Arrays(NamedTuple):
    images: np.ndarray  # uint8 [n, own_size, own_size, 3]
    labels: np.ndarray  # int64 [n]
    class_names: list[str]


class _ArraySource:
    """The sets that come as arrays of one size rather than as files, one per image."""

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    num_classes: ClassVar[int]
    own_size: ClassVar[int] = 32

    def __init__(self, cache_dir: str) -> None:
        self.cache_dir = cache_dir
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
                class_names = json.loads((folder / "classes.json").read_text())
                return Arrays(open_images(folder, len(labels), self.own_size), labels, class_names)

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
        return cached(
            entry(self.cache_dir, what, self.fingerprint(split)),
            lambda folder: write_images(
                folder,
                len(images),
                image_size,
                lambda index: np.asarray(fit(self.read(split, index), image_size)),
                what,
            ),
            lambda folder: open_images(folder, len(images), image_size),
        )

    def read(self, split: str, index: int, make: Make = to_rgb) -> Image.Image:
        return make(Image.fromarray(np.asarray(self._arrays(split).images[index])))

    def describe(self, split: str, index: int) -> str:
        return f"{split}[{index}]"


class Digits(_ArraySource):
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


class CIFAR10(_ArraySource):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in ten classes.

    The archive is taken from `root`, or downloaded into it; its checksum and that of every file in
    it are verified before anything is unpickled (by torchvision). Source: A. Krizhevsky, "Learning
    Multiple Layers of Features from Tiny Images", 2009.
    """

    name = "cifar10"
    num_classes = 10
    torchvision_class = "CIFAR10"

    def __init__(self, root: str, cache_dir: str) -> None:
        super().__init__(cache_dir)
        self.root = root

    def fingerprint(self, split: str) -> str:
        try:
            stamps = [stamp(path.name, path.stat()) for path in self._files]
        except FileNotFoundError:
            self._fetch()
            stamps = [stamp(path.name, path.stat()) for path in self._files]
        return digest(CACHE_FORMAT, self.name, split, stamps)

    @cached_property
    def _torchvision(self) -> Any:
        import torchvision

        return getattr(torchvision.datasets, self.torchvision_class)

    @property
    def _files(self) -> list[Path]:
        cifar = self._torchvision
        names = [name for name, _ in cifar.train_list + cifar.test_list] + [cifar.meta["filename"]]
        return [Path(self.root, cifar.base_folder, name) for name in names]

    def _fetch(self) -> None:
        """Unpack the archive, downloading it first where it is not in root."""
        from filelock import FileLock
        from torchvision.datasets.utils import check_integrity, download_url

        cifar, root = self._torchvision, Path(self.root)
        archive = root / cifar.filename
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{archive}.lock"):
            if all(path.exists() for path in self._files):
                return  # another process was first
            if not archive.exists():
                partial = root / "download"  # a broken download never takes the archive's name
                timeout = socket.getdefaulttimeout()
                socket.setdefaulttimeout(30)  # seconds; torchvision's download sets none
                try:
                    download_url(cifar.url, partial, cifar.filename, cifar.tgz_md5)
                    os.replace(partial / cifar.filename, archive)
                    partial.rmdir()
                except (OSError, RuntimeError, HTTPException) as error:
                    raise UserError(
                        f"cannot download {cifar.url} ({error}); put {cifar.filename} into "
                        f"{root.resolve()}, or use data=digits, which needs no network"
                    ) from error
                finally:
                    socket.setdefaulttimeout(timeout)
            if not check_integrity(archive, cifar.tgz_md5):
                raise UserError(f"{archive} has the wrong checksum; remove or replace it")
            with tarfile.open(archive) as tar:  # these files alone, to these places
                for path in self._files:
                    member = tar.extractfile(f"{cifar.base_folder}/{path.name}")
                    assert member is not None
                    path.parent.mkdir(exist_ok=True)
                    part = path.with_suffix(".part")
                    part.write_bytes(member.read())
                    part.replace(path)

    def _load(self, split: str) -> Arrays:
        with warnings.catch_warnings():
            # The archive was pickled by a NumPy that wrote 0 for False; 2.4.0 to 2.4.4 mind.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            try:
                cifar = self._torchvision(self.root, train=split == "train")
            except RuntimeError as error:  # torchvision's word for a wrong checksum
                folder = self._files[0].parent
                raise UserError(
                    f"a file in {folder} has the wrong checksum; remove that folder, and it is "
                    "unpacked again"
                ) from error
        return Arrays(cifar.data, np.array(cifar.targets, dtype=np.int64), cifar.classes)


class CIFAR100(CIFAR10):
    """CIFAR-100: as CIFAR-10, in a hundred classes (the "fine" labels)."""

    name = "cifar100"
    num_classes = 100
    torchvision_class = "CIFAR100"


class Listing(NamedTuple):
    paths: list[str]  # relative to the root
    labels: np.ndarray  # int64 [n]
    fingerprint: str
    faults: dict[str, str]  # path: reason; images by their name that can be none, not in `paths`
    strangers: int  # files that are no images by their name; hidden ones are not counted


class ImageFolder:
    """A folder with train/ and test/, and optionally val/, each with one folder per class.

    Class names are the folders of train/, sorted. The images of a class lie in its folder itself.
    Files that are hidden or no images by their extension are left out, and so are those that can
    be none whatever is in them, see `faults`. Nothing is opened to list a folder; `check.check`
    looks into the files.

    left_out: paths of images, relative to the root, that are not listed.
    """

    def __init__(self, root: str, cache_dir: str, left_out: Collection[str] = ()) -> None:
        self.root = root
        self.cache_dir = cache_dir
        self.left_out = frozenset(left_out)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        for split in ("train", "test"):
            if not Path(self.root, split).is_dir():
                raise UserError(
                    f"{Path(self.root, split)} is no folder; data.root must hold train/ and test/ "
                    "(and may hold val/), each with one folder of images per class"
                )
        return ("train", "val", "test") if Path(self.root, "val").is_dir() else ("train", "test")

    @cached_property
    def class_names(self) -> list[str]:
        return self._class_folders("train")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def _class_folders(self, split: str) -> list[str]:
        assert split in self.splits
        folder = os.path.join(self.root, split)
        names, faults = [], {}
        if os.path.islink(folder) and (fault := self._link_fault(folder)):
            raise wrong_folders({folder: fault})
        try:
            with os.scandir(folder) as entries:
                for e in entries:
                    if e.name.startswith(".") or e.name in STRAY_FOLDERS:
                        continue
                    if e.is_symlink() and (fault := self._link_fault(e.path)):
                        faults[e.path] = fault
                    elif e.is_dir():
                        names.append(e.name)
        except OSError as error:
            raise wrong_folders({folder: reason(error)}) from error
        if faults:
            raise wrong_folders(faults)
        if not names:
            raise UserError(f"{folder} is empty; it must hold a folder per class")
        return sorted(names)

    @cached_property
    def _listings(self) -> dict[str, Listing]:
        return {split: self._list(split) for split in self.splits}

    def _list(self, split: str) -> Listing:
        names = self._class_folders(split)
        if names != self.class_names:
            missing = sorted(set(self.class_names) - set(names))
            extra = sorted(set(names) - set(self.class_names))
            raise UserError(
                f"{Path(self.root, split)} must have the classes of train/, but "
                + " and ".join(
                    f"{word} {', '.join(which)}"
                    for word, which in (("lacks", missing), ("adds", extra))
                    if which
                )
            )
        stamps: list[tuple[str, int, int]] = []
        counts = []
        faults: dict[str, str] = {}
        wrong: dict[str, str] = {}
        strangers = 0
        for name in names:
            folder = os.path.join(self.root, split, name)
            try:
                found, faulty, others = self._scan(folder, f"{split}/{name}")
            except OSError as error:
                wrong[folder] = reason(error)
                continue
            if not found:
                wrong[folder] = _why_empty(folder, len(faulty))
            stamps += sorted(found)
            counts.append(len(found))
            faults |= faulty
            strangers += others
        if wrong:
            raise wrong_folders(wrong)
        return Listing(
            [path for path, _, _ in stamps],
            np.repeat(np.arange(len(names), dtype=np.int64), counts),
            digest(CACHE_FORMAT, "imagefolder", stamps),
            faults,
            strangers,
        )

    def _scan(
        self, folder: str, prefix: str
    ) -> tuple[list[tuple[str, int, int]], dict[str, str], int]:
        """What lies in a class folder: stamps of its images, faults, and how many other files."""
        found, faults, strangers = [], {}, 0
        with os.scandir(folder) as entries:
            for e in entries:
                path = f"{prefix}/{e.name}"
                if e.name.startswith("."):
                    continue
                if not e.name.lower().endswith(EXTENSIONS):
                    strangers += e.is_file(follow_symlinks=False)
                elif e.is_dir(follow_symlinks=False):
                    continue
                elif path in self.left_out:
                    faults[path] = "left out"
                elif fault := (e.is_symlink() and self._link_fault(e.path)) or _file_fault(e):
                    faults[path] = fault
                else:
                    found.append(stamp(path, e.stat()))
        return found, faults, strangers

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root)

    def _link_fault(self, link: str) -> str | None:
        """What is wrong with where a link leads, or None. The root itself may be one."""
        try:
            target = os.path.realpath(link, strict=True)
        except FileNotFoundError:
            return "a link to nothing"
        except OSError as error:
            return f"a link that leads nowhere ({reason(error)})"
        if os.path.commonpath([target, self._real_root]) != self._real_root:
            return f"a link out of the data's root (to {target})"
        folder = os.path.realpath(os.path.dirname(link))
        if os.path.commonpath([target, folder]) == target:
            return f"a link in a loop (back to {target})"
        return None

    def faults(self, split: str) -> dict[str, str]:
        """Files that are images by their name and left out, since they can be none: path, reason.

        Empty or unreadable files, pipes and the like, links to nothing, in a loop or out of the
        root; and those of `left_out`.
        """
        return self._listings[split].faults

    def strangers(self, split: str) -> int:
        """How many files of its class folders are no images by their name."""
        return self._listings[split].strangers

    @cached_property
    def own_size(self) -> int | None:
        def measure() -> int | None:
            paths = self._listings["train"].paths
            first: tuple[int, int] | None = None
            for path in progress(paths, len(paths), f"reading the sizes of {len(paths)} images"):
                path = os.path.join(self.root, path)
                try:
                    with open_image(path) as image:
                        size = image.size
                except Exception as error:  # as in `read`
                    raise unreadable(path, error) from error
                first = first or size
                if size != first or size[0] != size[1]:
                    return None
            return size[0]

        size: int | None = cached_json(self.size_entry, measure)
        return size

    @property
    def size_entry(self) -> Path:
        """Where `own_size` is cached."""
        return entry(self.cache_dir, "imagefolder-size", self.fingerprint("train"))

    def images_entry(self, split: str, image_size: int) -> Path:
        """Where the decoded images of a split are cached."""
        what = f"imagefolder-{split}-{image_size}"
        return entry(self.cache_dir, what, self.fingerprint(split))

    def fingerprint(self, split: str) -> str:
        return self._listings[split].fingerprint

    def labels(self, split: str) -> np.ndarray:
        return self._listings[split].labels

    def images(self, split: str, image_size: int) -> np.ndarray:
        n = len(self._listings[split].paths)
        return cached(
            self.images_entry(split, image_size),
            lambda folder: write_images(
                folder,
                n,
                image_size,
                lambda index: np.asarray(self.read(split, index, partial(fit, size=image_size))),
                str(Path(self.root, split)),
            ),
            lambda folder: open_images(folder, n, image_size),
        )

    def read(self, split: str, index: int, make: Make = to_rgb) -> Image.Image:
        path = os.path.join(self.root, self.describe(split, index))
        try:
            with open_image(path) as image:
                return make(image)
        except Exception as error:  # a damaged file raises anything: PIL's plugins promise nothing
            raise unreadable(path, error) from error

    def describe(self, split: str, index: int) -> str:
        return self._listings[split].paths[index]


def _file_fault(e: os.DirEntry[str]) -> str | None:
    if not e.is_file():
        return "it is no regular file"
    if not e.stat().st_size:
        return "the file is empty"
    return None if os.access(e.path, os.R_OK) else "it may not be read (its permissions)"


def _why_empty(folder: str, faulty: int) -> str:
    if faulty:
        return f"holds no good image ({faulty:,} bad)"
    below = (f for inner, _, files in os.walk(folder) if inner != folder for f in files)
    if any(f.lower().endswith(EXTENSIONS) and not f.startswith(".") for f in below):
        return "holds images in folders below it only; they must lie in the folder of the class"
    return f"holds no image ({' '.join(EXTENSIONS)})"


def wrong_folders(faults: dict[str, str]) -> ValueError:
    """The error for folders: these are never skipped, since what is to be learned hangs on them."""
    some = [f"{path}: {fault}" for path, fault in list(faults.items())[:MOST_NAMED]]
    more = f"; and {len(faults) - MOST_NAMED:,} more" if len(faults) > MOST_NAMED else ""
    return UserError(f"{'; '.join(some)}{more}; correct or remove it")


def unreadable(path: str, error: Exception) -> ValueError:
    return UserError(
        f"cannot read {path}: {reason(error)}; remove or replace it, or have "
        "data.on_bad_image=skip with data.check=null leave such files out"
    )


def evenly_spaced(n: int, most: int) -> Sequence[int]:
    """At most `most` of the indices 0 to n-1, spread over the whole range."""
    return [index * n // min(n, most) for index in range(min(n, most))]

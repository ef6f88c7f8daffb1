"""Folders of images: which files are images of which class, and which can be none."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
from PIL import Image

from resnet_lab.config.errors import UserError
from resnet_lab.data.cache import cached_images, cached_json, entry, progress
from resnet_lab.data.decode import EXTENSIONS, fit, open_image, reason, to_rgb, too_large
from resnet_lab.data.sources.protocol import Make, Stamp, fingerprint, stamp
from resnet_lab.files import printable

STRAY_FOLDERS = {"__MACOSX", "@eaDir", "lost+found"}  # what systems leave behind, hidden ones apart
MOST_NAMED = 20  # faults in one error


class Listing(NamedTuple):
    """The files of one split."""

    paths: list[str]  # of the images, relative to the root, as on the disk
    labels: np.ndarray  # int64 [n]
    fingerprint: str
    faults: dict[str, str]  # see `ImageFolder.faults`
    unknown_files: Counter[str]  # no images by their name: how many of each ending


class ImageFolder:
    """A folder with train/, and perhaps val/ and test/, each with one folder per class.

    Class names are the folders of train/, sorted. The images of a class lie in its folder or below
    it; links are followed. Files that are hidden or no images by their extension are left out, and
    so are those that can be none whatever is in them, see `faults`. Nothing is opened to list a
    folder; `inspect.inspect_folder` looks into the files. A val/ or test/ without a folder of a
    class is taken not to be there.

    Args:
        test_split: the folder that is the test split; "val" for ImageNet as it is handed out.
        left_out: paths of images, relative to the root, that are not listed.
        only: the splits to read, where the others need not be there. The classes are the folders
            of the first one. Empty: all, as above.
    """

    def __init__(
        self,
        root: str,
        cache_dir: str,
        left_out: Collection[str] = (),
        only: Sequence[str] = (),
        test_split: str = "test",
    ) -> None:
        if test_split not in ("test", "val"):
            raise UserError(f"data.test_split={printable(test_split)}: must be test or val.")
        self.root = os.path.expanduser(root)
        self.cache_dir = os.path.expanduser(cache_dir)
        self.test_split = test_split
        self.left_out = frozenset(left_out)
        self.only = tuple(only)

    def without(self, bad: Mapping[str, Iterable[int]]) -> "ImageFolder":
        """The same folder, but for these images of each split."""
        paths = {self._listings[split].paths[i] for split, some in bad.items() for i in some}
        return self._with(left_out=self.left_out | paths)

    def _with(self, **changed: Any) -> "ImageFolder":
        own = {name: getattr(self, name) for name in ("left_out", "only", "test_split")}
        return ImageFolder(self.root, self.cache_dir, **{**own, **changed})

    def to_evaluate(self, split: str, test_is_cut: bool = False) -> "ImageFolder":
        """The same folder, of which only what evaluates "train", "val" or "test" is read.

        Validation images may be a part of train/, and so may test images where `test_is_cut`.
        """
        cut = {"train": True, "val": not self.brings("val"), "test": test_is_cut}[split]
        of_train = ("train", "val") if self.brings("val") else ("train",)
        return self._with(only=of_train if cut else (split,))

    # ------------------------------------------------------------------ what there is

    @cached_property
    def splits(self) -> tuple[str, ...]:
        for split in self.only or ("train",):
            if not Path(self._folder_of(split)).is_dir():
                raise UserError(
                    f"{printable(self._folder_of(split))} is no folder; data.root must hold train/ "
                    "and test/ (and may hold val/), each with one folder of images per class"
                )
        return self.only or (
            "train",
            *(split for split in ("val", "test") if self.brings(split)),
        )

    def _folder_of(self, split: str) -> str:
        return os.path.join(self.root, self.test_split if split == "test" else split)

    def brings(self, split: str) -> bool:
        """Whether the folder of a split holds any folder; none is "val" where it is the test."""
        if split == "val" and self.test_split == "val":
            return False
        try:
            with os.scandir(self._folder_of(split)) as entries:
                return any(e.name[0] != "." and e.is_dir() for e in entries)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # what is wrong with it is said when it is read

    @cached_property
    def class_names(self) -> list[str]:
        return [shown_name(name) for name in self._folders]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def _folders(self) -> list[str]:
        return self._class_folders(self.splits[0])

    def _class_folders(self, split: str) -> list[str]:
        """The names as on the disk, sorted."""
        assert split in self.splits
        folder = self._folder_of(split)
        try:
            faults = {folder: self._link_fault(folder)}
            with os.scandir(folder) as entries:
                some = [e for e in entries if e.name[0] != "." and e.name not in STRAY_FOLDERS]
            faults |= {e.path: self._link_fault(e.path) for e in some}
            folders = [e.name for e in some if not faults[e.path] and e.is_dir()]
            names = sorted(folders, key=lambda name: (normalize("NFC", name), name))
        except OSError as error:
            faults = {folder: reason(error)}
        _refuse(faults)
        if not names:
            raise UserError(f"{printable(folder)} is empty; it must hold a folder per class")
        name, times = Counter(map(shown_name, names)).most_common(1)[0]
        if times > 1:
            raise UserError(
                f"{times} folders of {printable(folder)} are {name} on a screen; rename all but one"
            )
        return names

    @cached_property
    def _listings(self) -> dict[str, Listing]:
        return {split: self._list(split) for split in self.splits}

    def _list(self, split: str) -> Listing:
        names = self._class_folders(split)
        shown = list(map(shown_name, names))
        if shown != self.class_names:
            here, expected = set(shown), set(self.class_names)
            both = [("lacks", expected - here), ("adds", here - expected)]
            differences = " and ".join(
                f"{verb} {', '.join(sorted(some))}" for verb, some in both if some
            )
            raise UserError(
                f"{printable(self._folder_of(split))} must have the classes of train/, but "
                f"{printable(differences)}"
            )
        stamps: list[Stamp] = []
        labels: list[int] = []
        faults: dict[str, str] = {}
        wrong: dict[str, str | None] = {}
        unknown_files = Counter[str]()
        for label, name in enumerate(names):
            folder = os.path.join(self._folder_of(split), name)
            try:
                prefix = f"{os.path.basename(self._folder_of(split))}/{name}"
                found, faulty, others = self._scan(folder, prefix)
                wrong[folder] = None if found else _why_empty(folder, len(faulty))
            except OSError as error:
                wrong[folder] = reason(error)
                continue
            stamps += sorted(found)
            labels += [label] * len(found)
            faults |= faulty
            unknown_files += others
        _refuse(wrong)
        paths, name = [s[0] for s in stamps], fingerprint(self.root, stamps, "imagefolder", split)
        return Listing(paths, np.array(labels, np.int64), name, faults, unknown_files)

    def _scan(
        self, folder: str, prefix: str, above: frozenset[tuple[int, int]] = frozenset()
    ) -> tuple[list[Stamp], dict[str, str], Counter[str]]:
        """What lies in a class folder and below: stamps of its images, faults, and the endings of
        other files.

        Args:
            prefix: its path from the root on.
            above: device and inode of the folders that it lies in.
        """
        found, faults, others = list[Stamp](), dict[str, str](), Counter[str]()
        status = os.stat(folder)
        above |= {(status.st_dev, status.st_ino)}
        with os.scandir(folder) as entries:
            for e in entries:
                path = f"{prefix}/{e.name}"
                if e.name.startswith("."):
                    continue
                if e.is_symlink() and (fault := self._link_fault(e.path)):
                    faults[printable(path)] = printable(fault)
                elif e.is_dir():
                    if e.name in STRAY_FOLDERS:
                        continue
                    inside = e.stat()
                    if (inside.st_dev, inside.st_ino) in above:
                        faults[printable(path)] = "a link in a loop"
                        continue
                    inner = self._scan(e.path, path, above)
                    found += inner[0]
                    faults |= inner[1]
                    others += inner[2]
                elif not e.name.lower().endswith(EXTENSIONS):
                    others[os.path.splitext(e.name)[1].lower() or "none"] += e.is_file()
                elif fault := "left out" if path in self.left_out else self._fault(e):
                    faults[printable(path)] = printable(fault)
                else:
                    found.append(stamp(path, e.stat()))
        return found, faults, others

    def _fault(self, e: os.DirEntry[str]) -> str | None:
        """Why a file that is an image by its name can be none, or None."""
        if not e.is_file():
            return "it is no regular file"
        status = e.stat()
        if not status.st_size:
            return "the file is empty"
        if fault := too_large(status.st_size):
            return fault
        if status.st_mode & 0o444 == 0o444 or os.access(e.path, os.R_OK):
            return None
        return "it may not be read (its permissions)"

    def _link_fault(self, link: str) -> str | None:
        """What is wrong with where a link leads; None where it is none, or a good one."""
        if not os.path.islink(link):
            return None
        try:
            target = os.path.realpath(link, strict=True)
        except FileNotFoundError:
            return "a link to nothing"
        except OSError as error:
            return f"a link that leads nowhere ({reason(error)})"
        folder = os.path.realpath(os.path.dirname(link))
        if os.path.commonpath([target, folder]) == target:
            return f"a link in a loop (back to {target})"
        return None

    def faults(self, split: str) -> dict[str, str]:
        """Path -> reason, of files that are images by their name and not listed, `printable`.

        They are empty or unreadable, pipes and the like, links to nothing or in a loop, or in
        `left_out`.
        """
        return self._listings[split].faults

    def unknown_files(self, split: str) -> Counter[str]:
        """How many files of each ending are no images by their names; hidden ones do not count."""
        return self._listings[split].unknown_files

    def fingerprint(self, split: str) -> str:
        return self._listings[split].fingerprint

    def labels(self, split: str) -> np.ndarray:
        return self._listings[split].labels

    def describe(self, split: str, index: int) -> str:
        return printable(self._listings[split].paths[index])

    def path(self, split: str, index: int) -> str:
        """Where the file of an image lies; to open it, not to show it."""
        return os.path.join(self.root, self._listings[split].paths[index])

    # ------------------------------------------------------------------ pixels

    @cached_property
    def own_size(self) -> int | None:
        def measure() -> int | None:
            n = len(self.labels("train"))
            first: tuple[int, int] | None = None
            for index in progress(range(n), n, f"reading the sizes of {n} images"):
                size = self.read("train", index, lambda image: image).size  # of the header
                first = first or size
                if size != first or size[0] != size[1]:
                    return None
            return size[0]

        side: int | None = cached_json(self.entry("train", "size"), measure)
        return side

    def entry(self, split: str, what: str) -> Path:
        """Where the cache keeps `what` of a split: "size" is `own_size`, "test-32" are images."""
        return entry(self.cache_dir, f"imagefolder-{what}", self.fingerprint(split))

    def images(self, split: str, image_size: int) -> np.ndarray:
        decode = partial(self.read, split, make=partial(fit, size=image_size))
        folder, n = self.entry(split, f"{split}-{image_size}"), len(self.labels(split))
        return cached_images(folder, n, image_size, decode, f"{printable(self.root)}/{split}")

    def read(self, split: str, index: int, make: Make = to_rgb) -> Image.Image:
        path = self.path(split, index)
        try:
            with open_image(path) as image:
                return make(image)
        except Exception as error:  # a damaged file raises anything: PIL's plugins promise nothing
            raise unreadable(path, error) from error


def shown_name(folder: str) -> str:
    """A class by its folder's name, in one of Unicode's two forms: macOS writes the other."""
    return printable(normalize("NFC", folder))


def _why_empty(folder: str, faulty: int) -> str:
    if faulty:
        return f"holds no good image ({faulty:,} bad)"
    return f"holds no image ({' '.join(EXTENSIONS)})"


def _refuse(faults: Mapping[str, str | None]) -> None:
    """Raise for folders at fault: these are never skipped, since a class is missing without."""
    lines = [f"{path}: {fault}" for path, fault in faults.items() if fault]
    more = f"; and {len(lines) - MOST_NAMED:,} more" if len(lines) > MOST_NAMED else ""
    if lines:
        raise UserError(f"{printable('; '.join(lines[:MOST_NAMED]))}{more}; correct or remove it")


def unreadable(path: str, error: Exception) -> UserError:
    """The error for a file that cannot be decoded."""
    return UserError(
        f"cannot read {printable(path)}: {reason(error)}; remove or replace it, or have "
        "data.on_bad_image=skip with data.check=null leave such files out"
    )

"""Images inspected: broken files, duplicates, and images that two splits share.

Two reports: `inspect_folder` checks an image folder before a training, `examine` describes any data
set (`resnet-lab stats`).
"""

import hashlib
import json
import logging
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image

from resnet_lab.config.errors import UserError
from resnet_lab.data.cache import (
    CACHE_FORMAT,
    cached,
    cached_json,
    create_images,
    digest,
    entry,
    in_threads,
    open_images,
)
from resnet_lab.data.decode import FORMATS, SMALL, in_turn, open_image, reason, to_rgb
from resnet_lab.data.sources import ImageFolder, Source
from resnet_lab.data.sources.folder import MOST_NAMED, shown_name, unreadable
from resnet_lab.data.statistics import evenly_spaced, level_statistics
from resnet_lab.files import printable, read_json, write_text

SAME = {"MPO": "JPEG", "DIB": "BMP"}  # variants that go by the name of the usual format


# Near duplicates: the most bits of 64 in which their difference hashes differ, and the most that
# their grey copies differ on average, in levels of 255 after their mean is taken away. Of the 144
# pairs that these find in CIFAR-10, few are different pictures; from 8 bits on, many are.
NEAR_BITS, NEAR_LEVELS = 6, 8.0
MOST_SIZES = 5  # in the report
BLOCK = 2**22  # pairs of hashes that are compared at a time

Place = tuple[str, int]  # of an image: split and index


# ------------------------------------------------------------------ what both reports need


def same_digest(digests: Mapping[str, Mapping[int, bytes]]) -> list[list[Place]]:
    """The groups of two or more images that have one digest.

    Args:
        digests: by split and index.
    """
    groups = defaultdict(list)
    for split, by_index in digests.items():
        for index, of_image in by_index.items():
            groups[of_image].append((split, index))
    return [group for group in groups.values() if len(group) > 1]


def all_faults(source: Source, split: str, faults: Mapping[int, str]) -> dict[str, str]:
    """Path -> reason, sorted: `faults` of decoded images, and files that are not listed at all."""
    not_listed = source.faults(split) if isinstance(source, ImageFolder) else {}
    decoded = {source.describe(split, index): why for index, why in faults.items()}
    return dict(sorted((not_listed | decoded).items()))


# ------------------------------------------------------------------ before a training


class Inspection(NamedTuple):
    source: ImageFolder  # without the bad images
    messages: list[tuple[int, str]]  # level of logging, line


class Findings(NamedTuple):
    """What was found in the files of one split; images by their index."""

    faults: dict[int, str]  # why an image cannot be trained on
    misnamed: dict[int, str]  # its format, where its name says another one
    indices: Sequence[int]  # of the files that were read
    digests: np.ndarray  # uint8 [len(indices), 16], of their bytes
    side: int | None  # of the good images, where all files were read and are squares of one size


def inspect_folder(source: ImageFolder, on_bad_image: str, most: int | None) -> Inspection:
    """Look into the files of every split, and have the bad ones stop the run or left out.

    Bad is what cannot be decoded to its end, or declares too many pixels to be. A file whose
    content is another format than its name says decodes well: it is used and reported. So are
    files that two splits share, byte for byte. Damage that leaves a file decodable, such as other
    pixels in a JPEG, is not seen.

    Each split is read once and remembered in the cache, until one of its files changes in size or
    mtime. All processes get the same answer: one reads, the others wait for it.

    Args:
        source: the folder.
        on_bad_image: "error" or "skip".
        most: files of a split that are read and decoded whole, evenly spaced; None is all. What is
            known without opening a file (see `ImageFolder.faults`) is known of all.

    Raises:
        UserError: names the bad images, for "error"; or nothing is left of a class.
    """
    found = {split: _inspect_split(source, split, most) for split in source.splits}
    bad: dict[str, str] = {}  # path: reason
    misnamed: dict[str, str] = {}
    remarks, warned = list[str](), list[str]()
    for split, (faults, others, indices, _, _) in found.items():
        bad |= all_faults(source, split, faults)
        misnamed |= {source.describe(split, index): why for index, why in others.items()}
        if unknown := source.unknown_files(split):
            endings = ", ".join(f"{ending} {n:,}" for ending, n in unknown.most_common(5))
            remarks.append(
                f"{unknown.total():,} files of {split} are no images by their names ({endings})"
            )
        if len(indices) < (n := len(source.labels(split))):
            checked = f"{len(indices):,} of the {n:,} images of {split} were checked"
            remarks.append(f"{checked} (all by data.check=null)")
    leaks = _leaks(source, found)
    lines = [f"{path}: {why}" for path, why in (bad | misnamed).items()]
    lines += [f"{copy} = {original}" for pairs in leaks.values() for original, copy in pairs]
    text = "".join(f"{line}\n" for line in lines)
    path = Path(source.cache_dir, f"imagefolder-findings-{digest(source.root, text)}.txt")
    listed = f"all are listed in {printable(str(path))}"
    if lines and not path.exists():
        try:
            write_text(path, text)
        except OSError as error:  # of somebody else's cache, or a full disk
            listed = f"their list cannot be written ({error})"

    if bad and on_bad_image == "error":
        named = "".join(f"\n  {path}: {why}" for path, why in list(bad.items())[:MOST_NAMED])
        more = f"\n  ... and {len(bad) - MOST_NAMED:,} more" if len(bad) > MOST_NAMED else ""
        raise UserError(
            f"{printable(source.root)} holds {_count(bad, 'bad image')}; remove or replace what is "
            f"bad, or leave it out by data.on_bad_image=skip ({listed}):{named}{more}"
        )
    if bad:
        kinds = Counter(re.split(r" \(|[:;]", why)[0] for why in bad.values()).most_common()
        reasons = "; ".join(f"{count:,}: {kind}" for kind, count in kinds)
        warned.append(f"{_count(bad, 'bad image')} left out ({reasons})")
        source = source.without({split: findings.faults for split, findings in found.items()})
    if misnamed:
        first, why = next(iter(misnamed.items()))
        images = _count(misnamed, "image")
        warned.append(f"{images} used under a wrong extension ({first}: {why})")
    for (one, other), pairs in leaks.items():
        original, copy = pairs[0]
        warned.append(
            f"{_count(pairs, 'image')} of {other} found in {one}, too, byte for byte ({copy} = "
            f"{original}): figures on {other} look better than they are"
        )
    train = found.get("train")
    if train is not None and len(train.indices) == len(source.labels("train")):
        # The source need not read all sizes again.
        cached_json(source.entry("train", "size"), lambda: train.side)
    messages = [(logging.INFO, line) for line in remarks]
    messages += [(logging.WARNING, f"{line}; {listed}") for line in warned]
    return Inspection(source, messages)


def _count(things: Sized, what: str) -> str:
    return f"{len(things):,} {what}{'s' * (len(things) != 1)}"


def _inspect_split(source: ImageFolder, split: str, most: int | None) -> Findings:
    """What is found in the files of a split, from the cache where they were read before."""
    n = len(source.labels(split))
    indices = range(n) if most is None else evenly_spaced(n, most)
    whole = len(indices) == n

    def write(folder: Path) -> None:
        side = _first_side(source, split) if whole else None
        # Small images are decoded but once, here.
        pixels = None if side is None else create_images(folder, n, side)
        share = "" if whole else f"{len(indices):,} of "
        chunks = in_threads(
            lambda chunk: [_inspect_file(source, split, index, pixels) for index in chunk],
            indices,
            f"checking {share}{n:,} images of {printable(source.root)}/{split}",
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # serious faults are raised
            files = [file for chunk in chunks for file in chunk]
        faults = {i: fault for i, (_, _, fault, _) in zip(indices, files, strict=True) if fault}
        misnamed = {i: name for i, (_, _, _, name) in zip(indices, files, strict=True) if name}
        sizes = {size for _, size, _, _ in files if size}
        width, height = sizes.pop() if len(sizes) == 1 else (0, 1)
        common = width if width == height else None
        if pixels is not None and side is not None and side == common and not faults:
            pixels.flush()
            cached(
                source.entry(split, f"{split}-{side}"),
                lambda images: os.replace(folder / "images.npy", images / "images.npy"),
                lambda images: open_images(images, n, side),
            )
        (folder / "images.npy").unlink(missing_ok=True)
        value = {"faults": faults, "misnamed": misnamed, "side": common if whole else None}
        (folder / "value.json").write_text(json.dumps(value))
        digests = np.frombuffer(b"".join(file[0] for file in files), np.uint8)
        np.save(folder / "digests.npy", digests.reshape(len(files), 16))

    def read(folder: Path) -> Findings:
        value = read_json(folder / "value.json")
        faults, misnamed = (
            {int(index): why for index, why in value[what].items()}
            for what in ("faults", "misnamed")
        )
        return Findings(faults, misnamed, indices, np.load(folder / "digests.npy"), value["side"])

    key = digest(CACHE_FORMAT, source.fingerprint(split), len(indices), PIL.__version__)
    return cached(entry(source.cache_dir, f"imagefolder-inspection-{split}", key), write, read)


def _first_side(source: ImageFolder, split: str) -> int | None:
    """The side of the first good image, where it is a small square."""
    for index in range(len(source.labels(split))):
        with suppress(Exception), open_image(source.path(split, index)) as image:
            return image.width if image.width == image.height <= SMALL else None
    return None


def _inspect_file(
    source: ImageFolder, split: str, index: int, pixels: np.ndarray | None
) -> tuple[bytes, tuple[int, int] | None, str | None, str | None]:
    """Digest, stored size, fault and wrong name of a file; fitting pixels go to their row."""
    path = source.path(split, index)
    try:
        with open(path, "rb") as content:
            blake = partial(hashlib.blake2b, digest_size=16)
            of_bytes = hashlib.file_digest(content, blake).digest()
    except OSError as error:  # the disk's fault or the network's: not to be remembered
        raise unreadable(path, error) from error
    try:
        with open_image(path) as image:
            size, form = image.size, image.format or ""
            # A JPEG is read to its end at any scale, and at an eighth in half the time.
            image.draft(None, (SMALL, SMALL))
            with in_turn(image):
                rgb = to_rgb(image)
    except MemoryError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # of a damaged file Pillow's plugins raise anything
        return of_bytes, None, reason(error), None
    if pixels is not None and (rgb.height, rgb.width) == pixels.shape[1:3]:
        pixels[index] = np.asarray(rgb)
    form, named = SAME.get(form, form), FORMATS[os.path.splitext(path)[1].lower()]
    return of_bytes, size, None, None if form == named else f"{form} and not {named}"


def _leaks(
    source: ImageFolder, found: dict[str, Findings]
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """For two splits that share files, the pairs: (path in the one, path in the other)."""
    rows = {}
    for split, findings in found.items():
        of_all = findings.digests.tobytes()
        rows[split] = [of_all[start : start + 16] for start in range(0, len(of_all), 16)]
    leaks: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for one, other in combinations(found, 2):
        originals = {of_file: row for row, of_file in reversed(list(enumerate(rows[one])))}
        indices, others = found[one].indices, found[other].indices
        leaks[one, other] = [
            (
                source.describe(one, indices[originals[of_file]]),
                source.describe(other, others[row]),
            )
            for row, of_file in enumerate(rows[other])
            if of_file in originals
        ]
    return {splits: pairs for splits, pairs in leaks.items() if pairs}


# ------------------------------------------------------------------ any data set


@dataclass
class Contents:
    """What the images of a split hold, or some of them; images by their index.

    Attributes:
        sizes: (width, height).
        levels: float64 [768], how frequent each level of each channel is, summed over images.
        digests: of size and pixels.
        copies: grey, uint8 [8, 9].
        faults: why an image cannot be decoded.
    """

    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    levels: np.ndarray = field(default_factory=lambda: np.zeros(768))
    digests: dict[int, bytes] = field(default_factory=dict)
    copies: dict[int, np.ndarray] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)

    def add(self, other: "Contents") -> None:
        for name, value in vars(other).items():
            if name == "levels":
                self.levels = self.levels + value
            else:
                getattr(self, name).update(value)


def examine(source: Source) -> dict[str, Any]:
    """All that `resnet-lab stats` writes about the images themselves, ready for JSON.

    mean, std: of each channel over the training images, for pixels from 0 to 1, each image with
        the same weight whatever its size; None where no training image can be read.
    sizes, formats, modes: over all splits; the format is "array" where there are no files.
    duplicates: groups of images whose pixels are the same, whatever their files look like.
    near_duplicates: pairs of images of two splits that look almost the same, and are not.
    """
    names = source.class_names
    found, splits, whole = dict[str, Contents](), dict[str, Any](), Contents()
    broken: list[dict[str, str]] = []
    for split in source.splits:
        n = len(source.labels(split))
        found[split] = Contents()
        what = f"reading {n} images of {split}"
        for contents in in_threads(partial(_read, source, split), range(n), what):
            found[split].add(contents)
        counts = np.bincount(source.labels(split), minlength=len(names)).tolist()
        if isinstance(source, ImageFolder):  # images by their names, but not listed
            for path in source.faults(split):
                counts[names.index(shown_name(path.split("/")[1]))] += 1
        faults = all_faults(source, split, found[split].faults)
        broken += [{"image": path, "split": split, "reason": why} for path, why in faults.items()]
        splits[split] = {
            "images": sum(counts),
            "broken": len(faults),
            "imbalance": round(max(counts) / min(counts), 4) if min(counts) else None,
            "classes": dict(zip(names, counts, strict=True)),
        }
        for name in ("formats", "modes", "sizes"):
            getattr(whole, name).update(getattr(found[split], name))

    mean = std = None
    if n_train := len(found["train"].digests):
        mean, std = level_statistics(found["train"].levels.reshape(3, 256) / n_train)

    def named(image: Place) -> dict[str, str]:
        split, index = image
        label = names[source.labels(split)[index]]
        return {"image": source.describe(split, index), "split": split, "class": label}

    digests = {split: contents.digests for split, contents in found.items()}
    groups = [list(map(named, group)) for group in same_digest(digests)]
    near = [
        {"images": [named(one), named(other)], "difference": round(difference, 2)}
        for one, other, difference in _near_duplicates(found)
    ]
    return {
        "splits": splits,
        "mean": mean,
        "std": std,
        "sizes": _sizes(whole.sizes),
        "formats": dict(whole.formats.most_common()),
        "modes": dict(whole.modes.most_common()),
        "duplicates": {
            "groups": len(groups),
            "surplus": sum(len(group) - 1 for group in groups),
            "across_splits": sum(len({image["split"] for image in group}) > 1 for group in groups),
            "across_classes": sum(len({image["class"] for image in group}) > 1 for group in groups),
            "images": groups,
        },
        "near_duplicates": near,
        "broken": broken,
    }


def _read(source: Source, split: str, indices: Sequence[int]) -> Contents:
    contents = Contents()
    for index in indices:
        try:
            if isinstance(source, ImageFolder):
                with open_image(source.path(split, index)) as image:
                    form, mode = image.format or "unknown", image.mode
                    rgb = to_rgb(image)
            else:
                rgb = source.read(split, index)
                form, mode = "array", rgb.mode
        except Exception as error:  # of a damaged file Pillow's plugins raise anything
            contents.faults[index] = reason(error)
            continue
        contents.formats[form] += 1
        contents.modes[mode] += 1
        contents.sizes[rgb.size] += 1
        contents.levels += np.array(rgb.histogram()) / (rgb.width * rgb.height)
        pixels = hashlib.blake2b(repr(rgb.size).encode() + rgb.tobytes(), digest_size=16)
        contents.digests[index] = pixels.digest()
        grey = rgb.convert("L").resize((9, 8), Image.Resampling.BILINEAR)
        contents.copies[index] = np.asarray(grey)
    return contents


def difference_hashes(copies: np.ndarray) -> np.ndarray:
    """uint64 [n] of grey uint8 [n, 8, 9]: whether each pixel is brighter than its left neighbour.

    Another size, compression or brightness changes few of the 64 bits (N. Krawetz, "Kind of Like
    That", 2013).
    """
    bits = copies[:, :, 1:] > copies[:, :, :-1]
    return np.packbits(bits.reshape(len(copies), 64), axis=1).view(np.uint64)[:, 0]


def _near_duplicates(found: Mapping[str, Contents]) -> list[tuple[Place, Place, float]]:
    """Pairs of images of two splits, and how much their grey copies differ; the closest first."""
    pairs = []
    for one, other in combinations(found, 2):
        if not (found[one].copies and found[other].copies):
            continue
        first, second = (np.stack(list(found[split].copies.values())) for split in (one, other))
        places = [list(found[split].copies) for split in (one, other)]
        hashes, others = difference_hashes(first), difference_hashes(second)
        rows = max(1, BLOCK // len(hashes))
        for start in range(0, len(others), rows):
            bits = np.bitwise_count(others[start : start + rows, None] ^ hashes)
            for row, column in np.argwhere(bits <= NEAR_BITS).tolist():
                apart = first[column].astype(float) - second[start + row]
                difference = float(np.abs(apart - apart.mean()).mean())
                a, b = places[0][column], places[1][start + row]
                same = found[one].digests[a] == found[other].digests[b]
                if difference <= NEAR_LEVELS and not same:
                    pairs.append(((one, a), (other, b), difference))
    return sorted(pairs, key=lambda pair: pair[2])


def _sizes(sizes: Counter[tuple[int, int]]) -> dict[str, Any]:
    def spread(side: int) -> dict[str, float]:
        values = np.repeat([size[side] for size in sizes], list(sizes.values()))
        middle = float(np.median(values))
        return {"min": int(values.min()), "median": middle, "max": int(values.max())}

    return {
        "different": len(sizes),
        **({"width": spread(0), "height": spread(1)} if sizes else {}),
        "most_common": [
            {"width": width, "height": height, "images": images}
            for (width, height), images in sizes.most_common(MOST_SIZES)
        ],
    }

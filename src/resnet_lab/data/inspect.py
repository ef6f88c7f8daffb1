"""An image folder looked into before it is trained on: files that are no good, and leaks."""

import hashlib
import json
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence, Sized
from contextlib import suppress
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

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
from resnet_lab.data.decode import FORMATS, SMALL, open_image, reason, to_rgb
from resnet_lab.data.sources.folder import MOST_NAMED, ImageFolder, unreadable
from resnet_lab.data.statistics import evenly_spaced
from resnet_lab.files import printable, read_json, write_text

SAME = {"MPO": "JPEG", "DIB": "BMP"}  # variants that go by the name of the usual format


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
        decoded = {source.describe(split, index): why for index, why in faults.items()}
        bad |= dict(sorted((source.faults(split) | decoded).items()))
        misnamed |= {source.describe(split, index): why for index, why in others.items()}
        if unknown := source.unknown_files(split):
            remarks.append(f"{unknown:,} files of {split} are no images by their names")
        if len(indices) < (n := len(source.labels(split))):
            checked = f"{len(indices):,} of the {n:,} images of {split} were checked"
            remarks.append(f"{checked} (all by data.check=null)")
    whole_train = len(found["train"].indices) == len(source.labels("train"))
    leaks = _leaks(source, found)
    lines = [f"{path}: {why}" for path, why in (bad | misnamed).items()]
    lines += [f"{theirs} = {ours}" for pairs in leaks.values() for ours, theirs in pairs]
    text = "".join(f"{line}\n" for line in lines)
    path = Path(source.cache_dir, f"imagefolder-findings-{digest(source.root, text)}.txt")
    listed = f"all are listed in {printable(str(path))}"
    if lines:
        write_text(path, text)

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
        ours, theirs = pairs[0]
        warned.append(
            f"{_count(pairs, 'image')} of {other} found in {one}, too, byte for byte ({theirs} = "
            f"{ours}): figures on {other} look better than they are"
        )
    if whole_train:  # the source need not read all sizes again
        cached_json(source.entry("train", "size"), lambda: found["train"].side)
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
            warnings.filterwarnings("ignore", module="PIL")  # what matters to us it raises
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
    files = {
        split: list(zip(map(bytes, findings.digests), findings.indices, strict=True))
        for split, findings in found.items()
    }
    leaks = {}
    for one, other in combinations(files, 2):
        known = dict(files[one])
        leaks[one, other] = [
            (source.describe(one, known[file]), source.describe(other, index))
            for file, index in files[other]
            if file in known
        ]
    return {splits: pairs for splits, pairs in leaks.items() if pairs}

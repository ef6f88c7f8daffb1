"""An image folder looked into before it is trained on: files that are no good, and leaks."""

import hashlib
import json
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from resnet_lab.config.errors import UserError
from resnet_lab.data.cache import cached, cached_json, in_threads, open_images
from resnet_lab.data.decode import FORMATS, SMALL, open_image, reason, to_rgb
from resnet_lab.data.sources import (
    CACHE_FORMAT,
    MOST_NAMED,
    ImageFolder,
    digest,
    entry,
    evenly_spaced,
    unreadable,
)

SAME = {"MPO": "JPEG", "DIB": "BMP"}  # variants that go by the name of the usual format


class Seen(NamedTuple):
    """What one file turned out to be."""

    path: str  # relative to the root
    digest: str  # of its bytes
    size: tuple[int, int] | None = None  # width, height as they are stored
    fault: str | None = None  # why it cannot be trained on
    misnamed: str | None = None  # its format, where its name says another one


class Checked(NamedTuple):
    """What `check` found: the folder without its bad images, and what is to be said."""

    source: ImageFolder
    messages: list[tuple[int, str]]  # level of logging, line


def check(source: ImageFolder, on_bad_image: str, most: int | None) -> Checked:
    """Look into the files of every split, and have the bad ones stop the run or left out.

    on_bad_image: "error" or "skip".
    most: files of a split that are read and decoded whole, evenly spaced; None is all. What can be
        told without opening a file (see `ImageFolder.faults`) is looked for in all of them.

    Bad is what cannot be decoded to its end, or declares too many pixels to be. A file whose
    content is another format than its name says decodes well: it is used and reported. So are
    files that two splits share, byte for byte. Damage that leaves a file decodable, such as other
    pixels in a JPEG, is not seen.

    Each split is looked at once and remembered in the cache, until one of its files changes in
    size or mtime. All processes get the same answer: one looks, the others wait for it.
    ValueError, naming the bad images, for "error", and where nothing is left of a class.
    """
    looks = {split: _look(source, split, most) for split in source.splits}
    bad: dict[str, str] = {}
    misnamed: dict[str, str] = {}
    messages = []
    for split, look in looks.items():
        bad |= dict(sorted((source.faults(split) | look["faults"]).items()))
        misnamed |= look["misnamed"]
        if strangers := source.strangers(split):
            line = f"{strangers:,} files of {split} are no images by their names"
            messages.append((logging.INFO, line))
        looked, n = len(look["digests"]), len(source.labels(split))
        if looked < n:
            line = (
                f"{looked:,} of the {n:,} images of {split} were checked (all by data.check=null)"
            )
            messages.append((logging.INFO, line))
    leaks = list(_leaks(looks))
    found = [f"{path}: {why}" for path, why in (bad | misnamed).items()]
    found += [f"{theirs} = {ours}" for _, _, pairs in leaks for ours, theirs in pairs]
    rest = f"all are listed in {_write(source, found)}" if found else ""

    if bad and on_bad_image == "error":
        named = "".join(f"\n  {path}: {why}" for path, why in list(bad.items())[:MOST_NAMED])
        more = f"\n  ... and {len(bad) - MOST_NAMED:,} more" if len(bad) > MOST_NAMED else ""
        raise UserError(
            f"{source.root} holds {_count(bad, 'bad image')}; remove or replace what is bad, or "
            f"leave it out by data.on_bad_image=skip ({rest}):{named}{more}"
        )
    if bad:
        kinds = Counter(re.split(r" \(|[:;]", why)[0] for why in bad.values()).most_common()
        reasons = "; ".join(f"{count:,}: {kind}" for kind, count in kinds)
        line = f"{_count(bad, 'bad image')} left out ({reasons}); {rest}"
        messages.append((logging.WARNING, line))
        source = ImageFolder(source.root, source.cache_dir, left_out=bad)
    if misnamed:
        path, why = next(iter(misnamed.items()))
        line = f"{_count(misnamed, 'image')} used under a wrong extension ({path}: {why}); {rest}"
        messages.append((logging.WARNING, line))
    for one, other, pairs in leaks:
        ours, theirs = pairs[0]
        line = (
            f"{_count(pairs, 'image')} of {other} found in {one}, too, byte for byte ({theirs} = "
            f"{ours}): figures on {other} look better than they are; {rest}"
        )
        messages.append((logging.WARNING, line))
    if looks["train"]["whole"]:  # and the source need not look at all sizes itself
        cached_json(source.size_entry, lambda: looks["train"]["side"])
    return Checked(source, messages)


def _count(things: Sized, what: str) -> str:
    return f"{len(things):,} {what}{'s' * (len(things) != 1)}"


def _look(source: ImageFolder, split: str, most: int | None) -> dict[str, Any]:
    """What is seen in the files of a split, from the cache where it was looked at before.

    faults, misnamed: path -> reason. digests: path -> digest of every file that was looked at.
    side: of the good images, where all are squares of one size; else None. whole: whether all
    files were looked at.
    """
    n = len(source.labels(split))
    indices = range(n) if most is None else evenly_spaced(n, most)
    what = f"{len(indices):,} of {n:,}" if len(indices) < n else f"{n:,}"

    def write(folder: Path) -> None:
        side = _first_side(source, split, indices) if len(indices) == n else None
        pixels = None
        if side is not None:  # small images are decoded but once, here
            pixels = np.lib.format.open_memmap(
                folder / "images.npy", mode="w+", dtype=np.uint8, shape=(n, side, side, 3)
            )
        chunks = in_threads(
            partial(_see, source, split, pixels=pixels),
            indices,
            f"checking {what} images of {os.path.join(source.root, split)}",
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # what matters to us it raises
            seen = [one for chunk in chunks for one in chunk]
        sizes = {one.size for one in seen if one.fault is None}
        width, height = (sizes.pop() if len(sizes) == 1 else None) or (0, 1)
        look = {
            "faults": {one.path: one.fault for one in seen if one.fault},
            "misnamed": {one.path: one.misnamed for one in seen if one.misnamed},
            "digests": {one.path: one.digest for one in seen},
            "side": width if width == height else None,
            "whole": len(indices) == n,
        }
        (folder / "value.json").write_text(json.dumps(look))
        if pixels is not None and side == look["side"] and not look["faults"]:
            pixels.flush()
            cached(
                source.images_entry(split, len(pixels[0])),
                lambda images: os.replace(folder / "images.npy", images / "images.npy"),
                lambda images: open_images(images, n, len(pixels[0])),
            )
        (folder / "images.npy").unlink(missing_ok=True)

    key = digest(CACHE_FORMAT, source.fingerprint(split), len(indices), PIL.__version__)
    look: dict[str, Any] = cached(
        entry(source.cache_dir, f"imagefolder-check-{split}", key),
        write,
        lambda folder: json.loads((folder / "value.json").read_text()),
    )
    return look


def _first_side(source: ImageFolder, split: str, indices: Sequence[int]) -> int | None:
    """The side of the first good image, where it is a small square."""
    for index in indices:
        try:
            with open_image(os.path.join(source.root, source.describe(split, index))) as image:
                width, height = image.size
        except Exception:  # bad; it is named when all are looked at
            continue
        return width if width == height <= SMALL else None
    return None


def _see(
    source: ImageFolder, split: str, indices: Sequence[int], pixels: np.ndarray | None
) -> list[Seen]:
    """Look at some files; what is decoded of the wanted size goes to its row of `pixels`."""
    seen = []
    for index in indices:
        path = source.describe(split, index)
        file = os.path.join(source.root, path)
        try:
            with open(file, "rb") as content:
                of_bytes = hashlib.file_digest(
                    content, partial(hashlib.blake2b, digest_size=16)
                ).hexdigest()
        except OSError as error:  # the disk's fault or the network's: not to be remembered
            raise unreadable(file, error) from error
        try:
            with open_image(file) as image:
                size, form = image.size, image.format or ""
                # A JPEG is read to its end at any scale, and at an eighth in half the time.
                image.draft(None, (SMALL, SMALL))
                rgb = to_rgb(image)
        except MemoryError as error:
            raise unreadable(file, error) from error
        except Exception as error:  # of a damaged file Pillow's plugins raise anything
            seen.append(Seen(path, of_bytes, fault=reason(error)))
            continue
        if pixels is not None and (rgb.height, rgb.width) == pixels.shape[1:3]:
            pixels[index] = np.asarray(rgb)
        form = SAME.get(form, form)
        extension = os.path.splitext(path)[1].lower()
        misnamed = None if form == FORMATS[extension] else f"{form} and not {FORMATS[extension]}"
        seen.append(Seen(path, of_bytes, size, misnamed=misnamed))
    return seen


def _leaks(looks: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Two splits that share files, and the pairs: (path in the one, path in the other)."""
    for one, other in combinations(looks, 2):
        known = {of_bytes: path for path, of_bytes in looks[one]["digests"].items()}
        pairs = [
            (known[of_bytes], path)
            for path, of_bytes in looks[other]["digests"].items()
            if of_bytes in known
        ]
        if pairs:
            yield one, other, pairs


def _write(source: ImageFolder, lines: Iterable[str]) -> Path:
    """The findings as a text file in the cache, a line for each."""
    text = "".join(f"{line}\n" for line in lines)
    folder = entry(source.cache_dir, "imagefolder-findings", digest(source.root, text))

    def write(partial: Path) -> None:
        (partial / "findings.txt").write_text(text, "utf-8", "surrogateescape")

    def read(folder: Path) -> Path:
        path = folder / "findings.txt"
        path.stat()
        return path

    return cached(folder, write, read)

"""Decoded once, memory-mapped after: folders under `cache_dir`, named by a key of their content."""

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from PIL import Image

from resnet_lab.config.errors import UserError
from resnet_lab.files import create_cache_folder, printable, read_json

log = logging.getLogger(__name__)

CACHE_FORMAT = 3  # part of every key: raise it when the same files are to give other pixels
CHUNK = 64  # images that a thread decodes before it reports
CHECKSUMS = "checksums.json"  # in each entry: name -> checksum
BLOCK = 2**24  # bytes that are read at a time
DAMAGED = (OSError, ValueError, EOFError)  # what reading an absent or broken file raises

T = TypeVar("T")


def digest(*parts: object) -> str:
    """A short key that differs when any of the parts does."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def entry(cache_dir: str, name: str, key: str) -> Path:
    """The folder of one entry; `key` is the `digest` of all that its content depends on."""
    return Path(cache_dir) / f"{name}-{key}"


def cached(folder: Path, write: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """What `read` finds in `folder`, which `write` fills first where it is absent or damaged.

    An entry has a checksum of each of its files; a damaged one is made anew, with a line on it.

    Any number of processes may ask at once: one writes, the others wait. The folder appears whole
    or not at all, since it is filled under another name and then renamed.

    Args:
        folder: an `entry`.
        write: fills the empty folder that it is given.
        read: raises one of `DAMAGED` where the folder does not hold what it should.

    Raises:
        UserError: the folder cannot be written.
    """

    def checked() -> T:
        _check(folder)
        return read(folder)

    try:
        return checked()
    except DAMAGED as error:
        if os.path.exists(folder) and os.access(folder, os.R_OK | os.X_OK):
            log.warning("%s is damaged (%s) and is made anew", printable(str(folder)), error)
    try:
        create_cache_folder(folder.parent)
        with FileLock(f"{folder}.lock"):
            with suppress(*DAMAGED):
                return checked()  # another process wrote it while this one waited
            partial = Path(f"{folder}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a killed process
            partial.mkdir()
            try:
                write(partial)
                sums = {path.name: _checksum(path) for path in partial.iterdir()}
                (partial / CHECKSUMS).write_text(json.dumps(sums))
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return read(folder)
    except OSError as error:
        raise UserError(
            f"cannot write the image cache {printable(str(folder))} ({error.strerror or error}); "
            "set data.cache_dir to a writable folder with room"
        ) from error


def _check(folder: Path) -> None:
    """Raise one of `DAMAGED` unless the files of an entry are as they were written."""
    sums = read_json(folder / CHECKSUMS)
    if not isinstance(sums, dict) or not sums:
        raise ValueError(f"{CHECKSUMS} lists no file")
    for name, expected in sums.items():
        if _checksum(folder / Path(name).name) != expected:
            raise ValueError(f"{name} has the wrong checksum")


def _checksum(path: Path) -> int:
    """CRC-32, at a gigabyte a second: against damage, not against an attacker."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total = zlib.crc32(block, total)
    return total


def cached_json(folder: Path, compute: Callable[[], Any]) -> Any:
    """The JSON value that `compute` returned when first asked for under this folder's name."""

    def write(partial: Path) -> None:
        (partial / "value.json").write_text(json.dumps(compute()))

    return cached(folder, write, lambda folder: read_json(folder / "value.json"))


def open_images(folder: Path, n: int, image_size: int) -> np.ndarray:
    """The entry's uint8 [n, image_size, image_size, 3], read-only and memory-mapped.

    Raises:
        OSError, ValueError: the entry is truncated or holds anything else.
    """
    images: np.ndarray = np.load(folder / "images.npy", mmap_mode="r")
    if images.shape != (n, image_size, image_size, 3) or images.dtype != np.uint8:
        raise ValueError(f"{folder} holds {images.dtype} {images.shape}")
    return images


def create_images(folder: Path, n: int, image_size: int) -> np.memmap:
    """A new uint8 [n, image_size, image_size, 3] on disk, since it may be larger than memory.

    Its room is taken first: where the disk is full, writing into a memory map ends the process.
    """
    path = folder / "images.npy"
    images: np.memmap = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint8, shape=(n, image_size, image_size, 3)
    )
    size = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # macOS has none, nor have all file systems
            if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            file.seek(images.offset)
            for start in range(images.offset, size, BLOCK):
                file.write(bytes(min(BLOCK, size - start)))
    return images


def cached_images(
    folder: Path, n: int, image_size: int, decode: Callable[[int], Image.Image], what: str
) -> np.ndarray:
    """As `open_images`, decoded when first asked for; `what` names them on the progress bar."""

    def write(partial: Path) -> None:
        images = create_images(partial, n, image_size)

        def fill(chunk: Sequence[int]) -> None:
            for index in chunk:
                images[index] = np.asarray(decode(index))

        for _ in in_threads(fill, range(n), f"decoding {n} images of {what}"):
            pass
        images.flush()

    return cached(folder, write, lambda folder: open_images(folder, n, image_size))


def in_threads(
    work: Callable[[Sequence[int]], T], indices: Sequence[int], what: str
) -> Iterator[T]:
    """What `work` gives for each chunk of the indices, in their order; `what` is on the bar.

    Threads decode photographs twice as fast on two cores, since PIL lets go of the interpreter
    there; thumbnails gain nothing.
    """
    chunks = [indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        try:
            yield from progress(pool.map(work, chunks), len(chunks), what)
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, none of the rest


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, with a bar on a terminal and else a line in the log at the start and the end."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, what, total=total, console=Console(stderr=True), transient=True)
    else:
        log.info("%s ...", what)
        yield from items
        log.info("%s: done", what)

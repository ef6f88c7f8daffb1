"""Decoded once, memory-mapped after: folders under `cache_dir`, named by a key of their content."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock

from resnet_lab.config.errors import UserError

log = logging.getLogger(__name__)

CHUNK = 64  # images that a thread looks at before it says what it found
DAMAGED = (OSError, ValueError, EOFError)  # what reading an absent or broken file raises

T = TypeVar("T")


def cached(folder: Path, write: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """What `read` finds in `folder`, which `write` fills first where it is absent or damaged.

    `read` raises one of `DAMAGED` where the folder does not hold what it should. Any number
    of processes may ask at once: one writes, the others wait. The folder appears whole or not at
    all, since it is filled under another name and then renamed.
    """
    try:
        return read(folder)
    except DAMAGED:
        pass
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            try:
                return read(folder)  # another process wrote it while this one waited
            except DAMAGED:
                pass
            partial = Path(f"{folder}.partial")  # what a killed process left behind goes, too
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                write(partial)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return read(folder)
    except OSError as error:
        raise UserError(
            f"cannot write the image cache {folder} ({error.strerror or error}); "
            "set data.cache_dir to a writable folder with room"
        ) from error


def cached_json(folder: Path, compute: Callable[[], Any]) -> Any:
    """The JSON value that `compute` returned when first asked for under this folder's name."""

    def write(partial: Path) -> None:
        (partial / "value.json").write_text(json.dumps(compute()))

    return cached(folder, write, lambda folder: json.loads((folder / "value.json").read_text()))


def open_images(folder: Path, n: int, image_size: int) -> np.ndarray:
    """The entry's uint8 [n, image_size, image_size, 3], read-only and memory-mapped.

    Raises ValueError or OSError for an entry that is truncated or holds anything else.
    """
    images: np.ndarray = np.load(folder / "images.npy", mmap_mode="r")
    if images.shape != (n, image_size, image_size, 3) or images.dtype != np.uint8:
        raise ValueError(f"{folder} holds {images.dtype} {images.shape}")
    return images


def write_images(
    folder: Path, n: int, image_size: int, decode: Callable[[int], np.ndarray], what: str
) -> None:
    """Fill an entry with n images; `decode(index)` is uint8 [image_size, image_size, 3]."""
    images = np.lib.format.open_memmap(  # straight to disk: the set may be larger than memory
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(n, image_size, image_size, 3)
    )

    def fill(chunk: Sequence[int]) -> None:
        for index in chunk:
            images[index] = decode(index)

    for _ in in_threads(fill, range(n), f"decoding {n} images of {what}"):
        pass
    images.flush()


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

"""Files written whole or not at all and never through a link, and files read that anybody may have
written: regular ones, of a bounded size, their text free of control characters."""

import contextlib
import csv
import io
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

MOST_BYTES = 2**26  # 64 MB; what a run writes itself stays far below

# Control characters, line and paragraph separators, changes of direction, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` on one line, without what would act on a terminal: "a\\nb" -> "a\\\\nb"."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


@contextlib.contextmanager
def replacing(
    path: Path,
    mode: str = "w",
    *,
    durable: bool = False,
    part: str | None = None,
    keep: Path | None = None,
    **how: Any,
) -> Iterator[IO[Any]]:
    """A new file that takes the place of `path` once it is whole: readers find the old or the new.

    A link that lies at `path` is replaced, not followed.

    Args:
        mode: "w" or "wb".
        durable: bring it to the disk before it takes the place.
        part: name of the new file until then; by default one of this process's own.
        keep: where the old file stays, in the same folder.
        how: encoding, newline and the like, for `open`.
    """
    beside = path.with_name(part or f".{path.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)  # of a killed process
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, mode, **({} if "b" in mode else {"encoding": "utf-8"} | how)) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        os.replace(beside, path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Bring to the disk which names a folder holds; on Windows the system does it alone."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as `replacing` does."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, content: Any, durable: bool = False) -> None:
    """Write `content` as `replacing` does."""
    with replacing(path, durable=durable) as file:
        file.write(json.dumps(content, indent=2) + "\n")


def read_text(path: Path, most: int = MOST_BYTES, errors: str = "strict") -> str:
    """The text of a regular file.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is a pipe or device, larger than `most` bytes, or not UTF-8.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > most:
            raise ValueError(f"it has {status.st_size:,} bytes, more than {most:,}")
        return file.read().decode("utf-8", errors)


def read_json(path: Path) -> Any:
    """The content of a JSON file, every text in it `printable`. Raises as `read_text` does."""
    try:
        return _clean(json.loads(read_text(path)))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _clean(node: Any) -> Any:
    if isinstance(node, str):
        return printable(node)
    if isinstance(node, list):
        return [_clean(child) for child in node]
    if isinstance(node, dict):
        return {printable(name): _clean(child) for name, child in node.items()}
    return node


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file with a header, whole or not at all."""
    with replacing(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, every text `printable`.

    A value that is missing is ""; what a row has too much stands under "". Raises as `read_text`
    does, but for bytes that are no text.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, errors="replace"), newline="")))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return [
        {
            printable(key or ""): printable(
                value or "" if isinstance(value, str | None) else ",".join(value)
            )
            for key, value in row.items()
        }
        for row in rows
    ]


# The Cache Directory Tagging Specification (bford.info/cachedir): name and first line of the tag.
CACHE_TAG, CACHE_SIGNATURE = "CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55"


def create_cache_folder(folder: Path) -> None:
    """Make the folder and, where it is new or empty, tag it as a cache, which backups leave out."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        write_text(
            folder / CACHE_TAG, f"{CACHE_SIGNATURE}\n# A cache of resnet-lab. It may be removed.\n"
        )


def is_cache_folder(folder: Path) -> bool:
    """Whether the folder is tagged as a cache, by us or by another program."""
    tag = folder / CACHE_TAG
    try:
        return not tag.is_symlink() and read_text(tag, 4096).startswith(CACHE_SIGNATURE)
    except (OSError, ValueError):
        return False

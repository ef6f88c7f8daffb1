"""The files of a run folder that the page may show: a few kinds, no links, no more than a screen
can take."""

import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any

from resnet_lab.config.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"
TEXT = "text/plain; charset=utf-8"
KINDS = {  # suffix: content type
    ".png": "image/png",
    **dict.fromkeys((".csv", ".json", ".yaml", ".log", ".txt", ".patch"), TEXT),
}
MOST_PICTURE = 2**25  # bytes; ours have some hundred thousand
MOST_TEXT = 200_000  # bytes of the end of a text
TAIL_LINES, TAIL_BYTES = 40, 8192


def read(folder: Path, name: str) -> tuple[str, bytes]:
    """Content type and bytes of a file in a folder; of a long text the end.

    Args:
        name: below the folder, with "/".

    Raises:
        UserError: it is of no known kind, lies elsewhere, is a link, or cannot be read.
    """
    parts = PurePosixPath(name).parts
    kind = KINDS.get(PurePosixPath(name).suffix)
    if not parts or kind is None:
        raise UserError("Only pictures, tables, texts and settings of a run are shown.")
    if name.startswith("/") or "\\" in name or ":" in name or ".." in parts or "\0" in name:
        raise UserError("Only files inside a run's folder are shown.")
    try:
        with open(_opened(folder, parts), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError("It is no regular file.")
            if kind == TEXT:
                file.seek(max(0, status.st_size - MOST_TEXT))
                return kind, file.read(MOST_TEXT)
            if status.st_size > MOST_PICTURE:
                raise UserError("The picture is too large to be shown.")
            content = file.read(MOST_PICTURE)
    except OSError:
        raise UserError("There is no such file in this run's folder.") from None
    if not content.startswith(PNG):
        raise UserError("It is no PNG file.")
    return kind, content


def _opened(folder: Path, parts: tuple[str, ...]) -> int:
    """A descriptor of a file, reached without following a link below `folder`."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if os.open not in os.supports_dir_fd:  # Windows
        path = folder.joinpath(*parts)
        if path.resolve() != folder.resolve().joinpath(*parts):
            raise FileNotFoundError(path)
        return os.open(path, os.O_RDONLY)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for parent in parts[:-1]:
            below = os.open(parent, flags | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        return os.open(parts[-1], flags, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def listed(folder: Path) -> list[dict[str, Any]]:
    """Name, size in bytes and version of each file in a folder that `read` gives."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if Path(entry.name).suffix not in KINDS or not entry.is_file(follow_symlinks=False):
                    continue
                status = entry.stat(follow_symlinks=False)
                found.append(
                    {
                        "name": entry.name,
                        "bytes": status.st_size,
                        "version": str(status.st_mtime_ns),
                    }
                )
    except OSError:
        return []
    return sorted(found, key=lambda file: file["name"])


def tail(folder: Path, name: str) -> list[str]:
    """The last lines of a text; none where it cannot be read."""
    try:
        content = read(folder, name)[1][-TAIL_BYTES:]
    except UserError:
        return []
    return content.decode("utf-8", "replace").splitlines()[-TAIL_LINES:]

"""A folder that is written whole or not at all."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from resnet_lab.config.errors import UserError
from resnet_lab.files import printable

ENDINGS = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP


@contextmanager
def new_folder(path: Path, may_be_empty: bool = False) -> Iterator[Path]:
    """An empty folder beside `path`, to be filled; it becomes `path` when the block is done.

    After an error, Ctrl-C, SIGTERM or SIGHUP it is removed, and nothing lies at `path`.

    Args:
        path: it must not exist. Folders above it are made.
        may_be_empty: an empty folder at `path` is no obstacle.

    Raises:
        UserError: there is something at `path`, or nothing can be written there.
    """
    refuse_existing_folder(path, may_be_empty)
    target = path.absolute()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{printable(str(path))} cannot be made ({error.strerror}); name another folder."
        ) from error
    try:
        with _signals_as_exceptions():
            yield part
        refuse_existing_folder(path, may_be_empty)  # what was made meanwhile is kept
        if target.is_dir():
            target.rmdir()
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_existing_folder(path: Path, may_be_empty: bool = False) -> None:
    """Raise UserError where something lies at `path`, see `new_folder`."""
    if not os.path.lexists(path):
        return
    if may_be_empty and path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    raise UserError(f"{printable(str(path))} is there already; remove it, or name another folder.")


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """What would end the process at once ends it by SystemExit, so that it can clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ENDINGS if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The one console that everything prints to, so that lines and a live display do not collide."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console

for _stream in (sys.stdout, sys.stderr):
    # A terminal of another encoding shows what it has no letter for as \xe9.
    if "utf" not in (getattr(_stream, "encoding", None) or "utf").lower():
        with suppress(AttributeError):  # a stream of a notebook's has no such method
            _stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

# A notebook's stream says that it is a terminal, and is none; its lines stay plain text.
NOTEBOOK = type(sys.stdout).__module__.startswith("ipykernel")
console = Console(
    highlight=False,
    markup=False,
    force_jupyter=False,
    force_terminal=False if NOTEBOOK else None,
)
if not console.is_terminal:
    console.width = 400  # a file has room: no name in a table is cut off


class ConsoleHandler(logging.Handler):
    """Log records as plain lines on the console, above a live display where one is running."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), soft_wrap=True)


class _Tolerant:
    """A stream that goes on where its terminal, or the reader of its pipe, is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._turn_away()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._turn_away()

    def _turn_away(self) -> None:
        """What is printed from now on goes nowhere."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def tolerant() -> Iterator[None]:
    """Printing cannot end what runs within: the log file goes on."""
    before = sys.stdout, sys.stderr, logging.raiseExceptions
    other_threads = threading.excepthook

    def failed(arguments: threading.ExceptHookArgs) -> None:
        # TensorBoard's writer, whose error comes to `Board` as well.
        if not isinstance(arguments.exc_value, OSError):
            other_threads(arguments)

    sys.stdout, sys.stderr = (stream and _Tolerant(stream) for stream in before[:2])
    threading.excepthook = failed
    logging.raiseExceptions = False  # nor can the log file, on a disk that is full
    try:
        yield
    finally:
        sys.stdout, sys.stderr, logging.raiseExceptions = before
        threading.excepthook = other_threads


def duration(seconds: float) -> str:
    """`75.2` -> "1:15", `4000` -> "1:06:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""The one console that everything prints to, so that lines and a live display do not collide."""

import logging

from rich.console import Console

console = Console(highlight=False, markup=False)
if not console.is_terminal:
    console.width = 400  # a file has room: no name in a table is cut off


class ConsoleHandler(logging.Handler):
    """Log records as plain lines on the console, above a live display where one is running."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), soft_wrap=True)


def duration(seconds: float) -> str:
    """`75.2` -> "1:15", `4000` -> "1:06:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

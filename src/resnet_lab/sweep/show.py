"""What a sweep prints: a live table on a terminal, elsewhere a line per event; a closing table.

The best job is chosen by validation accuracy; test accuracy is printed beside it.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from resnet_lab.files import read_rows
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.state import State
from resnet_lab.screen import console, duration
from resnet_lab.sweep.job import JobRecord

STYLES = {
    State.FAILED: "red",
    State.INTERRUPTED: "yellow",
    State.FINISHED: "green",
    State.RUNNING: "bold",
}
# Which jobs are shown first.
ORDER = (
    *(State.RUNNING, State.PENDING, State.FAILED, State.INTERRUPTED),
    *(State.WAITING, State.PAUSED, State.PRUNED, State.FINISHED),
)
DAY = timedelta(days=1)


class Display:
    """The state of jobs while they run. A context manager; `update` may be called at any rate.

    Args:
        records: may grow.
        total: gives the number of jobs there will be.
    """

    def __init__(self, records: list[JobRecord], total: Callable[[], int]) -> None:
        self.records, self.total = records, total
        self._began = time.time()
        self._starts: dict[str, tuple[float, int]] = {}  # job -> time, epochs done before
        self._lengths: list[float] = []  # seconds of the jobs that have ended here
        self._due = 0.0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(Text(""), refresh=True)  # the closing table replaces it
            self._live.stop()

    def started(self, record: JobRecord) -> None:
        self.timed_from_now(record)
        _, epochs = self._starts[record.name]
        if self._live is None:
            how = f", resumed after epoch {epochs}" if record.resume else ""
            attempt = f" (attempt {record.attempts}{how})" if record.attempts > 1 else ""
            console.print(f"started     {record.name}{attempt}", soft_wrap=True)

    def timed_from_now(self, record: JobRecord) -> None:
        """A job has started, or waited for a machine until now."""
        epochs, _ = progress(record.folder)
        self._starts[record.name] = (time.time(), epochs if record.resume else 0)

    def ended(self, record: JobRecord) -> None:
        start, _ = self._starts.pop(record.name)
        if record.state.done:
            self._lengths.append(time.time() - start)
        if self._live is None:
            detail = _scores_text(record) if record.state.has_figures else record.error
            console.print(
                f"{record.state:<12}{record.name}   {duration(record.seconds)}   {detail}",
                soft_wrap=True,
            )

    def update(self) -> None:
        """Draw the live table again, at most once a second."""
        if self._live is None or time.time() < self._due:
            return
        self._due = time.time() + 1
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Group:
        count = Counter(record.state for record in self.records)
        counts = ", ".join(f"{count[state]} {state}" for state in ORDER if count[state])
        table = Table("job", "state", "epoch", "val acc", "elapsed", "left")
        rows = max(3, console.height - 7)
        first = sorted(self.records, key=lambda record: ORDER.index(record.state))[:rows]
        for record in (record for record in self.records if record in first):
            epochs, accuracy = progress(record.folder) if record.attempts else (0, None)
            running = record.state is State.RUNNING
            last = record.rung or record.job.max_epochs
            table.add_row(
                record.name,
                Text(record.state, STYLES.get(record.state, "")),
                _epoch_text(epochs, last, running),
                "" if accuracy is None else f"{accuracy:.4f}",
                duration(time.time() - self._starts[record.name][0]) if running else "",
                _duration_or_nothing(self._left(record)) if running else "",
            )
        return Group(table, Text(f"{counts}\n{self._outlook()}", no_wrap=True))

    def _left(self, record: JobRecord) -> float | None:
        """Seconds until a job that runs has ended, by its epochs so far or by other jobs."""
        start, before = self._starts[record.name]
        last = record.rung or record.job.max_epochs
        try:
            # The end of the newest epoch: since then nothing is known.
            then = RunFolder(record.folder).metrics.stat().st_mtime
        except OSError:
            then = 0.0
        epochs, _ = progress(record.folder)
        since = time.time() - then
        if last is not None and epochs > before and then > start:
            return max(0.0, (then - start) / (epochs - before) * (last - epochs) - since)
        if self._lengths:
            return max(0.0, fmean(self._lengths) - (time.time() - start))
        return None

    def _outlook(self) -> str:
        """How long the sweep has run, and when it will have ended."""
        elapsed = time.time() - self._began
        text = f"{duration(elapsed)} elapsed"
        running = [record for record in self.records if record.state is State.RUNNING]
        left = [self._left(record) for record in running]
        known = [seconds for seconds in left if seconds is not None]
        if not known or len(known) < len(left):
            return text
        over = (State.FAILED, State.INTERRUPTED)
        n_over = sum(record.state.done or record.state in over for record in self.records)
        n_waiting = self.total() - n_over - len(running)
        each = [
            time.time() - self._starts[r.name][0] + s for r, s in zip(running, known, strict=True)
        ]
        length = fmean(self._lengths or each)
        seconds = (sum(known) + n_waiting * length) / len(running)
        end = datetime.now() + timedelta(seconds=seconds)
        day = "" if seconds < DAY.total_seconds() else f"{end:%Y-%m-%d} "
        return f"{text}, {duration(seconds)} left, ends at about {day}{end:%H:%M}"


def _epoch_text(epochs: int, last: int | None, running: bool) -> str:
    if running and epochs == last:
        return "test"
    if running and not epochs:
        return f"0/{last or '?'}"
    return f"{epochs}/{last or '?'}" if epochs else ""


def _duration_or_nothing(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def progress(folder: Path) -> tuple[int, float | None]:
    """How many epochs a run has done, and its newest validation accuracy."""
    by_epoch = accuracies(folder)
    return next(reversed(by_epoch.items()), (0, None))


def accuracies(folder: Path) -> dict[int, float | None]:
    """The validation accuracy of every epoch that a run has done; None where it had none."""
    try:
        rows = read_rows(RunFolder(folder).metrics)
    except (OSError, ValueError):
        return {}
    found: dict[int, float | None] = {}
    for row in rows:
        with contextlib.suppress(ValueError, KeyError):  # a line that is cut off
            found[int(row["epoch"])] = float(row["val/acc"]) if row.get("val/acc") else None
    return found


def scores(record: JobRecord) -> dict[str, Any]:
    """result.json of a job that has figures, else nothing."""
    return RunFolder(record.folder).read_result() if record.state.has_figures else {}


def _scores_text(record: JobRecord) -> str:
    result = scores(record)
    return "   ".join(
        f"{split} acc {result[f'{split}/acc']:.4f}"
        for split in ("val", "test")
        if isinstance(result.get(f"{split}/acc"), float | int)
    )


def close(records: Sequence[JobRecord], folder: Path, left: int) -> None:
    """Print the closing table, the best job, and what failed and where to read why.

    Args:
        left: how many jobs the same command would still run.
    """
    table = Table("job", "state", "val acc", "test acc", "time")
    results = {record.name: scores(record) for record in records}
    for record in records:
        table.add_row(
            record.name,
            Text(record.state, STYLES.get(record.state, "")),
            *(_figure(results[record.name], f"{split}/acc") for split in ("val", "test")),
            duration(record.seconds) if record.attempts else "",
        )
    console.print(table)
    judged = [
        record.name
        for record in records
        if record.state is State.FINISHED and "val/acc" in results[record.name]
    ]
    if judged:
        best = max(judged, key=lambda name: float(results[name]["val/acc"]))
        console.print(
            f"best by validation: {best}   val {_figure(results[best], 'val/acc')}, "
            f"test {_figure(results[best], 'test/acc')}",
            soft_wrap=True,
        )
    for record in records:
        if record.state is State.FAILED:
            error = RunFolder(record.folder).error
            console.print(f"failed: {error}: {record.error}", soft_wrap=True)
    if left:
        console.print(
            f"{left} of {max(left, len(records))} jobs remain; run the same command to continue.",
            soft_wrap=True,
        )
    console.print(f"sweep folder: {folder}   (resnet-lab report {folder})", soft_wrap=True)


def _figure(result: dict[str, Any], key: str) -> str:
    return f"{result[key]:.4f}" if isinstance(result.get(key), float | int) else ""

"""What a sweep shows: one live table on a terminal, elsewhere a line per event; a table at the end.

The best job is chosen by validation accuracy; test accuracy stands beside it.
"""

import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from resnet_lab.files import read_rows
from resnet_lab.run.folder import RunFolder
from resnet_lab.screen import console, duration
from resnet_lab.sweep.grid import Job

STYLES = {"failed": "red", "interrupted": "yellow", "finished": "green", "running": "bold"}
# Who is shown first.
ORDER = ("running", "failed", "interrupted", "waiting", "paused", "pruned", "finished")
DONE = ("finished", "pruned")
JUDGED = (*DONE, "paused")


class Display:
    """The state of `jobs` while they run. A context manager; `update` may be called at any rate."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self._began: dict[str, tuple[float, int]] = {}  # job -> time, epochs it had done before
        self._due = 0.0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(Text(""), refresh=True)  # the closing table says it all
            self._live.stop()

    def started(self, job: Job) -> None:
        epochs, _ = progress(job.folder)
        self._began[job.name] = (time.monotonic(), epochs if job.resume else 0)
        if self._live is None:
            how = f", resumed after epoch {epochs}" if job.resume else ""
            attempt = f" (attempt {job.attempts}{how})" if job.attempts > 1 else ""
            console.print(f"started     {job.name}{attempt}", soft_wrap=True)

    def ended(self, job: Job) -> None:
        if self._live is None:
            what = _scores_text(job) if job.state in JUDGED else job.error
            console.print(
                f"{job.state:<12}{job.name}   {duration(job.seconds)}   {what}", soft_wrap=True
            )

    def update(self) -> None:
        """Draw the live table again, at most once a second."""
        if self._live is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + 1
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        count = Counter(job.state for job in self.jobs)
        caption = ", ".join(f"{count[state]} {state}" for state in ORDER if count[state])
        table = Table("job", "state", "epoch", "val acc", "left", caption=caption)
        room = max(3, console.height - 6)
        first = sorted(self.jobs, key=lambda job: ORDER.index(job.state))[:room]
        for job in (job for job in self.jobs if job in first):
            epochs, accuracy = progress(job.folder) if job.state != "waiting" else (0, None)
            table.add_row(
                job.name,
                Text(job.state, STYLES.get(job.state, "")),
                f"{epochs}/{job.rung or job.max_epochs or '?'}" if epochs else "",
                "" if accuracy is None else f"{accuracy:.4f}",
                self._left(job, epochs) if job.state == "running" else "",
            )
        return table

    def _left(self, job: Job, epochs: int) -> str:
        began, before = self._began[job.name]
        last = job.rung or job.max_epochs
        if epochs <= before or last is None:
            return ""
        each = (time.monotonic() - began) / (epochs - before)
        return duration(max(0.0, each * (last - before) - (time.monotonic() - began)))


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
    return {
        int(row["epoch"]): float(row["val/acc"]) if row.get("val/acc") else None for row in rows
    }


def scores(job: Job) -> dict[str, Any]:
    """result.json of a finished, pruned or paused job, else nothing."""
    if job.state not in JUDGED:
        return {}
    return RunFolder(job.folder).read_result()


def _scores_text(job: Job) -> str:
    result = scores(job)
    return "   ".join(
        f"{split} acc {result[f'{split}/acc']:.4f}"
        for split in ("val", "test")
        if isinstance(result.get(f"{split}/acc"), float | int)
    )


def close(jobs: list[Job], folder: Path, left: int | None = None) -> None:
    """Print the closing table, the best job, and what failed and where it is told.

    left: how many jobs the same command would go on with; None: all that have no result.
    """
    table = Table("job", "state", "val acc", "test acc", "time")
    results = {job.name: scores(job) for job in jobs}
    for job in jobs:
        table.add_row(
            job.name,
            Text(job.state, STYLES.get(job.state, "")),
            *(_figure(results[job.name], f"{split}/acc") for split in ("val", "test")),
            duration(job.seconds) if job.attempts else "",
        )
    console.print(table)
    judged = [
        job.name for job in jobs if job.state == "finished" and "val/acc" in results[job.name]
    ]
    if judged:
        best = max(judged, key=lambda name: float(results[name]["val/acc"]))
        console.print(
            f"best by validation: {best}   val {_figure(results[best], 'val/acc')}, "
            f"test {_figure(results[best], 'test/acc')}",
            soft_wrap=True,
        )
    for job in jobs:
        if job.state == "failed":
            console.print(f"failed: {job.folder / 'error.txt'}: {job.error}", soft_wrap=True)
    if left is None:
        left = sum(job.state not in DONE for job in jobs)
    if left:
        console.print(
            f"{left} of {max(left, len(jobs))} jobs are left; the same command goes on with them."
        )
    console.print(f"sweep folder: {folder}   (resnet-lab report {folder})", soft_wrap=True)


def _figure(result: dict[str, Any], key: str) -> str:
    return f"{result[key]:.4f}" if isinstance(result.get(key), float | int) else ""

"""What the page shows, as plain data for JSON: runs, sweeps, curves, differences."""

import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.report.catalogue import Catalogue, columns_of_config, row
from resnet_lab.report.differences import compare, letter
from resnet_lab.report.runs import PLACES, Run
from resnet_lab.report.where import select
from resnet_lab.run.folder import RunFolder, SweepFolder, shown, sweep_in_progress
from resnet_lab.run.state import State
from resnet_lab.style import PALETTE
from resnet_lab.ui import holders
from resnet_lab.ui.files import listed, tail

# So long one reading of the folders answers everybody; and reading takes at most this share of a
# processor, which trains perhaps.
FRESH_SECONDS, SHARE = 0.9, 0.1
LAST_EPOCHS = 5  # by which the time that is left is estimated
CURVES = ("train/loss", "val/loss", "train/acc", "val/acc")
MOST_CHOSEN = 60  # runs whose curves and pictures are sent at once
MOST_COMPARED = 12
MANY_CONFIGS = 40  # of so many runs the config keys are offered as columns
DONE = (State.FINISHED, State.PRUNED, "fast_dev_run")


class Views:
    """Everything that is asked for, of the runs below some folders.

    The page names a run or sweep by an id, and gets nothing that was not listed. Threads may call
    all methods.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self._catalogue = Catalogue(folders)
        self._lock = threading.RLock()
        self._due = float("-inf")
        self._runs: dict[str, Run] = {}
        self._sweeps: dict[str, Path] = {}
        self._paces: dict[Path, deque[tuple[int, float]]] = {}

    def _refresh(self) -> None:
        with self._lock:
            if time.monotonic() < self._due:
                return
            began = time.thread_time()
            self._runs = {_id(run.folder): run for run in self._catalogue.read()}
            self._sweeps = {_id(path): path for path in self._catalogue.sweeps}
            self._paces = {
                run.folder: self._paces.get(run.folder, deque(maxlen=LAST_EPOCHS + 1))
                for run in self._runs.values()
                if run.state == State.RUNNING
            }
            cost = time.thread_time() - began
            self._due = time.monotonic() + max(FRESH_SECONDS, cost / SHARE)

    def again(self) -> None:
        """The next question reads the folders anew: something was stopped or started."""
        self._due = float("-inf")

    def run(self, key: str) -> Run:
        self._refresh()
        with self._lock:
            if key not in self._runs:
                raise UserError("There is no such run any more.")
            return self._runs[key]

    def sweep(self, key: str) -> tuple[Path, dict[str, Any]]:
        """The folder of a sweep, and what its sweep.json holds."""
        self._refresh()
        with self._lock:
            if key not in self._sweeps:
                raise UserError("There is no such sweep any more.")
            return self._sweeps[key], self._catalogue.sweeps[self._sweeps[key]]

    def jobs(self, sweep: Path) -> list[Run]:
        """The runs of a sweep."""
        self._refresh()
        with self._lock:
            return [run for run in self._runs.values() if run.sweep == sweep]

    # ------------------------------------------------------------------ the table

    def table(self, where: str = "", columns: Sequence[str] = ()) -> dict[str, Any]:
        """All runs and sweeps. Nothing in it depends on the time of the question.

        Args:
            where: an expression as of `resnet-lab runs --where`.
            columns: config keys wanted besides.
        """
        self._refresh()
        with self._lock:
            jobs: dict[Path, list[Run]] = {path: [] for path in self._sweeps.values()}
            for run in self._runs.values():
                if run.sweep in jobs:
                    jobs[run.sweep].append(run)
            found = {
                "folders": [shown(folder) for folder in self.folders],
                "rows": [self._row(key, run, columns) for key, run in self._runs.items()],
                "sweeps": [
                    self._sweep_row(key, path, jobs[path]) for key, path in self._sweeps.items()
                ],
                "palette": PALETTE,
                "cannot_stop": holders.why_not(),
                "chosen": None,
                "fault": "",
            }
            if where:
                try:
                    found["chosen"] = self._chosen(where)
                except UserError as error:
                    found["fault"] = str(error).removeprefix("--where ")
            return found

    def _row(self, key: str, run: Run, columns: Sequence[str]) -> dict[str, Any]:
        # The catalogue makes another `Run` of one whose files have changed.
        state, found = run.memo.get("ui_row", ("", {}))
        if state != run.state + run.reason:
            found = row(run, Path.cwd()) | {
                "id": key,
                "sweep_id": _id(run.sweep) if run.sweep else "",
                "reason": run.reason,
            }
            run.memo["ui_row"] = run.state + run.reason, found
        found = dict(found)
        if columns:
            config = columns_of_config(run)
            found["config"] = {name: config.get(name) for name in columns}
        if run.state == State.RUNNING:
            found["progress"] = self._progress(run)
        return found

    def _progress(self, run: Run) -> dict[str, Any]:
        """The last epoch, when it ended (seconds since 1970), and how long one takes."""
        done = max(run.rows, default=0)
        at = None
        with suppress(OSError):
            at = RunFolder(run.folder).metrics.stat().st_mtime
        seen = self._paces[run.folder]
        if at is not None and (not seen or seen[-1][0] < done):
            seen.append((done, at))
        elif seen and seen[-1][0] > done:  # begun anew
            seen.clear()
        pace = None
        if len(seen) > 1:
            pace = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
        else:  # the training part alone, which the run has measured
            seconds = [row.get("train_seconds", 0.0) for row in run.rows.values()][-LAST_EPOCHS:]
            pace = fmean(seconds) if seconds else None
        return {"epoch": done, "at": at, "pace": pace}

    def _sweep_row(self, key: str, path: Path, jobs: Sequence[Run]) -> dict[str, Any]:
        content = self._catalogue.sweeps[path]
        count = Counter(str(run.state) for run in jobs)
        seconds = [
            float(run.result["seconds"])
            for run in jobs
            if run.state in DONE and isinstance(run.result.get("seconds"), int | float)
        ]
        running = sweep_in_progress(SweepFolder(path))
        left = sum(run.state not in DONE for run in jobs)
        return {
            "id": key,
            "name": printable(path.resolve().name),
            "path": printable(shown(path)),
            "started": _text(content.get("started")),
            "command": _text(content.get("command")),
            "keys": content.get("keys", []),
            "running": running,
            "left": left,
            "counts": dict(count),
            "mean_seconds": fmean(seconds) if seconds else None,
            "fault": "" if content else "sweep.json is damaged",
        }

    def _chosen(self, where: str) -> list[str]:
        chosen = {id(run) for run in select(list(self._runs.values()), where)}
        return [key for key, run in self._runs.items() if id(run) in chosen]

    def config_keys(self) -> list[str]:
        """Config keys that can be columns; of many runs some are asked."""
        self._refresh()
        with self._lock:
            runs = list(self._runs.values())
            step = max(1, len(runs) // MANY_CONFIGS)
            keys = {key for run in runs[::step] for key in columns_of_config(run)}
            return sorted(key for key in keys if key.split(".")[0] not in PLACES)

    # ------------------------------------------------------------------ chosen runs

    def curves(self, keys: Iterable[str]) -> list[dict[str, Any]]:
        """The figures of each epoch; None where an epoch has none.

        `setting` is the same for runs of one sweep that differ by their seed alone.
        """
        runs = self._named(list(keys)[:MOST_CHOSEN])
        with self._lock:
            return [
                {
                    "id": key,
                    "name": name,
                    "state": str(run.state),
                    "sweep": _sweep_name(run),
                    "setting": " ".join(
                        f"{k}={run.settings.get(k, '?')}" for k in run.swept if k != "seed"
                    ),
                    "repeated": run.sweep is not None and "seed" in run.swept,
                    "epochs": sorted(run.rows),
                    **{
                        figure: [run.rows[n].get(figure) for n in sorted(run.rows)]
                        for figure in CURVES
                    },
                }
                for key, (name, run) in runs.items()
            ]

    def pictures(self, keys: Iterable[str]) -> list[dict[str, Any]]:
        """The PNG files of each run."""
        return [
            {
                "id": key,
                "name": name,
                "files": [file for file in listed(run.folder) if file["name"].endswith(".png")],
            }
            for key, (name, run) in self._named(list(keys)[:MOST_CHOSEN]).items()
        ]

    def difference(self, keys: Iterable[str]) -> dict[str, Any]:
        """In what runs differ, as `resnet-lab diff` says it; of those that have begun, if two have.

        Raises:
            UserError: it is one run.
        """
        named = list(self._named(list(keys)[:MOST_COMPARED]).values())
        if len(named) < 2:
            raise UserError("Choose two runs or more.")
        with self._lock:
            begun = [(name, run) for name, run in named if run.config]
            compared = begun if len(begun) > 1 else named
            left_out = [name for name, run in named if (name, run) not in compared]
            sections = compare([run for _, run in compared])
        return {
            "names": [f"{letter(n)}: {name}" for n, (name, _) in enumerate(compared)],
            "left_out": left_out,
            "sections": [
                {
                    "title": section.title,
                    "lines": [[line.key, *line.values] for line in section.lines],
                    "notes": section.notes,
                }
                for section in sections
            ],
        }

    def _named(self, keys: Sequence[str]) -> dict[str, tuple[str, Run]]:
        """The runs with their names, which begin with their sweep's where there are several."""
        runs = {key: self.run(key) for key in keys}
        several = len({run.sweep for run in runs.values()}) > 1
        return {
            key: (f"{_sweep_name(run)}: {run.name}" if several and run.sweep else run.name, run)
            for key, run in runs.items()
        }

    def details(self, key: str) -> dict[str, Any]:
        """One run: how it was started, its files, the end of its log."""
        run = self.run(key)
        folder = RunFolder(run.folder)
        files = listed(run.folder)
        names = [file["name"] for file in files]
        logs = [path.name for path in (folder.log, folder.console, folder.error)]
        log = next((name for name in logs if name in names), "")
        return {
            "id": key,
            "name": run.name,
            "path": printable(shown(run.folder)),
            "state": str(run.state),
            "reason": run.reason,
            "command": _text(run.result.get("command")),
            "files": files,
            "log": log,
            "tail": [printable(line) for line in tail(run.folder, log)] if log else [],
        }


def _id(folder: Path) -> str:
    """A name for a folder that says nothing of its place."""
    return hashlib.blake2b(
        str(folder.absolute()).encode(errors="replace"), digest_size=8
    ).hexdigest()


def _sweep_name(run: Run) -> str:
    return printable(run.sweep.resolve().name) if run.sweep else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""

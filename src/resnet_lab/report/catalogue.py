"""All runs below some folders; imports neither torch nor pandas.

What has been read is kept and read again only where a file has changed, so that a thousand runs
are listed in a fraction of a second, as often as somebody asks.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISLNK
from typing import Any

from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.report.row import columns_of_config, row
from resnet_lab.report.runs import Run, job_folders, read_run, read_sweep
from resnet_lab.run.folder import RunFolder, SweepFolder, in_progress, shown, sweep_in_progress
from resnet_lab.run.state import State

__all__ = ["DIED", "Catalogue", "columns_of_config", "holds_a_run", "named", "row"]

DEEPEST = 8  # folders below a given one in which runs are looked for
DIED = "died"  # result.json says running, but no process holds the run

Stamp = tuple[int, int] | None  # mtime in nanoseconds and size of a file; None: it is not there


@dataclass
class _Known:
    """A run as it was read, and the files' stamps of that moment."""

    stamps: tuple[Stamp, ...]
    job: Mapping[str, Any] | None
    run: Run
    state: str  # as the files say; `run.state` says whether it is still so
    reason: str


class Catalogue:
    """All runs and sweeps below some folders, read again only where files have changed.

    No link is followed but a given folder itself, and nothing that a folder holds is run. What is
    damaged is listed as unreadable.

    Attributes:
        sweeps: the folder of each sweep and what its sweep.json holds, {} where it is damaged;
            after `read`.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        self.sweeps: dict[Path, dict[str, Any]] = {}
        self._runs: dict[Path, _Known] = {}
        self._sweep_files: dict[Path, tuple[Stamp, dict[str, Any]]] = {}

    def read(self) -> list[Run]:
        """The runs, oldest first; those of a sweep in its order, where the sweep has begun.

        A folder that is not there holds none.
        """
        groups: dict[Path, list[Run]] = {}
        sweeps: dict[Path, dict[str, Any]] = {}
        known: dict[Path, _Known] = {}
        seen: set[str] = set()
        for folder in self.folders:
            for path in _found(folder):
                if _stamp(SweepFolder(path).record) is not None:
                    sweeps[path] = self._sweep(path)
                    runs = self._jobs(path, sweeps[path], known)
                elif path == folder and (sweep := _sweep_of(path)):
                    sweeps[sweep] = self._sweep(sweep)
                    runs = self._jobs(sweep, sweeps[sweep], known, path)
                else:
                    runs = [self._run(path, None, known)]
                places = {os.path.realpath(run.folder): run for run in runs}
                new = [run for place, run in places.items() if place not in seen]
                groups.setdefault(path, []).extend(new)
                seen |= places.keys()  # a folder may be given twice
        self._runs, self.sweeps = known, sweeps
        self._sweep_files = {path: self._sweep_files[path] for path in sweeps}

        def began(path: Path) -> tuple[str, str]:
            times = [str(run.result.get("started") or "") for run in groups[path]]
            first = str(sweeps.get(path, {}).get("started") or "") or min(
                filter(None, times), default="~"
            )
            return first, str(path)

        return [run for path in sorted(groups, key=began) for run in groups[path]]

    def _sweep(self, path: Path) -> dict[str, Any]:
        stamp = _stamp(SweepFolder(path).record)
        before = self._sweep_files.get(path)
        if before is None or before[0] != stamp:
            self._sweep_files[path] = stamp, read_sweep(path)[0]
        return self._sweep_files[path][1]

    def _jobs(
        self,
        path: Path,
        sweep: dict[str, Any],
        known: dict[Path, _Known],
        only: Path | None = None,
    ) -> list[Run]:
        """The jobs of a sweep, or one `only`."""
        led = sweep_in_progress(SweepFolder(path))
        runs = []
        try:
            folders = job_folders(path, sweep) if only is None else {only: _entry(sweep, only)}
        except OSError:
            return []
        for folder, job in folders.items():
            if folder.is_symlink():
                continue
            run = self._run(folder, job, known, led)
            run.sweep, run.swept = path, sweep.get("keys", ())
            runs.append(run)
        return runs

    def _run(
        self,
        path: Path,
        job: dict[str, Any] | None,
        known: dict[Path, _Known],
        led: bool = False,
    ) -> Run:
        """One run; `led`: it is a job of a sweep in progress."""
        folder = RunFolder(path)
        stamps = tuple(map(_stamp, (folder.result, folder.labels, folder.metrics)))
        entry = self._runs.get(path)
        if entry is None or entry.stamps != stamps or entry.job != job:
            if link := _link(folder):
                reason = f"{link} is a link, which is not followed"
                run = Run(printable(path.resolve().name), path, "unreadable", reason)
            else:
                run = read_run(path, job)
            entry = _Known(stamps, job, run, run.state, run.reason)
        known[path] = entry
        entry.run.state, entry.run.reason = _as_it_is(entry, led)
        return entry.run


def _as_it_is(entry: _Known, led: bool) -> tuple[str, str]:
    """State and reason of a run, where its files may speak of a process that is gone."""
    folder = RunFolder(entry.run.folder)
    if entry.state == State.RUNNING:
        if led or in_progress(folder):
            return entry.state, entry.reason
        how = ""
        if entry.job is not None:
            how = "; the command of its sweep takes it up again"
        elif folder.has_checkpoint():
            how = f"; resume={shown(folder.path)} goes on with it"
        return DIED, f"no process trains in it any more ({entry.reason}){how}"
    if entry.state == "missing" and in_progress(folder):
        return State.RUNNING, "it is about to begin"
    return entry.state, entry.reason


def _found(folder: Path) -> Iterator[Path]:
    """The sweeps and runs in a folder or below it."""
    level = [str(folder)]
    for _ in range(DEEPEST + 1):
        below: list[str] = []
        for path in level:
            if holds_a_run(path):
                yield Path(path)
                continue
            with suppress(OSError), os.scandir(path) as entries:
                below += [
                    entry.path
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
                ]
        level = sorted(below)


def _sweep_of(path: Path) -> Path | None:
    """The sweep whose job a run folder is."""
    is_job = path.name and _stamp(RunFolder(path).job) and _stamp(SweepFolder(path.parent).record)
    return path.parent if is_job else None


def _entry(sweep: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """What sweep.json says of the job in a folder."""
    jobs: list[dict[str, Any]] = sweep.get("jobs", [])
    return next((job for job in jobs if Path(job["folder"]).name == folder.name), None)


def holds_a_run(path: str) -> bool:
    folder = Path(path)
    files = (RunFolder(folder).result, SweepFolder(folder).record, folder / ".hydra")
    return any(os.path.lexists(file) for file in files)


def _stamp(path: Path) -> Stamp:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _link(folder: RunFolder) -> str:
    """The first of the files that are read which is a link; "" where none is."""
    files = (folder.result, folder.metrics, folder.labels, folder.config, folder.overrides.parent)
    for file in (*files, folder.overrides):
        with suppress(OSError):
            if S_ISLNK(os.lstat(file).st_mode):
                return file.name
    return ""


def named(words: Sequence[str], where: Path = Path("outputs")) -> list[Path]:
    """The folders of runs and sweeps that somebody names.

    Args:
        words: a folder each, or the name of a run or sweep below `where`: "11-29-32-resnet20",
            "first", "first/seed=0".

    Raises:
        UserError: there is none of this name, or more than one.
    """
    found: list[Path] = []
    catalogue: list[Path] | None = None
    for word in words:
        path = Path(word)
        if not path.exists():
            if catalogue is None:
                reader = Catalogue([where])
                catalogue = [run.folder for run in reader.read()] + list(reader.sweeps)
            parts = path.parts
            alike = [folder for folder in catalogue if folder.parts[-len(parts) :] == parts]
            if not alike:
                raise UserError(
                    f"{printable(word)}: there is no such folder, and no run or sweep of this "
                    f"name below {where}; `resnet-lab runs` lists them."
                )
            if len(alike) > 1:
                several = ", ".join(printable(str(folder)) for folder in alike[:4])
                raise UserError(f"{printable(word)} may mean {several}: give the folder.")
            path = alike[0]
        elif not holds_a_run(word):
            raise UserError(
                f"{printable(word)} is no run and no sweep: name a folder that holds a "
                "result.json or a sweep.json, or the name that `resnet-lab runs` shows."
            )
        found.append(path)
    return list(dict.fromkeys(found))

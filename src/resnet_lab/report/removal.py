"""Runs and sweeps taken off the disk, in part or as a whole: never one in progress, never anything
else, and nothing behind a link."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.report.catalogue import Catalogue, holds_a_run
from resnet_lab.report.listing import in_bytes
from resnet_lab.report.row import size_of
from resnet_lab.report.runs import Run, is_sweep
from resnet_lab.run.folder import RunFolder, SweepFolder, sweep_in_progress
from resnet_lab.run.state import State

BUSY = (State.RUNNING, State.PENDING)
MOST_LINES = 30
YOUNG = 120  # seconds within which a run that has written no result may be loading torch


class Extent(Enum):
    """What of a run is removed."""

    EVERYTHING = "the whole folder"
    ALL_BUT_BEST = "all but best checkpoint, config, result and metrics"
    CHECKPOINTS = "the checkpoints"


@dataclass(frozen=True)
class Item:
    """What goes of one run or sweep.

    Attributes:
        folder: the run's or sweep's.
        paths: files and folders in it, or itself.
        size: bytes.
        runs: how many it stands for.
        in_sweep: the name of the sweep of which it is a job.
    """

    folder: Path
    paths: tuple[Path, ...]
    size: int
    runs: int
    in_sweep: str


@dataclass
class Plan:
    """What would be removed, and what stays for which reason."""

    extent: Extent
    items: list[Item] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What a person has to know before she agrees."""
        lines = [f"{in_bytes(item.size):>9}  {_name(item.folder)}" for item in self.items]
        if len(lines) > MOST_LINES:
            lines[MOST_LINES:] = [f"and {len(lines) - MOST_LINES:,} more"]
        lines += [f"stays      {reason}" for reason in self.kept[:MOST_LINES]]
        if len(self.kept) > MOST_LINES:
            lines.append(f"stays      {len(self.kept) - MOST_LINES:,} more")
        if not self.items:
            return [*lines, "There is nothing to remove."]
        runs, total = sum(item.runs for item in self.items), sum(item.size for item in self.items)
        lines.append(
            f"{in_bytes(total):>9}  of {runs:,} run{'' if runs == 1 else 's'}: {self.extent.value}"
        )
        sweeps = dict.fromkeys(item.in_sweep for item in self.items if item.in_sweep)
        if sweeps and self.extent is Extent.EVERYTHING:
            lines.append(f"The command of {_listed(sweeps)} will train these jobs again.")
        if self.extent is not Extent.EVERYTHING:
            lines.append("These runs cannot be resumed after that.")
        return lines


def plan(folders: Sequence[Path], extent: Extent) -> Plan:
    """What of these runs and sweeps would be removed.

    Raises:
        UserError: one of them is no run or sweep that may be removed; the rest stays, too.
    """
    planned = Plan(extent)
    chosen = _outermost(folders)
    for folder in chosen:
        _check(folder)
    runs: dict[Path, list[Run]] = {folder: [] for folder in chosen}
    for run in Catalogue(chosen).read():
        runs[run.folder if run.folder in runs else run.sweep or run.folder].append(run)
    for folder, own in runs.items():
        busy = [run for run in own if _is_busy(run)]
        if is_sweep(folder) and sweep_in_progress(SweepFolder(folder)):
            planned.kept.append(f"{_name(folder)}: this sweep is in progress")
        elif extent is not Extent.EVERYTHING:
            _add_parts(planned, own)
        elif busy:
            planned.kept.append(f"{_name(busy[0].folder)} is in progress, or has just begun")
        else:
            sweep = own[0].sweep if own and not is_sweep(folder) else None
            name = printable(sweep.resolve().name) if sweep else ""
            planned.items.append(Item(folder, (folder,), size_of(folder), len(own), name))
    return planned


def _is_busy(run: Run) -> bool:
    """Whether a process works on it, or perhaps is about to."""
    with suppress(OSError):
        if run.state == "missing" and time.time() - run.folder.stat().st_mtime < YOUNG:
            return True
    return run.state in BUSY


def _add_parts(planned: Plan, runs: Sequence[Run]) -> None:
    for run in runs:
        if _is_busy(run):
            planned.kept.append(f"{_name(run.folder)} is in progress, or has just begun")
            continue
        paths = tuple(_parts(RunFolder(run.folder), planned.extent))
        size = sum(size_of(path) if _is_folder(path) else _length(path) for path in paths)
        if paths:
            planned.items.append(Item(run.folder, paths, size, 1, ""))


def _parts(folder: RunFolder, extent: Extent) -> Iterator[Path]:
    """The files and folders of a run that go while the run stays."""
    if not _is_folder(folder.path):
        return
    checkpoints = sorted(folder.checkpoints.iterdir()) if _is_folder(folder.checkpoints) else []
    if extent is Extent.CHECKPOINTS:
        yield from checkpoints
        return
    best = folder.best.resolve()
    told = (folder.config, folder.result, folder.metrics, folder.labels, folder.patch, folder.job)
    kept = {*told, folder.overrides.parent, folder.checkpoints}
    yield from (path for path in checkpoints if path.resolve() != best)
    for path in sorted(folder.path.iterdir()):
        if path not in kept and path.resolve() != best and path not in best.parents:
            yield path


def remove(planned: Plan) -> Iterator[str]:
    """Remove what was planned; yields a sentence on each thing that stays after all, and at the
    end on what is gone."""
    size = count = 0
    for item in planned.items:
        try:
            _remove(item)
        except (UserError, OSError) as error:
            yield f"stays      {_name(item.folder)}: {printable(str(error))}"
            continue
        size, count = size + item.size, count + item.runs
    yield f"removed {in_bytes(size)} of {count:,} run{'' if count == 1 else 's'}"


def _remove(item: Item) -> None:
    if is_sweep(item.folder) and sweep_in_progress(SweepFolder(item.folder)):
        raise UserError("this sweep is in progress")
    with RunFolder(item.folder).lock():  # no run can begin here meanwhile
        for path in item.paths:
            if _is_folder(path):
                shutil.rmtree(path)  # which follows no link
            else:
                path.unlink(missing_ok=True)


def _check(folder: Path) -> None:
    """Raise UserError unless `folder` is a run or sweep and nothing besides."""
    name = _name(folder)
    if folder.is_symlink():
        raise UserError(f"{name} is a link; name the folder that it leads to.")
    if not holds_a_run(str(folder)):
        raise UserError(
            f"{name} is no run and no sweep; nothing was removed. With --where CONDITION a folder "
            "above runs can be named."
        )
    real, here = folder.resolve(), Path.cwd().resolve()
    if here.is_relative_to(real):
        raise UserError(f"{name} is where you stand; go to another folder first.")
    if os.path.lexists(folder / ".git"):
        raise UserError(f"{name} holds a git checkout; nothing was removed.")
    if not is_sweep(folder) and (inner := _inner(folder)):
        raise UserError(
            f"{name} holds other runs ({_name(inner)}); nothing was removed: name the runs."
        )


def _inner(folder: Path) -> Path | None:
    """A run or sweep below a run's folder; earlier attempts of it are its own."""
    with suppress(OSError):
        for path in folder.iterdir():
            own = path.name.startswith((".", "attempt-"))
            if not own and _is_folder(path) and Catalogue([path]).read():
                return path
    return None


def _outermost(folders: Sequence[Path]) -> list[Path]:
    """Each folder once, without those that lie in another."""
    by_place = {folder.resolve(): folder for folder in reversed(folders)}
    return [
        folder for place, folder in reversed(by_place.items()) if not {*place.parents} & {*by_place}
    ]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _length(path: Path) -> int:
    with suppress(OSError):
        return os.lstat(path).st_size
    return 0


def _name(path: Path) -> str:
    return printable(str(path))


def _listed(names: Sequence[str] | dict[str, None]) -> str:
    several = list(names)
    more = f" and {len(several) - 3} other sweeps" if len(several) > 3 else ""
    return ("sweep " if len(several) == 1 else "sweeps ") + ", ".join(several[:3]) + more

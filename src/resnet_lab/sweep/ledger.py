"""The state of a sweep on disk: which jobs are done, which are resumed, which begin anew.

A sweep folder holds `sweep.json` (name, command, started, updated, keys, jobs), for people and the
report; what is to be done is read from the job folders alone. Each holds `sweep_job.json`: the
job's overrides, the swept ones among them (for the run's row in HPARAMS), its config as composed,
and its attempts, the last of which has no `state` while it runs. The files of an attempt that is
not resumed are kept in `attempt-1`, `attempt-2`, ... below it.
"""

import contextlib
import re
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from resnet_lab.config.compose import quoted
from resnet_lab.config.errors import UserError
from resnet_lab.files import read_json, write_json, write_text
from resnet_lab.run.folder import RunFolder, SweepFolder, program
from resnet_lab.run.state import State
from resnet_lab.run.stop import STATUS, TIME_IS_OVER
from resnet_lab.screen import console
from resnet_lab.sweep.grid import ROOT_GROUP, differences
from resnet_lab.sweep.job import JobRecord

try:
    import fcntl
except ImportError:  # Windows, where jobs cannot be forked either
    fcntl = None  # type: ignore[assignment]

LAST_LINES = 40
# The status of a run in result.json that has come to its end, and the state of its job.
DONE = {"finished": State.FINISHED, "fast_dev_run": State.FINISHED, "pruned": State.PRUNED}
# How a run ends that was asked to stop: by a signal, or by trainer.max_time.
STOPPED = (*STATUS.values(), TIME_IS_OVER)


def read(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, None where there is none; UserError where it is not whole."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); mend it, or move {path.parent} away to start anew."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; move {path.parent} away to start anew.")
    return content


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def locked(folder: Path, patience: float) -> Iterator[int]:
    """Hold the lock of this sweep; yields its file descriptor.

    The processes of the sweep inherit it, so that after the parent was killed the next one waits
    until they have saved and ended.

    Raises:
        UserError: another command still has it after `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    RunFolder(folder).refuse_links()
    with SweepFolder(folder).lock.open("w") as file:
        _lock(file, folder, patience)
        yield file.fileno()


def _lock(file: IO[str], folder: Path, patience: float) -> None:
    if fcntl is None:
        return
    until, announced = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise UserError(
                    f"{folder}: this sweep is running in another process; wait for it or stop it."
                ) from None
            if not announced:
                console.print("waiting for the processes of this sweep that still run ...")
                announced = True
            time.sleep(0.1)
        else:
            return


def known(folder: Path) -> dict[str, Any] | None:
    """The content of `sweep.json`; None where a sweep may begin.

    Raises:
        UserError: the folder holds something else.
    """
    record = read(SweepFolder(folder).record)
    if record is None and folder.exists():
        if not folder.is_dir() or any(
            path != SweepFolder(folder).lock for path in folder.iterdir()
        ):
            raise UserError(
                f"{folder}: is there already and is no sweep; name another one with sweep.name=..."
            )
    elif record is not None and not _is_record(record):
        raise UserError(f"{folder}/sweep.json: is not of a sweep; name another one.")
    return record


def _is_record(record: dict[str, Any]) -> bool:
    keys, jobs = record.get("keys"), record.get("jobs")
    return (
        isinstance(keys, list)
        and all(isinstance(key, str) for key in keys)
        and isinstance(jobs, list)
        and all(isinstance(job, dict) and isinstance(job.get("folder"), str) for job in jobs)
    )


def merge_keys(previous: dict[str, Any] | None, keys: list[str], force: bool) -> list[str]:
    """The keys that name the folders: first those of the sweep so far."""
    if previous is None or not previous["jobs"]:
        return keys
    before: list[str] = previous["keys"]
    new = [key for key in keys if key not in before]
    if new and not force:
        raise UserError(
            f"{', '.join(new)}: fixed in this sweep so far, which varies {', '.join(before)}; "
            "name another one with sweep.name=..."
        )
    return [*before, *new]


def refresh(
    records: Sequence[JobRecord], keys: Sequence[str], others: Sequence[Path], force: bool
) -> None:
    """Set the state of each job from its folder: done, or waiting (perhaps to be resumed).

    Args:
        keys: those that are swept.
        others: the folders of the sweep's earlier jobs.
        force: jobs whose settings have changed begin anew.

    Raises:
        UserError: a setting that is not swept has changed, and not `force`.
    """
    changes: dict[str, None] = {}
    for record in records:
        content = refresh_job(record)
        if content is None:
            continue
        if changed := differences(content["config"], record.job.config, ()):
            changes |= dict.fromkeys(changed)
            record.state, record.resume = State.WAITING, False
    if ROOT_GROUP not in keys and not force:
        changes |= dict.fromkeys(_against_others(records, keys, others))
    if changes and not force:
        raise UserError(
            "This sweep was begun with other settings (old -> new):\n  "
            + "\n  ".join(changes)
            + "\nName another one with sweep.name=..., or run what changed anew with "
            "sweep.force=true."
        )


def _against_others(
    records: Sequence[JobRecord], keys: Sequence[str], others: Sequence[Path]
) -> list[str]:
    """Where new points of the grid differ from an earlier job in keys that are not swept."""
    swept = [key.replace("/", ".") for key in keys]
    for folder in others:
        content = read(RunFolder(folder).job)
        if content is not None:
            new = [record for record in records if not record.folder.exists()]
            return [
                difference
                for record in new
                for difference in differences(content["config"], record.job.config, swept)
            ]
    return []


def refresh_job(record: JobRecord) -> dict[str, Any] | None:
    """Set the state of one job from its folder; returns its `sweep_job.json`."""
    folder = RunFolder(record.folder)
    content = read(folder.job)
    if content is None:
        if record.folder.exists() and any(record.folder.iterdir()):
            raise UserError(f"{record.folder}: is no job of this sweep; move it away.")
        return None
    attempts: Any = content.get("attempts")
    if not _are_attempts(attempts) or not isinstance(content.get("config"), dict):
        raise UserError(f"{folder.job}: is damaged; mend it, or move {folder} away to start anew.")
    record.attempts = len(attempts)
    record.seconds = sum(attempt["seconds"] for attempt in attempts)
    result = read(folder.result)
    status = str(result.get("status")) if result is not None else ""
    if status in DONE:
        record.state = DONE[status]
    else:
        # Without a state the sweep itself was killed, and the job with it.
        last = attempts[-1] if attempts else {"state": None}
        stopped = last["state"] in (None, State.INTERRUPTED, State.PAUSED) or last["killed"]
        record.resume = bool(stopped) and can_resume(record.folder)
    return content


def _are_attempts(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(attempt, dict)
        and {"state", "killed"} <= attempt.keys()
        and isinstance(attempt.get("seconds"), int | float)
        for attempt in content
    )


def can_resume(folder: Path) -> bool:
    """Whether `resume=folder` finds a checkpoint."""
    run = RunFolder(folder)
    return run.config.exists() and run.last.exists()


def prepare(record: JobRecord) -> list[str]:
    """Make the folder ready for the next attempt; returns the arguments for `train.py`."""
    folder, job = RunFolder(record.folder), record.job
    content = read(folder.job) or {"attempts": []}
    if record.resume:
        folder.error.unlink(missing_ok=True)
    else:
        _set_aside(record.folder)
    content |= {"overrides": job.overrides, "swept": job.swept, "config": job.config}
    record.folder.mkdir(exist_ok=True)
    write_json(folder.job, content, durable=True)
    # A run is resumed by the very command that began it.
    pause = [f"callbacks.last.pause_after={record.rung}"] if record.rung is not None else []
    key = "resume" if record.resume else "hydra.run.dir"
    return [*job.overrides, *pause, f"{key}={quoted(str(record.folder))}"]


def begin(record: JobRecord) -> None:
    """Note that an attempt has begun; one that an earlier command has begun is taken over."""
    content = _content(record)
    attempts = content["attempts"]
    if not attempts or attempts[-1]["state"] is not None:
        attempts.append(_attempt())
        with contextlib.suppress(FileNotFoundError):  # the folder is gone, as `end` will say
            write_json(RunFolder(record.folder).job, content, durable=True)
    record.state, record.error = State.RUNNING, None
    record.attempts = len(attempts)


def _attempt() -> dict[str, Any]:
    return {"started": now(), "seconds": 0.0, "state": None, "killed": False}


def _content(record: JobRecord) -> dict[str, Any]:
    """Its sweep_job.json; put together again where somebody has removed or damaged it."""
    try:
        content = read(RunFolder(record.folder).job)
    except UserError:
        content = None
    if content is not None and _are_attempts(content.get("attempts")):
        return content
    job = record.job
    attempts = [_attempt() for _ in range(record.attempts)]
    return {
        "attempts": attempts,
        "overrides": job.overrides,
        "swept": job.swept,
        "config": job.config,
    }


def _set_aside(folder: Path) -> None:
    """Move the files of an earlier attempt into `attempt-N`; nothing is lost."""
    if not folder.exists():
        return
    left = [
        path
        for path in folder.iterdir()
        if path != RunFolder(folder).job and not re.fullmatch(r"attempt-\d+", path.name)
    ]
    if left:
        numbers = [int(path.name.partition("-")[2]) for path in folder.glob("attempt-*")]
        target = folder / f"attempt-{max(numbers, default=0) + 1}"
        target.mkdir()
        for path in left:
            path.rename(target / path.name)


def end(record: JobRecord, status: int, seconds: float, stopping: bool) -> None:
    """Judge an attempt whose process is gone, by its folder; leaves error.txt where it failed.

    Args:
        status: of the process: 0 and above it exited with, below 0 the signal that killed it.
        stopping: whether the sweep had asked it to stop.
    """
    folder = RunFolder(record.folder)
    if not record.folder.is_dir():
        record.state, record.resume = State.FAILED, False
        record.error = "its folder was removed or renamed while it ran"
        return
    killed = status < 0 or status in STOPPED
    try:
        result = read(folder.result) or {}
    except UserError as error:
        result = {"error": str(error)}
    if str(result.get("status")) in DONE:
        record.state = DONE[result["status"]]
    elif result.get("status") == State.PAUSED:
        record.state = State.PAUSED
    elif stopping:
        record.state, record.error = State.INTERRUPTED, "stopped with the sweep"
    else:
        tail = last_lines(folder.console)
        record.state, record.error = State.FAILED, reason(status)
        # What the run itself could still write says more than its screen.
        stopped = result.get("status") == State.INTERRUPTED  # written before it was killed
        if (status > 0 or stopped) and (cause := str(result.get("error") or _said_last(tail))):
            record.error += f": {cause[:300]}"
        write_text(
            folder.error,
            f"{record.error}\n\nThe last lines of console.log:\n{''.join(tail)}",
        )
    record.seconds += seconds
    record.resume = (killed or stopping or record.state is State.PAUSED) and can_resume(
        record.folder
    )
    content = _content(record)
    content["attempts"][-1] |= {
        "seconds": round(seconds, 3),
        "state": record.state,
        "killed": killed,
        "error": record.error,
    }
    write_json(folder.job, content, durable=True)


def reason(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with exit status {status} before it had finished"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"killed by {name}" + (", perhaps for memory" if name == "SIGKILL" else "")


def _said_last(lines: list[str]) -> str:
    """The line of a screen that says why a program has ended.

    After a traceback the first line of the error, which may have more (and Hydra's advice below).
    """
    lines = [line.rstrip() for line in lines if line.strip()]
    traces = [n for n, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    after = lines[traces[-1] + 1 :] if traces else []
    return next((line for line in after if not line.startswith(" ")), (lines or [""])[-1].strip())


def last_lines(path: Path) -> list[str]:
    try:
        with path.open(errors="replace") as file:
            return list(deque(file, LAST_LINES))
    except FileNotFoundError:
        return []


def write_sweep(
    folder: Path,
    previous: dict[str, Any] | None,
    keys: list[str],
    records: list[JobRecord],
    search: dict[str, Any] | None = None,
    *,
    began: str,
) -> None:
    """Write `sweep.json`: these jobs, after those of `previous` that are not among them.

    Args:
        began: when this command began, which is when the sweep did where there is no `previous`.
        search: the description of a search; see `search.describe`.
    """
    here = {record.name for record in records}
    earlier = [job for job in previous["jobs"] if job["folder"] not in here] if previous else []
    content = {
        "name": folder.name,
        "command": command(),
        "started": previous["started"] if previous else began,
        "updated": now(),
        "keys": keys,
        **({"search": search} if search else {}),
        "jobs": earlier
        + [
            {
                "folder": record.name,
                "overrides": record.job.overrides,
                "state": record.state,
                "seconds": round(record.seconds, 3),
                "attempts": record.attempts,
                "error": record.error,
            }
            for record in records
        ],
    }
    write_json(SweepFolder(folder).record, content, durable=True)


def command() -> str:
    """The command line, as it can be typed again."""
    return shlex.join([*program(), *sys.argv[1:]])

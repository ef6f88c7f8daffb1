"""What the folders say: which jobs are done, which go on, which begin anew.

A sweep folder holds `sweep.json` (name, command, started, updated, keys, jobs), for people and the
report; what is to be done is read from the job folders alone. Each holds `sweep_job.json`: the
job's overrides, the swept ones among them (for the run's row in HPARAMS), its config as composed,
and its attempts, the last of which has no `state` while it runs. An
attempt that is not gone on with lies in `attempt-1`, `attempt-2`, ... below it.
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

from resnet_lab.config.errors import UserError
from resnet_lab.files import read_json, write_json, write_text
from resnet_lab.run.folder import RunFolder, SweepFolder, program
from resnet_lab.run.stop import STATUS, TIME_IS_OVER
from resnet_lab.screen import console
from resnet_lab.sweep.grid import ROOT_GROUP, Job, differences

try:
    import fcntl
except ImportError:  # Windows, where jobs cannot be forked either
    fcntl = None  # type: ignore[assignment]

LAST_LINES = 40
# What result.json says of a run that came to its end, and the state of its job.
DONE = {"finished": "finished", "fast_dev_run": "finished", "pruned": "pruned"}
# How a run ends that was told to stop: by a signal, or by trainer.max_time.
STOPPED = (*STATUS.values(), TIME_IS_OVER)


def read(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, None where there is none. ValueError where it is not whole."""
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
    """Nobody else runs this sweep; yields the lock's file descriptor.

    The processes of the sweep inherit it, so that after the parent was killed the next one waits
    until they have saved and gone, up to `patience` seconds. ValueError where they do not go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    RunFolder(folder).refuse_links()
    with SweepFolder(folder).lock.open("w") as file:
        _lock(file, folder, patience)
        yield file.fileno()


def _lock(file: IO[str], folder: Path, patience: float) -> None:
    if fcntl is None:
        return
    until, told = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise UserError(
                    f"{folder}: this sweep is running in another process; wait for it or stop it."
                ) from None
            if not told:
                console.print("waiting for the processes of this sweep that still run ...")
                told = True
            time.sleep(0.1)
        else:
            return


def known(folder: Path) -> dict[str, Any] | None:
    """What `sweep.json` holds; None where a sweep may begin. ValueError in a folder of others."""
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
    jobs = record.get("jobs")
    return (
        isinstance(record.get("keys"), list)
        and isinstance(jobs, list)
        and all(isinstance(job, dict) and "folder" in job for job in jobs)
    )


def merge_keys(record: dict[str, Any] | None, keys: list[str], force: bool) -> list[str]:
    """The keys that name the folders: those of the sweep so far, where it has begun."""
    if record is None or not record["jobs"]:
        return keys
    before: list[str] = record["keys"]
    new = [key for key in keys if key not in before]
    if new and not force:
        raise UserError(
            f"{', '.join(new)}: fixed in this sweep so far, which varies {', '.join(before)}; "
            "name another one with sweep.name=..."
        )
    return [*before, *new]


def look(jobs: Sequence[Job], keys: Sequence[str], others: Sequence[Path], force: bool) -> None:
    """Set each job's state from its folder: finished, or waiting (perhaps to go on).

    `others` are the folders of the sweep's earlier jobs. ValueError where a setting that is not
    swept has changed, unless `force`: such jobs then begin anew.
    """
    changes: dict[str, None] = {}
    for job in jobs:
        record = look_at(job)
        if record is not None and (changed := differences(record["config"], job.config, ())):
            changes |= dict.fromkeys(changed)
            job.state, job.resume = "waiting", False
    if ROOT_GROUP not in keys and not force:
        changes |= dict.fromkeys(_against_others(jobs, keys, others))
    if changes and not force:
        raise UserError(
            "This sweep was begun with other settings (old -> new):\n  "
            + "\n  ".join(changes)
            + "\nName another one with sweep.name=..., or run what changed anew with "
            "sweep.force=true."
        )


def _against_others(jobs: Sequence[Job], keys: Sequence[str], others: Sequence[Path]) -> list[str]:
    """What new points of the grid have set otherwise than an earlier job, the grid apart."""
    besides = [key.replace("/", ".") for key in keys]
    for folder in others:
        record = read(RunFolder(folder).job)
        if record is not None:
            new = [job for job in jobs if not job.folder.exists()]
            return [d for job in new for d in differences(record["config"], job.config, besides)]
    return []


def look_at(job: Job) -> dict[str, Any] | None:
    """Set the state of one job from its folder; returns its `sweep_job.json`."""
    record = read(RunFolder(job.folder).job)
    if record is None:
        if job.folder.exists() and any(job.folder.iterdir()):
            raise UserError(f"{job.folder}: is no job of this sweep; move it away.")
        return None
    attempts = record["attempts"]
    job.attempts = len(attempts)
    job.seconds = sum(attempt["seconds"] for attempt in attempts)
    result = read(RunFolder(job.folder).result)
    if result is not None and result.get("status") in DONE:
        job.state = DONE[result["status"]]
    else:
        # Without a state the sweep itself was killed, and the job with it.
        last = attempts[-1] if attempts else {}
        stopped = last.get("state") in (None, "interrupted", "paused") or last["killed"]
        job.resume = stopped and can_resume(job.folder)
    return record


def can_resume(folder: Path) -> bool:
    """Whether `resume=folder` has something to go on from."""
    run = RunFolder(folder)
    return run.config.exists() and run.last.exists()


def begin(job: Job) -> list[str]:
    """Make the folder ready for the next attempt; returns the arguments for `train.py`."""
    folder = job.folder
    record = read(RunFolder(folder).job) or {"attempts": []}
    if job.resume:
        RunFolder(folder).error.unlink(missing_ok=True)
    else:
        _set_aside(folder)
    record |= {"overrides": job.overrides, "swept": job.swept, "config": job.config}
    record["attempts"].append({"started": now(), "seconds": 0.0, "state": None, "killed": False})
    folder.mkdir(exist_ok=True)
    write_json(RunFolder(folder).job, record, durable=True)
    job.state, job.error = "running", None
    job.attempts = len(record["attempts"])
    # A run is resumed by the very command that began it.
    pause = [f"callbacks.last.pause_after={job.rung}"] if job.rung is not None else []
    key = "resume" if job.resume else "hydra.run.dir"
    return [*job.overrides, *pause, f"{key}={quoted(folder)}"]


def quoted(path: Path) -> str:
    """A path as a value on Hydra's command line, where "=" and "," have meanings."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _set_aside(folder: Path) -> None:
    """Move what an earlier attempt left into `attempt-N`; nothing is lost."""
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


def end(job: Job, status: int, seconds: float, told_to_stop: bool) -> None:
    """Judge an attempt whose process is gone, by its folder; leaves error.txt where it failed.

    Args:
        status: of the process: 0 and above it exited with, below 0 the signal that killed it.
        told_to_stop: whether the sweep itself had asked it to stop.
    """
    folder = job.folder
    killed = status < 0 or status in STOPPED
    try:
        result = read(RunFolder(folder).result) or {}
    except UserError as error:
        result = {"error": str(error)}
    if result.get("status") in DONE:
        job.state = DONE[result["status"]]
    elif result.get("status") == "paused":
        job.state = "paused"
    elif told_to_stop:
        job.state, job.error = "interrupted", "stopped with the sweep"
    else:
        tail = last_lines(RunFolder(folder).console)
        job.state, job.error = "failed", reason(status)
        # What the run itself could still write tells more than the last line on its screen.
        last = next((line.strip() for line in reversed(tail) if line.strip()), "")
        stopped = result.get("status") == "interrupted"  # said before it was killed
        if (status > 0 or stopped) and (told := str(result.get("error") or last)):
            job.error += f": {told[:300]}"
        write_text(
            RunFolder(folder).error,
            f"{job.error}\n\nThe last lines of console.log:\n{''.join(tail)}",
        )
    job.seconds += seconds
    job.resume = (killed or told_to_stop or job.state == "paused") and can_resume(folder)
    record = read(RunFolder(folder).job)
    assert record is not None
    record["attempts"][-1] |= {
        "seconds": round(seconds, 3),
        "state": job.state,
        "killed": killed,
        "error": job.error,
    }
    write_json(RunFolder(folder).job, record, durable=True)


def reason(status: int) -> str:
    """How a process ended, for people."""
    if status >= 0:
        return f"ended with exit status {status} before it had finished"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"killed by {name}" + (", perhaps for memory" if name == "SIGKILL" else "")


def last_lines(path: Path) -> list[str]:
    try:
        with path.open(errors="replace") as file:
            return list(deque(file, LAST_LINES))
    except FileNotFoundError:
        return []


def write_sweep(
    folder: Path,
    record: dict[str, Any] | None,
    keys: list[str],
    jobs: list[Job],
    search: dict[str, Any] | None = None,
) -> None:
    """Write `sweep.json`: these jobs, after those of `record` that are not among them.

    search: of a search, what it looks for and where; see `search.describe`.
    """
    here = {job.name for job in jobs}
    earlier = [job for job in record["jobs"] if job["folder"] not in here] if record else []
    content = {
        "name": folder.name,
        "command": command(),
        "started": record["started"] if record else now(),
        "updated": now(),
        "keys": keys,
        **({"search": search} if search else {}),
        "jobs": earlier
        + [
            {
                "folder": job.name,
                "overrides": job.overrides,
                "state": job.state,
                "seconds": round(job.seconds, 3),
                "attempts": job.attempts,
                "error": job.error,
            }
            for job in jobs
        ],
    }
    write_json(SweepFolder(folder).record, content, durable=True)


def command() -> str:
    """The command line, as it can be typed again."""
    return shlex.join([*program(), *sys.argv[1:]])

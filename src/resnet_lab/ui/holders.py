"""Which process trains in a folder, and how it is asked to stop (Linux).

A run holds a lock on its folder, a sweep on its `.lock`. Who holds a lock is asked of the kernel:
what a folder says of processes may have been written by anybody.
"""

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from resnet_lab.config.errors import UserError

PROC = Path("/proc")
PROGRAMS = ("train.py", "resnet-lab", "resnet_lab.cli")  # a word of the command line of a training


def why_not() -> str:
    """Why nothing can be stopped from here; "" where it can."""
    if not (PROC / "self" / "fdinfo").is_dir():
        return "this system does not say which process holds a lock (it has no /proc)"
    if not (hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")):
        return "this Python cannot signal a process safely (it has no pidfd)"
    return ""


def holder(lock: Path) -> int | None:
    """The process of this user that holds the lock on a file or folder; None where none does.

    A process that has only inherited the lock does not count: of a sweep it is the parent that
    stops the others.
    """
    try:
        status = lock.stat(follow_symlinks=False)
    except OSError:
        return None
    # Another name (a hard link) could lead to the lock file of another program.
    if not (
        stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
    ):
        return None
    return next((pid for pid in _own_processes() if _holds(pid, status)), None)


def stop(lock: Path) -> int:
    """Send SIGTERM to the process that holds a lock: it saves and ends. Returns its number.

    Raises:
        UserError: none does, or it is no training of this project.
    """
    if reason := why_not():
        raise UserError(f"It cannot be stopped from here: {reason}; press Ctrl-C where it runs.")
    pid = holder(lock)
    if pid is None:
        raise UserError("No process of yours on this machine trains in this folder.")
    # From here on the number cannot come to mean another process.
    try:
        process = os.pidfd_open(pid)
    except OSError:
        raise UserError("Its process has just ended.") from None
    try:
        if not _holds(pid, lock.stat(follow_symlinks=False)):
            raise UserError("Its process has just ended.")
        if not is_training(pid):
            raise UserError(
                f"Process {pid} holds this folder but is neither train.py nor resnet-lab train "
                "(a notebook, perhaps); stop it where it runs."
            )
        signal.pidfd_send_signal(process, signal.SIGTERM)
    except ProcessLookupError:
        raise UserError("Its process has just ended.") from None
    finally:
        os.close(process)
    return pid


def is_training(pid: int) -> bool:
    """Whether the process was started as train.py or by resnet-lab, a job's server included."""
    return any(Path(word).name in PROGRAMS for word in _command_line(pid))


def _command_line(pid: int) -> list[str]:
    try:
        return os.fsdecode((PROC / str(pid) / "cmdline").read_bytes()).split("\0")
    except OSError:
        return []


def _own_processes() -> Iterator[int]:
    for folder in PROC.iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and folder.stat().st_uid == os.geteuid():
                yield int(folder.name)


def _holds(pid: int, lock: os.stat_result) -> bool:
    """Whether the process has locked this very file itself."""
    folder = PROC / str(pid)
    try:
        descriptors = os.listdir(folder / "fd")
    except OSError:
        return False
    for descriptor in descriptors:
        with suppress(OSError):
            opened = (folder / "fd" / descriptor).stat()
            if (opened.st_dev, opened.st_ino) != (lock.st_dev, lock.st_ino):
                continue
            for line in (folder / "fdinfo" / descriptor).read_text().splitlines():
                # lock:  1: FLOCK  ADVISORY  WRITE 1234 fe:00:3350697 0 EOF
                if line.startswith("lock:") and line.split()[2:6] == [
                    *("FLOCK", "ADVISORY", "WRITE", str(pid))
                ]:
                    return True
    return False

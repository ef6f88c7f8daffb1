"""How a run is told to stop from outside, and how it then ends."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from resnet_lab.run import distributed

# The usual notices, and the exit status that says so. SIGUSR1 announces a preemption. Windows has
# the first two alone.
_NOTICES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 143, "SIGHUP": 129}
STATUS = {getattr(signal, name): s for name, s in _NOTICES.items() if hasattr(signal, name)}
TIME_IS_OVER = 124  # as timeout(1) ends
# torchrun and srun pass on a signal that the cluster has sent to every process, them included.
ECHO_SECONDS = 3.0


class Stopped(SystemExit):
    """A run ends because it was told to; where it stands has been saved.

    reason: for people. code: the exit status.
    """

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(code)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Paused(Stopped):
    """A job has come to the epoch at which its sweep compares it with others (`sweep.halving`)."""


class Signals:
    """Remembers the first signal of `STATUS` as `received`; the second ends the process at once.

    The second is heard by a thread, to which the C handler writes: the main thread may wait for
    another process, deep in a collective operation, and would not hear of anything. Where torchrun
    or srun has started the process, what follows within `ECHO_SECONDS` is the first one's echo.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None

    def catch(self) -> None:
        """From now on; what the process ignores (a job of nohup, say) it goes on ignoring."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python handles signals in that one alone
        if self._pipe is None:
            self._pipe = os.pipe()
            if hasattr(os, "set_blocking"):  # not on Windows before Python 3.12
                os.set_blocking(self._pipe[1], False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=self._pipe[:1], daemon=True).start()
        for number in STATUS:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, self._receive):
                self._before.setdefault(number, handler)
                signal.signal(number, self._receive)

    def let_go(self) -> None:
        """Put back the handlers that were there."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._pipe[1])  # the thread ends
            self._pipe = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    def _listen(self, pipe: int) -> None:
        first = None
        while numbers := os.read(pipe, 64):
            for number in filter(STATUS.__contains__, numbers):
                if first is None:
                    first = time.monotonic()
                elif not distributed.from_outside() or time.monotonic() > first + ECHO_SECONDS:
                    os._exit(STATUS[signal.Signals(number)])
        os.close(pipe)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """After it, signals are handled as before, whatever Lightning has put back meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STATUS}
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


locks: set[int] = set()  # open files by which this process holds a lock


def die_with_parent() -> None:
    """The process is killed as soon as the one that has started it ends (Linux; else nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def spare_worker(worker: int = 0) -> None:
    """In a process that loads data: a signal to the whole group is for the run's first process.

    That one needs its workers to finish the step. SIGTERM, by which they are also ended, ends them
    five seconds later. And the worker must not hold on to what ends with that process.
    """
    die_with_parent()
    for lock in locks:
        os.close(lock)
    signal.set_wakeup_fd(-1)
    for number in STATUS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(5))

"""Runs the jobs of a source on an executor, and sees each of them end."""

import signal
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from resnet_lab.config.errors import UserError
from resnet_lab.run.state import State
from resnet_lab.sweep import ledger
from resnet_lab.sweep.executor import Executor
from resnet_lab.sweep.job import JobRecord
from resnet_lab.sweep.show import Display

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class RunOptions:
    """What happens to jobs that fail.

    Attributes:
        on_error: "continue" or "stop", which stops the others and starts no more.
        retries: how often each job is tried again.
    """

    on_error: str = "continue"
    retries: int = 0


class Source(Protocol):
    """Where the jobs of a sweep come from: a grid, perhaps with halving, or a search.

    Attributes:
        keys: the swept keys, in the order of the folders' names.
        previous: what sweep.json held before this command.
        records: every job so far.
        description: of a search, its space and objectives; for sweep.json.
        total: how many jobs there will be.
        left: how many of them the same command would still run.
        failed: whether the command ends with status 1.
    """

    keys: list[str]
    previous: dict[str, Any] | None
    records: list[JobRecord]
    description: dict[str, Any] | None

    @property
    def total(self) -> int: ...

    @property
    def left(self) -> int: ...

    @property
    def failed(self) -> bool: ...

    def refresh(self) -> None:
        """Read how far the jobs are; UserError where the folder is of another sweep."""

    def open(self) -> None:
        """Make ready to give jobs; the folder is locked, and sweep.json written."""

    def heading(self) -> str:
        """A line: how many jobs there are."""

    def more(self) -> list[JobRecord]:
        """The next jobs, if there are any; asked for when there is room for one more."""

    def ended(self, record: JobRecord) -> None:
        """A job has ended, and is not tried again."""

    def close(self) -> None:
        """Print what the closing table does not say."""


def run(
    source: Source,
    executor: Executor,
    options: RunOptions,
    display: Display,
    save: Callable[[], None],
) -> int:
    """Run jobs until the source has no more. Returns the signal that ended the sweep, or 0.

    SIGINT, SIGTERM and SIGHUP ask all jobs to stop (they save a checkpoint) and kill what is left
    after the executor's grace; a second signal kills at once.

    Args:
        save: called whenever a job's state has changed.

    Raises:
        UserError: the executor is lost.
    """
    waiting: deque[JobRecord] = deque()
    running: dict[str, JobRecord] = {}
    retries: dict[str, int] = defaultdict(lambda: options.retries)
    stopping, deadline = False, 0.0

    def stop(number: int) -> None:
        nonlocal stopping, deadline
        waiting.clear()
        executor.signal(number)
        stopping, deadline = True, time.monotonic() + executor.grace_seconds

    def upcoming() -> JobRecord | None:
        if not (waiting or stopping or executor.lost) and (
            not running or executor.room(next(iter(running.values())).job)
        ):
            waiting.extend(source.more())
        return waiting[0] if waiting else None

    def start(record: JobRecord) -> bool:
        if not executor.adopt(record.job):
            if not executor.room(record.job):
                return False
            arguments = ledger.prepare(record)
            if not executor.start(record.job, arguments):
                return False
        ledger.begin(record)
        return True

    def settle(record: JobRecord) -> None:
        """A job has ended: try it again, stop the others, or leave it."""
        display.ended(record)
        if record.state is State.FAILED and not stopping:
            if retries[record.name] > 0 and not executor.lost:
                retries[record.name] -= 1
                record.state = State.WAITING
                waiting.appendleft(record)
                return
            if options.on_error == "stop":
                stop(signal.SIGTERM)
        if not executor.lost:
            source.ended(record)

    with _caught_signals() as caught:
        answered = 0
        while running or upcoming():
            while (record := upcoming()) is not None and start(record):
                waiting.popleft()
                running[record.name] = record
                save()
                display.started(record)
            for name, status, seconds in executor.ended(POLL_SECONDS):
                record = running.pop(name)
                ledger.end(record, status, seconds, stopping)
                settle(record)
                save()
            for name, record in running.items():
                state = State.PENDING if name in executor.pending else State.RUNNING
                if record.state is not state:
                    record.state = state
                    display.timed_from_now(record)
                    save()
            if len(caught) > answered:
                # The second asks for an end at once.
                stop(signal.SIGKILL if answered else signal.SIGTERM)
                answered = len(caught)
            if stopping and time.monotonic() > deadline:
                stop(signal.SIGKILL)
            if executor.lost:
                waiting.clear()
            display.update()
    if executor.lost and not stopping:
        raise UserError(executor.lost)
    return caught[0] if caught else 0


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collects the signals that ask for an end instead of obeying them."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)) if n]
    before = {
        number: signal.signal(number, catch)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

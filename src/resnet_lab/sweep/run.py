"""Runs the jobs that are left, side by side, and sees each of them end."""

import signal
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from resnet_lab.run.folder import RunFolder
from resnet_lab.sweep import ledger
from resnet_lab.sweep.grid import Job
from resnet_lab.sweep.processes import Processes
from resnet_lab.sweep.show import Display
from resnet_lab.sweep.slots import Slots
from resnet_lab.sweep.slurm import SlurmJobs

POLL_SECONDS = 0.2


@dataclass
class Wishes:
    """How to run: `on_error` is "continue" or "stop"; `retries` for each job."""

    on_error: str = "continue"
    retries: int = 0
    grace_seconds: float = 30.0


class Source(Protocol):
    """Where further jobs come from as room for them appears: a search, or the next rung of halving.

    `more` gives the next ones, if there are any; `ended` hears of each that has ended for good.
    `left` is how many jobs may still come.
    """

    @property
    def left(self) -> int: ...

    def more(self) -> list[Job]: ...

    def ended(self, job: Job) -> None: ...


def run(
    jobs: list[Job],
    processes: Processes | SlurmJobs,
    slots: Slots,
    wishes: Wishes,
    display: Display,
    record: Callable[[], None],
    source: Source | None = None,
) -> int:
    """Run every waiting job, and what `source` adds. Returns the signal that ended the sweep, or 0.

    SIGINT, SIGTERM and SIGHUP tell all jobs to stop (they save a checkpoint) and kill what is left
    after the grace; a second one kills at once.

    Args:
        record: called whenever a job's state has changed.
    """
    waiting = deque(job for job in jobs if job.state == "waiting")
    n_jobs = len(waiting) + (source.left if source else 0)
    running: dict[str, Job] = {}
    retries: dict[str, int] = defaultdict(lambda: wishes.retries)
    stopping, deadline = False, 0.0

    def stop(number: int) -> None:
        nonlocal stopping, deadline
        waiting.clear()
        processes.signal(number)
        stopping, deadline = True, time.monotonic() + wishes.grace_seconds

    def upcoming() -> Job | None:
        room = not running or len(running) < slots.side_by_side(next(iter(running.values())))
        if source is not None and room and not (waiting or stopping or processes.lost):
            waiting.extend(source.more())
        return waiting[0] if waiting else None

    with _caught() as caught:
        answered = 0
        while running or upcoming():
            while (job := upcoming()) is not None and (gpus := slots.take(job)) is not None:
                waiting.popleft()
                if processes.takes_up(job):
                    job.state = "running"
                else:
                    arguments = ledger.begin(job)
                    log = RunFolder(job.folder).console
                    processes.start(job, arguments, log, gpus, slots.threads(job, n_jobs))
                running[job.name] = job
                record()
                display.started(job)
            for name, status, seconds in processes.ended(POLL_SECONDS):
                job = running.pop(name)
                slots.give(job)
                ledger.end(job, status, seconds, stopping)
                display.ended(job)
                if job.state == "failed" and not stopping:
                    if retries[name] > 0 and not processes.lost:
                        retries[name] -= 1
                        job.state = "waiting"
                        waiting.appendleft(job)
                    elif wishes.on_error == "stop":
                        stop(signal.SIGTERM)
                if source is not None and job.state != "waiting" and not processes.lost:
                    source.ended(job)
                record()
            if len(caught) > answered:
                # The second asks for an end at once.
                stop(signal.SIGKILL if answered else signal.SIGTERM)
                answered = len(caught)
            if stopping and time.monotonic() > deadline:
                stop(signal.SIGKILL)
            if processes.lost:
                waiting.clear()
            display.update()
    if processes.lost and not stopping:
        raise RuntimeError(
            "the process that jobs are forked from has ended: "
            + "".join(ledger.last_lines(processes.log)).strip()
        )
    return caught[0] if caught else 0


@contextmanager
def _caught() -> Iterator[list[int]]:
    """Collects the signals that ask for an end instead of obeying them."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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

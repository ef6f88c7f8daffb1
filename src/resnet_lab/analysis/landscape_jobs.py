"""Many places of a section, measured by several processes."""

import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from resnet_lab.analysis.landscape import Section, Value, one_thread
from resnet_lab.analysis.landscape_places import Place
from resnet_lab.config.errors import UserError
from resnet_lab.run.stop import die_with_parent

MOST_JOBS = 8  # unless the user says more
WORTH = 30.0  # seconds of work that pay for starting processes


def measured(
    section: Section, places: Mapping[int, Place], jobs: int | None
) -> Iterator[tuple[int, Value]]:
    """(number, value) of every place, as they are done.

    Every process computes in one thread, so the values do not depend on `jobs`.

    Args:
        jobs: processes; None: one for each core, where there is work for them.

    Raises:
        UserError: one of the processes has been ended.
    """
    waiting = dict(places)
    on_cpu = all(pixels.device.type == "cpu" for pixels in section.pixels)
    with one_thread():
        if jobs is None and waiting:
            number = next(iter(waiting))
            began = time.monotonic()
            yield number, section.at(waiting.pop(number).coefficients)
            work = (time.monotonic() - began) * len(waiting)
            jobs = min(cores(), MOST_JOBS) if on_cpu and work > WORTH else 1
        jobs = min(jobs or 1, len(waiting))
        if jobs > 1:
            yield from _in_processes(section, waiting, jobs)
        else:
            for number, place in waiting.items():
                yield number, section.at(place.coefficients)


def cores() -> int:
    """How many this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _in_processes(
    section: Section, places: Mapping[int, Place], jobs: int
) -> Iterator[tuple[int, Value]]:
    # On Linux one process imports torch, and is copied for each job before it has threads.
    method = "forkserver" if sys.platform == "linux" else "spawn"
    context: Any = multiprocessing.get_context(method)
    if sys.platform == "linux":
        context.set_forkserver_preload([__name__])
    # As bytes: tensors of their own kind of pickle would need room in /dev/shm.
    pickled = pickle.dumps(section)
    remaining = iter(places.items())
    at_work: dict[Connection, Any] = {}
    with ExitStack() as stack:
        for _ in range(jobs):
            ours, theirs = context.Pipe()
            stack.callback(ours.close)
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            with _uninterrupted():
                process.start()
            stack.callback(_end, process)
            theirs.close()
            at_work[ours] = process
        for pipe, process in at_work.items():
            with _noticing(process):
                pipe.send_bytes(pickled)
                _give(pipe, remaining)
        while at_work:
            for ready in wait(list(at_work)):
                assert isinstance(ready, Connection)
                with _noticing(at_work[ready]):
                    number, value = ready.recv()
                    if not _give(ready, remaining):
                        del at_work[ready]
                yield number, value


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until this ends, and is not for processes that are started within."""
    mask = getattr(signal, "pthread_sigmask", None)  # not on Windows
    if mask is None:
        yield
        return
    before = mask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        mask(signal.SIG_SETMASK, before)


def _give(pipe: Connection, remaining: Iterator[tuple[int, Place]]) -> bool:
    """Send the next place; False where none is left."""
    for number, place in remaining:
        pipe.send((number, place.coefficients))
        return True
    return False


@contextmanager
def _noticing(process: Any) -> Iterator[None]:
    """Within it, a pipe that ends means that its process has ended."""
    try:
        yield
    except (EOFError, OSError):
        process.join(5)
        raise UserError(
            f"a process that measures has ended (status {process.exitcode}), perhaps for lack of "
            "memory; what was measured is kept: give the command again, with fewer --jobs."
        ) from None


def _end(process: Any) -> None:
    process.terminate()
    process.join()


def _work(pipe: Connection) -> None:
    """In a process of its own: measure the places that come through the pipe."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with suppress(EOFError, BrokenPipeError, ConnectionResetError), one_thread():
        section: Section = pickle.loads(pipe.recv_bytes())  # from our own process
        while True:
            number, coefficients = pipe.recv()
            pipe.send((number, section.at(coefficients)))

"""Contenders in processes of their own, let through one at a time; imports no torch.

The worker's side is `Gate`: a contender is a function `f(gate, **options)` that sets itself up,
calls `gate.wait()`, runs one segment, hands in its figures with the next `gate.wait(...)`, and so
on for ever. The parent's side is `race`. Needs a Unix.
"""

import importlib
import os
import signal
import traceback
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import get_context, get_start_method, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = 900  # seconds to wait for one answer; compiling a deep net takes minutes

Figures = dict[str, Any]


class Gate:
    """Where a contender waits for its turn."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def wait(self, **figures: Any) -> None:
        """Hand in the figures of the segment just run, then wait for the next turn.

        The first call, before any segment, hands in what there is to say about the set-up.
        """
        self._connection.send(figures)
        try:
            self._connection.recv()
        except EOFError:  # the parent is gone
            raise SystemExit from None


# Of this process. A config holds plain data only, so a callback named in one finds its gate here.
_here: Gate | None = None


def here() -> Gate:
    """The gate of this worker process."""
    assert _here is not None, "only a contender has a gate"
    return _here


def _work(
    connection: Connection,
    function: str,
    options: Mapping[str, Any],
    log: Path,
    start_method: str,
) -> None:
    """The worker's main: output goes to a file, as under nohup or a job queue."""
    global _here
    set_start_method(start_method, force=True)  # a spawned process would spawn loader workers, too
    os.setpgrp()  # so that it can be ended together with all processes it starts
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _here = Gate(connection)
    module, _, name = function.rpartition(".")
    try:
        getattr(importlib.import_module(module), name)(_here, **options)
    except Exception as error:
        traceback.print_exc()
        connection.send({"error": f"{type(error).__name__}: {error}"})


class Entry(NamedTuple):
    """A contender to be started: "package.module.function", and its options."""

    function: str
    options: Mapping[str, Any] = {}


class Failed(Exception):
    """A contender that raised or died; the message says which and why."""


class Contender:
    """The parent's hold on a contender's process."""

    def __init__(self, name: str, entry: Entry, logs: Path) -> None:
        self.name = name
        self._log = logs / f"{name.replace(' ', '_').replace('/', '_')}.log"
        fresh = get_context("forkserver")
        self._connection, theirs = fresh.Pipe()
        arguments = (theirs, *entry, self._log, get_start_method())
        self._process = fresh.Process(target=_work, args=arguments)
        self._process.start()
        theirs.close()

    def answer(self) -> Figures:
        """The figures of what it was let do last. Raises `Failed`."""
        try:
            if not self._connection.poll(PATIENCE):
                raise Failed(f"{self.name}: no answer in {PATIENCE} seconds ({self._log})")
            figures: Figures = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(5)
            status = self._process.exitcode
            raise Failed(f"{self.name}: ended with status {status} ({self._log})") from None
        if "error" in figures:
            raise Failed(f"{self.name}: {figures['error']} ({self._log})")
        return figures

    def let_through(self) -> None:
        with suppress(OSError):  # it died: `answer` says so
            self._connection.send(True)

    def end(self) -> None:
        """End its process and all that it started; there is nothing in them to be saved."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # where it had no time to make a group of its own
        self._process.join()
        self._connection.close()


def ask(function: str, logs: Path) -> Figures:
    """What one contender has to say after its set-up; it runs no segment. Raises `Failed`."""
    contender = Contender(function.rpartition(".")[2], Entry(function), logs)
    try:
        return contender.answer()
    finally:
        contender.end()


def race(
    entries: Mapping[str, Entry], rounds: int, logs: Path
) -> tuple[dict[str, list[Figures]], dict[str, str]]:
    """Let contenders through in turn, A B C A B C ..., and collect what they hand in.

    One after the other they set themselves up and run a first segment that does not count (caches,
    compilers, the allocator): all at once they would only crawl.

    Returns the figures of every counted round by contender, and an error for each that failed,
    which has no figures then; the others go on.
    """
    running: dict[str, Contender] = {}
    figures: dict[str, list[Figures]] = {}
    errors: dict[str, str] = {}

    def answer(name: str) -> Figures | None:
        try:
            return running[name].answer()
        except Failed as error:
            errors[name] = str(error)
            figures.pop(name)
            running.pop(name).end()
            return None

    try:
        for name, entry in entries.items():
            figures[name] = []
            running[name] = Contender(name, entry, logs)
            if answer(name) is not None:  # it has set itself up
                running[name].let_through()
                answer(name)
        for _ in range(rounds):
            for name in list(running):
                running[name].let_through()
                if (segment := answer(name)) is not None:
                    figures[name].append(segment)
    finally:
        for contender in running.values():
            contender.end()
    return figures, errors

"""Contenders in processes of their own that run in turns; imports no torch.

A contender is a function `f(gate, **options)` that sets itself up, calls `gate.wait()`, runs one
segment, hands in its figures with the next `gate.wait(...)`, and so on without end. `race` is the
parent's side. Needs a Unix.
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
        """Hand in the figures of the segment just run, if any, and wait for the next turn."""
        self._connection.send(figures)
        try:
            self._connection.recv()
        except EOFError:  # the parent has ended
            raise SystemExit from None


_gate: Gate | None = None  # of this process: a callback named in a config cannot be handed one


def gate() -> Gate:
    """The gate of this contender's process."""
    assert _gate is not None, "only a contender has a gate"
    return _gate


class Entry(NamedTuple):
    """A contender to be started: "package.module.function", and its options."""

    function: str
    options: Mapping[str, Any] = {}


class Failed(Exception):
    """A contender that raised or died; the message says which and why."""


def _work(connection: Connection, entry: Entry, log: Path, start_method: str) -> None:
    """The main function of a contender's process; what it prints goes into a file."""
    global _gate
    set_start_method(start_method, force=True)  # else its loader workers would use forkserver
    os.setpgrp()  # so that it can be ended together with all processes it starts
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _gate = Gate(connection)
    module, _, name = entry.function.rpartition(".")
    try:
        getattr(importlib.import_module(module), name)(_gate, **entry.options)
    except Exception as error:
        traceback.print_exc()
        connection.send({"error": f"{type(error).__name__}: {error}"})


class Contender:
    """A contender's process, seen from the parent."""

    def __init__(self, name: str, entry: Entry, logs: Path) -> None:
        self.name = name
        self._log = logs / f"{name.replace(' ', '_').replace('/', '_')}.log"
        context = get_context("forkserver")
        self._connection, others = context.Pipe()
        arguments = (others, entry, self._log, get_start_method())
        self._process = context.Process(target=_work, args=arguments)
        self._process.start()
        others.close()

    def answer(self) -> Figures:
        """The figures of its last segment. Raises `Failed`."""
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

    def start_turn(self) -> None:
        with suppress(OSError):  # it has died: `answer` says so
            self._connection.send(True)

    def end(self) -> None:
        """End its process and all that it started."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # in case it had not yet made its process group
        self._process.join()
        self._connection.close()


def race(
    entries: Mapping[str, Entry], rounds: int, logs: Path
) -> tuple[dict[str, list[Figures]], dict[str, str]]:
    """Give contenders their turns, A B C A B C ..., and collect their figures.

    One after the other they set themselves up and run a first segment that does not count (caches,
    compilers, the allocator).

    Returns:
        The figures of every counted round by contender, and an error for each contender that
        failed, which has no figures then; the others continue.
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
                running[name].start_turn()
                answer(name)
        for _ in range(rounds):
            for name in list(running):
                running[name].start_turn()
                if (segment := answer(name)) is not None:
                    figures[name].append(segment)
    finally:
        for contender in running.values():
            contender.end()
    return figures, errors

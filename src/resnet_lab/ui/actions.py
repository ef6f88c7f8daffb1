"""Stopping and resuming: first what would happen, then, once it is confirmed, just that."""

import hashlib
import os
import shlex
import subprocess
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.run.folder import RunFolder, SweepFolder, in_progress, shown, sweep_in_progress
from resnet_lab.run.state import State
from resnet_lab.ui import command, holders
from resnet_lab.ui.files import tail
from resnet_lab.ui.views import DONE, Views


@dataclass(frozen=True)
class Plan:
    """What will happen, in words.

    Attributes:
        button: what confirms it.
        words: the command, of a resume.
        process: that is sent a signal, of a stop.
        folder: that is locked.
    """

    title: str
    sentences: tuple[str, ...]
    button: str
    words: tuple[str, ...] = ()
    process: int = 0
    folder: str = ""

    def as_data(self) -> dict[str, Any]:
        """For the page; `confirm` stands for just this plan."""
        digest = hashlib.blake2b(repr(self).encode(errors="replace"), digest_size=16).hexdigest()
        return {**asdict(self), "words": shlex.join(self.words), "confirm": digest}


class Actions:
    """Plans and does what the page asks for; what was started goes on without this process.

    started: the last process that was started in a folder.
    """

    def __init__(self, views: Views) -> None:
        self.views = views
        self._lock = threading.Lock()
        self.started: dict[Path, subprocess.Popen[bytes]] = {}

    def plan(self, action: str, key: str) -> Plan:
        """What an action on a run or a sweep would do.

        Args:
            action: "stop" or "resume".
            key: the id of a run, or "sweep:" and that of a sweep.

        Raises:
            UserError: why it cannot be done.
        """
        plans: dict[tuple[str, bool], Callable[[str], Plan]] = {
            ("stop", False): self._stop_run,
            ("stop", True): self._stop_sweep,
            ("resume", False): self._resume_run,
            ("resume", True): self._resume_sweep,
        }
        of_sweep = key.startswith("sweep:")
        if (action, of_sweep) not in plans:
            raise UserError("There is no such action.")
        return plans[action, of_sweep](key.removeprefix("sweep:"))

    def do(self, action: str, key: str, confirm: str) -> str:
        """Do what `plan` said; returns a sentence.

        Raises:
            UserError: it cannot be done, or the plan is another one by now.
        """
        with self._lock:
            plan = self.plan(action, key)
            if plan.as_data()["confirm"] != confirm:
                raise UserError("It has changed meanwhile; look at it once more.")
            self.views.again()
            if action == "stop":
                pid = holders.stop(Path(plan.folder))
                return f"Process {pid} was asked to stop; it saves and ends."
            return self._start(plan)

    # ------------------------------------------------------------------ stop

    def _stop_run(self, key: str) -> Plan:
        run = self.views.run(key)
        pid = _process(run.folder)
        sentences = [
            f"Process {pid} gets SIGTERM, which does what Ctrl-C does: the run in "
            f"{shown(run.folder)} finishes its current step, saves a checkpoint and ends.",
            "Nothing that it has computed is lost, and it can be resumed.",
        ]
        if run.sweep is not None and sweep_in_progress(SweepFolder(run.sweep)):
            sentences.append(
                "It is a job of a sweep that goes on: the sweep calls it failed and starts the "
                "next one (or with sweep.retries this one again). To end all jobs, stop the sweep."
            )
        return Plan(f"Stop {run.name}?", tuple(sentences), "Stop it", (), pid, str(run.folder))

    def _stop_sweep(self, key: str) -> Plan:
        path, _ = self.views.sweep(key)
        lock = SweepFolder(path).lock
        pid = _process(lock)
        jobs = [run for run in self.views.jobs(path) if run.state == State.RUNNING]
        waiting = sum(run.state in (State.WAITING, State.PAUSED) for run in self.views.jobs(path))
        return Plan(
            f"Stop the sweep {printable(path.name)}?",
            (
                f"Process {pid} gets SIGTERM, which does what Ctrl-C does.",
                f"Running now: {_count(len(jobs))}. Each saves a checkpoint and ends; one that "
                "takes longer than the sweep's grace time (30 s, unless changed) is killed.",
                f"Waiting: {_count(waiting)}, not to be started. Resume goes on with all of them.",
            ),
            "Stop the sweep",
            (),
            pid,
            str(lock),
        )

    # ------------------------------------------------------------------ resume

    def _resume_run(self, key: str) -> Plan:
        run = self.views.run(key)
        folder = RunFolder(run.folder)
        if run.sweep is not None:
            raise UserError("It is a job of a sweep; resume the sweep, which goes on with it.")
        if run.state in DONE:
            raise UserError("It is finished.")
        if in_progress(folder):
            raise UserError("A process trains in its folder already.")
        if not folder.has_checkpoint():
            raise UserError("It has no checkpoint to resume from; start it anew.")
        words = command.resume_run(run.folder)
        return self._resume(f"Resume {run.name}?", run.folder, words, "from its newest checkpoint")

    def _resume_sweep(self, key: str) -> Plan:
        path, content = self.views.sweep(key)
        if sweep_in_progress(SweepFolder(path)):
            raise UserError("This sweep is running.")
        left = sum(run.state not in DONE for run in self.views.jobs(path))
        if not left and "search" not in content:
            raise UserError("All its jobs are done.")
        words = command.resume_sweep(path, content.get("command"))
        what = f"with {_count(left)} not done yet, from what was saved"
        return self._resume(f"Resume the sweep {printable(path.name)}?", path, words, what)

    def _resume(self, title: str, folder: Path, words: list[str], what: str) -> Plan:
        if os.name != "posix":
            raise UserError(f"It cannot be started from here; type: {shlex.join(words)}")
        before = self.started.get(folder)
        if before is not None and before.poll() is None:
            raise UserError(f"It is starting already, as process {before.pid}.")
        return Plan(
            title,
            (
                f"The command below is started in {Path.cwd()} and goes on {what}.",
                "It is a process of its own, with the environment of this server: it goes on when "
                f"the server ends. What it prints goes to {shown(RunFolder(folder).console)}.",
            ),
            "Resume",
            tuple(words),
            0,
            str(folder),
        )

    def _start(self, plan: Plan) -> str:
        folder = Path(plan.folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            output = os.open(RunFolder(folder).console, flags, 0o666)
        except OSError as error:
            raise UserError(f"{RunFolder(folder).console} cannot be written ({error}).") from error
        try:
            os.set_blocking(output, True)
            process = subprocess.Popen(
                plan.words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            os.close(output)
        self.started[folder] = process
        return f"Process {process.pid} has started; in some seconds it is listed as running."

    def notices(self) -> list[str]:
        """Sentences on what was started from here and has failed."""
        found = []
        for folder, process in list(self.started.items()):
            if process.poll() is not None and process.returncode > 0:
                last = next(iter(tail(folder, RunFolder(folder).console.name)[-1:]), "")
                found.append(
                    f"Resuming {shown(folder)} ended with exit status {process.returncode}: "
                    f"{printable(last)}"
                )
        return found


def _process(lock: Path) -> int:
    """The training that holds a lock; UserError where there is none to be stopped from here."""
    if reason := holders.why_not():
        raise UserError(f"It cannot be stopped from here: {reason}; press Ctrl-C where it runs.")
    pid = holders.holder(lock)
    if pid is None:
        raise UserError(
            "No process of yours on this machine trains there; it may run on another machine, or "
            "be about to end."
        )
    if not holders.is_training(pid):
        raise UserError(
            f"Process {pid} holds this folder but is neither train.py nor resnet-lab train (a "
            "notebook, perhaps); stop it where it runs."
        )
    return pid


def _count(n: int) -> str:
    return f"{n} job" if n == 1 else f"{n} jobs"

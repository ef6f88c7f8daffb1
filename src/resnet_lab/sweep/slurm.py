"""The jobs of a sweep as jobs of a SLURM cluster: submitted, asked about, cancelled."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from resnet_lab.config.errors import UserError
from resnet_lab.files import write_text
from resnet_lab.run.folder import RunFolder
from resnet_lab.screen import console
from resnet_lab.sweep import ledger
from resnet_lab.sweep.executor import Ended
from resnet_lab.sweep.job import Job
from resnet_lab.sweep.local import RANKS, RENDEZVOUS

OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")
# Part of sbatch's message where a limit of the cluster is reached or it is too busy to answer.
NO_ROOM = ("submit limit", "maxsubmit", "maxjobs", "timed out", "temporarily", "try again")
ANSWER_SECONDS = 60.0  # after which a command of SLURM counts as not answering
ASKS_AT_RESTART = 6
# A notice to the run alone (preemption, --signal=USR1@120): SLURM would take its end for the job's.
# What ends the job itself, as scancel or its time limit, ends this script before.
REQUEUE_WHEN_STOPPED = """status=$?
test $status -ne 143 || scontrol requeue $SLURM_JOB_ID
exit $status
"""


@dataclass
class SlurmResources:
    """What each job asks SLURM for; None leaves it to the cluster.

    Attributes:
        gpus: on each node; None: one for each of `trainer.devices`, and none on the CPU.
        cpus: for each of `trainer.devices`.
        options: further ones of sbatch, such as --account=physics.
        poll_seconds: how often SLURM is asked.
    """

    partition: str | None
    time: str | int | None
    gpus: int | None
    cpus: int | None
    memory: str | None
    options: Sequence[str]
    poll_seconds: float


class Slurm:
    """An `Executor`: each job is a batch script around `srun python train.py ...`.

    When a job is gone its folder says how it ended; SLURM is only asked whether it is gone. Jobs
    outlive a sweep that is killed, and the same command adopts them.

    Args:
        jobs: how many may be submitted at once; None: as many as the cluster takes.

    Raises:
        UserError: SLURM's commands are missing.
    """

    lost = None  # there is no server that could be

    def __init__(
        self, script: Path, resources: SlurmResources, grace_seconds: float, jobs: int | None
    ) -> None:
        self.grace_seconds = grace_seconds
        self._script, self._resources, self._most = script, resources, jobs
        self._numbers: dict[str, str] = {}  # job -> its number
        self._since: dict[str, float] = {}  # job -> when it was first seen running
        self._pending: set[str] = set()
        self._earlier: dict[str, str] = {}  # number -> state, before the folders were read
        self._due = 0.0  # when SLURM is asked again
        self._submit_again = 0.0  # when, after it refused a job
        self._refusal = ""
        if missing := [name for name in ("sbatch", "squeue", "srun") if not shutil.which(name)]:
            raise UserError(
                f"hydra/launcher=slurm: there is no {missing[0]} here; start the sweep on a "
                "machine that has SLURM's commands."
            )

    @property
    def pending(self) -> Set[str]:
        return self._pending

    @contextlib.contextmanager
    def open(self, folder: Path, lock: int, n_jobs: int) -> Iterator[Self]:
        """Nothing is made ready; jobs that still run at the end go on."""
        yield self

    def check(self, job: Job) -> None:
        """Every job may be asked for; whether there is such a machine only the cluster knows."""

    def find_running(self, folder: Path) -> None:
        if not any(RunFolder(job).slurm_job.exists() for job in folder.iterdir()):
            return
        for attempt in range(ASKS_AT_RESTART):
            if attempt:
                time.sleep(self._resources.poll_seconds)
            states = self._states()
            if states is not None:
                self._earlier = states
                return
            if not attempt:
                console.print("waiting for SLURM: squeue does not answer ...")
        raise UserError(
            "hydra/launcher=slurm: squeue does not answer, so nobody knows which jobs of this "
            "sweep still run; give the same command again when it does."
        )

    def adopt(self, job: Job) -> bool:
        path = RunFolder(job.folder).slurm_job
        number = path.read_text() if self._earlier and path.exists() else ""
        if self._earlier.pop(number, "COMPLETED") in OVER:
            return False
        record = ledger.read(RunFolder(job.folder).job)
        if record is None or record["config"] != job.config:
            raise UserError(
                f"{job.folder}: SLURM still has it as job {number}, with other settings; end that "
                f"one first: scancel {number}"
            )
        self._numbers[job.name] = number
        self._pending.add(job.name)
        return True

    def room(self, job: Job) -> bool:
        full = self._most is not None and len(self._numbers) >= self._most
        return not full and time.monotonic() >= self._submit_again

    def start(self, job: Job, arguments: list[str]) -> bool:
        """Submit the script with `arguments`; its output is appended to console.log.

        Raises:
            UserError: sbatch refuses the job, and neither for a limit nor beside others of ours.
        """
        cpus = self._resources.cpus
        line = shlex.join([sys.executable, str(self._script), *arguments])
        threads = f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cpus}}}\n" if cpus else ""
        text = f"#!/bin/sh\n{threads}srun --kill-on-bad-exit=1 {line}\n{REQUEUE_WHEN_STOPPED}"
        log = RunFolder(job.folder).console
        command = ["sbatch", "--parsable", "--requeue", "--open-mode=append", f"--output={log}"]
        environment = {k: v for k, v in os.environ.items() if not _of_a_job(k)}
        done = _call(
            *command,
            f"--job-name={job.name}",
            *sbatch_options(job, self._resources),
            input=text,
            env=environment,
            timeout=None,  # one that is cut off may have submitted the job
        )
        if done is None or done.returncode != 0:
            self._refused(done.stderr if done else "")
            return False
        self._refusal = ""
        number = done.stdout.strip().partition(";")[0]  # behind it the name of the cluster
        write_text(RunFolder(job.folder).slurm_job, number)
        self._numbers[job.name] = number
        self._pending.add(job.name)
        return True

    def _refused(self, message: str) -> None:
        reason = (message.strip().splitlines() or ["sbatch refuses the job"])[-1]
        if not self._numbers and not any(words in message.lower() for words in NO_ROOM):
            raise UserError(f"hydra/launcher=slurm: {reason}")
        if reason != self._refusal:
            console.print(f"waiting to submit more jobs: {reason}", soft_wrap=True)
        self._refusal = reason
        self._submit_again = time.monotonic() + self._resources.poll_seconds

    def ended(self, timeout: float) -> list[Ended]:
        time.sleep(timeout)
        now = time.monotonic()
        if now < self._due or not self._numbers:
            return []
        self._due = now + self._resources.poll_seconds
        states = self._states()
        if states is None:
            return []  # SLURM does not answer at the moment
        ended = []
        for job, number in list(self._numbers.items()):
            state = states.get(number, "COMPLETED")  # forgotten: over for minutes
            if state in WAITING:
                self._pending.add(job)
                continue
            self._pending.discard(job)
            if state in OVER:
                del self._numbers[job]
                self._submit_again = 0.0
                ended.append(Ended(job, _exit_status(number), now - self._since.pop(job, now)))
            else:
                self._since.setdefault(job, now)
        return ended

    def signal(self, number: int) -> None:
        """Cancel every job: SLURM sends SIGTERM, and in the end SIGKILL; or that one at once."""
        if self._numbers:
            at_once = ["--full", "--signal=KILL"] if number == signal.SIGKILL else []
            _call("scancel", *at_once, *self._numbers.values())
            self._due = 0.0

    def _states(self) -> dict[str, str] | None:
        """The state of each of the user's jobs by its number; None where SLURM does not answer."""
        done = _call("squeue", "--me", "--noheader", "--states=all", "--format=%i %T")
        if done is None or done.returncode != 0:
            return None
        return dict(row.split() for row in done.stdout.splitlines())


def sbatch_options(job: Job, resources: SlurmResources) -> list[str]:
    """The options of sbatch for this job."""
    gpus = resources.gpus
    if gpus is None:
        gpus = 0 if job.on_cpu else job.devices or 1
    given: Mapping[str, str | int | None] = {
        "nodes": job.config["trainer"]["num_nodes"],
        "ntasks-per-node": job.devices or gpus or 1,
        "gpus-per-node": gpus or None,
        "cpus-per-task": resources.cpus,
        "mem": resources.memory,
        "time": resources.time,
        "partition": resources.partition,
    }
    named = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*named, *resources.options]


def _of_a_job(variable: str) -> bool:
    """Whether a job would take this for its own, where the sweep itself is a job of a cluster."""
    own = ("SLURM_CONF",)
    return variable in (*RANKS, *RENDEZVOUS) or (
        variable.startswith(("SLURM_", "SBATCH_")) and variable not in own
    )


def _exit_status(number: str) -> int:
    """Of a job that is over: what it exited with, or below 0 the signal that killed it."""
    done = _call("scontrol", "--oneliner", "show", "job", number)
    words = dict(word.partition("=")[::2] for word in (done.stdout if done else "").split())
    if "ExitCode" not in words:
        return -int(signal.SIGKILL)  # not known any more; its folder tells
    status, killed_by = map(int, words["ExitCode"].split(":"))
    return -killed_by if killed_by else status


def _call(*command: str, **options: Any) -> subprocess.CompletedProcess[str] | None:
    """Run a command of SLURM, out of reach of Ctrl-C; None where it does not answer in time."""
    options = {"timeout": ANSWER_SECONDS, "start_new_session": True, **options}
    try:
        return subprocess.run(command, capture_output=True, text=True, **options)
    except subprocess.TimeoutExpired:
        return None

"""The jobs of a sweep as jobs of a SLURM cluster: submitted, asked about, cancelled."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from resnet_lab.config.errors import UserError
from resnet_lab.files import write_text
from resnet_lab.run.folder import RunFolder
from resnet_lab.sweep import ledger
from resnet_lab.sweep.grid import Job
from resnet_lab.sweep.processes import RANKS, RENDEZVOUS

NUMBER = "slurm_job"  # the file in a job's folder that holds its number at SLURM
OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
# A notice to the run alone (preemption, --signal=USR1@120): SLURM would take its end for the job's.
# What ends the job itself, as scancel or its time limit, ends this script before.
GO_ON_WHEN_TOLD_TO_STOP = """status=$?
test $status -ne 143 || scontrol requeue $SLURM_JOB_ID
exit $status
"""


@dataclass
class Wanted:
    """What each job asks SLURM for; None leaves it to the cluster.

    gpus: on each node; None is one for each of `trainer.devices`, and none on the CPU. cpus: for
    each of `trainer.devices`. options: further ones of sbatch, such as --account=physics.
    """

    partition: str | None
    time: str | int | None
    gpus: int | None
    cpus: int | None
    memory: str | None
    options: Sequence[str]
    poll_seconds: float


class SlurmJobs:
    """Stands where `Processes` does on one machine, with the same methods.

    A job is a batch script around `srun python train.py ...`. When one is gone its folder
    tells what came of it; SLURM is only asked whether it is gone. Jobs outlive a sweep that is
    killed, and the same command takes them up again.
    """

    lost = False  # there is no server of ours that could be
    log = Path(os.devnull)

    def __init__(self, script: Path, wanted: Wanted) -> None:
        self._script = script
        self._wanted = wanted
        self._numbers: dict[str, str] = {}  # job -> its number
        self._since: dict[str, float] = {}  # job -> when it was first seen running
        self._due = 0.0
        if missing := [name for name in ("sbatch", "squeue", "srun") if not shutil.which(name)]:
            raise UserError(
                f"hydra/launcher=slurm: there is no {missing[0]} here; start the sweep on a "
                "machine that has SLURM's commands."
            )

    def __enter__(self) -> "SlurmJobs":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.signal(signal.SIGTERM)

    def takes_up(self, job: Job) -> bool:
        """Whether an earlier command has left this job with SLURM; then it counts as started."""
        path = job.folder / NUMBER
        number = path.read_text() if path.exists() else ""
        if (self._states() or {}).get(number, "COMPLETED") in OVER:
            return False
        record = ledger.read(RunFolder(job.folder).job)
        if record is None or record["config"] != job.config:
            raise UserError(
                f"{job.folder}: SLURM still has it as job {number}, with other settings; end that "
                f"one first: scancel {number}"
            )
        self._numbers[job.name] = number
        return True

    def start(
        self, job: Job, arguments: list[str], log: Path, gpus: object, n_threads: object
    ) -> None:
        """Submit the script with `arguments`; its output is appended to `log`.

        Which GPUs and how many threads is for SLURM to say, not for the sweep.
        """
        line, cpus = shlex.join([sys.executable, str(self._script), *arguments]), self._wanted.cpus
        threads = f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cpus}}}\n" if cpus else ""
        text = f"#!/bin/sh\n{threads}srun --kill-on-bad-exit=1 {line}\n{GO_ON_WHEN_TOLD_TO_STOP}"
        command = ["sbatch", "--parsable", "--requeue", "--open-mode=append", f"--output={log}"]
        done = subprocess.run(
            [*command, f"--job-name={job.name}", *asked(job, self._wanted)],
            input=text,
            env={k: v for k, v in os.environ.items() if not _of_a_job(k)},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise UserError(f"hydra/launcher=slurm: {done.stderr.strip().splitlines()[-1]}")
        number = done.stdout.strip().partition(";")[0]  # behind it the name of the cluster
        write_text(job.folder / NUMBER, number)
        self._numbers[job.name] = number

    def ended(self, timeout: float) -> list[tuple[str, int, float]]:
        """Jobs that are gone, their exit statuses (below 0: the signal) and seconds of life.

        Waits `timeout` seconds, and asks SLURM once in `poll_seconds`.
        """
        time.sleep(timeout)
        now = time.monotonic()
        if now < self._due or not self._numbers:
            return []
        self._due = now + self._wanted.poll_seconds
        states = self._states()
        if states is None:
            return []  # SLURM does not answer at the moment
        ended = []
        for job, number in list(self._numbers.items()):
            state = states.get(number, "COMPLETED")  # forgotten: over for minutes
            if state in OVER:
                del self._numbers[job]
                ended.append((job, _exit_status(number), now - self._since.pop(job, now)))
            elif state == "RUNNING":
                self._since.setdefault(job, now)
        return ended

    def signal(self, number: int) -> None:
        """Cancel every job: SLURM sends SIGTERM, and in the end SIGKILL; or that one at once."""
        if self._numbers:
            at_once = ["--full", "--signal=KILL"] if number == signal.SIGKILL else []
            subprocess.run(["scancel", *at_once, *self._numbers.values()], capture_output=True)
            self._due = 0.0

    def _states(self) -> dict[str, str] | None:
        """The state of each of the user's jobs by its number; None where SLURM does not answer."""
        told = _ask("squeue", "--me", "--noheader", "--states=all", "--format=%i %T")
        return None if told is None else dict(row.split() for row in told.splitlines())


def asked(job: Job, wanted: Wanted) -> list[str]:
    """The options of sbatch for this job."""
    gpus = wanted.gpus
    if gpus is None:
        gpus = 0 if job.on_cpu else job.devices or 1
    given: Mapping[str, str | int | None] = {
        "nodes": job.config["trainer"]["num_nodes"],
        "ntasks-per-node": job.devices or gpus or 1,
        "gpus-per-node": gpus or None,
        "cpus-per-task": wanted.cpus,
        "mem": wanted.memory,
        "time": wanted.time,
        "partition": wanted.partition,
    }
    named = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*named, *wanted.options]


def _of_a_job(variable: str) -> bool:
    """Whether a job would take this for its own, where the sweep itself is a job of a cluster."""
    own = ("SLURM_CONF",)
    return variable in (*RANKS, *RENDEZVOUS) or (
        variable.startswith(("SLURM_", "SBATCH_")) and variable not in own
    )


def _exit_status(number: str) -> int:
    """Of a job that is over: what it exited with, or below 0 the signal that killed it."""
    told = _ask("scontrol", "--oneliner", "show", "job", number) or ""
    words = dict(word.partition("=")[::2] for word in told.split())
    if "ExitCode" not in words:
        return -int(signal.SIGKILL)  # not known any more; its folder tells
    status, killed_by = map(int, words["ExitCode"].split(":"))
    return -killed_by if killed_by else status


def _ask(*command: str) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None

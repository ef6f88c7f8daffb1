"""`sweep.plan=true`: what a sweep would do, and what it would take."""

import json
import subprocess
import sys
from typing import Any

from rich.table import Table

from resnet_lab.config.errors import UserError
from resnet_lab.screen import console, duration
from resnet_lab.sweep.grid import Job
from resnet_lab.sweep.halving import Halving
from resnet_lab.sweep.show import DONE
from resnet_lab.sweep.slots import Slots

CHECKPOINTS = 2  # best.ckpt and last.ckpt
OTHER_BYTES = 200_000  # events, figures, logs of a run
BYTES_A_NUMBER = 4
# A training step is about three forward passes: one forward, two backward.
PASSES_IN_TRAINING = 3


def plan(jobs: list[Job], slots: Slots, halving: Halving | None = None) -> None:
    """Print every job with its cost and state, then the time and disk that are still needed.

    The time of a job is that of all its epochs; with `halving` the time that is needed takes every
    setting for as likely to go on as the others.
    """
    measured = _measure(jobs)
    table = Table("job", "state", "parameters", "multiply-adds", "time")
    largest = measured["jobs"][measured["largest"]]
    per_unit = measured["step"] / (largest["macs"] * largest["batch"] * PASSES_IN_TRAINING)
    seconds = disk = 0.0
    for job, cost in zip(jobs, measured["jobs"], strict=True):
        passes = PASSES_IN_TRAINING * cost["steps"] * cost["batch"] + cost["eval_images"]
        alone = per_unit * cost["macs"] * passes
        if job.state not in DONE:
            share = halving.share(job) if halving else 1.0
            # Side by side, jobs on the CPU have to share it.
            seconds += share * alone / (slots.side_by_side(job) if slots.wanted(job) else 1)
            disk += _bytes(job, cost["params"])
        table.add_row(
            job.name,
            "to be resumed" if job.resume else job.state,
            f"{cost['params']:,}",
            f"{cost['macs'] / 1e6:,.2f} M",
            duration(alone),
        )
    console.print(table)
    left = sum(job.state not in DONE for job in jobs)
    if halving:
        rungs = ", ".join(f"{n} to epoch {epochs}" for epochs, n in halving.ahead)
        console.print(f"Settings that train on: {rungs} (sweep.halving).", soft_wrap=True)
    console.print(
        f"{left} of {len(jobs)} jobs to run: about {duration(seconds)} of training, "
        f"{disk / 1e6:,.0f} MB of disk; nothing has been run.",
        soft_wrap=True,
    )
    console.print(
        f"The time follows from a step of {jobs[measured['largest']].name}, "
        f"{measured['step']:.3f} s, and the multiply-adds of the others.",
        soft_wrap=True,
    )


def _bytes(job: Job, params: int) -> float:
    target = str(job.config["optimizer"].get("_target_"))
    moments = (1 if job.config["optimizer"].get("momentum") else 0) if "SGD" in target else 2
    return CHECKPOINTS * params * BYTES_A_NUMBER * (1 + moments) + OTHER_BYTES


def _measure(jobs: list[Job]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "resnet_lab.sweep.measure"],
        input=json.dumps({"jobs": [job.config for job in jobs]}),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise UserError(f"The plan: {done.stderr.strip().removeprefix('error: ')}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured

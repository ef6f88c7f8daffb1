"""`sweep.plan=true`: the jobs of a sweep and their cost; nothing is run."""

import json
import subprocess
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.table import Table

from resnet_lab.config.errors import UserError
from resnet_lab.run.state import State
from resnet_lab.screen import console, duration
from resnet_lab.sweep import show
from resnet_lab.sweep.halving import Halving
from resnet_lab.sweep.job import JobRecord

CHECKPOINTS = 2  # best.ckpt and last.ckpt
OTHER_BYTES = 200_000  # events, figures, logs of a run
BYTES_A_NUMBER = 4
# A training step is about three forward passes: one forward, two backward.
PASSES_IN_TRAINING = 3


def plan(records: Sequence[JobRecord], halving: Halving | None = None) -> None:
    """Print every job with its state and cost, and what is still to be run.

    Time is estimated from the finished jobs of this sweep, by multiply-adds; with `halving` every
    setting counts as equally likely to survive.
    """
    costs = _measure(records)
    work = [
        cost["macs"] * (PASSES_IN_TRAINING * cost["steps"] * cost["batch"] + cost["eval_images"])
        for cost in costs
    ]
    finished = [
        float(seconds) / amount
        for record, amount in zip(records, work, strict=True)
        if record.state is State.FINISHED and (seconds := show.scores(record).get("seconds"))
    ]
    rate = median(finished) if finished else None
    table = Table("job", "state", "parameters", "multiply-adds", "time")
    seconds = disk = 0.0
    for record, cost, amount in zip(records, costs, work, strict=True):
        if not record.state.done:
            share = halving.share(record) if halving else 1.0
            seconds += share * amount * (rate or 0)
            disk += _bytes(record, cost["params"])
        table.add_row(
            record.name,
            "to be resumed" if record.resume else record.state,
            f"{cost['params']:,}",
            f"{cost['macs'] / 1e6:,.2f} M",
            "" if rate is None else duration(amount * rate),
        )
    console.print(table)
    if halving:
        rungs = ", ".join(f"{n} to epoch {epochs}" for epochs, n in halving.ahead)
        console.print(f"Settings that train on: {rungs} (sweep.halving).", soft_wrap=True)
    left = sum(not record.state.done for record in records)
    time = (
        f"about {duration(seconds)} one after the other, by {len(finished)} finished jobs"
        if finished
        else "the time can be estimated once a job has finished"
    )
    console.print(
        f"{left} of {len(records)} jobs to run: {time}; {disk / 1e6:,.0f} MB of disk. Nothing has "
        "been run.",
        soft_wrap=True,
    )


def _bytes(record: JobRecord, params: int) -> float:
    optimizer = record.job.config["optimizer"]
    sgd = "SGD" in str(optimizer.get("_target_"))
    moments = (1 if optimizer.get("momentum") else 0) if sgd else 2
    return CHECKPOINTS * params * BYTES_A_NUMBER * (1 + moments) + OTHER_BYTES


def _measure(records: Sequence[JobRecord]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "resnet_lab.sweep.measure"],
        input=json.dumps({"jobs": [record.job.config for record in records]}),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise UserError(f"The plan: {done.stderr.strip().removeprefix('error: ')}")
    costs: list[dict[str, Any]] = json.loads(done.stdout)
    return costs

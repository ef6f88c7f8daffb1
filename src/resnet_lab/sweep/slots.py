"""Which devices and how many threads a job gets; asks no CUDA library."""

import os
import subprocess
from collections import Counter
from pathlib import Path

from resnet_lab.config.errors import UserError
from resnet_lab.sweep.grid import Job


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
        count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    except (OSError, subprocess.TimeoutExpired):
        folder = Path("/proc/driver/nvidia/gpus")
        count = len(list(folder.iterdir())) if folder.is_dir() else 0
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is None or count == 0:
        return [str(n) for n in range(count)]
    names = [name.strip() for name in mask.split(",")]
    end = next((n for n, name in enumerate(names) if name in ("", "-1")), len(names))
    return names[:end]  # as CUDA reads it: what follows an invalid name is invisible


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Slots:
    """Hands out devices to jobs.

    Args:
        at_once: how many jobs may run side by side; None is as many as have GPUs of their own,
            and one on the CPU. With a number, jobs share GPUs where there are not enough.
        gpus: the names of the GPUs.
    """

    def __init__(self, at_once: int | None, gpus: list[str]) -> None:
        self.at_once = at_once
        self.gpus = gpus
        self._taken: dict[str, list[str]] = {}  # job's name -> its GPUs

    def wanted(self, job: Job) -> int:
        """How many GPUs a job needs; 0 where it computes on the CPU.

        ValueError where there are not as many.
        """
        if job.on_cpu or not self.gpus:
            return 0
        count = len(self.gpus) if job.devices is None else job.devices
        if count > len(self.gpus):
            raise UserError(f"trainer.devices={count}: {len(self.gpus)} GPUs can be used here.")
        return count

    def side_by_side(self, job: Job) -> int:
        """How many jobs like this one run at once."""
        wanted = self.wanted(job)
        return self.at_once or (len(self.gpus) // wanted if wanted else 1)

    def take(self, job: Job) -> list[str] | None:
        """The GPUs for this job, now its own until `give`; None where it must wait."""
        wanted = self.wanted(job)
        if len(self._taken) >= (self.at_once or (len(self.gpus) if wanted else 1)):
            return None
        load = Counter(gpu for taken in self._taken.values() for gpu in taken)
        free = sorted(self.gpus, key=lambda gpu: load[gpu])[:wanted]
        if self.at_once is None and any(load[gpu] for gpu in free):
            return None
        self._taken[job.name] = free
        return free

    def give(self, job: Job) -> None:
        del self._taken[job.name]

    def threads(self, job: Job, n_jobs: int) -> int | None:
        """The CPU threads for each of the job's processes; None: as it would alone."""
        at_once = min(self.side_by_side(job), n_jobs)
        if at_once == 1:
            return None
        ranks = self.wanted(job) or job.devices or 1
        return max(1, cpus() // at_once // ranks)

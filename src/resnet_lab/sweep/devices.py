"""Which devices, threads and memory a job gets on this machine; asks no CUDA library."""

import os
import subprocess
import time
from collections import Counter
from pathlib import Path

from resnet_lab.config.errors import UserError
from resnet_lab.screen import console
from resnet_lab.sweep.job import Job

GIB = 2**30
# A run on small images, torch included, before one of the sweep has been measured.
SMALL_JOB = 1.5 * GIB
SMALL_IMAGE = 64  # pixels
SETTLED_SECONDS = 20.0  # memory that has not grown for so long is a job's peak
FEW_CPUS = 4  # up to so many, jobs side by side get one thread each, else two
SPARE = 0.05  # of a GPU's memory


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> float:
    """Bytes that this machine (Linux: this control group) can still give; infinite if unknown."""
    free = float("inf")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            kept = (group / "memory.stat").read_text().split()
            cached = int(kept[kept.index("inactive_file") + 1])  # given back when it is needed
            free = min(free, int(limit) - used + cached)
    except (OSError, StopIteration, ValueError):
        pass
    return free


def resident(process: int) -> tuple[float, float]:
    """Bytes of memory that a process has now and has had at most; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    sizes = {line.partition(":")[0]: line.split() for line in lines if line.startswith("Vm")}
    now, most = (float(sizes.get(key, ["", "0"])[1]) * 1024 for key in ("VmRSS", "VmHWM"))
    return now, most


def gpu_memory(gpu: str) -> tuple[float, float] | None:
    """MiB of a GPU's memory in use, and all it has; None where nvidia-smi does not say."""
    query = ["--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--id={gpu}", *query], capture_output=True, text=True, timeout=20
        )
        used, total = map(float, done.stdout.strip().split(","))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return used, total


class Devices:
    """Hands out GPUs, or the CPU, to jobs.

    Where several jobs share a GPU, the first runs alone until it has trained an epoch: then its
    peak of memory is known, and as many more start as fit. On the CPU likewise until its memory has
    settled, but for images of at most `SMALL_IMAGE` pixels.

    Args:
        at_once: how many jobs may run side by side; None: as many as are fastest.
        per_device: how many jobs share one GPU, or below 1 the part of a job that one gets: 0.5
            gives each job two. None: one, or where `at_once` says so, more.
        gpus: the names of the GPUs.
    """

    def __init__(self, at_once: int | None, per_device: float | None, gpus: list[str]) -> None:
        self.at_once, self.per_device, self.gpus = at_once, per_device, gpus
        self.n_jobs = 0  # of the sweep
        self._taken: dict[str, list[str]] = {}  # job -> its GPUs
        self._processes: dict[str, int] = {}  # job -> its process
        self._trained: set[str] = set()  # jobs that have trained an epoch, or have ended
        self._peak = 0.0  # bytes of the largest job so far
        self._grew = 0.0  # when that was last larger than before
        self._fit: int | None = None  # jobs whose memory fits on one GPU

    def wanted(self, job: Job) -> int:
        """How many GPUs a job needs; 0 where it computes on the CPU.

        Raises:
            UserError: there are not as many.
        """
        if job.on_cpu or not self.gpus:
            return 0
        count = job.devices
        if count is None:
            each = self.per_device
            count = len(self.gpus) if each is None else max(1, round(1 / each))
        if count > len(self.gpus):
            raise UserError(f"trainer.devices={count}: {len(self.gpus)} GPUs can be used here.")
        return count

    def side_by_side(self, job: Job) -> int:
        """How many jobs like this one run at once, where memory allows."""
        wanted = self.wanted(job)
        if self.at_once:
            most = self.at_once
        elif wanted:
            most = len(self.gpus) // wanted * int(max(1, self.per_device or 1))
        else:
            threads = 1 if cpus() <= FEW_CPUS else 2
            most = cpus() // (threads * (job.devices or 1))
        return max(1, min(most, self.n_jobs or most))

    def threads(self, job: Job) -> int | None:
        """The CPU threads for each of the job's processes; None: as it would alone.

        The same for the same command, however many jobs are left: sums round alike.
        """
        at_once = self.side_by_side(job)
        if at_once == 1:
            return None
        return max(1, cpus() // at_once // (self.wanted(job) or job.devices or 1))

    def take(self, job: Job) -> list[str] | None:
        """The GPUs for this job, now its own until `give`; None where it must wait."""
        free = self.free(job)
        if free is not None:
            self._taken[job.name] = free
        return free

    def free(self, job: Job) -> list[str] | None:
        """The GPUs that `take` would give."""
        wanted = self.wanted(job)
        if (self.at_once or not wanted) and len(self._taken) >= self.side_by_side(job):
            return None
        if not wanted:
            return [] if self._memory_suffices(job) else None
        load = Counter(gpu for taken in self._taken.values() for gpu in taken)
        most = self._most_on_a_gpu()
        free = [gpu for gpu in self.gpus if load[gpu] < most]
        return sorted(free, key=lambda gpu: load[gpu])[:wanted] if len(free) >= wanted else None

    def give(self, name: str) -> None:
        """A job has ended."""
        self._trained.add(name)
        del self._taken[name]
        self._processes.pop(name, None)

    def started(self, name: str, process: int) -> None:
        """A job's process has come to life."""
        self._processes[name] = process
        self._trained.discard(name)  # a further attempt

    def trained(self, name: str) -> None:
        """A job has trained an epoch."""
        self._trained.add(name)

    def measure(self) -> None:
        """Look at the memory of the jobs that run."""
        now = time.monotonic()
        for process in self._processes.values():
            most = resident(process)[1]
            if most > 1.01 * self._peak:
                self._grew = now
            self._peak = max(self._peak, most)
        gpu = next((self._taken[n][0] for n in self._trained if self._taken.get(n)), None)
        if self._fit is None and gpu is not None and (self.per_device or 1) > 1:
            self._fit = self._measure_gpu(gpu)

    def _measure_gpu(self, gpu: str) -> int:
        wanted = int(self.per_device or 1)
        memory = gpu_memory(gpu)
        if memory is None:
            return wanted
        here = sum(gpu in taken for taken in self._taken.values())
        used, total = memory
        fit = max(1, int(total * (1 - SPARE) // max(1.0, used / here)))
        if fit < wanted:
            console.print(
                f"sweep.jobs_per_device={wanted}: a job takes {used / here:,.0f} of "
                f"{total:,.0f} MiB, so {fit} of them share a GPU",
                soft_wrap=True,
            )
        return min(fit, wanted)

    def _most_on_a_gpu(self) -> int:
        if self.per_device is not None:
            most = int(max(1, self.per_device))
            return most if most == 1 else self._fit or 1
        return self.at_once or 1

    def _memory_suffices(self, job: Job) -> bool:
        if not self._taken or self.at_once:
            return True
        peak = self._peak
        settled = peak and time.monotonic() - self._grew > SETTLED_SECONDS
        if not (self._trained or settled):
            size = job.config.get("data", {}).get("image_size")
            if not isinstance(size, int) or size > SMALL_IMAGE:
                return False
            peak = max(peak, SMALL_JOB)
        # Those that have just started will still grow.
        growing = sum(max(0.0, peak - resident(p)[0]) for p in self._processes.values())
        unborn = peak * (len(self._taken) - len(self._processes))
        return free_memory() > peak + growing + unborn

"""Whole processes: start-up, memory, and how many jobs of a sweep run side by side.

Imports no torch. Memory is read from /proc, so on Linux only.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.data import NOISE
from resnet_lab.config.compose import APP
from resnet_lab.sweep.devices import cpus

SMALL_NET = ("model=cifar_resnet", "model.depth=8", "model.width=0.25")
SAMPLE_SECONDS = 0.1  # between two readings of the memory
DEADLINE = 600  # seconds that one command may take


def run(
    arguments: Sequence[str],
    work: Path,
    expected: int = 0,
    environment: dict[str, str] | None = None,
    watch: Callable[[int], None] | None = None,
) -> float:
    """Seconds that `python train.py ...` takes, in `work`. RuntimeError for another exit status.

    `watch` is called with the process's group again and again while it runs.
    """
    command = [sys.executable, str(APP / "train.py"), *arguments]
    with (work / "commands.log").open("a+") as output:
        start = output.tell()
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | (environment or {}),
            process_group=0,
        )
        try:
            while watch and process.poll() is None and time.perf_counter() - began < DEADLINE:
                watch(process.pid)
                time.sleep(SAMPLE_SECONDS)
            process.wait(max(0.0, DEADLINE - (time.perf_counter() - began)))
            seconds = time.perf_counter() - began
        except subprocess.TimeoutExpired:
            words = " ".join(arguments)
            raise RuntimeError(f"train.py {words}: not done after {DEADLINE} seconds") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode != expected:
            output.seek(start)
            last = (output.read().strip().splitlines() or ["no output"])[-1]
            words, status = " ".join(arguments), process.returncode
            raise RuntimeError(f"train.py {words}: status {status}, not {expected}: {last}")
    return seconds


def startup(work: Path, rounds: int, quick: bool) -> dict[str, Any]:
    """Seconds of whole processes, a list for each kind of start."""
    seconds: dict[str, list[float]] = {}

    def measure(name: str, arguments: Sequence[str], times: int, **options: Any) -> None:
        seconds[name] = [run(arguments, work, **options) for _ in range(times)]

    step = [
        *NOISE,
        "+callbacks.stop._target_=benchmarks.training.StopAfterFirstStep",
        "trainer.accelerator=cpu",
        f"data.cache_dir={work / 'cache'}",
        *(SMALL_NET if quick else ()),
    ]
    eager, compiled = [*step, "compile=false"], [*step, "compile=true"]
    measure("first step, data not cached", eager, 1)
    measure("first step", eager, min(rounds, 3))
    measure("a typo's error", ["modle=x"], rounds, expected=1)
    measure("--cfg job", ["--cfg", "job"], rounds)
    with tempfile.TemporaryDirectory(dir=work) as fresh:
        environment = {"TORCHINDUCTOR_CACHE_DIR": fresh}
        measure("first step, compiling", compiled, 1, environment=environment)
        measure("first step, compiled before", compiled, 1, environment=environment)
    if sys.platform.startswith("linux"):
        # From the birth of a later job's process to its first step. The jobs end there, so that
        # to the sweep they have failed.
        n = 2 if quick else rounds + 1
        note = "+callbacks.stop.note=${run_dir}/first_step"
        run(["-m", "sweep.name=first_steps", f"seed=range({n})", *eager, note], work, expected=1)
        jobs = work / "outputs" / "sweeps" / "first_steps"
        notes = [jobs / f"seed={k}" / "first_step" for k in range(1, n)]
        seconds["first step of a sweep's later job"] = [float(p.read_text()) for p in notes]
    return {"seconds": seconds}


def sweep(work: Path, rounds: int, quick: bool) -> dict[str, Any]:
    """Seconds of a sweep of the same jobs, for each way to share the CPUs, in turns."""
    images, jobs = (640, 2) if quick else (5_000, 4)
    ways, together = [], 1
    while together <= min(cpus(), jobs):
        ways.append((together, max(1, cpus() // together)))
        together *= 2
    figures: dict[str, list[dict[str, Any]]] = {}
    for turn in range(rounds):
        for together, threads in ways:
            name = f"{together} side by side, {threads} threads each"
            arguments = [
                *("-m", f"sweep.name=turn{turn}-{together}", f"sweep.jobs={together}"),
                *(f"seed=range({jobs})", *NOISE, f"+data.source.n={images}"),
                *(SMALL_NET if quick else ("model=resnet20",)),
                *("trainer.max_epochs=1", "trainer.accelerator=cpu", "compile=false"),
                f"data.cache_dir={work / 'cache'}",
            ]
            seconds = run(arguments, work, environment={"OMP_NUM_THREADS": str(threads)})
            figures.setdefault(name, []).append({"seconds": seconds, "jobs": jobs})
    return {"rounds": figures, "images": images}


FIELDS = ("Rss", "Pss", "Pss_Anon")


def memory(work: Path, rounds: int, quick: bool) -> dict[str, Any]:
    """Peak megabytes of runs on synthetic CIFAR-10 and on a tiny set, with 1 and 2 processes.

    Of all processes of a run together. `Rss` counts a page that two of them share twice, `Pss`
    half in each; `own` is the part of no file, and of the images mapped from the cache: libraries
    are left out.
    """
    if not sys.platform.startswith("linux"):
        return {"skipped": "memory is read from /proc, which only Linux has"}
    runs = {}
    for devices in (1, 2):
        for images in (1_280, 5_000 if quick else 50_000):
            arguments = [
                *(*NOISE, *SMALL_NET, f"+data.source.n={images}"),
                f"data.cache_dir={work / 'cache'}",
                f"hydra.run.dir={work / f'memory-{images}-{devices}'}",
                *("trainer.accelerator=cpu", f"trainer.devices={devices}"),
                *("trainer.max_epochs=1", "compile=false"),
            ]
            runs[f"{images:,} images, {devices} processes"] = peak(arguments, work)
    return {"runs": runs}


def peak(arguments: Sequence[str], work: Path) -> dict[str, float]:
    """The most megabytes, of each kind, that a command and its processes hold at once."""
    most = dict.fromkeys((*FIELDS, "own"), 0.0)

    def watch(group: int) -> None:
        held = dict.fromkeys(most, 0.0)
        for entry in os.listdir("/proc"):
            with suppress(OSError, ValueError):
                if os.getpgid(int(entry)) != group:
                    continue
                for line in Path(f"/proc/{entry}/smaps_rollup").read_text().splitlines():
                    field, _, value = line.partition(":")
                    if field in FIELDS:
                        held[field] += int(value.split()[0]) * 1024 / 1e6
                held["own"] += mapped(int(entry), work / "cache")
        held["own"] += held["Pss_Anon"]
        for field, megabytes in held.items():
            most[field] = max(most[field], megabytes)

    run(arguments, work, watch=watch)
    return most


def mapped(pid: int, folder: Path) -> float:
    """Megabytes (PSS) of the files below `folder` that a process has mapped."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):  # a new mapping: addresses, and its path at the end
            inside = bool(rest) and rest[-1].startswith(f"{folder}/")
        elif inside and first == "Pss:":
            total += int(rest[0])
    return total * 1024 / 1e6

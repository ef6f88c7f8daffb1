"""Whole processes: how long a command takes to start, and what it holds in memory.

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

from resnet_lab.config.compose import CONF

TRAIN = CONF.parent / "train.py"
NOISE = ("data=cifar10", "data.source._target_=resnet_lab.bench.noise.Noise")
SMALL_NET = ("model=cifar_resnet", "model.depth=8", "model.width=0.25")
SAMPLE_SECONDS = 0.1  # between two looks at the memory
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
    command = [sys.executable, str(TRAIN), *arguments]
    with (work / "commands.log").open("a+") as output:
        start = output.tell()
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "HYDRA_FULL_ERROR": "0", **(environment or {})},
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
            raise RuntimeError(
                f"train.py {' '.join(arguments)}: status {process.returncode}, not {expected}: "
                f"{last}"
            )
    return seconds


# ------------------------------------------------------------------ start-up

FIRST_STEP = (
    *NOISE,
    "+callbacks.stop._target_=resnet_lab.bench.training.StopAfterFirstStep",
    "trainer.accelerator=cpu",
)


def startup(work: Path, rounds: int, quick: bool) -> dict[str, Any]:
    """Seconds of whole processes, a list for each kind of start."""
    seconds: dict[str, list[float]] = {}

    def measure(name: str, arguments: Sequence[str], times: int, **options: Any) -> None:
        seconds[name] = [run(arguments, work, **options) for _ in range(times)]

    first_step = [*FIRST_STEP, f"data.cache_dir={work / 'cache'}"]
    if quick:
        first_step += SMALL_NET
    eager = [*first_step, "compile=false"]
    if forget_files():
        measure("first step, files not in memory", eager, 1)
    else:
        measure("first step, the first time", eager, 1)
    measure("first step", eager, min(rounds, 3))
    measure("a typo's error", ["modle=x"], rounds, expected=1)
    measure("--cfg job", ["--cfg", "job"], rounds)
    with tempfile.TemporaryDirectory(dir=work) as fresh:
        compiled = [*first_step, "compile=true"]
        environment = {"TORCHINDUCTOR_CACHE_DIR": fresh}
        measure("first step, compiling", compiled, 1, environment=environment)
        measure("first step, compiled before", compiled, 1, environment=environment)
    if sys.platform.startswith("linux"):
        name = "first step of a sweep's later job"
        seconds[name] = later_jobs(eager, work, 2 if quick else rounds + 1)
    return {"seconds": seconds}


def later_jobs(arguments: Sequence[str], work: Path, n: int) -> list[float]:
    """Seconds from the birth of a job's process to its first step, of all `n` jobs but the first.

    They end there, so that to the sweep they have failed.
    """
    note = "+callbacks.stop.note=${run_dir}/first_step"
    sweep = ["-m", "sweep.name=first_steps", f"seed=range({n})", *arguments, note]
    run(sweep, work, expected=1)
    folder = work / "outputs" / "sweeps" / "first_steps"
    return [float((folder / f"seed={k}" / "first_step").read_text()) for k in range(1, n)]


def forget_files() -> bool:
    """Drop the installed packages from the page cache; False where the system has no way to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for site_packages in (path for path in sys.path if path.endswith("site-packages")):
        for folder, _, names in os.walk(site_packages):
            for name in names:
                with suppress(OSError), open(os.path.join(folder, name), "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


# ------------------------------------------------------------------ memory

SAMPLE_FIELDS = ("Rss", "Pss", "Pss_Anon", "Pss_File", "Pss_Shmem")


def memory(work: Path, quick: bool) -> dict[str, Any]:
    """Peak megabytes of runs on made-up CIFAR-10 and on a tiny set, with 1 and 2 processes.

    Of all processes of a run together. `Rss` counts a page that two of them share twice, `Pss`
    half in each, and the other fields are its parts; `images` is the part mapped from the cache,
    and `own` that plus all memory of no file. `over_baseline` is the difference of the two runs'
    `own` in units of the images' own size (uint8, training and test): libraries are left out, as
    their part depends on who else on the machine has them loaded.
    """
    n = 5_000 if quick else 50_000
    cache = work / "cache"
    megabytes = (n + n // 5) * 32 * 32 * 3 / 1e6
    runs: dict[str, dict[str, float]] = {}
    for devices, label in ((1, "1 process"), (2, "2 processes")):
        for name, images in (("tiny", 1_280), ("full", n)):
            arguments = [
                *NOISE,
                *SMALL_NET,
                f"+data.source.n={images}",
                f"data.cache_dir={cache}",
                f"hydra.run.dir={work / f'memory-{name}-{devices}'}",
                "trainer.accelerator=cpu",
                f"trainer.devices={devices}",
                "trainer.max_epochs=1",
                "compile=false",
            ]
            runs[f"{name}, {label}"] = peak(arguments, work, cache)
    over_baseline = {
        label: (runs[f"full, {label}"]["own"] - runs[f"tiny, {label}"]["own"]) / megabytes
        for label in ("1 process", "2 processes")
    }
    return {"image_megabytes": megabytes, "runs": runs, "over_baseline": over_baseline}


def peak(arguments: Sequence[str], work: Path, cache: Path) -> dict[str, float]:
    """The most megabytes, of each kind, that a command and the processes it starts hold at once."""
    most = dict.fromkeys((*SAMPLE_FIELDS, "images", "own"), 0.0)

    def watch(group: int) -> None:
        held = dict.fromkeys(most, 0.0)
        for pid in members(group):
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    field, _, value = line.partition(":")
                    if field in SAMPLE_FIELDS:
                        held[field] += int(value.split()[0]) * 1024 / 1e6
                held["images"] += mapped(pid, cache)
        held["own"] = held["Pss_Anon"] + held["Pss_Shmem"] + held["images"]
        for kind, megabytes in held.items():
            most[kind] = max(most[kind], megabytes)

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


def members(group: int) -> list[int]:
    """The processes of a group."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                # Fields after the name, which stands in brackets and may hold anything.
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    found.append(int(entry))
    return found

"""The benchmark's parts, in order, and what they leave behind; imports no torch."""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from resnet_lab.bench import process, show
from resnet_lab.bench.gate import Entry, Failed, ask, race
from resnet_lab.bench.noise import photographs
from resnet_lab.config.errors import UserError
from resnet_lab.screen import console, duration

LETTERS = {
    "a": "the limit: a bare loop at the best settings of this machine",
    "b": "ours, end to end",
    "c": "the common style of a Lightning project",
    "d": "ours with settings off",
    "e": "the data pipeline alone",
    "f": "the framework's cost per step",
    "g": "start-up",
    "h": "memory",
    "gpu": "seconds per CIFAR-10 epoch on a CUDA device",
}
# Imported once, by the process that contenders are forked from: torch alone takes seconds.
PRELOAD = ["resnet_lab.bench.common", "resnet_lab.bench.pipeline", "resnet_lab.bench.training"]
SEGMENT = 3.0  # seconds that a segment of training should take
BATCH = 128
GPU_NETS = ("resnet20", "resnet56", "resnet110", "resnet18")
TINY = ("model=cifar_resnet", "model.depth=8", "model.width=0.25", "data.batch_size=32")


@dataclass
class Bench:
    """One run of the benchmark: what was asked for, and where its scratch files are."""

    only: set[str]
    rounds: int
    quick: bool
    work: Path

    @cached_property
    def torch_facts(self) -> dict[str, Any]:
        """What torch says of this machine."""
        return ask("resnet_lab.bench.training.machine", self.work)

    def race(self, entries: Mapping[str, Entry], rounds: int | None = None) -> dict[str, Any]:
        figures, errors = race(entries, rounds or self.rounds, self.work)
        return {"rounds": figures, "errors": errors}

    # -------------------------------------------------------------- a to d

    def training(self) -> dict[str, Any]:
        net = list(TINY) if self.quick else ["model=resnet20"]
        common = {"work": self.work, "overrides": net}
        probe = Entry(
            "resnet_lab.bench.training.tournament", {**common, "steps": 2 if self.quick else 10}
        )
        answer = self.race({"tournament": probe}, 1 if self.quick else 2)
        if answer["errors"]:
            raise Failed(answer["errors"]["tournament"])
        turns = answer["rounds"]["tournament"]
        rates = {name: max(turn[name] for turn in turns) for name in turns[0]}
        best = max(rates, key=lambda name: rates[name])

        def steps(rate: float) -> int:
            return 2 if self.quick else max(10, min(300, round(rate * SEGMENT / BATCH)))

        def ours(name: str, rate: float, *overrides: str) -> Entry:
            changed = [*net, *overrides]
            options = {"name": name, "overrides": changed, "steps": steps(rate)}
            return Entry("resnet_lab.bench.training.ours", {**common, **options})

        setting = best.split()
        entries = {
            "limit": Entry(
                "resnet_lab.bench.training.bare",
                {**common, "setting": setting, "steps": steps(rates[best])},
            )
        }
        eager, fp32 = rates["bf16 channels_last eager"], rates["fp32 channels_last compiled"]
        neither = rates["fp32 channels_last eager"]
        if "b" in self.only:
            entries["ours"] = ours("ours", rates[best])
        if "c" in self.only:
            # Its workers take their share of the cores, so about two thirds of a bare loop's rate.
            slow = steps(rates["fp32 NCHW eager"] * 2 / 3)
            entries["common style"] = Entry(
                "resnet_lab.bench.common.common", {**common, "steps": slow}
            )
        if "d" in self.only:
            fp32_only, no_compile = "trainer.precision=32", "compile=false"
            entries["ours, compile=false"] = ours("eager", eager, no_compile)
            entries["ours, precision=32"] = ours("fp32", fp32, fp32_only)
            entries["ours, precision=32 compile=false"] = ours(
                "neither", neither, no_compile, fp32_only
            )
        result = {"tournament": rates, "setting": best, **self.race(entries)}
        if self.only & {"a", "b"}:
            result["deep"] = self.deep(setting, max(5, steps(rates[best] / 3)))
        return result

    def deep(self, setting: Sequence[str], steps: int) -> dict[str, Any]:
        """The same for ResNet-56: the limit, and ours."""
        net = [*TINY, "model.depth=14"] if self.quick else ["model=resnet56"]
        common = {"work": self.work, "overrides": net, "steps": steps}
        entries = {
            "limit": Entry("resnet_lab.bench.training.bare", {**common, "setting": setting}),
            "ours": Entry("resnet_lab.bench.training.ours", {**common, "name": "ours-56"}),
        }
        # Two alone take their turns quickly, and twice as many tell a drift from a difference.
        return self.race(entries, 2 * self.rounds)

    # -------------------------------------------------------------- e

    def pipeline(self) -> dict[str, Any]:
        small = {
            name: Entry(
                "resnet_lab.bench.pipeline.small",
                {
                    "work": self.work,
                    "style": style,
                    "workers": workers,
                    "steps": 3 if self.quick else steps,
                },
            )
            for name, style, workers, steps in (
                ("ours", "ours", 0, 1000),
                ("masks", "masks", 0, 200),
                ("torchvision", "torchvision", 0, 60),
                ("torchvision, 2 workers", "torchvision", 2, 100),
            )
        }
        root = self.work / "photographs"
        photographs(root, 20 if self.quick else 100, copies=20)
        large = {
            f"{style}, {workers} workers": Entry(
                "resnet_lab.bench.pipeline.photos",
                {
                    "root": root,
                    "style": style,
                    "workers": workers,
                    "steps": 1 if self.quick else 8 * max(1, workers),
                },
            )
            for workers in (0, 2)
            for style in ("ours", "torchvision")
        }
        return {"small": self.race(small), "photographs": self.race(large)}

    # -------------------------------------------------------------- f

    def overhead(self) -> dict[str, Any]:
        small = ["data.batch_size=16", "compile=false", "trainer.precision=32"]
        common = {"work": self.work, "overrides": small, "steps": 10 if self.quick else 500}
        one = {**common, "one_layer": True}
        setting = ("fp32", "channels_last", "eager")
        return self.race(
            {
                "bare loop": Entry("resnet_lab.bench.training.bare", {**one, "setting": setting}),
                "ours": Entry("resnet_lab.bench.training.ours", {**one, "name": "one-layer"}),
                "Trainer, logged every step": Entry("resnet_lab.bench.common.one_layer", common),
                "Trainer, nothing logged": Entry(
                    "resnet_lab.bench.common.one_layer", {**common, "logged": False}
                ),
            }
        )

    # -------------------------------------------------------------- g, h

    def startup(self) -> dict[str, Any]:
        return process.startup(self.work, self.rounds, self.quick)

    def memory(self) -> dict[str, Any]:
        if not sys.platform.startswith("linux"):
            return {"skipped": "memory is read from /proc, which only Linux has"}
        return process.memory(self.work, self.quick)

    # -------------------------------------------------------------- CUDA

    def gpu(self) -> dict[str, Any]:
        if not self.torch_facts["cuda"]:
            return {"skipped": "there is no CUDA device here"}
        result: dict[str, Any] = {
            "rates": self.race({"rates": Entry("resnet_lab.bench.gpu.rates")})
        }
        steps = 5 if self.quick else 200
        for net in GPU_NETS:
            common = {"work": self.work, "overrides": [f"model={net}"], "steps": steps}
            bare = {**common, "device": "cuda"}
            entries = {
                mode: Entry(
                    "resnet_lab.bench.training.bare",
                    {**bare, "setting": ("bf16", "channels_last", mode)},
                )
                for mode in ("eager", "compiled", "CUDA graphs")
            }
            entries["ours"] = Entry(
                "resnet_lab.bench.training.ours", {**common, "device": "gpu", "name": net}
            )
            result[net] = self.race(entries)
        return result


def bench(only: Iterable[str], rounds: int, quick: bool, out: Path | None) -> int:
    """Measure, show and write; the exit status: 0, or 1 where a part failed.

    Args:
        only: letters of `LETTERS`, or none for all.
        rounds: how often every contender has its turn.
        quick: tiny segments, nets and one round: shows that everything runs, and no figure counts.
        out: the folder to write into; None makes one under outputs/bench/.
    """
    letters = set(only) or set(LETTERS)
    if unknown := sorted(letters - set(LETTERS)):
        raise UserError(f"--only {','.join(unknown)}: possible are {', '.join(LETTERS)}.")
    if rounds < 1:
        raise UserError(f"--rounds {rounds}: use 1 or more.")
    out = (out or Path("outputs", "bench", datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))).absolute()
    work = out / "work"
    if work.exists() or (out / "bench.json").exists():
        raise UserError(f"--out {out}: holds a benchmark already; name another folder.")
    work.mkdir(parents=True)
    get_context("forkserver").set_forkserver_preload(PRELOAD)
    try:
        results = measure(Bench(letters, 1 if quick else rounds, quick, work))
    finally:
        for path in work.iterdir():
            if path.is_dir():  # data and runs; the logs of contenders stay for a moment
                shutil.rmtree(path)
    (out / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    text = show.text(results)
    (out / "bench.md").write_text(text)
    show.figure(results, out / "bench.png")
    console.print(f"\n{text}\nwritten to {out}", soft_wrap=True)
    if results["errors"]:
        return 1
    shutil.rmtree(work)
    return 0


def measure(session: Bench) -> dict[str, Any]:
    """All parts that were asked for; one that fails says so, and the others go on."""
    began = time.monotonic()
    results: dict[str, Any] = {
        "settings": {
            "rounds": session.rounds,
            "quick": session.quick,
            "only": sorted(session.only),
        },
        "machine": machine(),
        "load_at_start": os.getloadavg(),
        "parts": {},
    }
    # Start-up first: nothing has loaded torch by then.
    parts: dict[str, tuple[set[str], Callable[[], dict[str, Any]]]] = {
        "start-up": ({"g"}, session.startup),
        "training": ({"a", "b", "c", "d"}, session.training),
        "pipeline": ({"e"}, session.pipeline),
        "overhead": ({"f"}, session.overhead),
        "memory": ({"h"}, session.memory),
        "gpu": ({"gpu"}, session.gpu),
    }
    for name, (letters, run) in parts.items():
        if not session.only & letters:
            continue
        since = time.monotonic()
        try:
            part = run()
        except (Failed, RuntimeError, OSError) as error:
            part = {"errors": {name: str(error)}}
        results["parts"][name] = part
        word = "failed" if errors(part) else part.get("skipped", "done")
        console.print(f"{name:<10} {word} ({duration(time.monotonic() - since)})", soft_wrap=True)
    try:
        results["machine"].update(session.torch_facts)
    except Failed as error:
        results["errors"] = {"machine": str(error)}
    results["load_at_end"] = os.getloadavg()
    results["seconds"] = time.monotonic() - began
    results["errors"] = errors(results)
    return results


def errors(part: Any) -> dict[str, str]:
    """All errors of contenders, at any depth."""
    if not isinstance(part, dict):
        return {}
    found = dict(part.get("errors", {}))
    for value in part.values():
        found |= errors(value)
    return found


def machine() -> dict[str, Any]:
    """The facts of this machine that need no torch."""
    names = ("torch", "torchvision", "lightning", "torchmetrics", "pillow", "numpy")
    return {
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "versions": {"python": platform.python_version(), **{n: version(n) for n in names}},
        "environment": {
            k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MKL_", "KMP_"))
        },
    }

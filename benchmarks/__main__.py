"""`python -m benchmarks`: the parts in order, and the files they leave."""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import process, show
from benchmarks.data import photographs
from benchmarks.turns import Entry, Failed, race
from resnet_lab.screen import console, duration

PARTS = ("startup", "training", "pipeline", "sweep", "memory")  # in the order of measuring
# Imported once, by the process that contenders are forked from: torch alone takes seconds.
PRELOAD = ["benchmarks.common", "benchmarks.pipeline"]
SEGMENT = 3.0  # seconds that a segment of training should take
BATCH = 128
NETS = {"ResNet-20": ("model=resnet20",), "ResNet-56": ("model=resnet56",)}
TINY = {"ResNet-8": (*process.SMALL_NET, "data.batch_size=32")}


def _race(work: Path, rounds: int, entries: Mapping[str, Entry]) -> dict[str, Any]:
    figures, errors = race(entries, rounds, work)
    return {"rounds": figures, "errors": errors} if errors else {"rounds": figures}


def training(work: Path, rounds: int, quick: bool) -> dict[str, Any]:
    """The limit (a bare loop at the best setting here), ours and the common style, by net."""
    part: dict[str, Any] = {"nets": {}}
    for name, overrides in (TINY if quick else NETS).items():
        options = {"work": work, "overrides": overrides}
        if "settings" not in part:
            entry = Entry("benchmarks.training.settings", {**options, "steps": 2 if quick else 10})
            answers, errors = race({"settings": entry}, 1 if quick else 2, work)
            if errors:
                raise Failed(errors["settings"])
            turns = answers["settings"]
            part["settings"] = {key: max(turn[key] for turn in turns) for key in turns[0]}
        rates = part["settings"]
        best = max(rates, key=lambda key: rates[key])
        deeper = 1 if name == next(iter(NETS)) else 3  # ResNet-56 takes three times as long

        def steps(rate: float, deeper: int = deeper) -> int:
            return 2 if quick else max(10, min(300, round(rate / deeper * SEGMENT / BATCH)))

        fast = {**options, "steps": steps(rates[best])}
        # The workers of the common style take their share of the cores.
        slow = {**options, "steps": steps(rates["fp32 NCHW eager"] * 2 / 3)}
        limit = {**fast, "setting": best.split()}
        part["nets"][name] = _race(
            work,
            rounds,
            {
                "limit": Entry("benchmarks.training.bare", limit),
                "ours": Entry("benchmarks.training.ours", fast),
                "common style": Entry("benchmarks.common.common", slow),
            },
        )
    return part


def pipeline(work: Path, rounds: int, quick: bool) -> dict[str, Any]:
    """Batches of small images and of photographs, by this project and by torchvision."""
    root = work / "photographs"
    photographs(root, 20 if quick else 100, copies=20)

    def entry(function: str, style: str, workers: int, steps: int, **options: Any) -> Entry:
        own = {"style": style, "workers": workers, "steps": 2 if quick else steps}
        return Entry(f"benchmarks.pipeline.{function}", {**own, **options})

    small = {
        "ours": entry("small", "ours", 0, 1000, work=work),
        "torchvision": entry("small", "torchvision", 0, 60, work=work),
        "torchvision, 2 workers": entry("small", "torchvision", 2, 100, work=work),
    }
    large = {
        f"{style}, {workers} workers": entry(
            "photos", style, workers, 8 * max(1, workers), root=root
        )
        for workers in (0, 2)
        for style in ("ours", "torchvision")
    }
    policies = {}
    names = {"trivial": "TrivialAugment", "rand": "RandAugment", "auto_cifar10": "AutoAugment"}
    for policy, name in names.items():
        what: dict[str, Any] = {"work": work, "policy": policy}
        contenders = {
            "ours": entry("small", "ours", 0, 100, **what),
            "torchvision": entry("small", "torchvision", 0, 30, **what),
            "torchvision, 2 workers": entry("small", "torchvision", 2, 50, **what),
        }
        if find_spec("kornia"):
            contenders["kornia, one operation a batch"] = entry("small", "kornia", 0, 20, **what)
        policies[f"Data alone, 32 pixels: crop, flip, {name}, normalise"] = _race(
            work, rounds, contenders
        )
    return {
        "races": {
            "Data alone, 32 pixels: crop, flip, normalise": _race(work, rounds, small),
            **policies,
            "Data alone, photographs: decode, random-resized-crop to 224, flip, normalise": _race(
                work, rounds, large
            ),
        }
    }


def machine() -> dict[str, Any]:
    import torch

    from resnet_lab.run.machine import device_name, named

    names = ("torch", "torchvision", "lightning", "torchmetrics", "pillow", "numpy")
    return {
        "device": device_name(named("auto")),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "versions": {"python": platform.python_version(), **{n: version(n) for n in names}},
    }


def errors(part: Any) -> dict[str, str]:
    """All errors of contenders, at any depth."""
    found: dict[str, str] = {}
    for name, value in part.items() if isinstance(part, dict) else ():
        found |= value if name == "errors" else errors(value)
    return found


def bench(only: list[str], rounds: int, quick: bool, out: Path) -> int:
    """Measure, show and write; the exit status: 0, or 1 where a part failed."""
    work = out / "work"
    work.mkdir(parents=True)
    get_context("forkserver").set_forkserver_preload(PRELOAD)
    began = time.monotonic()
    results: dict[str, Any] = {"rounds": rounds, "quick": quick, "parts": {}}
    results["load_at_start"] = os.getloadavg()
    functions = {
        "startup": process.startup,
        "training": training,
        "pipeline": pipeline,
        "sweep": process.sweep,
        "memory": process.memory,
    }
    for name in PARTS:
        if name not in only:
            continue
        since = time.monotonic()
        try:
            part = functions[name](work, rounds, quick)
        except (Failed, RuntimeError, OSError) as error:
            part = {"errors": {name: str(error)}}
        results["parts"][name] = part
        word = "failed" if errors(part) else part.get("skipped", "done")
        console.print(f"{name:<10} {word} ({duration(time.monotonic() - since)})", soft_wrap=True)
    results |= {"machine": machine(), "load_at_end": os.getloadavg()}
    results |= {"seconds": time.monotonic() - began, "errors": errors(results["parts"])}
    (out / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    text = show.text(results)
    (out / "bench.md").write_text(text)
    show.figure(results, out / "bench.png")
    console.print(f"\n{text}\nwritten to {out}", soft_wrap=True)
    if results["errors"]:
        return 1  # the logs in work/ say more
    shutil.rmtree(work)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", default=",".join(PARTS), metavar="PARTS", help=f"some of {','.join(PARTS)}"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (5)")
    parser.add_argument(
        "--quick", action="store_true", help="only see that it runs: one round, tiny nets"
    )
    parser.add_argument("--out", type=Path, help="folder (outputs/bench/<date>_<time>)")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    if unknown := [name for name in only if name not in PARTS]:
        parser.error(f"--only {','.join(unknown)}: possible are {', '.join(PARTS)}")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: use 1 or more")
    out = options.out or Path("outputs/bench", datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    if out.exists():
        parser.error(f"--out {out}: it exists; name another folder")
    return bench(only, 1 if options.quick else options.rounds, options.quick, out.absolute())


if __name__ == "__main__":
    sys.exit(main())

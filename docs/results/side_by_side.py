"""Our run and the plain loop in turns, seed by seed; what docs/results.md compares.

    python docs/results/side_by_side.py data/cifar10-jpeg

Each is a process of its own with the machine to itself. What is finished is not run again. The
results lie in outputs/side_by_side/, with the seconds from the start of the command to its end.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

EPOCHS, SEEDS = 3, (0, 1, 2)
OUT = Path("outputs/side_by_side")


def commands(root: str, seed: int) -> dict[str, list[str]]:
    """By the name of its folder, what is run for one seed."""
    ours, plain = f"loop=ours,seed={seed}", f"loop=plain,seed={seed}"
    recipe = ["experiment=cifar10_short", f"trainer.max_epochs={EPOCHS}", "data.val_size=0.1"]
    files = ["data=imagefolder", f"data.root={root}", f"seed={seed}"]
    return {
        ours: ["train.py", *recipe, *files, f'hydra.run.dir="{OUT / ours}"'],
        plain: [
            *("docs/results/plain_loop.py", root, str(OUT / plain)),
            *("--seed", str(seed), "--epochs", str(EPOCHS)),
        ],
    }


def main() -> None:
    (root,) = sys.argv[1:]
    OUT.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        of_seed = list(commands(root, seed).items())
        for name, command in of_seed if seed % 2 == 0 else reversed(of_seed):
            folder = OUT / name
            if (folder / "wall.json").exists():
                continue
            shutil.rmtree(folder, ignore_errors=True)  # what was cut off
            begun = time.perf_counter()
            with (OUT / f"{name}.log").open("w") as log:
                subprocess.run([sys.executable, *command], stdout=log, stderr=log, check=True)
            seconds = round(time.perf_counter() - begun, 1)
            wall = {"command": shlex.join(["python", *command]), "seconds": seconds}
            (folder / "wall.json").write_text(json.dumps(wall, indent=2) + "\n")
            print(f"{name}: {seconds} s", flush=True)


if __name__ == "__main__":
    main()

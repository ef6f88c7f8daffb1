"""The tables and pictures of docs/results.md, from the result files in the folders beside this one.

    python docs/results/build.py                                  # what `make results` runs
    python docs/results/build.py take outputs/sweeps/shortcuts20  # the small files of a sweep

A folder here is a sweep's folder without checkpoints and logs, so that `resnet-lab report` reads it
too. Tables are replaced between "<!-- table NAME -->" and "<!-- end -->"; the words around them are
written by a person.
"""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from resnet_lab.report import plots
from resnet_lab.report.compose import counted, plus_minus
from resnet_lab.report.runs import epochs, read
from resnet_lab.report.stats import spread, summarise
from resnet_lab.screen import duration

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "results.md"
KEPT = ("result.json", "metrics.csv", "grad_norm.csv", "wall.json")
# The sweeps of each table.
SWEEPS = {
    "shortcuts": ("shortcuts20", "shortcuts56"),
    "shortcut_types": ("shortcut_types",),
    "augment": ("augment", "augment_cpu"),
    "batch_size": ("batch_size",),
    "batchnorm": ("batchnorm",),
    "textbook": ("textbook",),
}
LOOPS = {"ours": "resnet-lab", "plain": "plain loop"}


def take(sweep: Path) -> None:
    """Copy the small files of a sweep to here, in place of what was here under its name."""
    if not any(sweep.glob("*/result.json")):
        sys.exit(f"error: {sweep} holds no runs; name a sweep's folder. Nothing was changed.")
    target = HERE / sweep.name
    shutil.rmtree(target, ignore_errors=True)
    for file in sorted(file for file in sweep.glob("*/*") if file.name in KEPT):
        (target / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / file.parent.name / file.name)
    if (sweep / "sweep.json").exists():
        shutil.copyfile(sweep / "sweep.json", target / "sweep.json")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], n_words: int) -> str:
    """A table whose first `n_words` columns are words and the others numbers."""
    rule = [":---"] * n_words + ["---:"] * (len(head) - n_words)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))


def settings(name: str) -> str:
    """A row for each setting: mean and standard deviation over its seeds."""
    (study,) = read([HERE / sweep for sweep in SWEEPS[name]])
    keys = [study.short(key) for key in study.factors]
    figures = ["n", "validation, %", "test, %", "parameters", "multiply-adds", "training"]
    rows = [
        [
            *row.setting,
            counted(row),
            plus_minus(row.val),
            plus_minus(row.test),
            plots.quantity(row.costs["params"]),
            plots.quantity(row.costs["macs"]),
            duration(row.costs["train_seconds"]),
        ]
        for row in summarise(study)
    ]
    return markdown([*keys, *figures], rows, len(keys))


def loops() -> list[dict[str, Any]]:
    """The runs beside a plain loop, by seed and loop."""
    found = []
    for folder in sorted((HERE / "side_by_side").iterdir()):
        loop, seed = re.findall(r"=(\w+)", folder.name)
        result, wall = (json.loads((folder / n).read_text()) for n in ("result.json", "wall.json"))
        rows = epochs(folder)[0]
        found.append(
            {
                "loop": loop,
                "seed": seed,
                "val": 100 * rows[max(rows)]["val/acc"],
                "test": 100 * result["test/acc"],
                "training": sum(row["train_seconds"] for row in rows.values()),
                "whole": wall["seconds"],
            }
        )
    return sorted(found, key=lambda run: (run["seed"], run["loop"]))


def side_by_side() -> str:
    """Both loops by seed, and how many times as long the plain loop takes."""
    runs = loops()
    head = ["seed", "loop", "validation, %", "test, %", "training, s", "whole command, s"]
    rows = [
        [
            run["seed"],
            LOOPS[run["loop"]],
            *(f"{run[split]:.2f}" for split in ("val", "test")),
            *(f"{run[time]:.0f}" for time in ("training", "whole")),
        ]
        for run in runs
    ]
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    lines = []
    for name, key in (("training", "training"), ("whole command", "whole")):
        ratios = [plain[key] / ours[key] for ours, plain in pairs]
        spans = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append([name, f"{median(ratios):.2f}", spans, str(len(ratios))])
    apart = spread([ours["test"] - plain["test"] for ours, plain in pairs], percent=False)
    difference = f"{apart.mean:+.2f} ± {apart.sd:.2f}, 95% [{apart.low:+.2f}, {apart.high:+.2f}]"
    return "\n\n".join(
        [
            markdown(head, rows, 2),
            markdown(["plain loop / resnet-lab", "median", "range", "n"], lines, 1),
            f"Test accuracy, resnet-lab minus plain loop within a seed, in points: {difference}.",
        ]
    )


def tables() -> dict[str, str]:
    """Every table of the page by its name."""
    return {name: settings(name) for name in SWEEPS} | {"side_by_side": side_by_side()}


def filled(page: str) -> str:
    """The page with its tables as the files give them."""
    for name, table in tables().items():
        pattern = rf"(<!-- table {name} -->\n).*?(\n<!-- end -->)"
        page, n = re.subn(pattern, lambda m, t=table: m[1] + t + m[2], page, flags=re.DOTALL)
        if n != 1:
            sys.exit(f"error: {PAGE} has {n} places for the table {name}, not one.")
    return page


def draw() -> None:
    """Write the pictures of every table."""
    for path in HERE.glob("*.png"):
        path.unlink()
    for name, sweeps in SWEEPS.items():
        (study,) = read([HERE / sweep for sweep in sweeps])
        rows = summarise(study)
        style = plots.assign_styles(study, rows)
        pictures = plots.curve_charts(rows, style) + plots.gradient_charts(rows, style)
        for picture in pictures:
            plots.Picture(f"{name}-{picture.file}", picture.alt, picture.figure).save_png(HERE)


def main() -> None:
    match sys.argv[1:]:
        case []:
            PAGE.write_text(filled(PAGE.read_text()))
            draw()
        case ["take", *sweeps] if sweeps:
            for sweep in sweeps:
                take(Path(sweep))
        case _:
            sys.exit("usage: build.py [take SWEEP_FOLDER ...]")


if __name__ == "__main__":
    main()

"""The tables and pictures of docs/results.md, from the result files in the folders beside this one.

    python docs/results/build.py                                  # what `make results` runs
    python docs/results/build.py take outputs/sweeps/shortcuts20  # the small files of a sweep

A folder here is a sweep's folder without checkpoints and logs, so that `resnet-lab report` reads it
too. Tables are replaced between "<!-- table NAME -->" and "<!-- end -->"; the words around them are
written by a person.
"""

import itertools
import json
import re
import shutil
import sys
from collections.abc import Sequence
from math import isnan, sqrt
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import OmegaConf
from scipy.special import stdtrit

from resnet_lab.report import plots
from resnet_lab.report.compose import counted, plus_minus
from resnet_lab.report.runs import epochs, read
from resnet_lab.report.stats import Spread, pooled, spread, summarise

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "results.md"
CONF = HERE.parents[1] / "conf" / "experiment" / "he2015"
KEPT = ("result.json", "metrics.csv", "grad_norm.csv", "wall.json")
# Sweeps with a table and pictures of their own.
SWEEPS = (
    *("he2015", "depth", "shortcut_types", "augment", "augment30", "batch_size", "batchnorm"),
    "textbook",
)
GRADIENTS = ("shortcuts20", "shortcuts56")  # runs that noted the gradient of every block
LOOPS = {"ours": "resnet-lab", "plain": "plain loop"}
PRECISIONS = ("bf16-mixed", "32-true")
# A net of ours beside a published figure of the same net; the figure and its source are those of
# conf/experiment/he2015.
PUBLISHED = (
    ("resnet20", "he2015", "experiment=he2015-resnet20", "64,000 steps"),
    ("plain20", "he2015", "experiment=he2015-plain20", "64,000 steps"),
    *(
        (f"{name}{depth}", "depth", f"model=resnet{depth},shortcut={shortcut}", "10 epochs")
        for depth in (20, 32, 44, 56)
        for name, shortcut in (("resnet", "A"), ("plain", "none"))
    ),
)


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
    (study,) = read([HERE / name])
    keys = [study.short(key) for key in study.factors]
    figures = ["n", "validation, %", "test, %", "95%, test", "parameters", "multiply-adds"]
    rows = [
        [
            *row.setting,
            counted(row),
            plus_minus(row.val),
            plus_minus(row.test),
            interval(row.test, "{:.1f}"),
            plots.quantity(row.costs["params"]),
            plots.quantity(row.costs["macs"]),
        ]
        for row in summarise(study)
    ]
    return markdown([*keys, *figures], rows, len(keys))


def interval(of: Spread, form: str) -> str:
    """The 95% interval of a mean; a dash where there is none."""
    return "-" if isnan(of.low) else f"[{form.format(of.low)}, {form.format(of.high)}]"


def steps() -> str:
    """What more layers, and what shortcuts, bring in test accuracy (points), with intervals.

    The standard deviation between seeds is pooled over the depths of one kind of net: with
    shortcuts and without it differs tenfold.
    """
    (study,) = read([HERE / "depth"])
    rows = {row.setting: row for row in summarise(study)}
    depths = list(dict.fromkeys(model for model, _ in rows))
    kinds = {
        shortcut: pooled([row for (_, kind), row in rows.items() if kind == shortcut], "test")
        for shortcut in ("A", "none")
    }
    lines = []
    for shortcut, (sd, freedom) in kinds.items():
        cells = []
        for one, other in [*itertools.pairwise(depths), (depths[0], depths[-1])]:
            here, there = (rows[depth, shortcut].test for depth in (one, other))
            reach = stdtrit(freedom, 0.975) * sd * sqrt(1 / here.n + 1 / there.n)
            change = there.mean - here.mean
            cells.append(f"{change:+.2f} [{change - reach:+.2f}, {change + reach:+.2f}]")
        lines.append([shortcut, *cells, f"{sd:.2f}"])
    numbers = [depth.removeprefix("resnet") for depth in depths]
    heads = [f"{one} to {other}" for one, other in itertools.pairwise(numbers)]
    heads.append(f"{numbers[0]} to {numbers[-1]}")
    return markdown(["shortcut", *heads, "pooled sd"], lines, 1)


def published() -> str:
    """Test errors of nets of ours beside published ones of the same nets."""
    lines = []
    for net, sweep, runs, length in PUBLISHED:
        found = [
            json.loads(file.read_text()) for file in (HERE / sweep).glob(f"{runs}*/result.json")
        ]
        errors = spread([100 - 100 * result["test/acc"] for result in found], percent=False)
        own = plus_minus(errors) if errors.n > 1 else f"{errors.mean:.2f}"
        config = OmegaConf.load(CONF / f"{net}.yaml")
        reference = config.reference
        name = reference.source.split(",")[0]
        lines.append([net, length, str(errors.n), own, f"{reference.test_error:.2f}", name])
    head = ["net", "ours", "n", "test error, %", "published, %", "by"]
    return markdown(head, lines, 2)


def precision() -> str:
    """Test accuracy by seed: bfloat16, float32, the plain loop; and their differences."""
    found = {
        name: [
            100 * json.loads((HERE / folder / "result.json").read_text())["test/acc"]
            for folder in (pattern.format(seed) for seed in range(8))
        ]
        for name, pattern in {
            **{kind: f"precision/precision={kind},seed={{}}" for kind in PRECISIONS},
            "plain loop": "plain_loop/seed={}",
        }.items()
    }
    seeds = range(len(found["plain loop"]))
    table = [[name, *(f"{values[n]:.2f}" for n in seeds)] for name, values in found.items()]
    lines = []
    for one, other in itertools.combinations(found, 2):
        pairs = zip(found[one], found[other], strict=True)
        apart = spread([here - there for here, there in pairs], percent=False)
        change = f"{apart.mean:+.2f} ± {apart.sd:.2f}"
        lines.append([f"{one} minus {other}", str(apart.n), change, interval(apart, "{:+.2f}")])
    return "\n\n".join(
        [
            markdown(["test, %; seed", *map(str, seeds)], table, 1),
            markdown(["points of test accuracy", "n", "mean ± sd", "95%"], lines, 1),
        ]
    )


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
    return "\n\n".join(
        [
            markdown(head, rows, 2),
            markdown(["plain loop / resnet-lab", "median", "range", "n"], lines, 1),
        ]
    )


def tables() -> dict[str, str]:
    """Every table of the page by its name."""
    more = {
        **{"steps": steps(), "published": published(), "precision": precision()},
        "side_by_side": side_by_side(),
    }
    return {name: settings(name) for name in SWEEPS} | more


def filled(page: str) -> str:
    """The page with its tables as the files give them."""
    for name, table in tables().items():
        pattern = rf"(<!-- table {name} -->\n).*?(<!-- end -->)"
        page, n = re.subn(pattern, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", page, flags=re.DOTALL)
        if n != 1:
            sys.exit(f"error: {PAGE} has {n} places for the table {name}, not one.")
    return page


def draw() -> None:
    """Write the pictures of every table."""
    for path in HERE.glob("*.png"):
        path.unlink()
    wanted = [(name, (name,), plots.curve_charts) for name in SWEEPS]
    for name, sweeps, charts in [*wanted, ("shortcuts", GRADIENTS, plots.gradient_charts)]:
        (study,) = read([HERE / sweep for sweep in sweeps])
        rows = summarise(study)
        for picture in charts(rows, plots.assign_styles(study, rows)):
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

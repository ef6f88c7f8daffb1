"""docs/results.md and its pictures, from the result files in the folders beside this one.

    python docs/results/build.py                                  # what `make results` runs
    python docs/results/build.py take outputs/sweeps/shortcuts20  # the small files of a sweep

A folder here is a sweep's folder without checkpoints and logs, so that `resnet-lab report` reads it
too. The words are written by hand; every figure among them comes from the files.
"""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from resnet_lab.report.contents import machines, plus_minus, summary_table
from resnet_lab.report.page import (
    Block,
    Cell,
    Code,
    Column,
    Grid,
    Page,
    Section,
    Table,
    Text,
    markdown,
)
from resnet_lab.report.plots import (
    Picture,
    curve_charts,
    gradient_charts,
    looks,
    settings_chart,
)
from resnet_lab.report.runs import UNKNOWN, Run, Study, epochs, gradients, read
from resnet_lab.report.statistics import Spread, accuracy, spread, summarise
from resnet_lab.screen import duration

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "results.md"
SWEEPS = ("shortcuts20", "shortcuts56", "batch_size", "batchnorm", "textbook")
KEPT = ("result.json", "metrics.csv", "grad_norm.csv", "wall.json")
DEPTHS = (20, 32, 44, 56, 110)
LOOPS = {"ours": "resnet-lab", "plain": "plain loop"}
TIMES = ("training until then", "training", "whole command")
SINGLE = "Each line is one run (n=1): no band."
NOTHING = Cell("\N{EN DASH}")
FOR_A_GPU = (
    "python train.py -m sweep.name=he2015 sweep.jobs=8 experiment="
    + ",".join(f"he2015/{kind}{depth}" for kind in ("resnet", "plain") for depth in DEPTHS)
    + ",strong/resnet18 seed=0,1,2,3,4"
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


# ------------------------------------------------------------------ what the files say


def study(*names: str, model: bool = False) -> Study:
    """The sweeps of these names as one; with `model` the net is the first of their keys."""
    read_ones = [read([HERE / name]) for name in names]
    runs = [run for one in read_ones for run in one.runs]
    keys = list(dict.fromkeys(key for one in read_ones for key in one.keys if key != "seed"))
    keys = [*(["model"] if model else []), *keys, "seed"]
    for run in runs:
        told = {key: str(run.result[key]) for key in ("model", "seed")}
        run.settings = {key: (told | run.settings).get(key, UNKNOWN) for key in keys}
    commands = [command for one in read_ones for command in one.commands]
    return Study(names[0], None, commands, keys, runs, [])


def those(study: Study, **wanted: str) -> list[Run]:
    """The finished runs with these settings, each key by its last part."""
    full = {key.rpartition(".")[2]: key for key in study.keys}
    return [
        run
        for run in study.finished
        if all(run.settings[full[key]] == value for key, value in wanted.items())
    ]


def test_acc(runs: Sequence[Run]) -> Spread:
    return spread(accuracy(run, "test") for run in runs)


def percent(runs: Sequence[Run]) -> str:
    """Test accuracy and how many runs it is of."""
    return f"{plus_minus(test_acc(runs))}% (n={len(runs)})"


def points(difference: float) -> str:
    return f"{difference:.1f} point{'' if f'{difference:.1f}' == '1.0' else 's'}"


def seconds_of(run: Run) -> float:
    """Of training, also where the run has not come to its end."""
    return sum(row["train_seconds"] for row in epochs(run.folder)[0].values())


# ------------------------------------------------------------------ pieces of the page


def runs_table(study: Study) -> Table:
    columns = [Column(study.short(key), number=False) for key in study.keys]
    columns += [Column(title) for title in ("epochs", "validation, %", "test, %", "training")]
    columns.append(Column("how it ended", number=False))
    rows = []
    for run in study.runs:
        row = [Cell(run.settings[key]) for key in study.keys]
        row.append(Cell(str(len(epochs(run.folder)[0]))))
        row += [
            Cell(f"{accuracy(run, split):.2f}") if f"{split}/acc" in run.result else NOTHING
            for split in ("val", "test")
        ]
        row.append(Cell(duration(seconds_of(run))))
        rows.append([*row, Cell(": ".join(filter(None, (run.state, run.reason))))])
    return Table(columns, rows)


def single_command(run: Run) -> str:
    """As one types it; where the run lies is left to Hydra."""
    words = shlex.split(run.result["command"])[2:]
    return shlex.join(
        ["python", "train.py", *(word for word in words if not word.startswith("hydra.run.dir="))]
    )


def folded(title: str, *blocks: Block) -> list[Block]:
    return [Text(f"<details><summary>{title}</summary>"), *blocks, Text("</details>")]


def pictures(name: str, drawn: Iterable[Picture | None]) -> list[Block]:
    return [
        Grid([replace(picture, file=f"results/{name}-{picture.file}")])
        for picture in drawn
        if picture is not None
    ]


def part(title: str, study: Study, said: Sequence[str], drawn: Sequence[Block]) -> Section:
    """Commands, table, pictures and words on one question."""
    rows = summarise(study)
    several = any(len(row.runs) > 1 for row in rows)
    single = Code("\n".join(single_command(run) for run in study.runs))
    return Section(
        title,
        [
            Code("\n".join(study.commands)),
            *([summary_table(study, rows)] if several else []),
            *([] if several else [runs_table(study)]),
            *drawn,
            *(Text(one_line(paragraph)) for paragraph in said),
            *(folded("Every run", runs_table(study)) if several else []),
            *folded("The command of each run", single),
        ],
    )


# ------------------------------------------------------------------ the questions


def shortcuts() -> Section:
    both = study("shortcuts20", "shortcuts56", model=True)
    rows = summarise(both)
    look = looks(both, rows)
    kinds = {kind: those(both, model="resnet20", shortcut=kind) for kind in "ABC"}
    plain, residual = (
        {net: those(both, model=net, shortcut=kind) for net in ("resnet20", "resnet56")}
        for kind in ("none", "A")
    )
    gap = {net: test_acc(residual[net]).mean - test_acc(plain[net]).mean for net in plain}
    loss = {
        kind: {net: fmean(final(run, "train/loss") for run in runs[net]) for net in runs}
        for kind, runs in (("A", residual), ("none", plain))
    }
    best_plain = max(accuracy(run, "test") for run in plain["resnet20"])
    worst = min(accuracy(run, "test") for runs in kinds.values() for run in runs)
    first = {
        kind: first_over_last(runs["resnet56"][0])
        for kind, runs in (("A", residual), ("none", plain))
    }
    said = [
        f"""
        **What it shows.** Of 20 layers, with shortcuts A {percent(kinds["A"])}, B
        {percent(kinds["B"])}, C {percent(kinds["C"])}, without {percent(plain["resnet20"])}: the
        worst run with shortcuts ({worst:.2f}%) is above the best without ({best_plain:.2f}%). Of 56
        layers, A {percent(residual["resnet56"])}, without {percent(plain["resnet56"])}. Shortcuts
        are worth {points(gap["resnet20"])} at 20 layers and {points(gap["resnet56"])} at 56. The
        plain nets are behind in training already: at the last epoch the loss on training images is
        {loss["A"]["resnet20"]:.3f} with A and {loss["none"]["resnet20"]:.3f} without at 20 layers,
        {loss["A"]["resnet56"]:.3f} and {loss["none"]["resnet56"]:.3f} at 56. So the deep plain net
        does not overfit, it fits worse, which is what He et al. 2015 (arXiv 1512.03385, Section
        4.1) call the degradation problem. Before training, the gradient of the 56-layer net's first
        block is {first["A"]:.1f} times that of its last block with A, and {first["none"]:,.0f}
        times without.
        """,
        f"""
        **What it does not show.** Which of A, B and C is best: with two seeds each they lie
        {points(apart(kinds.values()))} apart, and runs that differ in the seed alone up to
        {points(max(map(reach, kinds.values())))}. What long training would bring: ten epochs are
        few, for 56 layers above all, and that net has one seed. Time: the six runs of 20 layers
        with shortcuts shared the machine with other work, those without did not.
        """,
    ]
    drawn = [
        *pictures("shortcuts", [settings_chart(both, rows)]),
        Text("Pale dots: runs. Ticks: means. Lines: 95% intervals, cut off at the frame."),
        *pictures("shortcuts", curve_charts(rows, look)),
        Text("Lines: means. Bands: one standard deviation to each side, none where n=1."),
        *pictures("shortcuts", gradient_charts(rows, look)),
        Text("Means over the runs. Epoch 0 is the first step, before any weight has changed."),
    ]
    return part("Depth and shortcut", both, said, drawn)


def final(run: Run, column: str) -> float:
    """A column of metrics.csv at the last epoch."""
    by_epoch = epochs(run.folder)[0]
    return by_epoch[max(by_epoch)][column]


def first_over_last(run: Run) -> float:
    """Gradient norm of the first residual block over that of the last, before training."""
    norms = [norm for stage, norm in gradients(run.folder)[0] if stage.startswith("stage")]
    return norms[0] / norms[-1]


def reach(runs: Sequence[Run]) -> float:
    """From the worst test accuracy to the best, in points."""
    found = [accuracy(run, "test") for run in runs]
    return max(found) - min(found)


def apart(settings: Iterable[Sequence[Run]]) -> float:
    """From the worst mean test accuracy of a setting to the best, in points."""
    means = [test_acc(runs).mean for runs in settings]
    return max(means) - min(means)


def batch_size() -> Section:
    sizes = study("batch_size")
    rows = summarise(sizes)
    look = looks(sizes, rows)
    test = {
        (size, rule): test_acc(those(sizes, batch_size=size, lr_rule=rule)).mean
        for size in ("64", "128", "512")
        for rule in ("fixed", "scaled")
    }
    steps = {size: those(sizes, batch_size=size)[0].result["steps"] for size in ("64", "512")}
    kept, scaled = (test["128", rule] - test["512", rule] for rule in ("fixed", "scaled"))
    small = test["64", "fixed"] - test["64", "scaled"]
    said = [
        f"""
        **What it shows.** With the learning rate left at 0.1 the largest batch, 512, which takes
        {steps["512"]:,} steps where 64 takes {steps["64"]:,}, ends {points(kept)} below 128; with
        the rate in proportion to the batch (0.4) it ends {points(scaled)} below. So the rule of
        Goyal et al. 2017 (arXiv 1706.02677, Section 2.1) makes up for a part of it, not for all. At
        64 the rule halves the rate, and that run is {points(small)} behind, which single runs do
        not settle. At 128 both rules are the same run, and came out the same:
        {test["128", "fixed"]:.2f}% and {test["128", "scaled"]:.2f}%.
        """,
        """
        **What it does not show.** One seed each and four epochs: over a longer run the larger
        batches take more steps and have more time to catch up, and in the paper they do. There was
        no warm-up as in the paper but the rise of the one-cycle schedule, and every rate follows
        from 0.1 at 128, which was not tuned.
        """,
    ]
    drawn = [*pictures("batch-size", curve_charts(rows, look)), Text(SINGLE)]
    return part("Batch size and learning rate", sizes, said, drawn)


def batchnorm() -> Section:
    rates = study("batchnorm")
    rows = summarise(rates)
    look = looks(rates, rows)
    low, middle, high = rates.values["optimizer.lr"]
    test = {
        (norm, lr): f"{test_acc(those(rates, norm=norm, lr=lr)).mean:.2f}%"
        for norm in ("batch", "none")
        for lr in (low, middle, high)
    }
    by_epoch = epochs(those(rates, norm="none", lr=high)[0].folder)[0]
    said = [
        f"""
        **What it shows.** ResNet-20 with BatchNorm gains from every higher rate:
        {test["batch", low]} at {low}, {test["batch", middle]} at {middle}, {test["batch", high]} at
        {high}. Without it the net is not behind at {low} ({test["none", low]}) and is behind at
        {middle} ({test["none", middle]}). At {high} its validation accuracy is still
        {100 * by_epoch[2]["val/acc"]:.1f}%, chance, after two epochs, and it learns only when the
        schedule has brought the rate down ({test["none", high]} in the end). Ioffe and Szegedy 2015
        (arXiv 1502.03167, Section 4.2) found the same of another net: what BatchNorm gives is the
        high rate.
        """,
        """
        **What it does not show.** One seed each, four epochs: the slow rates are far from their
        end, so nothing here says that BatchNorm is needed to come to a good accuracy. Nets without
        normalisation can be initialised for higher rates (Zhang et al. 2019, arXiv 1901.09321);
        here both start alike.
        """,
    ]
    drawn = [*pictures("batchnorm", curve_charts(rows, look)), Text(SINGLE)]
    return part("BatchNorm and learning rate", rates, said, drawn)


def textbook() -> Section:
    nets = study("textbook")
    rows = summarise(nets)
    look = looks(nets, rows)
    ((cnn,), (residual,)) = (
        those(nets, experiment=f"textbook_{name}") for name in ("cnn", "resnet")
    )
    (small,) = those(study("batchnorm"), norm="batch", lr="0.3")
    size = {
        run.name: f"{run.result['params'] / 1e6:.1f} M parameters and "
        f"{run.result['macs'] / 1e6:.0f} M multiply-adds"
        for run in (cnn, residual)
    }
    said = [
        f"""
        **What it shows.** After four epochs with its own recipe the plain CNN ({size[cnn.name]}) is
        at {percent([cnn])}, the residual net ({size[residual.name]}) at {percent([residual])}.
        ResNet-20, with {small.result["params"] / 1e6:.2f} M parameters, was at {percent([small])}
        after as many epochs of another recipe (above, with BatchNorm at 0.3).
        """,
        """
        **What it does not show.** What a shortcut does: the two differ in width, depth, learning
        rate and crop as well. Nor how good they become: the recipe of the residual net is made for
        30 epochs.
        """,
    ]
    drawn = [*pictures("textbook", curve_charts(rows, look)), Text(SINGLE)]
    return part("The textbook nets", nets, said, drawn)


# ------------------------------------------------------------------ beside a plain loop


@dataclass(frozen=True)
class Loop:
    """A run of one of the two loops; seconds are of the whole command, to its end."""

    name: str
    seed: int
    result: dict[str, float]
    by_epoch: dict[int, dict[str, float]]
    seconds: float

    @property
    def val_acc(self) -> float:
        return self.by_epoch[max(self.by_epoch)]["val/acc"]

    @property
    def train_seconds(self) -> float:
        return sum(row["train_seconds"] for row in self.by_epoch.values())

    def seconds_to(self, val_acc: float) -> float:
        """Of training, to the end of the first epoch that reaches it."""
        first = min(e for e, row in self.by_epoch.items() if row["val/acc"] >= val_acc)
        return sum(row["train_seconds"] for e, row in self.by_epoch.items() if e <= first)


def loops() -> dict[int, dict[str, Loop]]:
    """By seed and name, "ours" and "plain"."""
    found: dict[int, dict[str, Loop]] = {}
    for folder in sorted((HERE / "side_by_side").iterdir()):
        name, seed = re.findall(r"=(\w+)", folder.name)
        result, wall = (
            json.loads((folder / file).read_text()) for file in ("result.json", "wall.json")
        )
        loop = Loop(name, int(seed), result, epochs(folder)[0], wall["seconds"])
        found.setdefault(loop.seed, {})[name] = loop
    return found


def side_by_side() -> Section:
    by_seed = loops()
    columns = [Column("seed"), Column("loop", number=False)]
    percents = ("validation, %", "test, %", "both reach, %")
    columns += [Column(title) for title in (*percents, *(f"{what}, s" for what in TIMES))]
    rows = []
    ratios: dict[str, list[float]] = {what: [] for what in TIMES}
    for seed, pair in sorted(by_seed.items()):
        target = min(loop.val_acc for loop in pair.values())
        seconds = {
            name: (loop.seconds_to(target), loop.train_seconds, loop.seconds)
            for name, loop in pair.items()
        }
        for name, title in LOOPS.items():
            reached = (pair[name].val_acc, pair[name].result["test/acc"], target)
            figures = [
                *(f"{100 * acc:.2f}" for acc in reached),
                *(f"{s:.0f}" for s in seconds[name]),
            ]
            rows.append([Cell(str(seed)), Cell(title), *map(Cell, figures)])
        for what, ours, plain in zip(TIMES, seconds["ours"], seconds["plain"], strict=True):
            ratios[what].append(plain / ours)
    faster = Table(
        [
            Column("time of the plain loop, divided by ours", number=False),
            *(Column(title) for title in ("median", "least to most", "n")),
        ],
        [
            [
                Cell(what),
                Cell(f"{median(found):.2f}"),
                Cell(f"{min(found):.2f} to {max(found):.2f}"),
                Cell(str(len(found))),
            ]
            for what, found in ratios.items()
        ],
    )
    test = {
        name: [100 * pair[name].result["test/acc"] for pair in by_seed.values()] for name in LOOPS
    }
    within = spread(a - b for a, b in zip(test["ours"], test["plain"], strict=True))
    lower = sum(a < b for a, b in zip(test["ours"], test["plain"], strict=True))
    to_target, _, whole = (median(found) for found in ratios.values())
    said = [
        f"""
        **What it shows.** The same net, recipe and files, in turns on a machine that did nothing
        else: resnet-lab ends at {plus_minus(spread(test["ours"]))}% test accuracy, the plain loop
        at {plus_minus(spread(test["plain"]))}% (n={within.n} each). Within a pair the two are
        {within.mean:+.2f} ± {within.sd:.2f} points apart (95% interval of the mean
        {within.mean - within.half:+.2f} to {within.mean + within.half:+.2f}), ours the lower in
        {lower} of {within.n}. To the accuracy that both reach the plain loop trains {to_target:.2f}
        times as long; its whole command, with imports, validation and test, takes {whole:.2f} times
        as long.
        """,
        """
        **What it does not show.** That the accuracy is the same: the interval holds zero, and also
        a loss of a point or two, as bfloat16 might cost it; three runs of three epochs cannot tell.
        Which part of the time is due to what: the plain loop computes in float32 and transforms
        images in two worker processes beside its training, as courses do; ours computes in
        bfloat16, channels last, on batches that one process makes ready
        ([performance](performance.md) takes that apart). A machine with more cores would hide more
        of the transforms.
        """,
    ]
    command = Code("python docs/results/side_by_side.py data/cifar10-jpeg")
    words = [Text(one_line(text)) for text in said]
    return Section("Beside a plain loop", [command, Table(columns, rows), faster, *words])


# ------------------------------------------------------------------ the page


def one_line(text: str) -> str:
    return " ".join(text.split())


def subtitle(all_of: Study) -> str:
    first = all_of.runs[0].result
    plain = [loop for pair in loops().values() for loop in pair.values()]
    seconds = sum(map(seconds_of, all_of.runs)) + sum(loop.train_seconds for loop in plain)
    return one_line(
        f"""
        {len(all_of.runs) + len(plain)} runs, {seconds / 3600:.1f} hours of training, on the CPU.
        They are short, and the images are CIFAR-10 saved as small JPEG files
        ({first["n_train"] + first["n_val"]:,} to train on, {first["n_test"]:,} to test on), which
        costs a net about ten points of accuracy: **these figures compare with each other, and with
        nothing published.**
        """
    )


def how_to_read(all_of: Study) -> Section:
    figures = """
        The best epoch is chosen by validation images cut from the training set, and the test set is
        read once, at the end; no row was chosen by its test accuracy. Accuracies are percentages; n
        counts runs with different seeds, ± is their sample standard deviation, an interval is the
        95% one of the mean by Student's t. Of one run there is no spread, and a difference of a
        point or so between two single runs means nothing. Times are of training steps alone. In all
        parts but “Beside a plain loop” two jobs ran side by side on two cores, one thread each, and
        now and then other work beside them: times of different rows do not compare.
        """
    make = """
        `make results` builds this page from the files in `docs/results`, which are those of the run
        folders but for checkpoints and logs (`resnet-lab report docs/results/shortcuts20` reads
        them too); `make results-runs` makes them anew. `data/cifar10-jpeg` holds `train` and `test`
        with a folder for each class.
        """
    words: list[Block] = [Text(one_line(text)) for text in (figures, make)]
    return Section("How to read this page", [*words, *machines(all_of)])


def for_a_gpu() -> Section:
    said = f"""
        No GPU was at hand, so the experiments that need one have not been run: the paper's nets of
        {", ".join(map(str, DEPTHS[:-1]))} and {DEPTHS[-1]} layers, with and without shortcuts, over
        its 64,000 steps, and ResNet-18 over 200 epochs, five seeds each, eight jobs side by side.
        They stand ready, on CIFAR-10 as it is published, and the report puts the published figures
        beside ours. A test runs two batches of each net by this command (`make test-slow`,
        `tests/test_results.py`).
        """
    return Section("Not run: what needs a GPU", [Code(FOR_A_GPU), Text(one_line(said))])


def page() -> Page:
    all_of = study(*SWEEPS)
    sections = [shortcuts(), batch_size(), batchnorm(), textbook(), side_by_side(), for_a_gpu()]
    return Page("Results", subtitle(all_of), [], [how_to_read(all_of), *sections])


def main() -> None:
    match sys.argv[1:]:
        case []:
            whole = page()
            PAGE.write_text(markdown(whole))
            for picture in whole.pictures:
                (PAGE.parent / picture.file).write_bytes(picture.png)
        case ["take", *sweeps] if sweeps:
            for sweep in sweeps:
                take(Path(sweep))
        case _:
            sys.exit("usage: build.py [take SWEEP_FOLDER ...]")


if __name__ == "__main__":
    main()

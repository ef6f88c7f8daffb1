"""What the figures of several runs say: means, spreads, paired differences, the frontier.

Accuracies are percentages and their differences percentage points. `sd` is the sample standard
deviation (n - 1); an interval is the 95% one of the mean by Student's t with n - 1 degrees of
freedom. Of a single run no spread is made up.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import fsum, isnan, nan, sqrt

from scipy.special import stdtrit

from resnet_lab.report.runs import Run, Study

Setting = tuple[str, ...]  # the values of the study's factors, in their order


@dataclass(frozen=True)
class Spread:
    """Of `n` figures; `mean` is NaN without any, `sd` and `half` are None for fewer than two.

    `half` is half the width of the 95% interval, which is mean - half to mean + half.
    """

    n: int
    mean: float
    sd: float | None
    half: float | None


def spread(values: Iterable[float]) -> Spread:
    """NaN (a figure that a run does not have) is left out and not counted."""
    figures = [value for value in values if not isnan(value)]
    n = len(figures)
    mean = fsum(figures) / n if n else nan
    if n < 2:
        return Spread(n, mean, None, None)
    sd = sqrt(fsum((figure - mean) ** 2 for figure in figures) / (n - 1))
    return Spread(n, mean, sd, float(stdtrit(n - 1, 0.975)) * sd / sqrt(n))


def accuracy(run: Run, split: str) -> float:
    """Of "val" or "test", in percent; NaN where the run has none."""
    return 100 * float(run.result.get(f"{split}/acc", nan))


def over(runs: Sequence[Run], split: str) -> Spread:
    """The accuracies of `runs` on "val" or "test"."""
    return spread(accuracy(run, split) for run in runs)


# ------------------------------------------------------------------ settings


@dataclass(frozen=True)
class Summary:
    """One setting over its repeats: `runs` are the finished ones of `jobs`.

    `costs` are the means of params, macs and train_seconds, NaN where not known. `best` marks the
    highest mean validation accuracy; the test set has no say in it.
    """

    setting: Setting
    jobs: list[Run]
    runs: list[Run]
    val: Spread
    test: Spread
    costs: dict[str, float]
    best: bool = False


COSTS = ("params", "macs", "train_seconds")


def summarise(study: Study) -> list[Summary]:
    """A summary for each setting that was asked for, also where no job of it has finished."""
    jobs: dict[Setting, list[Run]] = {}
    for run in study.runs:
        jobs.setdefault(tuple(run.settings[key] for key in study.factors), []).append(run)
    rows = []
    for setting, asked in jobs.items():
        runs = [run for run in asked if run.state == "finished"]
        costs = {cost: spread(run.result.get(cost, nan) for run in runs).mean for cost in COSTS}
        rows.append(Summary(setting, asked, runs, over(runs, "val"), over(runs, "test"), costs))
    top = max((row.val.mean for row in rows if row.val.n), default=nan)
    return [replace(row, best=row.val.mean == top) for row in rows]


def frontier(rows: Sequence[Summary], cost: str) -> list[Summary]:
    """Those that no other setting reaches in validation accuracy at the same cost or less."""
    known = [row for row in rows if row.val.n and not isnan(row.costs[cost])]
    kept: list[Summary] = []
    for row in sorted(known, key=lambda row: (row.costs[cost], -row.val.mean)):
        if not kept or row.val.mean > kept[-1].val.mean:
            kept.append(row)
    return kept


# ------------------------------------------------------------------ factors


def pivot(study: Study, row: str, column: str) -> dict[tuple[str, str], list[Run]]:
    """The jobs, of whatever state, in each cell of one pair of keys."""
    cells: dict[tuple[str, str], list[Run]] = {}
    for run in study.runs:
        cells.setdefault((run.settings[row], run.settings[column]), []).append(run)
    return cells


@dataclass(frozen=True)
class Effect:
    """What changing `key` from one value to another does, all else and the seed alike.

    `val` and `test` are over the differences of the pairs (there minus here), in points.
    """

    key: str
    here: str
    there: str
    val: Spread
    test: Spread


EVERY_PAIR = 4  # a key of more values is compared with its first value alone


def effects(study: Study) -> Iterator[Effect]:
    """For every factor: each pair of its values, or each value against the first.

    Two finished runs are a pair when all other keys agree. Runs that agree in every key (the same
    run made twice) are averaged first, so that they do not pass for two pairs.
    """
    for key in study.factors:
        alike: dict[Setting, dict[str, list[Run]]] = {}
        for run in study.finished:
            rest = tuple(run.settings[other] for other in study.keys if other != key)
            alike.setdefault(rest, {}).setdefault(run.settings[key], []).append(run)
        values = study.values[key]
        pairs = list(combinations(values, 2))
        if len(values) > EVERY_PAIR:
            pairs = [(values[0], value) for value in values[1:]]
        for here, there in pairs:
            both = [runs for runs in alike.values() if here in runs and there in runs]
            val, test = (
                spread(
                    over(runs[there], split).mean - over(runs[here], split).mean for runs in both
                )
                for split in ("val", "test")
            )
            if val.n or test.n:
                yield Effect(key, here, there, val, test)


# ------------------------------------------------------------------ curves


def curve(runs: Sequence[dict[int, dict[str, float]]], column: str) -> list[tuple[int, Spread]]:
    """By epoch, one column of metrics.csv over the runs that have it there."""
    by_epoch: dict[int, list[float]] = {}
    for rows in runs:
        for epoch, row in rows.items():
            if column in row:
                by_epoch.setdefault(epoch, []).append(row[column])
    return [(epoch, spread(values)) for epoch, values in sorted(by_epoch.items())]

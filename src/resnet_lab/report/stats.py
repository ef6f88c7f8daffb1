"""Settings, pairs and effects of a study, as pandas tables.

Accuracies are percentages, their differences percentage points; `sd` is the sample standard
deviation (n - 1). An interval is the 95% one of the mean by Student's t from three runs on, widened
by the binomial error of the images that were counted, and cut off at 0 and 100. The best setting is
chosen by validation accuracy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import isnan, nan, sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from resnet_lab.report.runs import Run, Study
from resnet_lab.run.state import State

SPLITS = ("val", "test")
COSTS = ("params", "macs", "train_seconds")
FEW = 3  # runs: from so many on there is an interval
EVERY_PAIR = 4  # a key of more values is compared with its first value alone
NORMAL = 1.959964  # the 97.5% point
ALPHA = 0.05

Setting = tuple[str, ...]  # the values of the study's factors, in their order


def table(study: Study) -> pd.DataFrame:
    """A row for each job: its keys, state, accuracies, counted images and costs (NaN: unknown)."""
    rows = []
    for number, run in enumerate(study.runs):
        done = run.state == State.FINISHED
        row: dict[str, object] = {**run.settings, "run": number, "done": done}
        row |= {split: accuracy(run, split) for split in SPLITS}
        row |= {f"n_{split}": run.result.get(f"n_{split}") or nan for split in SPLITS}
        row |= {cost: run.result.get(cost, nan) for cost in COSTS}
        rows.append(row)
    frame = pd.DataFrame(rows)
    for key in study.keys:  # in the order of the sweep, not of the alphabet
        frame[key] = pd.Categorical(frame[key], study.values[key], ordered=True)
    return frame


def accuracy(run: Run, split: str) -> float:
    """In percent; NaN where the run has none."""
    return 100 * float(run.result.get(f"{split}/acc", nan))


@dataclass(frozen=True)
class Spread:
    """Of the figures of `n` runs.

    Attributes:
        values: the single figures, in the order of the runs.
        mean: NaN without any.
        sd: NaN for fewer than two.
        low, high: the 95% interval, NaN for fewer than three.
    """

    values: tuple[float, ...]
    mean: float
    sd: float
    low: float = nan
    high: float = nan

    @property
    def n(self) -> int:
        return len(self.values)


def spread(values: Sequence[float], n_images: float = nan, percent: bool = True) -> Spread:
    """NaN (a figure that a run does not have) is left out and not counted.

    Args:
        n_images: that an accuracy was counted over.
        percent: the figures are percentages, of which the interval stays within 0 and 100.
    """
    figures = np.array([value for value in values if not isnan(value)])
    n = len(figures)
    mean = float(figures.mean()) if n else nan
    sd = float(figures.std(ddof=1)) if n > 1 else nan
    if n < FEW:
        return Spread(tuple(figures), mean, sd)
    half = sqrt((stdtrit(n - 1, 0.975) * sd) ** 2 / n + (NORMAL * binomial(mean, n_images)) ** 2)
    low, high = mean - half, mean + half
    if percent:
        low, high = max(0.0, low), min(100.0, high)
    return Spread(tuple(figures), mean, sd, low, high)


def binomial(percent: float, n_images: float) -> float:
    """The standard error, in points, of an accuracy counted over so many images; 0: unknown."""
    if isnan(n_images) or isnan(percent):
        return 0.0
    share = min(max(percent / 100, 0.0), 1.0)
    return 100 * sqrt(share * (1 - share) / n_images)


# ------------------------------------------------------------------ settings


@dataclass(frozen=True)
class Summary:
    """One setting over its repeats.

    Attributes:
        jobs, runs: those that were asked for, and the finished ones.
        costs: the means of params, macs and train_seconds, NaN where not known.
        best: it has the highest mean validation accuracy.
        tied: cannot be told apart from the best by validation; None: nothing is known of that.
    """

    setting: Setting
    jobs: list[Run]
    runs: list[Run]
    val: Spread
    test: Spread
    costs: Mapping[str, float]
    best: bool = False
    tied: bool | None = None


def summarise(study: Study) -> list[Summary]:
    """A summary for each setting of which a job has begun."""
    frame = table(study)
    one: Any = pd.Series(0, frame.index)
    grouped = frame.groupby(study.factors or [one], observed=True, sort=False)
    rows: list[Summary] = []
    for key, group in grouped:
        setting = tuple(map(str, key)) if study.factors else ()
        jobs = [study.runs[number] for number in group["run"]]
        done = group[group["done"]]
        val, test = (spread(list(done[s]), done[f"n_{s}"].mean()) for s in SPLITS)
        costs = {cost: float(done[cost].mean()) for cost in COSTS}
        if all(run.state in (State.WAITING, State.PENDING, "missing") for run in jobs):
            continue
        runs = [study.runs[number] for number in done["run"]]
        rows.append(Summary(setting, jobs, runs, val, test, costs))
    return _judged(rows, float(frame["n_val"].mean()))


def pooled(rows: Sequence[Summary], split: str) -> tuple[float, int]:
    """The standard deviation between runs of one setting, over all settings, and its freedom."""
    spreads = [getattr(row, split) for row in rows]
    several = [one for one in spreads if one.n > 1]
    freedom = sum(one.n - 1 for one in several)
    squares = sum((one.n - 1) * one.sd**2 for one in several)
    return (sqrt(squares / freedom) if freedom else nan), freedom


def _judged(rows: list[Summary], n_images: float) -> list[Summary]:
    known = [row for row in rows if row.val.n]
    if not known:
        return rows
    best = max(known, key=lambda row: row.val.mean)
    sd, freedom = pooled(known, "val")
    judged = []
    for row in rows:
        tied = None
        if freedom and row.val.n and row is not best:
            seeds = sd**2 * (1 / best.val.n + 1 / row.val.n)
            images = binomial(best.val.mean, n_images) ** 2 + binomial(row.val.mean, n_images) ** 2
            reach = sqrt(stdtrit(freedom, 0.975) ** 2 * seeds + NORMAL**2 * images)
            tied = bool(best.val.mean - row.val.mean <= reach)
        judged.append(replace(row, best=row is best, tied=tied))
    return judged


def frontier(rows: Sequence[Summary], cost: str) -> list[Summary]:
    """Those that no other setting reaches in validation accuracy at the same cost or less."""
    known = [row for row in rows if row.val.n and not isnan(row.costs[cost])]
    kept: list[Summary] = []
    for row in sorted(known, key=lambda row: (row.costs[cost], -row.val.mean)):
        if not kept or row.val.mean > kept[-1].val.mean:
            kept.append(row)
    return kept


# ------------------------------------------------------------------ factors


def pivots(study: Study, most: int) -> Iterator[tuple[str, str, str, pd.DataFrame, pd.DataFrame]]:
    """Row key, column key, split, the mean accuracies and the counts of each pair of factors."""
    frame = table(study)
    done = frame[frame["done"]]
    factors = [key for key in study.factors if len(study.values[key]) <= most]
    for row, column in combinations(factors, 2):
        for split in SPLITS:
            if done[split].notna().any():
                cells = done.groupby([row, column], observed=False)[split]
                yield row, column, split, cells.mean().unstack(), cells.count().unstack()


@dataclass(frozen=True)
class Effect:
    """The change from one value of `key` to another, all else and the seed alike.

    `val` and `test` are over the differences of the pairs (there minus here), in points; `p_val`
    and `p_test` their two-sided p-values by Student's t, corrected by Holm for the number of
    comparisons in the table; NaN for fewer than three pairs.
    """

    key: str
    here: str
    there: str
    val: Spread
    test: Spread
    p_val: float = nan
    p_test: float = nan


def effects(study: Study) -> list[Effect]:
    """For every factor: each pair of its values, or each value against the first.

    Two finished runs are a pair when all other keys agree. Runs that agree in every key (the same
    run made twice) are averaged first, so that they do not pass for two pairs.
    """
    frame = table(study)
    done = frame[frame["done"]]
    found: list[Effect] = []
    for key in study.factors:
        others = [other for other in study.keys if other != key]
        index = [done[other] for other in others] or [pd.Series(0, done.index)]
        wide = {s: done.pivot_table(s, index, key, observed=True) for s in SPLITS}
        values = study.values[key]
        pairs = list(combinations(values, 2))
        if len(values) > EVERY_PAIR:
            pairs = [(values[0], value) for value in values[1:]]
        for here, there in pairs:
            both = []
            for split in SPLITS:
                known = wide[split]
                apart = known[there] - known[here] if {here, there} <= {*known} else pd.Series()
                both.append(spread(list(apart.dropna()), percent=False))
            if any(one.n for one in both):
                found.append(Effect(key, here, there, both[0], both[1]))
    p_val, p_test = (holm([_p(getattr(effect, split)) for effect in found]) for split in SPLITS)
    return [
        replace(effect, p_val=val, p_test=test)
        for effect, val, test in zip(found, p_val, p_test, strict=True)
    ]


def _p(of: Spread) -> float:
    if of.n < FEW:
        return nan
    if of.sd == 0:
        return 0.0 if of.mean else 1.0
    return 2 * float(stdtr(of.n - 1, -abs(of.mean) / (of.sd / sqrt(of.n))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979: p-values that hold for all comparisons together; NaN are not counted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not isnan(p))
    corrected = [nan] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def importance(study: Study) -> dict[str, float]:
    """The share of the variance of validation accuracy between the values of each key (eta²).

    Of a grid; in a balanced one the shares of all keys and of their interactions add up to 1.
    """
    frame = table(study)
    done = frame[frame["done"] & frame["val"].notna()]
    total = float(((done["val"] - done["val"].mean()) ** 2).sum())
    if len(done) < 2 * FEW or not total:
        return {}
    shares = {}
    for key in study.keys:
        means = done.groupby(key, observed=True)["val"].transform("mean")
        shares[key] = float(((means - done["val"].mean()) ** 2).sum()) / total
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


# ------------------------------------------------------------------ curves


def curve(runs: Sequence[Mapping[int, Mapping[str, float]]], column: str) -> pd.DataFrame:
    """By epoch: count, mean and std of one column of metrics.csv over the runs that have it."""
    points = [(epoch, row[column]) for rows in runs for epoch, row in rows.items() if column in row]
    frame = pd.DataFrame(points, columns=["epoch", "value"])
    return frame.groupby("epoch")["value"].agg(["count", "mean", "std"])

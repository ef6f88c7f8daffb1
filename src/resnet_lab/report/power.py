"""How many seeds a difference needs: the spread between seeds, and the power of a t test.

Accuracies are percentages, differences and standard deviations percentage points. Two settings are
compared on the same test set by Student's (for plans) or Welch's (for what was found) t test over
their seeds.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isnan, nan, sqrt

from scipy.special import chdtri, nctdtr, stdtr, stdtrit

from resnet_lab.config.errors import UserError
from resnet_lab.report.runs import Run, Study
from resnet_lab.report.stats import ALPHA, Spread, accuracy, binomial, holm, spread, summarise

DIFFERENCES = (0.1, 0.2, 0.5, 1.0, 2.0)  # points
POWERS = (0.8, 0.9)
MOST = 100_000  # seeds of a setting that are still counted


@dataclass(frozen=True)
class Repeats:
    """The finished runs of one setting.

    Attributes:
        seeds: one figure for each seed.
        images: of the split; NaN where not known.
        best: has the best validation accuracy of all settings.
    """

    name: str
    seeds: Spread
    images: float
    best: bool = False


def repeats(study: Study, split: str) -> list[Repeats]:
    """The settings of a study that have an accuracy on `split`, in its order."""
    found = []
    for row in summarise(study):
        figures = _by_seed(row.runs, split)
        if not figures:
            continue
        names = zip(study.factors, row.setting, strict=True)
        name = ", ".join(f"{study.short(key)}={value}" for key, value in names)
        counts = [run.result.get(f"n_{split}") for run in row.runs]
        known = [count for count in counts if isinstance(count, int) and count > 0]
        images = sum(known) / len(known) if known else nan
        found.append(Repeats(name or study.name, spread(figures, images), images, row.best))
    return found


def _by_seed(runs: Sequence[Run], split: str) -> list[float]:
    """The accuracy for each seed: the same run made twice is no second seed."""
    by_seed: dict[object, list[float]] = {}
    for run in runs:
        figure = accuracy(run, split)
        if not isnan(figure):
            seed = run.result.get("seed", run.folder)
            by_seed.setdefault(seed, []).append(figure)
    return [sum(figures) / len(figures) for figures in by_seed.values()]


# ------------------------------------------------------------------ the spread


@dataclass(frozen=True)
class Noise:
    """What makes the accuracies of one setting differ.

    Attributes:
        sd: between seeds, pooled over the settings.
        freedom: the degrees of freedom of it.
        low, high: its 95% interval, by the chi-square distribution.
        binomial: the standard error that finitely many images give to one net's accuracy, the root
            of its mean square over the settings; 0 where their number is not known. Nets that miss
            images independently of each other differ by no more than it (2304.01910, hypothesis 1:
            their variance is the mean of p (1 - p) over the images, by n; p the share of nets that
            are right).
        images: NaN where not known.
    """

    sd: float
    freedom: int
    low: float
    high: float
    binomial: float
    images: float


def noise(settings: Sequence[Repeats]) -> Noise:
    """The spread between seeds within settings.

    Raises:
        UserError: no setting has two seeds.
    """
    several = [one.seeds for one in settings if one.seeds.n > 1]
    freedom = sum(one.n - 1 for one in several)
    if not freedom:
        raise UserError(
            "No setting has finished with two seeds or more, so the spread between seeds is not "
            "known: run the sweep with seed=0,1,2."
        )
    squares = sum((one.n - 1) * one.sd**2 for one in several)
    sd = sqrt(squares / freedom)
    low, high = (sqrt(squares / chdtri(freedom, tail)) for tail in (ALPHA / 2, 1 - ALPHA / 2))
    errors = [binomial(one.seeds.mean, one.images) for one in settings]
    images = [one.images for one in settings if not isnan(one.images)]
    return Noise(
        sd,
        freedom,
        low,
        high,
        sqrt(sum(error**2 for error in errors) / len(errors)),
        sum(images) / len(images) if images else nan,
    )


# ------------------------------------------------------------------ power


def power(difference: float, sd: float, seeds: int, alpha: float = ALPHA) -> float:
    """The probability that a two-sided t test finds a difference between two settings.

    Args:
        difference: of their true means.
        sd: of the accuracies of one setting.
        seeds: of each setting, 2 or more.
    """
    if sd == 0:
        return 1.0 if difference else alpha
    freedom = 2 * seeds - 2
    limit = stdtrit(freedom, 1 - alpha / 2)
    shift = abs(difference) / sd * sqrt(seeds / 2)
    # The noncentral t distribution up to each limit; NaN where it is too small for a float.
    missed, other_side = (nctdtr(freedom, shift, end) for end in (limit, -limit))
    return float(1 - (0.0 if isnan(missed) else missed) + (0 if isnan(other_side) else other_side))


def seeds_needed(difference: float, sd: float, wanted: float, alpha: float = ALPHA) -> int | None:
    """The fewest seeds of each setting with which a difference is found; None: more than `MOST`.

    Args:
        difference: of the true means, not 0.
        wanted: the power, such as 0.8.
    """
    low, high = 1, 2  # power grows with the seeds: too few, perhaps enough
    while power(difference, sd, high, alpha) < wanted:
        low, high = high, 2 * high
        if low >= MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if power(difference, sd, middle, alpha) < wanted:
            low = middle
        else:
            high = middle
    return high if high <= MOST else None


def detectable(sd: float, seeds: int, wanted: float, alpha: float = ALPHA) -> float:
    """The smallest difference that `seeds` of each setting find with the power `wanted`."""
    if sd == 0:
        return 0.0
    low, high = 0.0, sd
    while power(high, sd, seeds, alpha) < wanted:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, sd, seeds, alpha) < wanted else (low, middle)
    return high


@dataclass(frozen=True)
class Plan:
    """Seeds of each setting to find a difference; None: more than `MOST`.

    Attributes:
        seeds: for the pooled sd.
        low, high: for the ends of the interval of the sd.
        corrected: for the pooled sd and a level divided by the number of comparisons (Bonferroni).
    """

    difference: float
    wanted: float
    seeds: int | None
    low: int | None
    high: int | None
    corrected: int | None


def plans(found: Noise, comparisons: int) -> list[Plan]:
    """For every one of `DIFFERENCES` and `POWERS`."""
    level = ALPHA / max(1, comparisons)
    return [
        Plan(
            difference,
            wanted,
            seeds_needed(difference, found.sd, wanted),
            seeds_needed(difference, found.low, wanted),
            seeds_needed(difference, found.high, wanted),
            seeds_needed(difference, found.sd, wanted, level),
        )
        for wanted in POWERS
        for difference in DIFFERENCES
    ]


def usual_seeds(settings: Sequence[Repeats]) -> int:
    """How many seeds most settings have; the fewer, where two numbers are as frequent."""
    counts = Counter(one.seeds.n for one in settings if one.seeds.n > 1)
    return min(counts, key=lambda n: (-counts[n], n))


# ------------------------------------------------------------------ pairs


@dataclass(frozen=True)
class Pair:
    """The second setting minus the first: difference of the means, 95% interval, p-values.

    Attributes:
        low, high, p: by Welch's t test, of this pair alone.
        corrected: p by Holm, for all pairs together.
    """

    first: Repeats
    second: Repeats
    difference: float
    low: float
    high: float
    p: float
    corrected: float = nan

    @property
    def differs(self) -> bool:
        """Found, and still so when all pairs are counted."""
        return self.corrected < ALPHA


def pairs(settings: Sequence[Repeats]) -> list[Pair]:
    """All pairs of settings with two seeds or more, the better one minus the other."""
    several = sorted((one for one in settings if one.seeds.n > 1), key=lambda one: one.seeds.mean)
    found = [welch(*two) for two in combinations(several, 2)]
    corrected = holm([pair.p for pair in found])
    return [
        Pair(one.first, one.second, one.difference, one.low, one.high, one.p, p)
        for one, p in zip(found, corrected, strict=True)
    ]


def welch(first: Repeats, second: Repeats) -> Pair:
    """Welch 1947: the two settings may have other standard deviations."""
    one, two = first.seeds, second.seeds
    difference = two.mean - one.mean
    parts = one.sd**2 / one.n, two.sd**2 / two.n
    error = sqrt(sum(parts))
    if error == 0:
        p = 0.0 if difference else 1.0
        return Pair(first, second, difference, difference, difference, p)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (one.n - 1) + parts[1] ** 2 / (two.n - 1))
    half = float(stdtrit(freedom, 1 - ALPHA / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(difference) / error))
    return Pair(first, second, difference, difference - half, difference + half, p)

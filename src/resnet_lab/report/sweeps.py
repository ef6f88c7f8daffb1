"""Two sweeps, setting by setting: matched by the values that they vary, paired over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from resnet_lab.config.rules import spelled
from resnet_lab.report.catalogue import Catalogue
from resnet_lab.report.row import of_config
from resnet_lab.report.runs import Run
from resnet_lab.report.stats import SPLITS, Setting, Spread, accuracy, spread
from resnet_lab.run.state import State


@dataclass(frozen=True)
class Matched:
    """One setting in two sweeps; accuracies in percent.

    Attributes:
        spreads: for each split, of the finished runs of both sweeps.
        change: for each split, of the second minus the first in points: over the seeds that both
            have, or the difference of the means alone where they share none.
        pairs: how many seeds both have.
    """

    setting: Setting
    spreads: dict[str, tuple[Spread, Spread]]
    change: dict[str, Spread]
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """Two sweeps, setting by setting.

    Attributes:
        keys: what the settings are values of.
        alone: settings of one sweep only, for the first and the second.
    """

    keys: list[str]
    matched: list[Matched]
    alone: tuple[list[Setting], list[Setting]]
    runs: tuple[list[Run], list[Run]]


def compare(one: Path, other: Path) -> Comparison:
    """Match the settings of two sweeps by every key that one of them varies; where a sweep holds it
    fixed, by that value."""
    runs = tuple(Catalogue([path]).read() for path in (one, other))
    keys = list(dict.fromkeys(key for side in runs for run in side for key in run.swept))
    keys = [key for key in keys if key != "seed"]
    settings = [_by_setting(side, keys) for side in runs]
    both = [setting for setting in settings[0] if setting in settings[1]]
    alone = [[s for s in settings[n] if s not in settings[1 - n]] for n in (0, 1)]
    matched = [_matched(s, settings[0][s], settings[1][s]) for s in both]
    return Comparison(keys, matched, (alone[0], alone[1]), (runs[0], runs[1]))


def _by_setting(runs: Sequence[Run], keys: Sequence[str]) -> dict[Setting, list[Run]]:
    found: dict[Setting, list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(_value(run, key) for key in keys), []).append(run)
    return found


def _value(run: Run, key: str) -> str:
    if key in run.settings:
        return run.settings[key]
    value: Any = of_config(run, key.replace("/", "."))
    return spelled(value)


def _matched(setting: Setting, here: Sequence[Run], there: Sequence[Run]) -> Matched:
    done = [[run for run in side if run.state == State.FINISHED] for side in (here, there)]
    seeds = [_by_seed(side) for side in done]
    shared = [seed for seed in seeds[0] if seed in seeds[1] and seed is not None]
    spreads, change = {}, {}
    for split in SPLITS:
        sides = [
            spread([accuracy(run, split) for run in side], _images(side, split)) for side in done
        ]
        spreads[split] = (sides[0], sides[1])
        if shared:
            apart = [_mean(seeds[1][s], split) - _mean(seeds[0][s], split) for s in shared]
            change[split] = spread(apart, percent=False)
        else:
            change[split] = Spread((), sides[1].mean - sides[0].mean, nan)
    return Matched(setting, spreads, change, len(shared))


def _by_seed(runs: Sequence[Run]) -> dict[Any, list[Run]]:
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(run.result.get("seed"), []).append(run)
    return found


def _mean(runs: Sequence[Run], split: str) -> float:
    """Over runs of one seed: the same run made twice is no second pair."""
    return sum(accuracy(run, split) for run in runs) / len(runs)


def _images(runs: Sequence[Run], split: str) -> float:
    counts = [run.result.get(f"n_{split}") for run in runs]
    known = [count for count in counts if isinstance(count, int) and count > 0]
    return sum(known) / len(known) if known else nan

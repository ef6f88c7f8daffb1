"""Figures of a loss surface: how high, how steep, how rough; of a line: its barrier."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# What a float32 net's loss can be wrong by, as a share of it: a bend below is no bend.
NOISE = 1e-4
FACTOR = 10.0  # "far above the centre"


@dataclass
class Shape:
    """Of a square of losses around the weights; shares are of the square's points, 0-1.

    Attributes:
        centre: loss of the weights themselves.
        lowest, lowest_at: the smallest loss, and where (x, y).
        at_half, at_edge: medians on the circles at half the range and at the range. Infinite and
            NaN count as the highest losses.
        far_above: share with a loss of more than 10 times the centre's.
        not_finite: share with an infinite or NaN loss.
        bent_down: share of the inner points, among those with a finite loss all around, where
            the smaller eigenvalue of the Hessian is negative: the surface is not convex there.
        bent_down_near: the same within half the range.
        minima: inner points below all eight neighbours.
    """

    centre: float
    lowest: float
    lowest_at: tuple[float, float]
    at_half: float
    at_edge: float
    far_above: float
    not_finite: float
    bent_down: float
    bent_down_near: float
    minima: int


def shape_of(losses: np.ndarray, reach: float) -> Shape:
    """Figures of `losses` [n, n], rows by y and columns by x, both from -reach to reach; n odd."""
    n = len(losses)
    steps = np.linspace(-reach, reach, n)
    x, y = np.meshgrid(steps, steps)
    distance = np.hypot(x, y)
    finite = np.isfinite(losses)
    high = np.where(finite, losses, math.inf)
    row, column = np.unravel_index(np.argmin(high), high.shape)
    centre = float(losses[n // 2, n // 2])
    step = 2 * reach / (n - 1)
    near = distance[1:-1, 1:-1] <= reach / 2 + step / 4
    down, known = bent_down(losses, step)
    return Shape(
        centre=centre,
        lowest=float(high[row, column]),
        lowest_at=(float(steps[column]), float(steps[row])),
        at_half=_on_circle(high, distance, reach / 2, step),
        at_edge=_on_circle(high, distance, reach, step),
        far_above=float(np.mean(~(high <= FACTOR * centre))),
        not_finite=float(np.mean(~finite)),
        bent_down=_share(down, known),
        bent_down_near=_share(down, known & near),
        minima=_minima(high),
    )


def _on_circle(losses: np.ndarray, distance: np.ndarray, radius: float, step: float) -> float:
    ring = losses[np.abs(distance - radius) <= step / 2 * (1 + 1e-9)]
    # The lower of two in the middle: the mean of one with infinity says nothing.
    return float(np.sort(ring)[(len(ring) - 1) // 2])


def bent_down(losses: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the discrete Hessian has an eigenvalue below 0, beyond rounding.

    Returns:
        Of the inner points, bool [n-2, n-2]: whether it is so; whether all nine losses around are
        finite, without which it is not known.
    """
    with np.errstate(all="ignore"):
        middle = losses[1:-1, 1:-1]
        xx = losses[1:-1, 2:] - 2 * middle + losses[1:-1, :-2]
        yy = losses[2:, 1:-1] - 2 * middle + losses[:-2, 1:-1]
        xy = (losses[2:, 2:] - losses[2:, :-2] - losses[:-2, 2:] + losses[:-2, :-2]) / 4
        smaller = ((xx + yy) / 2 - np.hypot((xx - yy) / 2, xy)) / step**2
    around = _neighbours(losses)
    known = np.isfinite(around).all(axis=0)
    noise = NOISE * np.abs(around).max(axis=0) / step**2
    return known & (smaller < -noise), known


def _neighbours(losses: np.ndarray) -> np.ndarray:
    """The nine losses around each inner point, itself at index 4, [9, n-2, n-2]."""
    n = len(losses)
    return np.stack([losses[i : n - 2 + i, j : n - 2 + j] for i in range(3) for j in range(3)])


def _minima(losses: np.ndarray) -> int:
    around = _neighbours(losses)
    others = np.delete(around, 4, axis=0)
    # 1 + NOISE: of a flat place no point is the lowest.
    return int((around[4] * (1 + NOISE) < others).all(axis=0).sum())


def _share(true: np.ndarray, of: np.ndarray) -> float:
    return float(true[of].mean()) if of.any() else math.nan


@dataclass
class Barrier:
    """How far a line's curve lies above the straight line between its ends, at most.

    height: in the curve's unit; 0 where it lies nowhere above. at: where, from 0 to 1.
    """

    height: float
    at: float


def barrier(positions: list[float], values: list[float]) -> Barrier:
    """The barrier of a curve between positions 0 and 1, which are among `positions`.

    Source: Frankle et al. 2020, arXiv 1912.05671, Section 2, with the line between the ends in
    place of their mean: for ends that differ, a straight curve has no barrier.
    """
    curve = dict(zip(positions, values, strict=True))
    first, last = curve[0.0], curve[1.0]
    best = Barrier(0.0, 0.0)
    for at, value in curve.items():
        height = value - ((1 - at) * first + at * last)
        if 0 < at < 1 and not height <= best.height:  # NaN is above all
            best = Barrier(math.inf if math.isnan(height) else height, at)
    return best


def turns(values: list[float]) -> int:
    """How often a curve turns from falling to rising or back, beyond rounding; 1 for a valley."""
    signs = []
    for before, after in pairwise(values):
        if abs(after - before) > NOISE * max(abs(before), abs(after)):
            signs.append(after > before)
    return sum(one != two for one, two in pairwise(signs))

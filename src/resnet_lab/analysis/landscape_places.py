"""Points of a line or a plane in the space of a net's weights.

Sources: the plane of two random directions, Li et al. 2018, arXiv 1712.09913, Section 4; the line
between two nets, Frankle et al. 2020, arXiv 1912.05671, Section 2; the plane through three nets,
Garipov et al. 2018, arXiv 1802.10026, Figure 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from resnet_lab.analysis.landscape import Weights
from resnet_lab.config.errors import UserError

LINE_BEGINS, LINE_ENDS = -0.25, 1.25  # of the line from one net, at 0, to another, at 1
MARGIN = 0.25  # of a plane, on each side of its nets, as a share of their greatest extent


class Place(NamedTuple):
    """A point of a line or plane.

    position: on its axes, one or two numbers. coefficients: the weights there are the sum of the
    section's bases, each times its coefficient.
    """

    position: tuple[float, ...]
    coefficients: tuple[float, ...]


def around(points: int, reach: float, axes: int) -> list[Place]:
    """An odd number of `points` along each axis, from -reach to reach, row by row: the first axis
    is the fast one. Bases: the weights, then a direction for each axis."""
    steps = np.linspace(-reach, reach, points)
    steps[points // 2] = 0.0  # exactly
    if axes == 1:
        return [Place((float(x),), (1.0, float(x))) for x in steps]
    return [Place((float(x), float(y)), (1.0, float(x), float(y))) for y in steps for x in steps]


def between(points: int) -> list[Place]:
    """`points` on the line through two nets, and the nets themselves; bases: their weights."""
    steps = {round(float(a), 10) for a in np.linspace(LINE_BEGINS, LINE_ENDS, points)}
    return [Place((a,), (1 - a, a)) for a in sorted(steps | {0.0, 1.0})]


def corners(weights: Sequence[Weights]) -> list[tuple[float, float]]:
    """Where three nets lie in the plane through them: distances in L2 norm over all parameters.

    The first lies at the origin, the second on the first axis.

    Raises:
        UserError: they lie on one line.
    """
    first, second, third = (torch.cat([p.flatten().double() for p in w]) for w in weights)
    a, b = second - first, third - first
    length = float(a.norm())
    along = float(a @ b) / length if length else 0.0
    height = float((b - a * (along / length)).norm()) if length else 0.0
    if not height > 1e-6 * max(length, float(b.norm())):  # also where weights are NaN
        raise UserError("--plane: the three nets lie on one line; give three that differ.")
    return [(0.0, 0.0), (length, 0.0), (along, height)]


def across(points: int, nets: Sequence[tuple[float, float]]) -> list[Place]:
    """`points` along each side of a square around three nets at `corners`, row by row, and then
    the nets themselves; bases: their weights."""
    (_, _), (length, _), (along, height) = nets
    xs, ys = zip(*nets, strict=True)
    half = max(max(xs) - min(xs), max(ys) - min(ys)) * (0.5 + MARGIN)
    middles = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    columns, rows = (np.linspace(middle - half, middle + half, points) for middle in middles)
    places = []
    for y in map(float, rows):
        for x in map(float, columns):
            third = y / height
            second = (x - third * along) / length
            places.append(Place((x, y), (1 - second - third, second, third)))
    own = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    return places + [Place(at, share) for at, share in zip(nets, own, strict=True)]

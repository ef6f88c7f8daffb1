"""What a measured landscape says: its picture, its figures for a file, and a table of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from resnet_lab.analysis import landscape_lines, landscape_picture
from resnet_lab.analysis.landscape_picture import Net, Seen
from resnet_lab.analysis.landscape_shape import barrier, shape_of, turns
from resnet_lab.language import Translate

if TYPE_CHECKING:  # which import torch
    from resnet_lab.analysis.landscape import Value
    from resnet_lab.analysis.landscape_places import Place

Values = Sequence["Value"]


@dataclass
class Result:
    """draw: makes the picture. rows: of figures.csv, one for each run. columns, table: the same for
    people, without the names of nets. notes: sentences below it."""

    draw: Callable[[], Figure]
    rows: list[dict[str, Any]]
    columns: list[str]
    table: list[list[str]]
    notes: list[str] = field(default_factory=list)


def surface(
    names: Sequence[str], values: Sequence[Values], reach: float, seen: Seen, say: Translate
) -> Result:
    """Of squares of values around nets, all from -reach to reach."""
    squares = [_square(loss for loss, _ in of_net) for of_net in values]
    shapes = [shape_of(square, reach) for square in squares]
    nets = [Net(name, square) for name, square in zip(names, squares, strict=True)]
    rows, table = [], []
    for shape, of_net in zip(shapes, values, strict=True):
        accuracy = of_net[len(of_net) // 2].accuracy
        x, y = shape.lowest_at
        rows.append(
            {
                "loss": shape.centre,
                "accuracy": accuracy,
                "lowest_loss": shape.lowest,
                "lowest_x": x,
                "lowest_y": y,
                "median_at_half_range": shape.at_half,
                "median_at_range": shape.at_edge,
                "share_above_10_times": shape.far_above,
                "share_not_finite": shape.not_finite,
                "share_bent_down": shape.bent_down,
                "share_bent_down_within_half": shape.bent_down_near,
                "local_minima": shape.minima,
            }
        )
        table.append(
            [
                f"{shape.centre:.3f}",
                f"{100 * accuracy:.1f}%",
                f"{shape.lowest:.3f} at ({x:.2g}, {y:.2g})",
                f"{shape.at_half:.3g}",
                f"{shape.at_edge:.3g}",
                _percent(shape.far_above),
                f"{_percent(shape.bent_down)} ({_percent(shape.bent_down_near)})",
                str(shape.minima),
            ]
        )
    columns = ["loss", "accuracy", "lowest", f"at {reach / 2:g}", f"at {reach:g}", ">10x"]
    columns += [f"bent down (within {reach / 2:g})", "minima"]
    notes = [
        f"at {reach / 2:g}, at {reach:g}: median loss at that distance. >10x: share of the square "
        "with more than 10 times the loss of the net. bent down: share of the inner points where "
        "the surface is not convex. minima: inner points below all their neighbours."
    ]
    if any(shape.not_finite for shape in shapes):
        shares = ", ".join(_percent(shape.not_finite) for shape in shapes)
        notes.append(f"The loss is not finite at {shares} of the points.")
    return Result(
        lambda: landscape_picture.surfaces(nets, reach, seen, say), rows, columns, table, notes
    )


def cut(name: str, places: "Sequence[Place]", values: Values, seen: Seen, say: Translate) -> Result:
    """Of a line along one random direction."""
    positions = [place.position[0] for place in places]
    losses, accuracies = [v.loss for v in values], [v.accuracy for v in values]
    centre = values[positions.index(0.0)]
    lowest = min(range(len(losses)), key=lambda n: losses[n] if losses[n] >= 0 else math.inf)
    row = {
        "loss": centre.loss,
        "accuracy": centre.accuracy,
        "lowest_loss": losses[lowest],
        "lowest_at": positions[lowest],
        "loss_at_start": losses[0],
        "loss_at_end": losses[-1],
        "turns": turns(losses),
    }
    table = [
        f"{centre.loss:.3f}",
        f"{100 * centre.accuracy:.1f}%",
        f"{losses[lowest]:.3f} at {positions[lowest]:.2g}",
        f"{losses[0]:.3g}",
        f"{losses[-1]:.3g}",
        str(row["turns"]),
    ]
    columns = ["loss", "accuracy", "lowest", f"at {positions[0]:g}", f"at {positions[-1]:g}"]
    return Result(
        lambda: landscape_lines.line(positions, losses, accuracies, [name], None, seen, say),
        [row],
        [*columns, "turns"],
        [table],
        ["turns: how often the curve changes between falling and rising; 1 in a plain valley."],
    )


def between(
    names: Sequence[str],
    places: "Sequence[Place]",
    values: Values,
    own: Values,
    seen: Seen,
    say: Translate,
) -> Result:
    """Of the line between two nets, at 0 and 1.

    Args:
        own: of each net with the statistics that it came with.
    """
    positions = [place.position[0] for place in places]
    losses, accuracies = [v.loss for v in values], [v.accuracy for v in values]
    of_loss = barrier(positions, losses)
    of_error = barrier(positions, [1 - accuracy for accuracy in accuracies])
    ends = [values[positions.index(end)] for end in (0.0, 1.0)]
    both = {
        "barrier_loss": of_loss.height,
        "barrier_loss_at": of_loss.at,
        "barrier_error": of_error.height,
        "barrier_error_at": of_error.at,
    }
    rows, table = _ends(ends, own)
    notes = [
        f"barrier {of_loss.height:.3f} nats (at {of_loss.at:.2g}), "
        f"{100 * of_error.height:.1f} points of error (at {of_error.at:.2g})"
    ]
    pair = of_loss, of_error
    return Result(
        lambda: landscape_lines.line(positions, losses, accuracies, names, pair, seen, say),
        [row | both for row in rows],
        ["loss", "accuracy", "own statistics: loss", "accuracy"],
        table,
        notes,
    )


def plane(
    names: Sequence[str],
    places: "Sequence[Place]",
    values: Values,
    own: Values,
    seen: Seen,
    say: Translate,
) -> Result:
    """Of the plane through three nets, the last three of `places`. own: as in `between`."""
    nets = [(place.position[0], place.position[1]) for place in places[-3:]]
    losses = _square(v.loss for v in values[:-3])
    accuracies = _square(v.accuracy for v in values[:-3])
    n = len(losses)
    x = np.array([place.position[0] for place in places[:n]])
    y = np.array([place.position[1] for place in places[: n * n : n]])
    rows, table = _ends(values[-3:], own)
    pairs = [(0, 1), (0, 2), (1, 2)]
    apart = [f"{a + 1} and {b + 1} {math.dist(nets[a], nets[b]):.1f}" for a, b in pairs]
    return Result(
        lambda: landscape_lines.plane(nets, names, x, y, losses, accuracies, seen, say),
        [row | {"x": x, "y": y} for row, (x, y) in zip(rows, nets, strict=True)],
        ["loss", "accuracy", "own statistics: loss", "accuracy"],
        table,
        [f"distances of the nets (L2 over all weights): {', '.join(apart)}"],
    )


def _ends(values: Values, own: Values) -> tuple[list[dict[str, Any]], list[list[str]]]:
    rows = [
        {
            "loss": value.loss,
            "accuracy": value.accuracy,
            "own_statistics_loss": before.loss,
            "own_statistics_accuracy": before.accuracy,
        }
        for value, before in zip(values, own, strict=True)
    ]
    table = [
        [f"{v.loss:.3f}", f"{100 * v.accuracy:.1f}%", f"{b.loss:.3f}", f"{100 * b.accuracy:.1f}%"]
        for v, b in zip(values, own, strict=True)
    ]
    return rows, table


def _square(numbers: Any) -> np.ndarray:
    flat = np.array(list(numbers), dtype=float)
    n = math.isqrt(len(flat))
    return flat.reshape(n, n)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.0f}%"


def named(names: Sequence[str], runs: Sequence[str], result: Result) -> list[Mapping[str, Any]]:
    """The rows of figures.csv, each with its net and its run ahead."""
    return [
        {"net": name, "run": run, **row}
        for name, run, row in zip(names, runs, result.rows, strict=True)
    ]

"""The pictures of losses on a line, and in the plane through three nets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from resnet_lab.analysis.landscape_picture import (
    Scale,
    Seen,
    colour_bar,
    contours,
    log_ticks,
    name_panel,
)
from resnet_lab.analysis.landscape_shape import Barrier
from resnet_lab.charts import shortened
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.style import GRID, INK, MUTED, PALETTE

MOST_RATIO = 30.0  # of losses on a linear axis


def line(
    positions: Sequence[float],
    losses: Sequence[float],
    accuracies: Sequence[float],
    names: Sequence[str],
    barriers: tuple[Barrier, Barrier] | None,
    seen: Seen,
    say: Translate,
) -> Figure:
    """Loss and accuracy (0-1) on a line: around one net, or between two nets at 0 and 1.

    Args:
        barriers: of the loss and of the error, between two nets.
    """
    figure = Figure(figsize=(9.6, 4.3), layout="constrained")
    title = "Between two nets, on the straight line ({images} {split} images)"
    if barriers is None:
        title = "Loss along a random direction ({images} {split} images)"
    figure.suptitle(seen.says(say, title), fontsize=11)
    left, right = figure.subplots(1, 2)
    percent = [100 * accuracy for accuracy in accuracies]
    for axes, curve, label, guess in (
        (left, list(losses), "loss, nats", seen.chance),
        (right, percent, "accuracy, %", 100 / max(1, seen.classes)),
    ):
        axes.plot(positions, curve, color=PALETTE[0], marker="o", ms=3)
        axes.axhline(guess, color=MUTED, ls=":", lw=1.2, zorder=1)
        axes.set_ylabel(say(label))
        axes.set_xlim(min(positions), max(positions))
        if barriers is None:
            axes.axvline(0, color=MUTED, lw=0.8, zorder=1)
            axes.set_xlabel(say("random direction (1: as long as the net)"))
        else:
            _ends(axes, positions, curve, say)
    finite = [loss for loss in losses if 0 < loss < np.inf]
    if finite and max(finite) > MOST_RATIO * min(finite):
        left.set_yscale("log")
        left.set_yticks(log_ticks(*left.get_ylim()))
        left.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        left.yaxis.set_minor_locator(NullLocator())
    right.set_ylim(0, 102)
    handles = [Line2D([], [], color=MUTED, ls=":", lw=1.2, label=say("chance"))]
    if barriers is None:
        name_panel(left, names[0])
    else:
        left.set_title(say("barrier {height}", height=f"{barriers[0].height:.3f}"))
        points = f"{100 * barriers[1].height:.1f}"
        right.set_title(say("barrier {height} points", height=points))
        _rise(left, positions, losses, barriers[0], 1)
        _rise(right, positions, percent, barriers[1], -100)
        handles.append(
            Line2D([], [], color=INK, ls="--", lw=1, label=say("straight line between the ends"))
        )
        handles += _named(names, [say("net {number}", number=end) for end in (0, 1)])
    _legend(figure, handles)
    return figure


def _ends(axes: Axes, positions: Sequence[float], curve: Sequence[float], say: Translate) -> None:
    first, last = (curve[positions.index(end)] for end in (0.0, 1.0))
    axes.plot([0, 1], [first, last], color=INK, ls="--", lw=1)
    axes.plot([0, 1], [first, last], color=PALETTE[1], marker="D", ms=6, ls="")
    for end in (0, 1):
        axes.axvline(end, color=GRID, lw=1.2, zorder=0)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_xlabel(say("t, for the weights (1 - t) of net 0 + t of net 1"))


def _rise(
    axes: Axes, positions: Sequence[float], curve: Sequence[float], found: Barrier, unit: float
) -> None:
    """An arrow from the straight line to the curve where the barrier is highest."""
    if not 0 < found.height < np.inf:
        return
    top = curve[positions.index(found.at)]
    axes.annotate(
        "",
        (found.at, top),
        (found.at, top - unit * found.height),
        arrowprops={"arrowstyle": "<->", "color": PALETTE[1], "shrinkA": 0, "shrinkB": 0},
    )


def plane(
    nets: Sequence[tuple[float, float]],
    names: Sequence[str],
    x: np.ndarray,
    y: np.ndarray,
    losses: np.ndarray,
    accuracies: np.ndarray,
    seen: Seen,
    say: Translate,
) -> Figure:
    """Loss and accuracy (0-1), both [len(y), len(x)], with the nets at their places."""
    figure = Figure(figsize=(9.6, 4.9), layout="constrained")
    title = "In the plane through three nets ({images} {split} images)"
    figure.suptitle(seen.says(say, title), fontsize=11)
    left, right = figure.subplots(1, 2, sharey=True)
    scale = Scale([losses], seen.chance)
    image = contours(left, x, y, losses, scale, seen.chance)
    colour_bar(figure, image, [left], scale, seen.chance, say)
    levels = np.linspace(0, 100, 21)
    of_accuracy = right.contourf(x, y, 100 * accuracies, levels, cmap="viridis_r")
    right.contour(x, y, 100 * accuracies, levels, colors=INK, linewidths=0.35, alpha=0.5)
    right.set_aspect("equal")
    right.grid(visible=False)
    figure.colorbar(of_accuracy, ax=[right], shrink=0.6, aspect=32, label=say("accuracy, %"))
    for axes in (left, right):
        axes.set_xlabel(say("distance of weights (L2)"))
        for number, (column, row) in enumerate(nets, 1):
            axes.plot(column, row, marker="o", ms=13, mfc="white", mec=INK, zorder=3)
            axes.annotate(
                str(number), (column, row), ha="center", va="center", fontsize=8, zorder=4
            )
    left.set_ylabel(say("distance of weights (L2)"))
    _legend(figure, _named(names, ["1", "2", "3"]))
    return figure


def _named(names: Sequence[str], marks: Sequence[str]) -> list[Any]:
    """Entries of a legend, "1: resnet20, seed 0"."""
    return [
        Line2D([], [], color=INK, ls="", label=f"{mark}: {shortened(printable(name), 50)}")
        for mark, name in zip(marks, names, strict=True)
    ]


def _legend(figure: Figure, handles: list[Any]) -> None:
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    for text in legend.get_texts():
        text.set_parse_math(False)

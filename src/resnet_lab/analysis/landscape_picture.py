"""The picture of loss surfaces around nets, and what other pictures of losses share."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from resnet_lab.charts import shortened
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.style import INK, MUTED, PAPER

KOREAN = {
    "Loss around trained weights ({images} {split} images)": (
        "학습한 가중치 주변의 손실 ({split} 이미지 {images}장)"
    ),
    "Loss along a random direction ({images} {split} images)": (
        "무작위 방향을 따라 본 손실 ({split} 이미지 {images}장)"
    ),
    "Between two nets, on the straight line ({images} {split} images)": (
        "두 신경망을 잇는 직선 위의 손실과 정확도 ({split} 이미지 {images}장)"
    ),
    "In the plane through three nets ({images} {split} images)": (
        "세 신경망을 지나는 평면 위의 손실과 정확도 ({split} 이미지 {images}장)"
    ),
    "training": "학습",
    "validation": "검증",
    "test": "테스트",
    "random direction 1": "무작위 방향 1",
    "random direction 2": "무작위 방향 2",
    "random direction (1: as long as the net)": "무작위 방향 (1: 신경망의 가중치와 같은 길이)",
    "loss at the centre: {loss}": "중심의 손실: {loss}",
    "loss, nats (grey: above {ceiling})": "손실, nat (회색: {ceiling} 초과)",
    "distance of weights (L2)": "가중치 사이의 거리 (L2)",
    "t, for the weights (1 - t) of net 0 + t of net 1": (
        "t (가중치 = (1 - t) · 신경망 0 + t · 신경망 1)"
    ),
    "straight line between the ends": "양 끝을 이은 직선",
    "barrier {height}": "장벽 {height}",
    "barrier {height} points": "장벽 {height}%p",
    "net {number}": "신경망 {number}",
}
SPLITS = {"train": "training", "val": "validation", "test": "test"}
CEILING = 10.0  # times the loss of a guess: what lies above is one colour
LEVELS = 24
MOST_COLUMNS = 3
ABOVE = "#c9ced6"


class Seen(NamedTuple):
    """What a loss is the mean over: so many images of a split, in so many classes."""

    images: int
    split: str
    classes: int

    @property
    def chance(self) -> float:
        """The loss of a guess, in nats."""
        return math.log(max(2, self.classes))

    def says(self, say: Translate, text: str) -> str:
        return say(text, images=f"{self.images:,}", split=say(SPLITS[self.split]))


class Scale:
    """Logarithmic colours and levels of losses, the same for all panels of a figure."""

    def __init__(self, losses: Sequence[np.ndarray], chance: float) -> None:
        finite = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
        shown = finite[finite > 0] if (finite > 0).any() else np.array([chance])
        self.ceiling = min(CEILING * chance, float(shown.max()))
        floor = max(float(shown.min()), 1e-3 * self.ceiling)
        self.floor = min(floor, self.ceiling / 2)  # a flat surface has few colours
        self.norm = LogNorm(self.floor, self.ceiling)
        self.levels = np.geomspace(self.floor, self.ceiling, LEVELS)
        self.levels[-1] = self.ceiling * (1 + 1e-9)  # rounding must not leave the highest out
        self.is_cut = any((~(loss <= self.ceiling * (1 + 1e-9))).any() for loss in losses)
        self.cmap: Colormap = colormaps["viridis"].with_extremes(over=ABOVE)

    def clipped(self, losses: np.ndarray) -> np.ndarray:
        """Of what is not finite or above the ceiling: a little above it."""
        above = np.where(np.isfinite(losses), losses, np.inf)
        return np.clip(above, self.floor, self.ceiling * (1.02 if self.is_cut else 1))


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... from `low` to `high`; powers of ten alone where there are many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(exponents) < 5 else (1,)
    return [t for e in exponents for s in steps if low <= (t := s * 10.0**e) <= high]


class Net(NamedTuple):
    """A surface: losses [n, n], rows along the second direction."""

    title: str
    losses: np.ndarray


def surfaces(nets: Sequence[Net], reach: float, seen: Seen, say: Translate) -> Figure:
    """Contour maps above and surfaces below, one column for each net, with the same levels.

    Args:
        reach: the axes are from -reach to reach.
    """
    scale = Scale([net.losses for net in nets], seen.chance)
    columns = 2 if len(nets) == 4 else min(MOST_COLUMNS, len(nets))
    blocks = -(-len(nets) // columns)
    alone = len(nets) == 1
    size = (9.6, 4.6) if alone else (9.6, (7.9 if columns == 2 else 5.4) * blocks)
    figure = Figure(figsize=size, layout="constrained")
    title = seen.says(say, "Loss around trained weights ({images} {split} images)")
    figure.suptitle(title, fontsize=11)
    cells = figure.add_gridspec(*((1, 2) if alone else (2 * blocks, columns)))
    image = None
    for number, net in enumerate(nets):
        row, column = 2 * (number // columns), number % columns
        axes = figure.add_subplot(cells[row, column])
        image = _map(axes, net, reach, scale, seen.chance, say)
        below = cells[0, 1] if alone else cells[row + 1, column]
        solid: Any = figure.add_subplot(below, projection="3d")
        _solid(solid, net, reach, scale, say)
        if column == 0:
            axes.set_ylabel(say("random direction 2"))
    colour_bar(figure, image, figure.axes, scale, seen.chance, say)
    return figure


def _map(axes: Axes, net: Net, reach: float, scale: Scale, chance: float, say: Translate) -> Any:
    steps = np.linspace(-reach, reach, len(net.losses))
    image = contours(axes, steps, steps, net.losses, scale, chance)
    axes.plot(0, 0, marker="+", color="white", ms=9, mew=1.6, zorder=3)
    name_panel(axes, net.title)
    axes.set_xlabel(say("random direction 1"))
    axes.set_xticks(np.linspace(-reach, reach, 5))
    axes.set_yticks(np.linspace(-reach, reach, 5))
    return image


def contours(
    axes: Axes, x: np.ndarray, y: np.ndarray, losses: np.ndarray, scale: Scale, chance: float
) -> Any:
    """A map of losses [len(y), len(x)], the loss of a guess dashed; what a colour bar needs."""
    shown = scale.clipped(losses)
    image = axes.contourf(
        x,
        y,
        shown,
        scale.levels,
        norm=scale.norm,
        cmap=scale.cmap,
        extend="max" if scale.is_cut else "neither",
    )
    axes.contour(x, y, shown, scale.levels, colors=INK, linewidths=0.35, alpha=0.5)
    if shown.min() < chance < shown.max():
        axes.contour(x, y, shown, [chance], colors="white", linestyles="--", linewidths=1.4)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    return image


def _solid(axes: Any, net: Net, reach: float, scale: Scale, say: Translate) -> None:
    steps = np.linspace(-reach, reach, len(net.losses))
    x, y = np.meshgrid(steps, steps)
    heights = np.log10(scale.clipped(net.losses))
    around = np.stack([heights[:-1, :-1], heights[1:, :-1], heights[:-1, 1:], heights[1:, 1:]])
    top = math.log10(scale.ceiling)
    colours = scale.cmap(scale.norm(10 ** np.minimum(around.mean(axis=0), top)))
    colours[around.min(axis=0) > top + 1e-9] = to_rgba(ABOVE, 0.3)  # one looks through it
    axes.plot_surface(
        *(x, y, heights),
        facecolors=colours,
        rstride=1,
        cstride=1,
        linewidth=0.2,
        edgecolor=(0, 0, 0, 0.2),
        shade=False,
    )
    axes.set_zlim(math.log10(scale.floor), heights.max() if scale.is_cut else top)
    ticks = log_ticks(scale.floor, scale.ceiling)
    axes.set_zticks([math.log10(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([-reach, 0, reach], [f"\N{MINUS SIGN}{reach:g}", "0", f"{reach:g}"])
    axes.tick_params(labelsize=7.5, pad=0)
    axes.view_init(elev=32, azim=-58)
    axes.set_box_aspect((1, 1, 0.75), zoom=1.12)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color(PAPER)
    axes.set_xlabel(say("random direction 1"), labelpad=-4, fontsize=8)
    axes.set_ylabel(say("random direction 2"), labelpad=-4, fontsize=8)
    axes.set_zlabel(say("loss, nats"), labelpad=0, fontsize=8)
    loss = net.losses[len(net.losses) // 2, len(net.losses) // 2]
    shown = say("loss at the centre: {loss}", loss=f"{loss:.2f}")
    axes.set_title(shown, fontweight="normal", fontsize=9)


def colour_bar(
    figure: Figure, image: Any, axes: Any, scale: Scale, chance: float, say: Translate
) -> None:
    """Beside `axes`, with the loss of a guess marked."""
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=32, pad=0.02)
    ticks = log_ticks(scale.floor, scale.ceiling)
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    label = "loss, nats"
    if scale.is_cut:
        label = "loss, nats (grey: above {ceiling})"
    bar.set_label(say(label, ceiling=f"{scale.ceiling:.3g}") if scale.is_cut else say(label))
    if scale.floor < chance < scale.ceiling:
        bar.ax.axhline(chance, color="white", ls="--", lw=1.4)
        bar.ax.annotate(
            say("chance"),
            (0, chance),
            (-4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=7.5,
            color=MUTED,
        )


def name_panel(axes: Axes, title: str) -> None:
    """A title that anybody may have written."""
    axes.set_title(shortened(printable(title), 44)).set_parse_math(False)

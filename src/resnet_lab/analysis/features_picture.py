"""The picture of `features`: maps of images in front of the head, and what each part holds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_lab.charts import shortened, stage_name
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.style import GRID, INK, MUTED, PALETTE

KOREAN = {
    "Features in front of the head, and what each part of the net holds": (
        "분류층 직전의 특징, 그리고 각 블록의 특징이 담고 있는 클래스 정보"
    ),
    "axis 1 ({share:.0%} of the variance)": "1축 (분산의 {share:.0%})",
    "axis 2 ({share:.0%} of the variance)": "2축 (분산의 {share:.0%})",
    "UMAP: distances between groups mean little": "UMAP: 무리 사이의 거리는 뜻이 거의 없음",
    "{n} of {total} wrong (ringed)": "{total}장 중 {n}장 오답 (테두리 표시)",
    "Classes of the {k} nearest neighbours": "가까운 이웃 {k}개로 맞힌 정확도",
    "k-NN accuracy, %": "k-NN 정확도, %",
    "pixels": "픽셀",
    "{n} more classes": "그 밖의 클래스 {n}개",
}

MOST_CLASSES = 20  # that have a colour and a name


class Map(NamedTuple):
    """A net's images as points: places [n, 2], their classes and whether the net is right [n].

    Attributes:
        shares: of the variance along the two axes; None: the map is UMAP's.
    """

    name: str
    places: np.ndarray
    labels: np.ndarray
    right: np.ndarray
    shares: tuple[float, float] | None


class Curve(NamedTuple):
    """The accuracy of nearest neighbours, 0 to 1, after each part of a net, and on pixels."""

    name: str
    stages: Sequence[str]
    accuracies: Sequence[float]
    of_pixels: float


def draw(
    maps: Sequence[Map], curves: Sequence[Curve], classes: Sequence[str], k: int, say: Translate
) -> Figure:
    """The maps beside each other, and the curves of all nets in one panel.

    Args:
        classes: names by label.
        k: neighbours.
    """
    panels = len(maps) + 1
    width = 3.3 * panels + 0.4
    figure = Figure(figsize=(width, 4.7), layout="constrained")
    figure.suptitle(say("Features in front of the head, and what each part of the net holds"))
    every = figure.subplots(1, panels, squeeze=False)[0]
    for axes, each in zip(every, maps, strict=False):
        _scatter(axes, each, len(classes), say)
    _curves(every[-1], curves, k, say)
    names = [shortened(printable(name), 16) for name in classes[:MOST_CLASSES]]
    colours = [_colour(number) for number in range(len(names))]
    if len(classes) > MOST_CLASSES:
        names.append(say("{n} more classes", n=len(classes) - MOST_CLASSES))
        colours.append(_colour(MOST_CLASSES))
    handles = [Line2D([], [], ls="", marker="o", ms=5, color=colour) for colour in colours]
    fitting = max(1, int(width / (0.4 + 0.08 * max(map(len, names)))))  # beside each other
    columns = -(-len(names) // -(-len(names) // fitting))
    legend = figure.legend(
        handles, names, loc="outside lower center", ncols=columns, fontsize=8, handletextpad=0.1
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a class may be called "$"
    return figure


def _colour(number: int) -> tuple[float, float, float]:
    """Of a class; the first ten differ most."""
    if number >= MOST_CLASSES:
        return to_rgb(GRID)
    return to_rgb(colormaps["tab20"](2 * (number % 10) + number // 10))


def _scatter(axes: Axes, each: Map, n_classes: int, say: Translate) -> None:
    size = float(np.clip(6000 / max(len(each.labels), 1), 4, 22))
    colours = np.array([_colour(number) for number in range(n_classes)])
    x, y = each.places.T
    axes.scatter(x, y, s=size, c=colours[each.labels], lw=0, alpha=0.8)
    wrong = ~each.right
    axes.scatter(x[wrong], y[wrong], s=size * 1.3, facecolors="none", edgecolors=INK, lw=0.6)
    counts = say("{n} of {total} wrong (ringed)", n=f"{wrong.sum():,}", total=f"{len(wrong):,}")
    name = shortened(printable(each.name), 34)
    axes.set_title(f"{name}\n{counts}", parse_math=False, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    if each.shares is None:
        axes.set_xlabel(say("UMAP: distances between groups mean little"), fontsize=8)
    else:
        axes.set_xlabel(say("axis 1 ({share:.0%} of the variance)", share=each.shares[0]))
        axes.set_ylabel(say("axis 2 ({share:.0%} of the variance)", share=each.shares[1]))


def _curves(axes: Axes, curves: Sequence[Curve], k: int, say: Translate) -> None:
    longest_first = sorted(curves, key=lambda curve: -len(set(curve.stages)))
    order = list(dict.fromkeys(stage for curve in longest_first for stage in curve.stages))
    for curve, colour in zip(curves, PALETTE, strict=False):
        places = depth_places(curve.stages, order)
        shares = [100 * share for share in curve.accuracies]
        name = shortened(printable(curve.name), 28)
        axes.plot(places, shares, color=colour, marker="o", ms=3, label=name)
    axes.axhline(100 * curves[0].of_pixels, color=MUTED, ls=":", lw=1.2, label=say("pixels"))
    widths = [_width(stage) for stage in order]
    edges = np.cumsum([0.0, *widths])
    for edge in edges[1:-1]:
        axes.axvline(edge, color=GRID, lw=1, zorder=0)
    axes.grid(axis="x", visible=False)
    axes.set_xticks(
        (edges[1:] + edges[:-1]) / 2, [stage_name(stage, say) for stage in order], parse_math=False
    )
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel(say("blocks, from input to output"))
    axes.set_ylabel(say("k-NN accuracy, %"))
    axes.set_title(say("Classes of the {k} nearest neighbours", k=k), fontsize=9)
    legend = axes.legend(loc="best", fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)


def depth_places(stages: Sequence[str], order: Sequence[str]) -> list[float]:
    """Where the parts of a net stand on an axis on which nets of any depth share the stages.

    Args:
        stages: of each part.
        order: all stages of the axis.
    """
    starts = dict(zip(order, np.cumsum([0.0, *(_width(stage) for stage in order)]), strict=False))
    seen: dict[str, int] = {}
    places = []
    for stage in stages:
        seen[stage] = seen.get(stage, 0) + 1
        share = (seen[stage] - 0.5) / list(stages).count(stage)
        places.append(float(starts[stage] + share * _width(stage)))
    return places


def _width(stage: str) -> float:
    return 1.0 if stage.startswith("stage") else 0.6

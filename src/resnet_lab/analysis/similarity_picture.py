"""The picture of `similarity`: heat maps of CKA between the parts of nets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_lab.charts import shortened, stage_name
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.style import GRID

KOREAN = {
    "Similarity of layers (linear CKA, {n} images)": (
        "층 사이의 표현 유사도 (선형 CKA, 이미지 {n}장)"
    ),
    "CKA: 1 alike, 0 unrelated": "CKA: 1 같음, 0 관련 없음",
}


class Heat(NamedTuple):
    """CKA [rows, columns] between two nets: what they are called, and the stage of each part."""

    values: np.ndarray
    names: tuple[str, str]
    stages: tuple[Sequence[str], Sequence[str]]


def draw(heats: Sequence[Heat], n: int, say: Translate) -> Figure:
    """One heat map beside the other, from input (bottom left) to output.

    Args:
        n: images.
    """
    side = 3.7 if len(heats) == 1 else 2.9
    figure = Figure(figsize=(0.9 + side * len(heats), side + 0.7), layout="constrained")
    text = say("Similarity of layers (linear CKA, {n} images)", n=f"{n:,}")
    figure.suptitle(text, fontsize=10.5)
    every = figure.subplots(1, len(heats), squeeze=False)[0]
    colours = colormaps["magma"].with_extremes(bad=GRID)
    for axes, heat in zip(every, heats, strict=True):
        image = axes.imshow(heat.values, vmin=0, vmax=1, cmap=colours, origin="lower")
        image.set_interpolation("nearest")
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        across, down = axes.xaxis, axes.yaxis
        below, left = (shortened(printable(name), 30) for name in (heat.names[1], heat.names[0]))
        axes.set_xlabel(below, parse_math=False)
        axes.set_ylabel(left, parse_math=False)
        for axis, stages in ((down, heat.stages[0]), (across, heat.stages[1])):
            centres, names, edges = stage_ticks(stages, say)
            axis.set_ticks(centres, names, parse_math=False)
            axis.set_tick_params(length=0, labelsize=8)
            for edge in edges:
                line = axes.axhline if axis is down else axes.axvline
                line(edge, color="white", lw=0.8, alpha=0.7)
        _slant(axes)
    bar = figure.colorbar(image, ax=list(every), shrink=0.8, aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(say("CKA: 1 alike, 0 unrelated"))
    return figure


def _slant(axes: Axes) -> None:
    """Names of stages, of which stem and head are as narrow as one block, without overlap."""
    for label in axes.get_xticklabels():
        label.set(rotation=40, ha="right", rotation_mode="anchor")


def stage_ticks(
    stages: Sequence[str], say: Translate
) -> tuple[list[float], list[str], list[float]]:
    """Middles, names and inner edges of the stages of parts that stand at 0, 1, 2, ..."""
    middles, names, edges, start = [], [], [], 0
    for stage in dict.fromkeys(stages):
        n = list(stages).count(stage)
        middles.append(start + (n - 1) / 2)
        names.append(stage_name(stage, say))
        edges.append(start - 0.5)
        start += n
    return middles, names, edges[1:]

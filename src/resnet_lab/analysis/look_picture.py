"""The picture of augmentation: a row for each image, a column for each epoch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from resnet_lab.charts import DPI, shortened
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.style import GRID, INK, MUTED

if TYPE_CHECKING:  # which imports torch
    from resnet_lab.analysis.look import Look, Row

KOREAN = {
    "Training images of {data}, as each epoch sees them": (
        "{data}의 학습 이미지: 에폭마다 달라지는 모습"
    ),
    "several data sets": "여러 데이터",
    "original": "원본",
    "epoch {number}": "{number}에폭",
    "not in\nthis epoch": "이 에폭에는\n없음",
}
GAP = 0.06  # between pictures, in sides
APART = 0.2  # between the original and the epochs


class Block(NamedTuple):
    """The images of one config, and what it is called; "" where it is the only one."""

    label: str
    rows: "Sequence[Row]"


def draw(blocks: Sequence[Block], title: str, say: Translate) -> Figure:
    """The originals to the left, beside them the same images in the epochs from the first on."""
    epochs = len(blocks[0].rows[0].epochs)
    wide = 1 + APART + epochs * (1 + GAP)
    side = max(0.75, min(1.1, 9.0 / wide))  # inches
    line = 0.16 / side
    tall = 1.6 * line  # the columns' names
    for block in blocks:
        tall += 2.0 * line * bool(block.label) + len(block.rows) * (1 + GAP + 1.15 * line)
    figure = Figure(figsize=(side * wide + 0.2, side * tall + 0.45), layout="constrained")
    figure.suptitle(printable(title), fontsize=10.5, parse_math=False)
    axes = figure.add_subplot()
    style: dict[str, Any] = {"ha": "center", "va": "top", "parse_math": False}
    names = [say("original"), *(say("epoch {number}", number=n + 1) for n in range(epochs))]
    for column, name in enumerate(names):
        axes.text(_left(column) + 0.5, 0.2 * line, name, fontsize=8, color=MUTED, **style)
    top = 1.6 * line
    for block in blocks:
        if block.label:
            text = shortened(printable(block.label), 90)
            axes.text(
                *(0, top + 0.5 * line, text),
                **{**style, "ha": "left"},
                fontsize=9,
                fontweight="bold",
                color=INK,
            )
            top += 2.0 * line
        for row in block.rows:
            for column, look in enumerate([row.original, *row.epochs]):
                _place(axes, look, _left(column), top, say)
                if look and (look.mixed or not column):
                    middle, below = _left(column) + 0.5, top + 1 + 0.15 * line
                    text = printable(look.caption)
                    axes.text(middle, below, text, fontsize=6.5, color=INK, **style)
            top += 1 + GAP + 1.15 * line
    axes.set_xlim(0, wide)
    axes.set_ylim(top, 0)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure


def _left(column: int) -> float:
    return column * (1 + GAP) + (APART - GAP) * (column > 0)


def _place(axes: Axes, look: "Look | None", left: float, top: float, say: Translate) -> None:
    if look is None:
        axes.add_patch(Rectangle((left, top), 1, 1, color=GRID))
        text = say("not in\nthis epoch")
        axes.text(left + 0.5, top + 0.5, text, fontsize=6.5, color=MUTED, ha="center", va="center")
        return
    # Small pictures keep their pixels visible; large ones are scaled down smoothly.
    smooth = "nearest" if look.picture.shape[1] < DPI else "antialiased"
    extent = (left, left + 1, top + 1, top)
    axes.imshow(np.asarray(look.picture), extent=extent, interpolation=smooth)

"""The pictures of Grad-CAM: heat maps over the images that they explain."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from resnet_lab.language import Translate
from resnet_lab.style import MUTED

KOREAN = {
    "Grad-CAM: where the net sees evidence for a class": (
        "Grad-CAM: 신경망이 각 클래스의 근거로 본 위치"
    ),
    "wrong, the most confident": "틀린 예측 (확신이 큰 순서)",
    "right, the least confident": "맞은 예측 (확신이 작은 순서)",
    "none of these images": "해당하는 이미지가 없습니다",
    "image": "이미지",
    "predicted class": "예측 클래스",
    "likeliest class": "1순위 클래스",
    "true class": "실제 클래스",
    "second class": "2순위 클래스",
    "predicted class,\nrandom weights": "예측 클래스,\n무작위 가중치",
    "evidence for the class (0 to the largest value of each map)": (
        "클래스의 근거 (0 ~ 각 열지도의 최댓값)"
    ),
    "it is {name}": "실제: {name}",
    "what the net sees": "신경망의 입력",
}

MAP = "inferno"
FOOT = 0.55  # inches, for the bar of colours
SMALLEST = 128  # pixels of a side: smaller images are magnified, each pixel a square


class Cell(NamedTuple):
    """One image of the picture, and the text below it.

    Attributes:
        image: uint8 [h, w, 3].
        heat: [map_h, map_w], 0 or more, laid over all of the image; None: the image alone.
    """

    image: np.ndarray
    below: str
    heat: np.ndarray | None = None


class Block(NamedTuple):
    """Rows of cells under one title; `heads` stand above the columns."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image in grey with the heat map in colour, uint8 [h, w, 3].

    Args:
        image: uint8 [h, w, 3].
        heat: [map_h, map_w], 0 or more; it is divided by its largest value.
    """
    h, w = image.shape[:2]
    most = float(heat.max())
    small = Image.fromarray((heat / most if most > 0 else heat).astype(np.float32))
    share = np.asarray(small.resize((w, h), Image.Resampling.BILINEAR)).clip(0, 1)
    grey = np.asarray(Image.fromarray(image).convert("L").convert("RGB"), dtype=float)
    colour = 255 * colormaps[MAP](share)[..., :3]
    weight = 0.25 + 0.4 * share[..., None]
    return np.asarray((1 - weight) * grey + weight * colour).round().astype(np.uint8)


def draw(blocks: Sequence[Block], say: Translate, side: float = 1.15) -> Figure:
    """Blocks beside each other, each with rows of an image and its heat maps.

    Args:
        side: of a cell, in inches.
    """
    columns = [len(block.heads) for block in blocks]
    n_rows = max(1, *(len(block.rows) for block in blocks))
    lines = max(
        [cell.below.count("\n") + 1 for block in blocks for row in block.rows for cell in row],
        default=1,
    )
    size = (side + 0.08) * sum(columns) + 0.3 * len(blocks), (side + 0.15 * lines) * n_rows + 1.45
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(say("Grad-CAM: where the net sees evidence for a class"), fontsize=11)
    heights = [size[1] - FOOT, FOOT]
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    panels = above.subfigures(1, len(blocks), squeeze=False, width_ratios=columns)[0]
    for panel, block in zip(panels, blocks, strict=True):
        _fill(panel, block, n_rows, say)
    axes = below.subplots()
    axes.axis("off")
    bar = below.colorbar(
        ScalarMappable(cmap=MAP), ax=axes, location="bottom", aspect=50, shrink=0.6, fraction=0.9
    )
    bar.set_ticks([])
    bar.outline.set_visible(False)
    bar.set_label(say("evidence for the class (0 to the largest value of each map)"), fontsize=8)
    return figure


def _fill(panel: SubFigure, block: Block, n_rows: int, say: Translate) -> None:
    if block.title:
        panel.suptitle(block.title, fontsize=9.5, weight="bold")
    axes = panel.subplots(n_rows, len(block.heads), squeeze=False)
    for one in axes.flat:
        one.axis("off")
        one.set_aspect("equal")  # also where a row ends early
    if not block.rows:
        text = say("none of these images")
        axes[0, 0].text(0, 0.5, text, fontsize=8, transform=axes[0, 0].transAxes)
        return
    for one, head in zip(axes[0], block.heads, strict=True):
        one.set_title(head, fontsize=8, loc="center", weight="normal", color=MUTED)
    for row, cells in zip(axes, block.rows, strict=False):
        for one, cell in zip(row, cells, strict=False):
            _show(one, cell)


def _show(axes: Axes, cell: Cell) -> None:
    times = math.ceil(SMALLEST / max(cell.image.shape[:2]))
    image = cell.image.repeat(times, axis=0).repeat(times, axis=1)
    axes.imshow(image if cell.heat is None else overlay(image, cell.heat))
    axes.text(
        0.5,
        -0.04,
        cell.below,
        transform=axes.transAxes,
        ha="center",
        va="top",
        fontsize=7.5,
        linespacing=1.15,
        parse_math=False,  # a class may be called "$"
    )

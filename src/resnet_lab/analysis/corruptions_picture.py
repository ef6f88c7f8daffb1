"""Pictures of corruptions: accuracy by level, and an image at all levels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_lab.charts import shortened
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.style import INK, MUTED, PALETTE

if TYPE_CHECKING:  # which imports torch
    from resnet_lab.analysis.corruptions import Robustness

KOREAN = {
    "Accuracy on corrupted images: {images} images, 0: as they are, 5: strongest": (
        "손상된 이미지에서의 정확도 (이미지 {images}장, 0: 원본, 5: 가장 심함)"
    ),
    "An image and its corruptions, levels 0 to 5": "원본(0)과 손상된 이미지 (단계 1~5)",
    "level": "손상 단계",
    "mean of all": "전체 평균",
    "gaussian noise": "가우시안 노이즈",
    "shot noise": "산탄 노이즈",
    "impulse noise": "임펄스 노이즈",
    "gaussian blur": "가우시안 블러",
    "defocus blur": "초점 흐림",
    "motion blur": "모션 블러",
    "fog": "안개",
    "brightness": "밝기",
    "contrast": "대비",
    "pixelate": "픽셀화",
    "jpeg": "JPEG 압축",
}
ACROSS = 4
STYLES = ("-", "--", ":", "-.")  # beyond the colours of the palette


class Net(NamedTuple):
    title: str
    found: "Robustness"


def shown(name: str) -> str:
    """gaussian_noise -> "gaussian noise"."""
    return name.replace("_", " ")


def draw(nets: Sequence[Net], classes: int, images: int, say: Translate) -> Figure:
    """A panel for each corruption and one for their mean; a line for each net."""
    names = [*nets[0].found.levels]
    panels = [(shown(name), [net.found.levels[name] for net in nets]) for name in names]
    panels.append(("mean of all", [net.found.by_level for net in nets]))
    down = -(-len(panels) // ACROSS)
    figure = Figure(figsize=(9.6, 2.0 * down + 0.9), layout="constrained")
    title = "Accuracy on corrupted images: {images} images, 0: as they are, 5: strongest"
    figure.suptitle(say(title, images=f"{images:,}"), fontsize=11)
    grid = figure.subplots(down, ACROSS, sharex=True, sharey=True, squeeze=False)
    for axes, (name, levels) in zip(grid.flat, panels, strict=False):
        for number, (net, found) in enumerate(zip(nets, levels, strict=True)):
            y = [100 * one for one in (net.found.clean, *found)]
            axes.plot(range(len(y)), y, marker="o", ms=3, lw=1.4, **_look(number))
        axes.axhline(100 / classes, color=MUTED, ls=":", lw=1.2, zorder=1)
        axes.set_title(say(name), fontsize=9.5, color=INK)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    _limits(grid, say)
    _legend(figure, nets, say)
    return figure


def _limits(grid: np.ndarray[Any, np.dtype[Any]], say: Translate) -> None:
    first: Axes = grid[0, 0]
    first.set(xlim=(-0.2, 5.2), ylim=(0, 102), xticks=range(6), yticks=range(0, 101, 25))
    for axes in grid[-1]:
        axes.set_xlabel(say("level"))
    for axes in grid[:, 0]:
        axes.set_ylabel(say("accuracy, %"))


def _look(number: int) -> dict[str, Any]:
    colour, style = number % len(PALETTE), number // len(PALETTE) % len(STYLES)
    return {"color": PALETTE[colour], "ls": STYLES[style]}


def _legend(figure: Figure, nets: Sequence[Net], say: Translate) -> None:
    entries = [
        Line2D([], [], marker="o", ms=3, label=shortened(printable(net.title), 40), **_look(number))
        for number, net in enumerate(nets)
    ]
    entries.append(Line2D([], [], color=MUTED, ls=":", lw=1.2, label=say("chance")))
    legend = figure.legend(handles=entries, loc="outside lower center", ncols=min(len(entries), 4))
    for text in legend.get_texts():
        text.set_parse_math(False)


def examples(strips: Sequence[tuple[str, np.ndarray]], say: Translate) -> Figure:
    """An image at all levels, a strip for each corruption, in two columns.

    Args:
        strips: the name of each corruption and its images, uint8 [levels, h, w, channels].
    """
    down = -(-len(strips) // 2)
    figure = Figure(figsize=(9.6, 1.0 * down + 0.5), layout="constrained")
    figure.suptitle(say("An image and its corruptions, levels 0 to 5"), fontsize=11)
    grid = figure.subplots(down, 2, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, images) in zip(grid.T.flat, strips, strict=False):
        axes.imshow(_side_by_side(images), interpolation="nearest")
        axes.set_title(say(shown(name)), fontsize=9, color=INK, pad=3)
    return figure


def _side_by_side(images: np.ndarray) -> np.ndarray:
    """uint8 [levels, h, w, channels] -> [h, levels * (w + gap), 3], grey between them."""
    if images.shape[-1] != 3:
        images = images[..., :1].repeat(3, axis=-1)
    gap = max(1, images.shape[2] // 32)
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=210)
    return np.concatenate(list(padded), axis=1)[:, :-gap]

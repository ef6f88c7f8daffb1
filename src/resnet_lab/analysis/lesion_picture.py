"""The picture of lesions: errors by block, by number of blocks, by order; gradients by path."""

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from resnet_lab.charts import shortened, stage_name
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.style import GRID, MUTED, PALETTE, PAPER, log_limits

if TYPE_CHECKING:  # which import torch
    from resnet_lab.analysis.lesion import Draw, Lesions
    from resnet_lab.analysis.paths import Paths

KOREAN = {
    "Trained nets without some of their blocks: errors on {images} images": (
        "학습한 신경망에서 블록을 빼거나 순서를 바꾸었을 때의 오류율 (이미지 {images}장)"
    ),
    "Trained nets without some of their blocks: errors on {images} images, and the paths of "
    "the gradient": (
        "학습한 신경망에서 블록을 빼거나 순서를 바꾸었을 때의 오류율 (이미지 {images}장)과 "
        "기울기의 경로"
    ),
    "error, %": "오류율, %",
    "One block left out": "블록 하나를 뺐을 때",
    "Several blocks left out": "여러 블록을 뺐을 때",
    "Blocks swapped": "블록의 순서를 바꾸었을 때",
    "block that is left out, from input to output": "뺀 블록 (입력 → 출력)",
    "blocks left out, at random": "뺀 블록의 수 (무작위)",
    "Kendall's tau of the order (1: as trained)": "순서의 켄달 타우 (1: 학습한 순서)",
    "nothing to swap: no two blocks\nhave the same shape": (
        "모양이 같은 블록이 둘 이상 없어\n순서를 바꿀 수 없습니다"
    ),
    "block that changes the shape": "모양을 바꾸는 블록",
    "whole net": "온전한 신경망",
    "95% of the gradient": "기울기의 95%",
    "How many paths": "경로의 수",
    "Gradient through one path": "경로 하나의 기울기",
    "Gradient through all of them": "그 길이의 경로 전체의 기울기",
    "branches on the path": "경로가 지나는 잔차 가지의 수",
    "share of all paths, %": "전체 경로 중 비율, %",
    "L2 norm at the image": "이미지에 대한 기울기의 L2 노름",
    "share of the gradient, %": "전체 기울기 중 비율, %",
}


class Net(NamedTuple):
    """What is drawn of one net; `paths` is None in a net without shortcuts."""

    title: str
    lesions: "Lesions"
    paths: "Paths | None"


def draw(nets: Sequence[Net], classes: int, images: int, say: Translate) -> Figure:
    """Errors in the upper rows; below them paths, where a net has shortcuts.

    Args:
        classes: of the data, for the error of a guess.
        images: that the errors are of.
    """
    residual = [(colour, net) for colour, net in _coloured(nets) if net.paths is not None]
    figure = Figure(figsize=(9.6, 8.6 if residual else 6.0), layout="constrained")
    title = "Trained nets without some of their blocks: errors on {images} images"
    title += ", and the paths of the gradient" if residual else ""
    figure.suptitle(say(title, images=f"{images:,}"), fontsize=11)
    cells = figure.add_gridspec(3 if residual else 2, 6)
    singles = figure.add_subplot(cells[0, :])
    several = figure.add_subplot(cells[1, :3], sharey=singles)
    swaps = figure.add_subplot(cells[1, 3:], sharey=singles)
    _singles(singles, nets, say)
    _several(several, nets, say)
    _swaps(swaps, nets, say)
    for axes in (singles, several, swaps):
        axes.axhline(100 * (1 - 1 / classes), color=MUTED, ls=":", lw=1.2, zorder=1)
    singles.set_ylim(0, 104)
    singles.set_ylabel(say("error, %"))
    several.set_ylabel(say("error, %"))
    if residual:
        panels = [figure.add_subplot(cells[2, 2 * n : 2 * n + 2]) for n in range(3)]
        _paths(panels, residual, say)
    entries: list[Any] = [
        Line2D([], [], color=colour, marker="o", ms=4, label=shortened(printable(net.title), 50))
        for colour, net in _coloured(nets)
    ]
    hollow: dict[str, Any] = {"marker": "o", "mfc": PAPER, "ls": "", "ms": 4.5}
    for label, style in (
        ("block that changes the shape", hollow),
        ("whole net", {"ls": "--", "lw": 1.2}),
        ("chance", {"ls": ":", "lw": 1.2}),
    ):
        entries.append(Line2D([], [], color=MUTED, label=say(label), **style))
    if residual:
        entries.append(Patch(color=MUTED, alpha=0.3, lw=0, label=say("95% of the gradient")))
    legend = figure.legend(handles=entries, loc="outside lower center", ncols=min(4, len(entries)))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _coloured(nets: Sequence[Net]) -> list[tuple[str, Net]]:
    return [(PALETTE[number % len(PALETTE)], net) for number, net in enumerate(nets)]


def _whole(axes: Axes, net: Net, colour: str) -> None:
    axes.axhline(100 * net.lesions.error, color=colour, ls="--", lw=1, alpha=0.7, zorder=1)


def _singles(axes: Axes, nets: Sequence[Net], say: Translate) -> None:
    for colour, net in _coloured(nets):
        singles = net.lesions.single
        x = range(1, len(singles) + 1)
        errors = [100 * single.error for single in singles]
        axes.plot(x, errors, color=colour, marker="o", ms=4, lw=1.1)
        changing = [math.nan if s.keeps_shape else 100 * s.error for s in singles]
        axes.plot(x, changing, color=colour, mfc=PAPER, marker="o", ms=4.5, ls="")
        _whole(axes, net, colour)
    axes.set_title(say("One block left out"))
    axes.set_xlabel(say("block that is left out, from input to output"))
    first, *others = (tuple(single.stage for single in net.lesions.single) for net in nets)
    if all(other == first for other in others):
        _name_stages(axes, first, say)
    else:  # nets of other depths: only numbers
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _name_stages(axes: Axes, stages: Sequence[str], say: Translate) -> None:
    edge, centres, names = 0.5, [], []
    for stage, group in groupby(stages):
        width = len(list(group))
        centres.append(edge + width / 2)
        names.append(stage_name(stage, say))
        edge += width
        axes.axvline(edge, color=GRID, lw=1, zorder=0)
    axes.grid(axis="x", visible=False)
    axes.set_xticks(centres, names)
    axes.set_xlim(0.5, edge)


def _several(axes: Axes, nets: Sequence[Net], say: Translate) -> None:
    for colour, net in _coloured(nets):
        draws = net.lesions.several
        _dots(axes, [draw.size for draw in draws], draws, colour)
        means = [(0.0, net.lesions.error), *_means(draws, lambda draw: draw.size)]
        axes.plot([x for x, _ in means], [100 * y for _, y in means], color=colour)
        _whole(axes, net, colour)
    axes.set_title(say("Several blocks left out"))
    axes.set_xlabel(say("blocks left out, at random"))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _swaps(axes: Axes, nets: Sequence[Net], say: Translate) -> None:
    for colour, net in _coloured(nets):
        draws = net.lesions.swaps
        _dots(axes, [draw.tau for draw in draws], draws, colour)
        means = [(1.0, net.lesions.error), *_means(draws, lambda draw: draw.tau)]
        axes.plot([x for x, _ in means], [100 * y for _, y in means], color=colour)
        _whole(axes, net, colour)
    axes.set_title(say("Blocks swapped"))
    axes.set_xlabel(say("Kendall's tau of the order (1: as trained)"))
    axes.tick_params(axis="y", labelleft=False)
    if any(net.lesions.swaps for net in nets):
        axes.invert_xaxis()  # from left to right ever less is as trained
    else:
        text = say("nothing to swap: no two blocks\nhave the same shape")
        axes.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, transform=axes.transAxes)
        axes.set_xticks([])


def _dots(axes: Axes, x: Sequence[float], draws: Sequence["Draw"], colour: str) -> None:
    errors = [100 * draw.error for draw in draws]
    axes.scatter(x, errors, s=9, color=colour, alpha=0.35, linewidths=0, zorder=2)


def _means(draws: Sequence["Draw"], place: Any) -> list[tuple[float, float]]:
    """(place, error) of the draws of each count, their means, in order of the count."""
    groups = [list(group) for _, group in groupby(draws, key=lambda draw: draw.size)]
    return [(fmean(map(place, g)), fmean(draw.error for draw in g)) for g in groups]


def _paths(panels: Sequence[Axes], nets: Sequence[tuple[str, Net]], say: Translate) -> None:
    number, one, together = panels
    norms = []
    for colour, net in nets:
        assert net.paths is not None
        lengths = net.paths.lengths
        x = [length.branches for length in lengths]
        number.plot(x, [100 * share for share in net.paths.share_of_paths], color=colour)
        one.plot(x, [length.gradient for length in lengths], color=colour, marker="o", ms=2.5)
        shares = [100 * share for share in net.paths.share_of_gradient]
        together.plot(x, shares, color=colour)
        low, high = net.paths.middle()
        within = [low <= n <= high for n in x]
        together.fill_between(x, shares, where=within, color=colour, alpha=0.18, lw=0)
        norms += [length.gradient for length in lengths]
    one.set_yscale("log", nonpositive="mask")
    one.set_ylim(*log_limits(norms))
    for axes, title, unit in zip(
        panels,
        ("How many paths", "Gradient through one path", "Gradient through all of them"),
        ("share of all paths, %", "L2 norm at the image", "share of the gradient, %"),
        strict=True,
    ):
        axes.set_title(say(title))
        axes.set_ylabel(say(unit))
        axes.set_xlabel(say("branches on the path"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(left=0)
    number.set_ylim(bottom=0)
    together.set_ylim(bottom=0)

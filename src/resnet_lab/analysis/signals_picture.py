"""The picture of signals through depth: five panels, a line for each net."""

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from resnet_lab.charts import shortened, stage_name
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.style import GRID, MUTED, PALETTE, log_limits

if TYPE_CHECKING:  # which imports torch
    from resnet_lab.analysis.signals import Signals

KOREAN = {
    "Signals through {net} before training ({n} images of {images}, seeds: {seeds})": (
        "학습하기 전 {net}에서의 신호 전달 ({images} 이미지 {n}장, 시드 {seeds}개)"
    ),
    "several nets": "여러 신경망",
    "several data sets": "여러 데이터",
    "noise": "잡음",
    "Gradient of the weights": "가중치의 기울기",
    "L2 norm, last block = 1": "L2 노름 (마지막 블록 = 1)",
    "Scale of the activations": "활성값의 크기",
    "standard deviation of the output": "출력의 표준편차",
    "Directions in which they vary": "활성값이 변하는 방향의 수",
    "participation ratio": "참여 비율 (participation ratio)",
    "Dead ReLUs": "죽은 ReLU",
    "0 for every image, %": "모든 이미지에서 0인 비율, %",
    "Gradients at two inputs": "두 입력에서의 기울기",
    "correlation (cosine)": "상관 (코사인 유사도)",
    "their distance (1: another image)": "두 입력의 거리 (1: 다른 이미지)",
    "depth, from input (0) to output (1)": "깊이 (입력 0 → 출력 1)",
}
WIDTH = {True: 1.0, False: 0.32}  # of a stage on the axis: of several parts, of one
STYLES = ("-", "--", ":", "-.")  # once all colours are used


class Net(NamedTuple):
    """What one net is called, and its signals from each initialisation."""

    label: str
    runs: "Sequence[Signals]"


def draw(nets: Sequence[Net], distances: Sequence[float], title: str, say: Translate) -> Figure:
    """Lines are means over initialisations; bands reach from the least to the most.

    Args:
        distances: of the inputs whose gradients are compared.
    """
    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    figure.suptitle(printable(title), fontsize=11, parse_math=False)
    cells = figure.add_gridspec(2, 6)
    gradient, activation = (figure.add_subplot(cells[0, 3 * i : 3 * i + 3]) for i in range(2))
    rank, dead, alike = (figure.add_subplot(cells[1, 2 * i : 2 * i + 2]) for i in range(3))

    through = _Depth(nets, say)
    through.lines(gradient, _relative, geometric_mean)
    through.lines(activation, _activation, geometric_mean)
    through.lines(rank, lambda run: _without_head(run, run.rank), fmean)
    through.lines(dead, lambda run: [100 * share for share in run.dead], fmean)
    runs = [run for net in nets for run in net.runs]
    for axes, values in ((gradient, _relative), (activation, _activation)):
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(*log_limits([value for run in runs for value in values(run)]))
    gradient.axhline(1, color=MUTED, ls=":", lw=1, zorder=1)
    rank.set_ylim(bottom=0)
    dead.set_ylim(-1, max(10, dead.get_ylim()[1]))
    _correlations(alike, nets, distances)

    for axes, heading, unit in (
        (gradient, "Gradient of the weights", "L2 norm, last block = 1"),
        (activation, "Scale of the activations", "standard deviation of the output"),
        (rank, "Directions in which they vary", "participation ratio"),
        (dead, "Dead ReLUs", "0 for every image, %"),
        (alike, "Gradients at two inputs", "correlation (cosine)"),
    ):
        axes.set_title(say(heading))
        axes.set_ylabel(say(unit))
    alike.set_xlabel(say("their distance (1: another image)"))
    handles, labels = gradient.get_legend_handles_labels()
    columns = max(1, min(4, len(labels), 110 // max(map(len, labels))))
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _style(number: int) -> dict[str, Any]:
    used, colour = divmod(number, len(PALETTE))
    return {"color": PALETTE[colour], "ls": STYLES[used % len(STYLES)]}


def _relative(run: "Signals") -> list[float]:
    last = run.gradient[run.blocks[-1]]
    return [norm / last if last else math.nan for norm in run.gradient]


def _activation(run: "Signals") -> list[float]:
    return run.activation


def _without_head(run: "Signals", values: Sequence[float]) -> list[float]:
    """Logits are as many as there are classes, so their rank does not compare with the others."""
    return [
        math.nan if stage == "head" else value
        for stage, value in zip(run.stages, values, strict=True)
    ]


class _Depth:
    """The axis from input to output: named by stages where all nets have the same ones.

    A stage is as wide in every net, so nets of other depths can be compared.
    """

    def __init__(self, nets: Sequence[Net], say: Translate) -> None:
        self.nets, self.say = nets, say
        stages = [net.runs[0].stages for net in nets]
        names = [list(dict.fromkeys(of_net)) for of_net in stages]
        self.names = names[0] if all(other == names[0] for other in names) else []
        self.widths = {
            name: WIDTH[any(of_net.count(name) > 1 for of_net in stages)] for name in self.names
        }

    def places(self, stages: Sequence[str]) -> list[float]:
        """Where the parts stand."""
        if not self.names:
            return [(i + 0.5) / len(stages) for i in range(len(stages))]
        places, edge = [], 0.0
        for name, group in groupby(stages):
            n = len(list(group))
            places += [edge + self.widths[name] * (i + 0.5) / n for i in range(n)]
            edge += self.widths[name]
        return places

    def lines(
        self,
        axes: Axes,
        values: "Callable[[Signals], Sequence[float]]",
        mean: Callable[[Sequence[float]], float],
    ) -> None:
        """A line for each net, and the names of the stages."""
        for number, net in enumerate(self.nets):
            x = self.places(net.runs[0].stages)
            columns = list(zip(*(values(run) for run in net.runs), strict=True))
            middle = [_mean(column, mean) for column in columns]
            marker = "o" if len(x) <= 30 else ""
            label = shortened(printable(net.label), 60)
            style = _style(number)
            axes.plot(x, middle, marker=marker, ms=2.5, lw=1.3, label=label, **style)
            low, high = ([limit(column) for column in columns] for limit in (min, max))
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
        self._name(axes)

    def _name(self, axes: Axes) -> None:
        if not self.names:
            axes.set_xlabel(self.say("depth, from input (0) to output (1)"))
            axes.set_xlim(0, 1)
            return
        edge, centres = 0.0, []
        for name in self.names:
            centres.append(edge + self.widths[name] / 2)
            edge += self.widths[name]
            axes.axvline(edge, color=GRID, lw=1, zorder=0)
        axes.grid(axis="x", visible=False)
        axes.set_xlim(0, edge)
        axes.set_xticks(
            centres, [stage_name(name, self.say, 12) for name in self.names], fontsize=8
        )
        axes.tick_params(axis="x", length=0)


def _mean(values: Sequence[float], mean: Callable[[Sequence[float]], float]) -> float:
    """NaN where a logarithmic axis, or any, cannot show one of them."""
    lowest = 0.0 if mean is geometric_mean else -math.inf
    return mean(values) if all(lowest < value < math.inf for value in values) else math.nan


def _correlations(axes: Axes, nets: Sequence[Net], distances: Sequence[float]) -> None:
    for number, net in enumerate(nets):
        columns = list(zip(*(run.correlation for run in net.runs), strict=True))
        style = _style(number)
        axes.plot(distances, [fmean(c) for c in columns], marker="o", ms=2.5, lw=1.3, **style)
        low, high = ([limit(column) for column in columns] for limit in (min, max))
        axes.fill_between(distances, low, high, color=style["color"], alpha=0.15, lw=0)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.15, 1.05)

"""The reliability diagram: accuracy against confidence, before and after a temperature."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from resnet_lab.charts import shortened
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.style import MUTED, PALETTE, PAPER

if TYPE_CHECKING:  # which imports torch
    from resnet_lab.analysis.calibration import Bin, Calibration

KOREAN = {
    "Is a net right as often as it says? {images} test images": (
        "신경망의 확률은 믿을 수 있을까? (테스트 이미지 {images}장)"
    ),
    "confidence, %": "신뢰도, %",
    "answers, %": "답의 비율, %",
    "as trained": "학습한 그대로",
    "with its temperature": "온도 스케일링 후",
    "calibrated: accuracy = confidence": "완벽한 보정: 정확도 = 신뢰도",
    "over-confident": "과신",
    "under-confident": "과소 신뢰",
    "95% interval": "95% 신뢰 구간",
    "fewer than {few} answers": "답이 {few}개 미만",
}

ACROSS = 3  # nets in one row
FEW = 10  # answers: a bin of fewer says little
SERIES = (("as trained", PALETTE[1], "o"), ("with its temperature", PALETTE[0], "s"))


class Net(NamedTuple):
    """What is drawn of one net; without a temperature, `after` is None."""

    title: str
    before: "Calibration"
    after: "Calibration | None"
    temperature: float | None


def draw(nets: Sequence[Net], say: Translate) -> Figure:
    """A column for each net: the diagram, and below it how often each confidence occurs."""
    across = 2 if len(nets) == 4 else min(len(nets), ACROSS)
    down = -(-len(nets) // across)
    width = 9.6 if across == ACROSS else 3.8 * across + 0.6
    figure = Figure(figsize=(width, 4.9 * down + 0.5), layout="constrained")
    images = max(net.before.images for net in nets)
    title = say("Is a net right as often as it says? {images} test images", images=f"{images:,}")
    figure.suptitle(title, fontsize=11)
    cells = figure.add_gridspec(2 * down, across, height_ratios=[3, 1] * down)
    for number, net in enumerate(nets):
        row, column = divmod(number, across)
        top = figure.add_subplot(cells[2 * row, column])
        below = figure.add_subplot(cells[2 * row + 1, column], sharex=top)
        _diagram(top, net, say)
        _counts(below, net, say)
        for axes in (top, below) if column else ():
            axes.set_ylabel("")
    _legend(figure, any(net.after for net in nets), across, say)
    return figure


def _series(net: Net) -> list[tuple["Calibration", str, str]]:
    both = zip((net.before, net.after), SERIES, strict=True)
    return [(found, colour, marker) for found, (_, colour, marker) in both if found is not None]


def _diagram(axes: Axes, net: Net, say: Translate) -> None:
    axes.plot([0, 100], [0, 100], color=MUTED, ls="--", lw=1, zorder=1)
    for found, colour, marker in _series(net):
        for one in (one for one in found.bins if one.count):
            x, ends = 100 * one.confidence, [100 * end for end in wilson(one)]
            axes.plot([x, x], ends, color=colour, lw=0.9, alpha=0.5, solid_capstyle="butt")
            hollow = {"mfc": PAPER, "zorder": 2.5} if one.count < FEW else {"zorder": 3}
            axes.plot(x, 100 * one.accuracy, color=colour, marker=marker, ms=4.5, **hollow)
        line = [one for one in found.bins if one.count >= FEW]
        axes.plot(
            [100 * one.confidence for one in line],
            [100 * one.accuracy for one in line],
            color=colour,
            lw=1.3,
        )
    axes.set_title(shortened(printable(net.title), 34), parse_math=False, fontsize=9.5, pad=18)
    axes.text(0, 1.02, _figures(net), transform=axes.transAxes, fontsize=8, color=MUTED)
    for x, y, text in ((2, 94, "under-confident"), (98, 2, "over-confident")):
        side = "left" if x < 50 else "right"
        axes.text(x, y, say(text), ha=side, color=MUTED, fontsize=8)
    axes.set(xlim=(0, 100), ylim=(-2, 102), ylabel=say("accuracy, %"))
    axes.tick_params(axis="x", labelbottom=False)


def _figures(net: Net) -> str:
    before, after, arrow = net.before, net.after, "\N{RIGHTWARDS ARROW}"
    if after is None or net.temperature is None:
        return f"ECE {100 * before.ece:.1f}%, NLL {before.nll:.2f}"
    return (
        f"T = {net.temperature:.2f}; ECE {100 * before.ece:.1f} {arrow} {100 * after.ece:.1f}%, "
        f"NLL {before.nll:.2f} {arrow} {after.nll:.2f}"
    )


def _counts(axes: Axes, net: Net, say: Translate) -> None:
    for found, colour, _ in _series(net):
        shares = [100 * one.count / found.images for one in found.bins]
        edges = [100 * one.low for one in found.bins] + [100.0]
        axes.stairs(shares, edges, color=colour, lw=1.3, fill=False)
        axes.stairs(shares, edges, color=colour, alpha=0.15, fill=True)
    axes.set(ylim=(0, None), xlabel=say("confidence, %"), ylabel=say("answers, %"))
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=""))


def _legend(figure: Figure, scaled: bool, across: int, say: Translate) -> None:
    entries: list[Any] = [
        Line2D([], [], color=colour, marker=marker, ms=4, label=say(name))
        for name, colour, marker in (SERIES if scaled else SERIES[:1])
    ]
    entries.append(
        Line2D([], [], color=MUTED, ls="--", lw=1, label=say("calibrated: accuracy = confidence"))
    )
    entries.append(Line2D([], [], color=MUTED, ls="", marker="|", ms=9, label=say("95% interval")))
    few: dict[str, Any] = {"ls": "", "marker": "o", "mfc": PAPER, "ms": 4.5}
    entries.append(
        Line2D([], [], color=MUTED, label=say("fewer than {few} answers", few=FEW), **few)
    )
    ncols = {1: 1, 2: 2}.get(across, 5)
    figure.legend(handles=entries, loc="outside lower center", ncols=ncols)


def wilson(one: "Bin") -> tuple[float, float]:
    """The 95% interval of a bin's accuracy (Wilson's score interval), from 0 to 1."""
    n, p, z = one.count, one.accuracy, 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return middle - half, middle + half

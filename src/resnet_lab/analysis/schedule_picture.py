"""The picture of learning rates over a training, and of the momentum where it changes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_lab.charts import shortened
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.style import PALETTE

KOREAN = {
    "Learning rate of every step: {what}": "스텝마다의 학습률: {what}",
    "{epochs} epochs": "{epochs}에폭",
    "epoch": "에폭",
    "learning rate": "학습률",
    "momentum": "모멘텀",
}
STYLES = ("-", "--", ":", "-.")  # lines often lie on each other


class Line(NamedTuple):
    """One training: what it is called, and points of (epochs done, rate, momentum or None)."""

    label: str
    points: Sequence[tuple[float, float, float | None]]

    @property
    def cycles_momentum(self) -> bool:
        return len({momentum for _, _, momentum in self.points}) > 1


def draw(lines: Sequence[Line], title: str, say: Translate, log: bool = False) -> Figure:
    """All lines over epochs; below them the momentum, where one of them changes it.

    Args:
        log: whether the axis of the rate is logarithmic.
    """
    cycling = any(line.cycles_momentum for line in lines)
    figure = Figure(figsize=(7.5, 5.6 if cycling else 4.2), layout="constrained")
    figure.suptitle(printable(title), fontsize=10.5, parse_math=False)
    axes: list[Axes] = list(figure.subplots(1 + cycling, 1, sharex=True, squeeze=False)[:, 0])
    for number, line in enumerate(lines):
        epochs, rate, momentum = zip(*line.points, strict=True)
        style: dict[str, Any] = {
            "color": PALETTE[number % len(PALETTE)],
            "ls": STYLES[number // len(PALETTE) % len(STYLES)],
            "lw": 1.8,
        }
        label = shortened(printable(line.label), 60)
        axes[0].plot(epochs, rate, label=label, **style)
        if cycling and momentum[0] is not None:
            axes[1].plot(epochs, momentum, **style)
    axes[0].set_ylabel(say("learning rate"))
    if log:
        axes[0].set_yscale("log", nonpositive="mask")
    else:
        axes[0].set_ylim(bottom=0)
    if cycling:
        axes[1].set_ylabel(say("momentum"))
    axes[-1].set_xlabel(say("epoch"))
    axes[-1].set_xlim(0, max(line.points[-1][0] for line in lines))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(lines) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        columns = max(1, min(4, 90 // max(map(len, labels))))
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure

"""The picture of `resnet-lab power`: the spread between seeds, seeds needed, pairs of settings."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from resnet_lab.charts import shortened
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.report.power import (
    POWERS,
    Noise,
    Pair,
    Repeats,
    detectable,
    usual_seeds,
)
from resnet_lab.report.stats import ALPHA
from resnet_lab.style import MUTED, PALETTE, PAPER

KOREAN = {
    "How many seeds does a difference need? {name}": (
        "차이를 확인하려면 시드가 몇 개 필요할까? {name}"
    ),
    "The seeds of each setting": "같은 설정의 시드별 정확도",
    "distance from the setting's mean, points": "설정 평균과의 차이, %p",
    "sd between seeds": "시드 간 표준편차",
    "sd from {images} images alone": "이미지 {images}장으로 인한 표준편차",
    "Seeds that a difference needs": "차이의 크기와 필요한 시드 수",
    "true difference, points": "실제 차이, %p",
    "seeds of each setting": "설정마다 필요한 시드 수",
    "power {power}%": "검정력 {power}%",
    "power {power}%, {n} comparisons": "검정력 {power}%, 비교 {n}개",
    "its 95% interval": "95% 신뢰 구간",
    "{n} seeds: {difference} points": "시드 {n}개: {difference}%p",
    "Pairs of settings": "설정 간 비교",
    "Pairs of settings, with the best in validation": "검증 정확도가 가장 높은 설정과의 비교",
    "difference in test accuracy, points (95% interval)": (
        "테스트 정확도의 차이, %p (95% 신뢰 구간)"
    ),
    "difference in validation accuracy, points (95% interval)": (
        "검증 정확도의 차이, %p (95% 신뢰 구간)"
    ),
    "differs, all pairs counted": "차이 있음 (다중 비교 보정)",
    "cannot be told apart": "구별할 수 없음",
    "hard to find with {n} seeds": "시드 {n}개로 찾기 어려운 차이",
}

MOST_PAIRS = 15  # in the picture; beyond them only those with the best setting
MOST_ROWS = 30
FROM, TO = 0.05, 5.0  # points, of the axis of differences
COUNTS = (*range(2, 10), *(round(10 * 1.3**n) for n in range(20)))  # of seeds, on the curves


def draw(
    name: str,
    settings: Sequence[Repeats],
    found: Noise,
    pairs: Sequence[Pair],
    split: str,
    say: Translate,
) -> Figure:
    """Two panels, and one for the pairs below them.

    Args:
        split: "test" or "val", of which the accuracies are.
    """
    several = [one for one in settings if one.seeds.n > 1][:MOST_ROWS]
    shown, title = _chosen(pairs)
    height = 1.6 + max(2.2, 0.2 * len(several)), 1.1 + 0.24 * len(shown)
    figure = Figure(figsize=(9.6, sum(height) if shown else height[0]), layout="constrained")
    heading = say("How many seeds does a difference need? {name}", name=printable(name))
    figure.suptitle(shortened(heading, 90), fontsize=11, parse_math=False)
    cells = figure.add_gridspec(2 if shown else 1, 2, height_ratios=height if shown else None)
    _seeds(figure.add_subplot(cells[0, 0]), several, found, say)
    _needed(figure.add_subplot(cells[0, 1]), found, usual_seeds(settings), len(pairs), say)
    if shown:
        axes = figure.add_subplot(cells[1, :])
        axes.set_title(say(title))
        word = {"test": "test", "val": "validation"}[split]
        axes.set_xlabel(say(f"difference in {word} accuracy, points (95% interval)"))
        _pairs(axes, shown, found, usual_seeds(settings), say)
    return figure


def _chosen(pairs: Sequence[Pair]) -> tuple[list[Pair], str]:
    """The pairs that have room, by size, and a title."""
    some, title = list(pairs), "Pairs of settings"
    if len(some) > MOST_PAIRS:
        with_best = [pair for pair in pairs if pair.first.best or pair.second.best]
        if with_best:
            some, title = with_best, "Pairs of settings, with the best in validation"
    return sorted(some, key=lambda pair: -abs(pair.difference))[:MOST_ROWS], title


def _seeds(axes: Axes, settings: Sequence[Repeats], found: Noise, say: Translate) -> None:
    axes.axvspan(
        -found.sd, found.sd, color=PALETTE[0], alpha=0.13, lw=0, label=say("sd between seeds")
    )
    if found.binomial:
        for side in (-1, 1):
            text = say("sd from {images} images alone", images=f"{found.images:,.0f}")
            label = text if side > 0 else None
            axes.axvline(side * found.binomial, color=PALETTE[1], ls="--", lw=1.2, label=label)
    for row, one in enumerate(settings):
        away = [value - one.seeds.mean for value in one.seeds.values]
        axes.plot(away, [row] * len(away), "o", ms=4.5, color=PALETTE[0], alpha=0.75)
    names = [shortened(printable(one.name), 28) for one in settings]
    axes.set_yticks(range(len(settings)), names, parse_math=False)
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_title(say("The seeds of each setting"))
    axes.set_xlabel(say("distance from the setting's mean, points"))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _needed(axes: Axes, found: Noise, seeds: int, comparisons: int, say: Translate) -> None:
    axes.set(xlim=(FROM, TO), ylim=(1.7, 1200))  # first: differences may all be 0
    axes.set(xscale="log", yscale="log")

    def curve(sd: float, wanted: float, alpha: float = ALPHA) -> list[float]:
        return [detectable(sd, n, wanted, alpha) for n in COUNTS]

    band = curve(found.low, POWERS[0]), curve(found.high, POWERS[0])
    for wanted, style in zip(POWERS, ("-", "--"), strict=True):
        label = say("power {power}%", power=round(100 * wanted))
        axes.plot(curve(found.sd, wanted), COUNTS, color=PALETTE[0], ls=style, label=label)
        if wanted == POWERS[0]:
            axes.fill_betweenx(
                COUNTS, *band, color=PALETTE[0], alpha=0.13, lw=0, label=say("its 95% interval")
            )
    if comparisons > 1:
        label = say("power {power}%, {n} comparisons", power=80, n=comparisons)
        corrected = curve(found.sd, POWERS[0], ALPHA / comparisons)
        axes.plot(corrected, COUNTS, color=PALETTE[1], ls=":", label=label)
    smallest = detectable(found.sd, seeds, POWERS[0])
    text = say("{n} seeds: {difference} points", n=seeds, difference=f"{smallest:.2f}")
    axes.plot([smallest], [seeds], "D", color=PALETTE[1], ms=6, zorder=4, label=text)
    axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5])
    axes.set_yticks([2, 5, 10, 20, 50, 100, 200, 500, 1000])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_title(say("Seeds that a difference needs"))
    axes.set_xlabel(say("true difference, points"))
    axes.set_ylabel(say("seeds of each setting"))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _pairs(axes: Axes, pairs: Sequence[Pair], found: Noise, seeds: int, say: Translate) -> None:
    smallest = detectable(found.sd, seeds, POWERS[0])
    axes.axvspan(0, smallest, color=MUTED, alpha=0.13, lw=0)
    axes.axvline(0, color=MUTED, lw=1)
    for row, pair in enumerate(pairs):
        colour = PALETTE[0] if pair.differs else MUTED
        axes.plot([pair.low, pair.high], [row, row], color=colour, lw=1.3)
        face = colour if pair.differs else PAPER
        axes.plot([pair.difference], [row], "o", ms=5, color=colour, mfc=face)
    names = [
        f"{shortened(printable(pair.second.name), 30)}  \N{MINUS SIGN}  "
        f"{shortened(printable(pair.first.name), 30)}"
        for pair in pairs
    ]
    axes.set_yticks(range(len(pairs)), names, parse_math=False)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    hard = say("hard to find with {n} seeds", n=seeds)
    hollow: dict[str, Any] = {"marker": "o", "ms": 5, "lw": 1.3}
    entries: list[Any] = [
        *axes.plot([], [], color=PALETTE[0], label=say("differs, all pairs counted"), **hollow),
        *axes.plot([], [], color=MUTED, mfc=PAPER, label=say("cannot be told apart"), **hollow),
        Patch(color=MUTED, alpha=0.13, lw=0, label=hard),
    ]
    axes.figure.legend(handles=entries, loc="outside lower center", ncols=3)

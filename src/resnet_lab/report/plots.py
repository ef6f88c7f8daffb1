"""The pictures of a report, as SVG that takes the page's colours; as PNG where asked for."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from resnet_lab import charts
from resnet_lab.report.runs import Run, Study, epochs, gradients
from resnet_lab.report.stats import Effect, Setting, Spread, Summary, curve, frontier
from resnet_lab.run.state import State
from resnet_lab.style import GRID, INK, MUTED, PALETTE, PAPER, STYLE

MARKERS = ("o", "s", "^", "D", "v", "P")
PAGE_COLOURS = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper"}
COLOUR_MAP: Colormap = LinearSegmentedColormap.from_list(
    "light to dark", ["#a6cbe5", PALETTE[0], "#08243f"]
)
COST_LABELS = {
    "params": "parameters",
    "macs": "multiply-adds per image",
    "train_seconds": "training time, s",
}
CURVES = {
    "train/loss": ("training loss, nats", 1.0),
    "val/loss": ("validation loss, nats", 1.0),
    "train/acc": ("training accuracy, %", 100.0),
    "val/acc": ("validation accuracy, %", 100.0),
}
SPLIT_COLOURS = {"val": PALETTE[0], "test": PALETTE[1]}
SPLIT_NAMES = {"val": "validation", "test": "test"}
MOST_ROWS = 40  # of a chart with a line of text for each setting
MOST_LINES = 200  # of parallel coordinates
LONGEST = 40  # characters of a setting's name; longer ones are numbered
LEAST_COST_RATIO = 1.5  # between the cheapest and the dearest setting, for a chart of cost


@dataclass(frozen=True)
class Picture:
    """A figure of the page, `file` its name without suffix."""

    file: str
    alt: str
    figure: Figure

    @cached_property
    def svg(self) -> str:
        text = io.StringIO()
        # The salt keeps the ids of two pictures in one page apart.
        with styled(**{"svg.hashsalt": self.file}):
            self.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        return _for_page(text.getvalue())

    def save_png(self, folder: Path) -> None:
        with styled():
            path = folder / f"{self.file}.png"
            self.figure.savefig(path, format="png", dpi=200, facecolor="white")


def _for_page(svg: str) -> str:
    """The bare element: no prolog, no metadata, no address, and colours that follow the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"\n\s*|\s+(?=/?>)", " ", svg)
    for colour, name in PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var({name})")
    return svg.strip()


@contextmanager
def styled(**more: str) -> Iterator[None]:
    settings: Any = {**STYLE, "font.family": charts.fonts(), **more}
    with matplotlib.rc_context(settings):
        yield


# ------------------------------------------------------------------ how settings are drawn


@dataclass(frozen=True)
class ChartStyle:
    """One colour and marker a setting, the same in every picture.

    Attributes:
        labels: a setting beside others of its panel.
        panels: the settings that are drawn together, under a title.
        legend: names, colours and markers.
        left_out: a sentence on settings that are not drawn one by one, or empty.
    """

    colours: dict[Setting, str]
    markers: dict[Setting, str]
    labels: dict[Setting, str]
    panels: list[tuple[str, list[Setting]]]
    legend: list[tuple[str, str, str]]
    left_out: str


def setting_names(study: Study, rows: Sequence[Summary]) -> dict[Setting, str]:
    """ "model=resnet20, shortcut=A"; where one is long, S1, S2, ... of the table of settings."""
    names = {row.setting: named(study, study.factors, row.setting) or study.name for row in rows}
    if any(len(name) > LONGEST for name in names.values()):
        return {setting: f"S{n}" for n, setting in enumerate(names, 1)}
    return names


def named(study: Study, keys: Iterable[str], values: Iterable[str]) -> str:
    return ", ".join(f"{study.short(k)}={v}" for k, v in zip(keys, values, strict=True))


def _plain(text: str) -> str:
    """For a picture, where a "$" would begin a formula."""
    return text.replace("$", r"\$")


def assign_styles(study: Study, rows: Sequence[Summary]) -> ChartStyle:
    """A colour for each value of one factor, a panel and a marker for the rest.

    Where no factor leaves few enough panels, the best settings by validation are drawn alone.
    """
    factors, settings = study.factors, [row.setting for row in rows]
    values = study.values
    by_values = [  # (index of the factor, its panels); the last factor is the first choice
        (i, list(dict.fromkeys(setting[:i] + setting[i + 1 :] for setting in settings)))
        for i in reversed(range(len(factors)))
        if len(values[factors[i]]) <= len(PALETTE)
    ]
    by_values.sort(key=lambda choice: len(choice[1]))
    names = setting_names(study, rows)
    numbered = any(name == "S1" for name in names.values())
    if numbered or not by_values or len(by_values[0][1]) > len(MARKERS):
        return _style_of_the_best(rows, names)
    index, rests = by_values[0]
    key, others = factors[index], factors[:index] + factors[index + 1 :]
    hue = dict(zip(values[key], PALETTE, strict=False))
    shape = dict(zip(rests, MARKERS, strict=False))
    rest = {setting: setting[:index] + setting[index + 1 :] for setting in settings}
    legend = [(_plain(f"{study.short(key)}={v}"), colour, "o") for v, colour in hue.items()]
    if others:
        legend += [(_plain(named(study, others, part)), MUTED, m) for part, m in shape.items()]
    return ChartStyle(
        {setting: hue[setting[index]] for setting in settings},
        {setting: shape[rest[setting]] for setting in settings},
        {setting: _plain(f"{study.short(key)}={setting[index]}") for setting in settings},
        [
            (_plain(named(study, others, part)), [s for s in settings if rest[s] == part])
            for part in rests
        ],
        legend,
        "",
    )


def _style_of_the_best(rows: Sequence[Summary], names: dict[Setting, str]) -> ChartStyle:
    scored = [row for row in rows if row.val.n] or list(rows)
    ranked = sorted(scored, key=lambda row: -row.val.mean)
    names = {setting: _plain(name) for setting, name in names.items()}
    drawn = [row.setting for row in ranked[: len(PALETTE)]]
    colours = {row.setting: MUTED for row in rows} | dict(zip(drawn, PALETTE, strict=False))
    left_out = (
        f"Of {len(rows):,} settings the {len(drawn)} best by validation are drawn in colour."
        if len(drawn) < len(rows)
        else ""
    )
    legend = [(names[setting], colours[setting], "o") for setting in drawn]
    markers = dict.fromkeys(colours, "o")
    return ChartStyle(colours, markers, names, [("", drawn)], legend, left_out)


# ------------------------------------------------------------------ settings and effects


class Forest(NamedTuple):
    """A row of a forest plot: a label, and a spread for each split."""

    label: str
    spreads: dict[str, Spread]


def settings_chart(study: Study, rows: Sequence[Summary]) -> Picture | None:
    """Every run as a dot, every setting as a mean with its interval."""
    names = setting_names(study, rows)
    shown = [
        Forest(
            f"{names[row.setting]}  (n={len(row.runs)})" + ("  best" if row.best else ""),
            {"val": row.val, "test": row.test},
        )
        for row in rows
        if row.runs
    ]
    alt = "Validation and test accuracy of every setting: runs, means and 95% intervals"
    return _forest("settings", alt, shown, "accuracy, %")


def effects_chart(study: Study, found: Sequence[Effect]) -> Picture | None:
    """Mean paired differences around zero with their intervals."""
    shown = [
        Forest(
            charts.shortened(
                f"{study.short(e.key)}: {e.here} → {e.there}  (n={max(e.val.n, e.test.n)})", 60
            ),
            {"val": e.val, "test": e.test},
        )
        for e in found
    ]
    alt = "Effect of each factor: mean paired differences with 95% intervals"
    return _forest("effects", alt, shown, "difference in accuracy, percentage points", zero=True)


def _forest(
    file: str, alt: str, rows: Sequence[Forest], label: str, zero: bool = False
) -> Picture | None:
    """None where there are no rows, or too many to read."""
    if not rows or len(rows) > MOST_ROWS:
        return None
    with styled():
        fig = Figure(figsize=(8.4, 1.15 + 0.42 * len(rows)), layout="constrained")
        axes = fig.add_subplot()
        if zero:
            axes.axvline(0, color=MUTED, linewidth=1)
        for y, row in enumerate(rows):
            for split, offset in (("val", -0.16), ("test", 0.16)):
                of, colour, at = row.spreads[split], SPLIT_COLOURS[split], y + offset
                if not of.n:
                    continue
                if of.n > 1:
                    axes.scatter(of.values, [at] * of.n, s=16, color=colour, alpha=0.4, lw=0)
                if not isnan(of.low):
                    axes.plot([of.low, of.high], [at, at], color=colour, linewidth=1.4)
                axes.plot(of.mean, at, marker="|", ms=9, mew=2, color=colour)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_yticks(range(len(rows)), [_plain(row.label) for row in rows])
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)
        for split, colour in SPLIT_COLOURS.items():
            axes.plot([], [], color=colour, marker="|", ms=9, mew=2, label=SPLIT_NAMES[split])
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return Picture(file, alt, fig)


# ------------------------------------------------------------------ learning curves


def curve_charts(rows: Sequence[Summary], style: ChartStyle) -> list[Picture]:
    """Loss and accuracy on training and validation images by epoch, for each panel of `style`.

    The line is the mean of the finished runs, the band one standard deviation to each side;
    each run that has not finished is a thin dashed line of its own.
    """
    by_setting = {row.setting: row for row in rows}
    read = {
        setting: [(run, epochs(run.folder)[0]) for run in by_setting[setting].jobs]
        for _, settings in style.panels
        for setting in settings
    }
    limits = {column: _limits(read.values(), column) for column in CURVES}
    pictures = []
    for number, (title, settings) in enumerate(style.panels):
        if not any(found for setting in settings for _, found in read[setting]):
            continue
        with styled():
            fig = Figure(figsize=(8.4, 6.2), layout="constrained")
            for axes, (column, (label, scale)) in zip(
                fig.subplots(2, 2, sharex=True).flat, CURVES.items(), strict=True
            ):
                for setting in settings:
                    name = f"{style.labels[setting]} (n={len(by_setting[setting].runs)})"
                    colour = style.colours[setting]
                    _band(axes, read[setting], column, scale, colour, name)
                if limit := limits[column]:
                    axes.set_ylim(scale * limit[0], scale * limit[1])
                axes.set_ylabel(label)
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for axes in fig.axes[2:]:
                axes.set_xlabel("epoch")
            fig.suptitle(title, fontsize=10)
            _legend(fig, fig.axes[0])
        file = f"curves{f'-{number + 1}' if len(style.panels) > 1 else ''}"
        alt = f"Loss and accuracy by epoch{f', {title}' if title else ''}"
        pictures.append(Picture(file, alt, fig))
    return pictures


def _band(
    axes: Axes,
    read: Sequence[tuple[Run, dict[int, dict[str, float]]]],
    column: str,
    scale: float,
    colour: str,
    name: str,
) -> None:
    thin: Any = {"color": colour, "lw": 0.9, "ls": (0, (3, 2))}
    points = curve([rows for run, rows in read if run.state == State.FINISHED], column) * scale
    if points.empty:
        axes.plot([], [], label=name, **thin)
    else:
        # A run of one epoch is a dot; a line through one point would be nothing.
        marker = "o" if len(points) == 1 else ""
        axes.plot(points.index, points["mean"], color=colour, label=name, marker=marker, ms=4)
        sd = points["std"].fillna(0)
        low, high = points["mean"] - sd, points["mean"] + sd
        axes.fill_between(points.index, low, high, color=colour, alpha=0.18, linewidth=0)
    for run, rows in read:
        line = [
            (epoch, scale * row[column]) for epoch, row in sorted(rows.items()) if column in row
        ]
        if run.state != State.FINISHED and line:
            axes.plot(*zip(*line, strict=True), **thin)


def _limits(
    read: Iterable[Sequence[tuple[Run, dict[int, dict[str, float]]]]], column: str
) -> tuple[float, float] | None:
    """One scale for all panels; single wild epochs (a diverged run) do not set it."""
    figures = sorted(
        row[column]
        for found in read
        for _, rows in found
        for row in rows.values()
        if column in row and not isnan(row[column])
    )
    if not figures:
        return None
    low, high = figures[0], figures[-1]
    if column.endswith("/loss"):
        high = min(high, 1.5 * figures[int(0.98 * (len(figures) - 1))])
    margin = 0.05 * (high - low) or 0.01
    return low - margin, high + margin


def _legend(fig: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    longest = max(map(len, names), default=0)
    columns = 1 if longest > 60 else 2 if longest > 34 else 4
    fig.legend(handles, names, loc="outside lower center", ncols=columns)


# ------------------------------------------------------------------ gradients


def gradient_charts(rows: Sequence[Summary], style: ChartStyle) -> list[Picture]:
    """For each panel of `style`: the gradient of every block, and of three stages by epoch.

    Means over the finished runs of a setting that measured it.
    """
    lines = {
        row.setting: charts.GradientLine(
            style.labels[row.setting],
            style.colours[row.setting],
            [found for run in row.runs if (found := gradients(run.folder))],
        )
        for row in rows
        if row.setting in style.colours
    }
    drawn = [
        (title, [lines[setting] for setting in settings if lines[setting].runs])
        for title, settings in style.panels
    ]
    limits = charts.gradient_limits([line for _, panel in drawn for line in panel])
    pictures = []
    for number, (title, panel) in enumerate(drawn):
        if panel:
            with styled():
                fig = charts.gradients(panel, title, limits)
            file = f"gradients{f'-{number + 1}' if len(drawn) > 1 else ''}"
            alt = f"Gradient norms by block and by epoch{f', {title}' if title else ''}"
            pictures.append(Picture(file, alt, fig))
    return pictures


# ------------------------------------------------------------------ costs


def cost_charts(rows: Sequence[Summary], style: ChartStyle) -> list[Picture]:
    """Mean validation accuracy of each setting against its cost, the frontier as a line."""
    pictures = []
    for cost, label in COST_LABELS.items():
        known = [row for row in rows if row.val.n and not isnan(row.costs[cost])]
        costs = [row.costs[cost] for row in known]
        if len(known) < 2 or max(costs) < LEAST_COST_RATIO * min(costs):
            continue
        with styled():
            fig = Figure(figsize=(4.6, 4.4), layout="constrained")
            axes = fig.add_subplot()
            edge = frontier(rows, cost)
            # Steps: what the frontier's setting costs is what buys its accuracy.
            axes.step(
                [row.costs[cost] for row in edge],
                [row.val.mean for row in edge],
                where="post",
                color=MUTED,
                linewidth=1.2,
                label="frontier",
                zorder=1,
            )
            for row in sorted(known, key=lambda row: style.colours[row.setting] != MUTED):
                on_edge = row in edge
                axes.errorbar(
                    row.costs[cost],
                    row.val.mean,
                    yerr=None if isnan(row.val.sd) else row.val.sd,
                    fmt=style.markers[row.setting],
                    color=style.colours[row.setting],
                    markersize=8 if on_edge else 6,
                    markeredgecolor=INK if on_edge else PAPER,
                    markeredgewidth=1.4 if on_edge else 0.6,
                    elinewidth=1,
                    zorder=3 if on_edge else 2,
                )
            if max(costs) > 8 * min(costs) > 0:
                axes.set_xscale("log")
            else:
                axes.margins(x=0.15)
            if cost != "train_seconds":
                axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: quantity(x)))
                axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: ""))
            axes.set_xlabel(label)
            axes.set_ylabel("validation accuracy, %")
            for name, colour, marker in style.legend:
                axes.plot([], [], ls="", marker=marker, color=colour, ms=6, label=name)
            handles, names = axes.get_legend_handles_labels()
            columns = 2 if max(map(len, names), default=0) < 30 else 1
            fig.legend(handles, names, loc="outside lower center", ncols=columns)
        alt = f"Validation accuracy against {label.split(',')[0]}, the frontier marked"
        pictures.append(Picture(f"cost-{cost.replace('_', '-')}", alt, fig))
    return pictures


# ------------------------------------------------------------------ importance, parallel axes


def importance_chart(study: Study, shares: dict[str, float], label: str, file: str) -> Picture:
    """A bar for each key."""
    with styled():
        fig = Figure(figsize=(8.4, 0.9 + 0.34 * len(shares)), layout="constrained")
        axes = fig.add_subplot()
        names = [study.short(key) for key in shares]
        bars = axes.barh(names, [100 * share for share in shares.values()], color=PALETTE[0])
        axes.bar_label(bars, fmt="%.0f", padding=3, color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 109)
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    return Picture(file, f"{label} by key", fig)


def parallel_chart(study: Study, value: str, label: str, scale: float) -> Picture | None:
    """Each run as a line over an axis for each key, coloured by a figure of its result.json."""
    keys = study.keys
    runs = [r for r in study.finished if isinstance(r.result.get(value), int | float)]
    runs = [r for r in runs if not isnan(r.result[value])]
    runs = runs[:: -(-len(runs) // MOST_LINES) or 1]
    if len(keys) < 2 or len(runs) < 2:
        return None
    figures = [scale * run.result[value] for run in runs]
    norm = Normalize(min(figures), max(figures))
    with styled():
        width = max(6.0, min(12.0, 1.9 * (len(keys) + 1)))
        fig = Figure(figsize=(width, 4.2), layout="constrained")
        axes = fig.add_subplot()
        columns = [_positions(study.values[key], [r.settings[key] for r in runs]) for key in keys]
        ends = [(0.0, f"{min(figures):.4g}"), (1.0, f"{max(figures):.4g}")]
        columns.append(([float(norm(figure)) for figure in figures], ends))
        places = np.array([places for places, _ in columns])
        for n in sorted(range(len(runs)), key=figures.__getitem__):
            colour = COLOUR_MAP(norm(figures[n]))
            axes.plot(range(len(columns)), places[:, n], color=colour, lw=1.2, alpha=0.8)
        for x, (_, ticks) in enumerate(columns):
            axes.axvline(x, color=MUTED, lw=1)
            for y, text in ticks:
                axes.annotate(
                    _plain(charts.shortened(text, 18)),
                    (x, y),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
                )
        names = [*(study.short(key) for key in keys), label]
        axes.set_xticks(range(len(columns)), names)
        axes.set_xlim(-0.1, len(columns) - 0.6)
        axes.set_ylim(-0.06, 1.06)
        axes.yaxis.set_visible(False)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return Picture("parallel", f"{label} of each run over the values of all keys", fig)


def _positions(
    values: Sequence[str], settings: Sequence[str]
) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights from 0 to 1 for the settings, and labelled ticks; many numbers share a scale."""
    numbers = [_number(value) for value in values]
    if len(values) > len(PALETTE) and not any(isnan(number) for number in numbers):
        low, high = min(numbers), max(numbers)
        log = low > 0 and high > 20 * low
        to = np.log if log else (lambda x: x)
        span = to(high) - to(low) or 1.0
        heights = [float((to(_number(value)) - to(low)) / span) for value in settings]
        return heights, [(0.0, f"{low:g}"), (1.0, f"{high:g}")]
    place = {value: n / max(1, len(values) - 1) for n, value in enumerate(values)}
    step = -(-len(values) // 12)
    ticks = [(height, value) for value, height in list(place.items())[::step]]
    return [place[value] for value in settings], ticks


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def quantity(number: float) -> str:
    """Three digits and a unit: `269722` -> "270 k", `40551040` -> "40.6 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"

"""The pictures of a report: each as PNG for documents, and as SVG that takes the page's colours."""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from resnet_lab import charts
from resnet_lab.report.runs import Study, epochs, gradients
from resnet_lab.report.statistics import Effect, Setting, Spread, Summary, curve, frontier
from resnet_lab.style import GRID, INK, MUTED, PALETTE, PAPER, STYLE

MARKERS = ("o", "s", "^", "D", "v", "P")
PAGE_COLOURS = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper"}

COST_LABELS = {
    "params": "parameters",
    "macs": "multiply-adds per image",
    "train_seconds": "training time, s",
}
MOST_ROWS = 40  # of a chart with a line of text for each setting


@dataclass(frozen=True)
class Picture:
    """`file` is the name of the PNG, `svg` the same picture for inside a page."""

    file: str
    alt: str
    svg: str
    png: bytes


def picture(fig: Figure, file: str, alt: str) -> Picture:
    png, svg = io.BytesIO(), io.StringIO()
    fig.savefig(png, format="png", dpi=200, facecolor="white")
    # The salt keeps the ids of two pictures in one page apart.
    with matplotlib.rc_context({"svg.hashsalt": file}):
        fig.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Picture(file, alt, _for_page(svg.getvalue()), png.getvalue())


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


# ------------------------------------------------------------------ who looks like what


@dataclass(frozen=True)
class Looks:
    """One colour and marker a setting, the same in every picture.

    `panels` are the settings drawn together, under a title; `left_out` says in a sentence which
    are not drawn one by one, or is empty. `legend` names colours and markers.
    """

    colours: dict[Setting, str]
    markers: dict[Setting, str]
    labels: dict[Setting, str]
    panels: list[tuple[str, list[Setting]]]
    legend: list[tuple[str, str, str]]
    left_out: str


def looks(study: Study, rows: Sequence[Summary]) -> Looks:
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
    if not factors or not by_values or len(by_values[0][1]) > len(MARKERS):
        return _best_looks(study, rows)
    index, rests = by_values[0]
    key, others = factors[index], factors[:index] + factors[index + 1 :]
    hue = dict(zip(values[key], PALETTE, strict=False))
    shape = dict(zip(rests, MARKERS, strict=False))
    rest = {setting: setting[:index] + setting[index + 1 :] for setting in settings}
    legend = [(f"{study.short(key)}={value}", colour, "o") for value, colour in hue.items()]
    if others:
        legend += [(_named(study, others, part), MUTED, mark) for part, mark in shape.items()]
    return Looks(
        {setting: hue[setting[index]] for setting in settings},
        {setting: shape[rest[setting]] for setting in settings},
        {setting: f"{study.short(key)}={setting[index]}" for setting in settings},
        [(_named(study, others, part), [s for s in settings if rest[s] == part]) for part in rests],
        legend,
        "",
    )


def _best_looks(study: Study, rows: Sequence[Summary]) -> Looks:
    scored = [row for row in rows if row.val.n] or [row for row in rows if row.test.n] or list(rows)
    ranked = sorted(scored, key=lambda row: -row.val.mean)
    drawn = [row.setting for row in (ranked[: len(PALETTE)])]
    colours = {row.setting: MUTED for row in rows} | dict(zip(drawn, PALETTE, strict=False))
    labels = {setting: _named(study, study.factors, setting) or "all runs" for setting in colours}
    left_out = (
        f"Of {len(rows):,} settings the {len(drawn)} best by validation are drawn in colour."
        if len(drawn) < len(rows)
        else ""
    )
    legend = [(labels[setting], colours[setting], "o") for setting in drawn] if drawn else []
    markers = dict.fromkeys(colours, "o")
    return Looks(colours, markers, labels, [("", drawn)], legend, left_out)


def _named(study: Study, keys: Iterable[str], setting: Setting) -> str:
    pairs = zip(keys, setting, strict=True)
    return ", ".join(f"{study.short(key)}={value}" for key, value in pairs)


# ------------------------------------------------------------------ settings


def settings_chart(study: Study, rows: Sequence[Summary]) -> Picture | None:
    """Every run as a dot, every setting as a mean with its interval; val above test."""
    shown = [row for row in rows if row.runs]
    if not shown or len(shown) > MOST_ROWS:
        return None
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(6.4, 1.15 + 0.42 * len(shown)), layout="constrained")
        axes = fig.add_subplot()
        dots: list[float] = []
        for y, row in enumerate(shown):
            for split, offset, colour in (("val", -0.16, PALETTE[0]), ("test", 0.16, PALETTE[1])):
                spread = getattr(row, split)
                if not spread.n:
                    continue
                points = [
                    100 * r.result[f"{split}/acc"] for r in row.runs if f"{split}/acc" in r.result
                ]
                dots += points
                where = [y + offset] * len(points)
                axes.scatter(points, where, s=16, color=colour, alpha=0.4, linewidths=0)
                if spread.half is not None:
                    low, high = spread.mean - spread.half, spread.mean + spread.half
                    axes.plot([low, high], where[:2], color=colour, linewidth=1.4)
                axes.plot(
                    spread.mean,
                    y + offset,
                    marker="|",
                    markersize=9,
                    markeredgewidth=2,
                    color=colour,
                )
        span = max(dots) - min(dots) or 1.0
        axes.set_xlim(min(dots) - 0.25 * span, max(dots) + 0.25 * span)
        axes.set_ylim(len(shown) - 0.45, -0.55)
        labels = [_named(study, study.factors, row.setting) or study.name for row in shown]
        axes.set_yticks(
            range(len(shown)),
            [
                f"{label}  (n={len(row.runs)})" + ("  best" if row.best and len(shown) > 1 else "")
                for label, row in zip(labels, shown, strict=True)
            ],
        )
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("accuracy, %")
        for split, colour in (("validation", PALETTE[0]), ("test", PALETTE[1])):
            axes.plot(
                [], [], color=colour, marker="|", markersize=9, markeredgewidth=2, label=split
            )
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        alt = "Validation and test accuracy of every setting: runs, means and 95% intervals"
        return picture(fig, "settings.png", alt)


# ------------------------------------------------------------------ effects


def effects_chart(study: Study, found: Sequence[Effect]) -> Picture | None:
    """Mean paired differences around zero with their intervals; validation above test."""
    if not found or len(found) > MOST_ROWS:
        return None
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(6.4, 1.15 + 0.42 * len(found)), layout="constrained")
        axes = fig.add_subplot()
        axes.axvline(0, color=MUTED, linewidth=1)
        means: list[float] = []
        for y, effect in enumerate(found):
            for spread, offset, colour in (
                (effect.val, -0.16, PALETTE[0]),
                (effect.test, 0.16, PALETTE[1]),
            ):
                if spread.n:
                    means.append(spread.mean)
                    half = spread.half or 0.0
                    axes.plot(
                        [spread.mean - half, spread.mean + half], [y + offset] * 2, color=colour
                    )
                    axes.plot(spread.mean, y + offset, marker="o", markersize=5, color=colour)
        reach = 1.6 * max(*(abs(mean) for mean in means), 0.05)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(len(found) - 0.45, -0.55)
        axes.set_yticks(range(len(found)), [effect_label(study, effect) for effect in found])
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("difference in accuracy, percentage points")
        for split, colour in (("validation", PALETTE[0]), ("test", PALETTE[1])):
            axes.plot([], [], color=colour, marker="o", markersize=5, label=split)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        alt = "Effect of each factor: mean paired differences with 95% intervals"
        return picture(fig, "effects.png", alt)


def effect_label(study: Study, effect: Effect) -> str:
    pairs = max(effect.val.n, effect.test.n)
    return f"{study.short(effect.key)}: {effect.here} → {effect.there}  (n={pairs})"


# ------------------------------------------------------------------ learning curves


def curve_charts(rows: Sequence[Summary], look: Looks) -> list[Picture]:
    """Validation accuracy over training loss by epoch, a picture for each panel of `look`.

    The line is the mean of the finished runs, the band one standard deviation to each side;
    each run that has not finished is a thin dashed line of its own.
    """
    of = {row.setting: row for row in rows}
    read = {
        setting: [(run, epochs(run.folder)[0]) for run in of[setting].jobs]
        for _, settings in look.panels
        for setting in settings
    }
    lines: dict[tuple[Setting, str], list[tuple[int, Spread]]] = {}
    for setting, found in read.items():
        done = [rows_ for run, rows_ in found if run.state == "finished"]
        for column in ("val/acc", "train/loss"):
            lines[setting, column] = curve(done, column)
    limits = {column: _limits(read.values(), column) for column in ("val/acc", "train/loss")}
    pictures = []
    for number, (title, settings) in enumerate(look.panels):
        if not any(rows_ for setting in settings for _, rows_ in read[setting]):
            continue
        with matplotlib.rc_context(STYLE):
            fig = Figure(figsize=(5.2, 5.4), layout="constrained")
            top, bottom = fig.subplots(2, 1, sharex=True)
            for axes, column, scale in ((top, "val/acc", 100), (bottom, "train/loss", 1)):
                for setting in settings:
                    colour = look.colours[setting]
                    name = f"{look.labels[setting]} (n={len(of[setting].runs)})"
                    _band(axes, lines[setting, column], scale, colour, name)
                    for run, rows_ in read[setting]:
                        points = [(e, r[column]) for e, r in sorted(rows_.items()) if column in r]
                        if run.state != "finished" and points:
                            xs, ys = zip(*points, strict=True)
                            axes.plot(
                                xs, [scale * y for y in ys], color=colour, lw=0.9, ls=(0, (3, 2))
                            )
                if limit := limits[column]:
                    axes.set_ylim(scale * limit[0], scale * limit[1])
            top.set_ylabel("validation accuracy, %")
            bottom.set_ylabel("training loss, nats")
            bottom.set_xlabel("epoch")
            bottom.xaxis.get_major_locator().set_params(integer=True)
            top.set_title(title)
            handles, names = top.get_legend_handles_labels()
            columns = 2 if max(map(len, names), default=0) < 34 else 1
            fig.legend(handles, names, loc="outside lower center", ncols=columns)
            file = f"curves{f'-{number + 1}' if len(look.panels) > 1 else ''}.png"
            alt = f"Validation accuracy and training loss by epoch{f', {title}' if title else ''}"
            pictures.append(picture(fig, file, alt))
    return pictures


def _band(
    axes: Axes, points: Sequence[tuple[int, Spread]], scale: float, colour: str, name: str
) -> None:
    if not points:
        axes.plot([], [], color=colour, lw=0.9, ls=(0, (3, 2)), label=name)
        return
    xs = [epoch for epoch, _ in points]
    means = [scale * s.mean for _, s in points]
    # A run of one epoch is a dot; a line through one point would be nothing.
    axes.plot(xs, means, color=colour, label=name, marker="o" if len(xs) == 1 else "", ms=4)
    sds = [scale * (s.sd or 0.0) for _, s in points]
    low = [mean - sd for mean, sd in zip(means, sds, strict=True)]
    high = [mean + sd for mean, sd in zip(means, sds, strict=True)]
    axes.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)


def _limits(
    read: Iterable[Sequence[tuple[object, dict[int, dict[str, float]]]]], column: str
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
    if column == "train/loss":
        high = min(high, 1.5 * figures[int(0.98 * (len(figures) - 1))])
    margin = 0.05 * (high - low) or 0.01
    return low - margin, high + margin


# ------------------------------------------------------------------ gradients


def gradient_charts(rows: Sequence[Summary], look: Looks) -> list[Picture]:
    """For each panel of `look`: the gradient of every block, and of three stages by epoch.

    Means over the finished runs of a setting that measured it.
    """
    lines = {
        row.setting: charts.GradientLine(
            look.labels[row.setting],
            look.colours[row.setting],
            [found for run in row.runs if (found := gradients(run.folder))],
        )
        for row in rows
        if row.setting in look.colours
    }
    drawn = [
        (title, [lines[setting] for setting in settings if lines[setting].runs])
        for title, settings in look.panels
    ]
    limits = charts.gradient_limits([line for _, panel in drawn for line in panel])
    pictures = []
    for number, (title, panel) in enumerate(drawn):
        if not panel:
            continue
        with matplotlib.rc_context(STYLE):
            fig = charts.gradients(panel, title, limits)
            file = f"gradients{f'-{number + 1}' if len(drawn) > 1 else ''}.png"
            alt = f"Gradient norms by block and by epoch{f', {title}' if title else ''}"
            pictures.append(picture(fig, file, alt))
    return pictures


# ------------------------------------------------------------------ costs


def cost_charts(rows: Sequence[Summary], look: Looks) -> list[Picture]:
    """Mean validation accuracy of each setting against what it costs, the frontier as a line."""
    pictures = []
    for cost, label in COST_LABELS.items():
        known = [row for row in rows if row.val.n and not isnan(row.costs[cost])]
        if not known:
            continue
        with matplotlib.rc_context(STYLE):
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
            for row in sorted(known, key=lambda row: look.colours[row.setting] != MUTED):
                on_edge = row in edge
                axes.errorbar(
                    row.costs[cost],
                    row.val.mean,
                    yerr=row.val.sd,
                    fmt=look.markers[row.setting],
                    color=look.colours[row.setting],
                    markersize=8 if on_edge else 6,
                    markeredgecolor=INK if on_edge else PAPER,
                    markeredgewidth=1.4 if on_edge else 0.6,
                    elinewidth=1,
                    zorder=3 if on_edge else 2,
                )
            costs = [row.costs[cost] for row in known]
            if max(costs) > 8 * min(costs) > 0:
                axes.set_xscale("log")
            else:
                axes.margins(x=0.15)
            if cost != "train_seconds":
                axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: quantity(x)))
                axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: ""))
            axes.set_xlabel(label)
            axes.set_ylabel("validation accuracy, %")
            for name, colour, marker in look.legend:
                axes.plot([], [], ls="", marker=marker, color=colour, ms=6, label=name)
            handles, names = axes.get_legend_handles_labels()
            columns = 2 if max(map(len, names), default=0) < 30 else 1
            fig.legend(handles, names, loc="outside lower center", ncols=columns)
            alt = f"Validation accuracy against {label.split(',')[0]}, the frontier marked"
            pictures.append(picture(fig, f"cost-{cost.replace('_', '-')}.png", alt))
    return pictures


def quantity(number: float) -> str:
    """Three digits and a unit: `269722` -> "270 k", `40551040` -> "40.6 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"

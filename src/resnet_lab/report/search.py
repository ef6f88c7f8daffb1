"""What a report says of a search: how it went, what mattered, and where good values lie."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_lab.report.page import Block, Cell, Column, Grid, Table, Text
from resnet_lab.report.plots import Picture, picture
from resnet_lab.report.runs import Run, Study, epochs
from resnet_lab.style import INK, MUTED, PALETTE, STYLE

FEW = 4  # finished trials; with fewer nothing can be said of what mattered
MOST_SLICES = 9
EARLY_TO_LATE = LinearSegmentedColormap.from_list("trials", ["#a6cbe5", PALETTE[0], "#08243f"])
NAMES = {
    "val/acc": "validation accuracy, %",
    "val/loss": "validation loss, nats",
    "train_seconds": "training time, s",
    "params": "parameters",
    "macs": "multiply-adds per image",
}


@dataclass(frozen=True)
class Objective:
    """One of the figures of result.json that a search is for; `scale` is to what is shown."""

    key: str
    up: bool

    @property
    def name(self) -> str:
        return NAMES.get(self.key, self.key)

    @property
    def scale(self) -> float:
        return 100.0 if self.key.endswith("/acc") else 1.0

    def of(self, run: Run) -> float:
        """What a run has reached, as it is shown; NaN where that is not known.

        Of a pruned one that is its last validation.
        """
        figure = run.result.get(self.key)
        if run.state == "pruned":
            rows = epochs(run.folder)[0]
            figure = rows[max(rows)].get(self.key) if rows else None
        good = isinstance(figure, int | float) and isfinite(figure)
        return self.scale * float(figure) if good else nan  # type: ignore[arg-type]


def search_blocks(study: Study) -> list[Block]:
    """The section "Search"; nothing where the study is none."""
    if study.search is None:
        return []
    told = study.search
    objectives = [
        Objective(key, direction == "maximize")
        for key, direction in zip(told["objectives"], told["directions"], strict=True)
    ]
    wanted = " and ".join(f"{o.key} as {'high' if o.up else 'low'} as can be" for o in objectives)
    pruner = "" if told["pruner"] == "none" else f", hopeless ones stopped by {told['pruner']}"
    blocks: list[Block] = [
        Text(
            f"{len(study.runs):,} of {told['n_trials']:,} trials, chosen by {told['sampler']}"
            f"{pruner}. Looked for: {wanted}."
        ),
        Table(
            [Column("key", number=False), Column("searched", number=False)],
            [[Cell(key), Cell(_space(one["attributes"]))] for key, one in told["space"].items()],
        ),
    ]
    first = objectives[0]
    if not any(first.of(run) == first.of(run) for run in study.runs):
        return [*blocks, Text("No trial has reached a figure yet.")]
    blocks.append(Grid([history_chart(study, objectives)]))
    for objective in objectives:
        blocks += _importance(study, objective)
    blocks.append(Grid([slices_chart(study, objective) for objective in objectives]))
    if len(study.keys) > MOST_SLICES:
        blocks.append(Text(f"The first {MOST_SLICES} of {len(study.keys)} keys.", quiet=True))
    return blocks


def _space(of: dict[str, Any]) -> str:
    if "choices" in of:
        return "one of " + ", ".join(map(str, of["choices"]))
    scale = ", on a logarithmic scale" if of["log"] else ""
    steps = f", in steps of {of['step']:g}" if of["step"] not in (None, 1) else ""
    return f"{of['low']:g} to {of['high']:g}{scale}{steps}"


# ------------------------------------------------------------------ history


def history_chart(study: Study, objectives: Sequence[Objective]) -> Picture:
    """What each trial reached in its turn, and the best so far as a line."""
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(6.4, 1.0 + 2.6 * len(objectives)), layout="constrained")
        panels = fig.subplots(len(objectives), 1, sharex=True, squeeze=False)[:, 0]
        for axes, objective in zip(panels, objectives, strict=True):
            _history(axes, study, objective)
        panels[-1].set_xlabel("trial")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, names = panels[0].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside lower center", ncols=4)
        alt = "What each trial of the search reached, and the best so far"
        return picture(fig, "search-history.png", alt)


def _history(axes: Axes, study: Study, objective: Objective) -> None:
    points = [(n, run.state, objective.of(run)) for n, run in enumerate(study.runs)]
    best, line = None, []
    for n, state, value in points:
        if state == "finished" and value == value:
            better = max if objective.up else min
            best = value if best is None else better(best, value)
        if best is not None:
            line.append((n, best))
    if line:
        axes.step(*zip(*line, strict=True), where="post", color=PALETTE[0], label="best so far")
    for state, style in (
        ("finished", {"color": PALETTE[0], "s": 22}),
        ("pruned", {"facecolors": "none", "edgecolors": PALETTE[1], "s": 22}),
    ):
        shown = [(n, value) for n, of, value in points if of == state and value == value]
        if shown:
            axes.scatter(*zip(*shown, strict=True), label=state, zorder=3, **style)  # type: ignore[arg-type]
    lost = [n for n, _, value in points if value != value and study.runs[n].state == "failed"]
    if lost:
        axes.scatter(
            *(lost, [0.03] * len(lost)),
            marker="x",
            color=MUTED,
            s=26,
            label="failed (no figure)",
            transform=axes.get_xaxis_transform(),
        )
    axes.set_ylabel(objective.name)
    axes.set_xlim(-0.6, len(points) - 0.4)


# ------------------------------------------------------------------ importance


def importance(study: Study, objective: Objective) -> dict[str, float]:
    """The share of the objective's variance over the space that each key explains (fANOVA).

    Hutter, Hoos and Leyton-Brown, ICML 2014, as Optuna computes it. Empty with too few finished
    trials, or where they all reached the same.
    """
    import optuna

    from resnet_lab.study import quiet

    assert study.search is not None
    space = study.search["space"]
    found = [
        (run, value) for run in study.finished if (value := objective.of(run)) == objective.of(run)
    ]
    if len(found) < FEW or len({value for _, value in found}) == 1:
        return {}
    with quiet():
        kinds = {key: _distribution(one["attributes"]) for key, one in space.items()}
        trials = optuna.create_study()
        for run, value in found:
            params = {
                key: _value(run.settings[key], one["attributes"]) for key, one in space.items()
            }
            trials.add_trial(
                optuna.trial.create_trial(params=params, distributions=kinds, value=value)
            )
        judge = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares: dict[str, float] = optuna.importance.get_param_importances(trials, evaluator=judge)
    return shares


def _distribution(of: dict[str, Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if "choices" in of:
        return CategoricalDistribution(of["choices"])
    return FloatDistribution(of["low"], of["high"], log=of["log"])


def _value(setting: str, of: dict[str, Any]) -> Any:
    if "choices" in of:
        return next(c for c in of["choices"] if str(c).strip("'\"") == setting)
    return min(max(float(setting), of["low"]), of["high"])  # it was rounded to be shown


def _importance(study: Study, objective: Objective) -> list[Block]:
    if importlib.util.find_spec("optuna") is None:
        return [
            Text(
                "What mattered is not shown: the package optuna is missing; "
                "pip install -e '.[optuna]'.",
                quiet=True,
            )
        ]
    shares = importance(study, objective)
    if not shares:
        return [
            Text(f"Too few finished trials to say what mattered for {objective.key}.", quiet=True)
        ]
    names = [study.short(key) for key in shares]
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(6.4, 0.9 + 0.34 * len(shares)), layout="constrained")
        axes = fig.add_subplot()
        bars = axes.barh(names, [100 * share for share in shares.values()], color=PALETTE[0])
        axes.bar_label(bars, fmt="%.0f", padding=3, color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 109)
        axes.set_xlabel(f"share of the variance of {objective.key} over the space, %")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        file = f"search-importance-{objective.key.replace('/', '-').replace('_', '-')}.png"
        chart = picture(fig, file, f"How much each key mattered for {objective.key}")
    return [
        Grid([chart]),
        Text(
            f"Importance by fANOVA, from {len(study.finished):,} finished trials: a guide to what "
            "to search next, not a test; with few trials it changes from search to search.",
            quiet=True,
        ),
    ]


# ------------------------------------------------------------------ slices


def slices_chart(study: Study, objective: Objective) -> Picture:
    """The objective against each key by itself; later trials are darker."""
    assert study.search is not None
    keys = list(study.search["space"])[:MOST_SLICES]
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(0.9 + 2.9 * columns, 0.4 + 2.6 * rows), layout="constrained")
        panels = fig.subplots(rows, columns, sharey=True, squeeze=False)
        known = [
            (n, run, value)
            for n, run in enumerate(study.runs)
            if (value := objective.of(run)) == value
        ]
        for number, axes in enumerate(panels.flat):
            if number >= len(keys):
                axes.set_visible(False)
                continue
            key, of = keys[number], study.search["space"][keys[number]]["attributes"]
            if choices := [str(choice).strip("'\"") for choice in of.get("choices", ())]:
                axes.set_xticks(range(len(choices)), choices)
                axes.set_xlim(-0.5, len(choices) - 0.5)
                if max(map(len, choices)) * len(choices) > 24:
                    axes.tick_params(axis="x", rotation=30)
            elif of["log"]:
                axes.set_xscale("log")
            for state, marker in (("finished", "o"), ("pruned", "v")):
                shown = [(n, run, value) for n, run, value in known if run.state == state]
                settings = [run.settings[key] for _, run, _ in shown]
                dots = axes.scatter(
                    [choices.index(s) if choices else float(s) for s in settings],
                    [value for *_, value in shown],
                    c=[n for n, *_ in shown],
                    cmap=EARLY_TO_LATE,
                    vmin=0,
                    vmax=max(1, len(study.runs) - 1),
                    marker=marker,
                    s=24,
                    edgecolors="white",
                    linewidths=0.4,
                )
            axes.set_xlabel(study.short(key))
            if number % columns == 0:
                axes.set_ylabel(objective.name)
        bar = fig.colorbar(dots, ax=panels, label="trial", aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()
        pruned = any(run.state == "pruned" for _, run, _ in known)
        if pruned:
            panels[0, 0].set_title(
                "triangles: pruned, last validation", fontsize=8.5, fontweight="normal"
            )
        file = f"search-slices-{objective.key.replace('/', '-').replace('_', '-')}.png"
        return picture(fig, file, f"{objective.name} against the values of each key")

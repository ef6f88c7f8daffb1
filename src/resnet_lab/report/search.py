"""The section on a search: its history, the importance of each key, and where good values lie."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_lab.report.plots import (
    COLOUR_MAP,
    Picture,
    importance_chart,
    parallel_chart,
    styled,
)
from resnet_lab.report.runs import Run, Study, epochs
from resnet_lab.run.state import State
from resnet_lab.style import MUTED, PALETTE

FEW = 4  # finished trials; with fewer nothing can be said of what mattered
MOST_SLICES = 9
NAMES = {
    "val/acc": "validation accuracy, %",
    "val/loss": "validation loss, nats",
    "train_seconds": "training time, s",
    "params": "parameters",
    "macs": "multiply-adds per image",
}


@dataclass(frozen=True)
class Objective:
    """A figure of result.json that a search maximizes or minimizes; `scale` is to what is shown."""

    key: str
    up: bool

    @property
    def name(self) -> str:
        return NAMES.get(self.key, self.key)

    @property
    def scale(self) -> float:
        return 100.0 if self.key.endswith("/acc") else 1.0

    def of(self, run: Run) -> float:
        """The figure of a run as it is shown, of a pruned one its last validation; NaN: unknown."""
        figure = run.result.get(self.key)
        if run.state == "pruned":
            rows = epochs(run.folder)[0]
            figure = rows[max(rows)].get(self.key) if rows else None
        good = isinstance(figure, int | float) and isfinite(figure)
        return self.scale * float(figure) if good else nan  # type: ignore[arg-type]


@dataclass
class SearchPart:
    """The section on a search: sentences, the space as rows of (key, values), and pictures."""

    text: str
    space: list[tuple[str, str]]
    pictures: list[Picture]
    notes: list[str]


def search_part(study: Study) -> SearchPart | None:
    """None where the study is no search."""
    if study.search is None:
        return None
    given = study.search
    objectives = [
        Objective(key, direction == "maximize")
        for key, direction in zip(given["objectives"], given["directions"], strict=True)
    ]
    goal = " and ".join(f"{'maximize' if o.up else 'minimize'} {o.key}" for o in objectives)
    pruner = "" if given["pruner"] == "none" else f", pruned by {given['pruner']}"
    part = SearchPart(
        f"{len(study.runs):,} of {given['n_trials']:,} trials, sampled by {given['sampler']}"
        f"{pruner}. Objective: {goal}.",
        [(key, _space(one["attributes"])) for key, one in given["space"].items()],
        [],
        [],
    )
    if all(isnan(objectives[0].of(run)) for run in study.runs):
        part.notes.append("No trial has reached a figure yet.")
        return part
    part.pictures.append(history_chart(study, objectives))
    for objective in objectives:
        _add_importance(part, study, objective)
        part.pictures.append(slices_chart(study, objective))
    if len(study.keys) > MOST_SLICES:
        part.notes.append(f"The first {MOST_SLICES} of {len(study.keys)} keys.")
    first = objectives[0]
    if chart := parallel_chart(study, first.key, first.name, first.scale):
        part.pictures.append(chart)
    return part


def _space(of: dict[str, Any]) -> str:
    if "choices" in of:
        return "one of " + ", ".join(map(str, of["choices"]))
    scale = ", on a logarithmic scale" if of["log"] else ""
    steps = f", in steps of {of['step']:g}" if of["step"] not in (None, 1) else ""
    return f"{of['low']:g} to {of['high']:g}{scale}{steps}"


# ------------------------------------------------------------------ history


def history_chart(study: Study, objectives: Sequence[Objective]) -> Picture:
    """The figure of each trial in its turn, and the best so far as a line."""
    with styled():
        fig = Figure(figsize=(6.4, 1.0 + 2.6 * len(objectives)), layout="constrained")
        panels = fig.subplots(len(objectives), 1, sharex=True, squeeze=False)[:, 0]
        for axes, objective in zip(panels, objectives, strict=True):
            _history(axes, study, objective)
        panels[-1].set_xlabel("trial")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, names = panels[0].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside lower center", ncols=4)
        return Picture("search-history", "Each trial of the search, and the best so far", fig)


def _history(axes: Axes, study: Study, objective: Objective) -> None:
    points = [(n, run.state, objective.of(run)) for n, run in enumerate(study.runs)]
    best, line = None, []
    for n, state, value in points:
        if state == State.FINISHED and value == value:
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


def _add_importance(part: SearchPart, study: Study, objective: Objective) -> None:
    if importlib.util.find_spec("optuna") is None:
        part.notes.append(
            "Importance is not shown: the package optuna is missing; pip install -e '.[optuna]'."
        )
        return
    shares = importance(study, objective)
    if not shares:
        part.notes.append(f"Too few finished trials for the importance of keys ({objective.key}).")
        return
    label = f"share of the variance of {objective.key} over the space, %"
    file = f"search-importance-{_file(objective)}"
    part.pictures.append(importance_chart(study, shares, label, file))
    part.notes.append(
        f"Importance by fANOVA, from {len(study.finished):,} finished trials: a guide to what "
        "to search next, not a test; with few trials it changes from search to search."
    )


# ------------------------------------------------------------------ slices


def slices_chart(study: Study, objective: Objective) -> Picture:
    """The objective against each key by itself; later trials are darker."""
    assert study.search is not None
    keys = list(study.search["space"])[:MOST_SLICES]
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    with styled():
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
                    cmap=COLOUR_MAP,
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
        alt = f"{objective.name} against the values of each key"
        return Picture(f"search-slices-{_file(objective)}", alt, fig)


def _file(objective: Objective) -> str:
    return objective.key.replace("/", "-").replace("_", "-")

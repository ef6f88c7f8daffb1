"""From studies to the page: what the template is given."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files as resources
from math import isnan, nan
from os.path import relpath
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from jinja2.filters import do_mark_safe

from resnet_lab import charts
from resnet_lab.config.errors import UserError
from resnet_lab.report import plots
from resnet_lab.report.plots import Picture, quantity, setting_names
from resnet_lab.report.runs import Reference, Run, Study, reference
from resnet_lab.report.search import search_part
from resnet_lab.report.stats import (
    FEW,
    Spread,
    Summary,
    accuracy,
    effects,
    importance,
    pivots,
    pooled,
    spread,
    summarise,
)
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.state import State
from resnet_lab.screen import duration

MARKER = "resnet-lab-report"  # a meta element of this name lists the files of the report
# More than this nobody reads; results.csv has the rest, and the page says so.
MOST_SETTINGS, MOST_VALUES, MOST_EFFECTS, MOST_COMMANDS = 60, 20, 100, 20
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


@dataclass
class Page:
    """The text of report.html without its files' names, and its pictures."""

    content: dict[str, Any]
    pictures: list[Picture]

    def html(self, files: Sequence[str]) -> str:
        """One file that needs no other and no network; script sorts its tables, and no more."""
        package = resources("resnet_lab.report")
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        environment.filters |= FILTERS
        template = environment.from_string(package.joinpath("page.html.j2").read_text("utf-8"))
        return template.render(
            **self.content,
            files=files,
            marker=MARKER,
            css=do_mark_safe(package.joinpath("page.css").read_text("utf-8")),
            script=do_mark_safe(package.joinpath("sort.js").read_text("utf-8")),
        )


def compose(studies: Sequence[Study], folder: Path) -> Page:
    """The page of some studies, which will be in `folder`."""
    runs = [run for study in studies for run in study.runs]
    parts = [_part(study, folder, n if len(studies) > 1 else 0) for n, study in enumerate(studies)]
    commands = [command for study in studies for command in study.commands]
    notes = [note for study in studies for note in study.notes]
    notes += [note for part in parts for note in part["notes"]]
    if len(studies) > 1:
        notes.insert(
            0,
            f"These runs are on {len(studies)} different data sets or splits, whose figures cannot "
            "be compared: each has its own section.",
        )
    states = Counter(str(run.state) for run in runs)
    listed = ", ".join(f"{n:,} {state}" for state, n in states.most_common())
    content = {
        "title": studies[0].name if len(studies) == 1 else f"{len(runs):,} runs",
        "subtitle": f"{_count(len(runs), 'job')}: {listed}. "
        f"Report of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        "notes": notes,
        "parts": parts,
        "commands": commands[:MOST_COMMANDS],
        "commands_left_out": max(0, len(commands) - MOST_COMMANDS),
        "machines": machines(runs),
    }
    pictures = [
        picture
        for part in parts
        for group in (*part["charts"].values(), part["search"].pictures if part["search"] else [])
        for picture in group
    ]
    return Page(content, pictures)


def _part(study: Study, folder: Path, number: int) -> dict[str, Any]:
    """Everything on the runs of one data set."""
    rows = summarise(study)
    charts.fonts("".join(value for values in study.values.values() for value in values))
    style = plots.assign_styles(study, rows)
    names = setting_names(study, rows)
    numbered = any(name == "S1" for name in names.values())
    grid = study.search is None  # trials of a search share few values: there are no pairs
    found = effects(study) if grid else []
    drawn: dict[str, Sequence[Picture | None]] = {
        "settings": [plots.settings_chart(study, rows)],
        "effects": [plots.effects_chart(study, found[: plots.MOST_ROWS])],
        "importance": _importance(study) if grid else [],
        "curves": plots.curve_charts(rows, style),
        "gradients": plots.gradient_charts(rows, style),
        "costs": plots.cost_charts(rows, style),
    }
    prefix = f"{number + 1}-" if number else ""
    pictures = {
        key: [Picture(prefix + p.file, p.alt, p.figure) for p in group if p is not None]
        for key, group in drawn.items()
    }
    shown, sentences = shown_settings(rows, MOST_SETTINGS)
    if not study.finished:
        sentences.append("No job has finished yet, so there is no final figure.")
    elif not any(row.val.n for row in rows):
        sentences.append("These runs have no validation set, so no setting is chosen as best.")
    references, notes = _references(rows, names)
    return {
        "study": study,
        "same": _same_in_all(study),
        "notes": [*notes, *_warnings(study)],
        "cards": _cards(study, rows, names),
        "search": search_part(study),
        "rows": shown,
        "names": names,
        "numbered": numbered,
        "factors": [study.short(key) for key in study.factors] or [""],
        "key_names": [study.short(key) for key in study.keys],
        "sentences": sentences,
        "method": _method(rows),
        "effects": found[:MOST_EFFECTS],
        "n_effects": sum(effect.p_val == effect.p_val for effect in found),
        "effects_left_out": f" The first {MOST_EFFECTS} of {len(found):,} comparisons."
        if len(found) > MOST_EFFECTS
        else "",
        "charts": pictures,
        "left_out": style.left_out,
        "pivots": _pivots(study) if grid else [],
        "references": references,
        "runs": [_run(study, run, names, folder) for run in study.runs],
    }


# ------------------------------------------------------------------ figures as text


def _figure(number: float) -> str:
    return DASH if isnan(number) else f"{number:.2f}".replace("-", MINUS)


def _signed(number: float) -> str:
    text = f"{number:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", MINUS)


def _detail(of: Spread, signed: bool = False) -> str:
    """The interval, or of few runs the runs themselves."""
    form = _signed if signed else _figure
    if not isnan(of.low):
        return f"[{form(of.low)}, {form(of.high)}], n={of.n}"
    return "n=1" if of.n == 1 else ", ".join(map(form, of.values))


def _known(number: float) -> str:
    """For sorting; empty where unknown."""
    return "" if isnan(number) else repr(float(number))


FILTERS = {
    "figure": _figure,
    "signed": _signed,
    "detail": _detail,
    "known": _known,
    "quantity": lambda x: DASH if isnan(x) else quantity(x),
    "duration": lambda x: DASH if isnan(x) else duration(x),
    "p_value": lambda p: f"={p:.3f}" if p >= 0.001 else "<0.001",
}


def plus_minus(of: Spread) -> str:
    """Mean and standard deviation; of one run the mean alone."""
    return _figure(of.mean) + (f" ± {of.sd:.2f}" if of.n > 1 else "")


def counted(row: Summary) -> str:
    """How many jobs of a setting have finished, and of how many where that is not all."""
    n, jobs = len(row.runs), len(row.jobs)
    return f"{n}" if n == jobs else f"{n} of {jobs}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


# ------------------------------------------------------------------ parts of the page


def _cards(
    study: Study, rows: Sequence[Summary], names: dict[tuple[str, ...], str]
) -> list[tuple[str, str, str]]:
    cards = []
    best = next((row for row in rows if row.best), None)
    if best is not None:
        if len(rows) > 1:
            text = ", ".join(best.setting)
            remark = f"{names[best.setting]}: validation {plus_minus(best.val)} %"
            cards.append(("Best by validation", text, remark))
        else:
            name = str(best.runs[0].result.get("model", study.name))
            remark = f"{name}, {_detail(best.val)}"
            cards.append(("Validation accuracy", f"{plus_minus(best.val)} %", remark))
        if best.test.n:
            label = "Its test accuracy" if len(rows) > 1 else "Test accuracy"
            cards.append((label, f"{plus_minus(best.test)} %", _detail(best.test)))
    n_others = len(study.runs) - len(study.finished)
    remark = f"{_count(n_others, 'job')} without a result" if n_others else "none is missing"
    cards.append(
        ("Jobs finished", f"{len(study.finished):,} of {len(study.runs):,}", remark),
    )
    seconds = [
        run.result["train_seconds"] for run in study.finished if "train_seconds" in run.result
    ]
    if seconds:
        remark = f"over {_count(len(seconds), 'run')}"
        cards.append(("Time spent training", duration(sum(seconds)), remark))
    return cards


def _method(rows: Sequence[Summary]) -> str:
    """How intervals and "not apart" come about, in words."""
    parts = []
    if any(not isnan(getattr(row, s).low) for row in rows for s in ("val", "test")):
        parts.append(
            "Intervals: 95%, of the mean, by Student's t over seeds and the binomial error of the "
            "images counted."
        )
    if any(0 < row.val.n < FEW for row in rows):
        parts.append(f"Below {FEW} runs there is no interval: the runs are listed.")
    sd, freedom = pooled(rows, "val")
    if freedom and len(rows) > 1:
        parts.append(
            "“Not apart”: by validation the setting cannot be told from the best at 95%, with the "
            f"spread between seeds pooled over all settings ({sd:.2f} points, {freedom} degree"
            f"{'' if freedom == 1 else 's'} of freedom) and the binomial error of the split."
        )
    elif len(rows) > 1:
        parts.append(
            "Each setting has one run, so nothing is known of the spread between seeds, nor which "
            "settings differ by more than that."
        )
    return " ".join(parts)


def _same_in_all(study: Study) -> list[str]:
    names = {
        "model": "model {}",
        "n_train": "{:,} training images",
        "batch_size": "batch {}",
        "epochs": "{} epochs",
        "seed": "seed {}",
    }
    same = []
    for key, form in names.items():
        values = {run.result.get(key) for run in study.finished}
        if len(values) == 1 and isinstance(next(iter(values)), str if key == "model" else int):
            same.append(form.format(values.pop()))
    return same


def _warnings(study: Study) -> list[str]:
    warnings = []
    unknown = [key for key in study.keys if "?" in study.values[key]]
    if unknown:
        warnings.append(
            f"{', '.join(unknown)}: not known of every run (?), and such runs are compared with no "
            "others."
        )
    machines = {run.result.get("device_name") for run in study.finished}
    if len(machines) > 1:
        warnings.append(
            f"The runs were made on {len(machines)} kinds of device: their training times cannot "
            "be compared."
        )
    return warnings


def shown_settings(rows: Sequence[Summary], most: int) -> tuple[Sequence[Summary], list[str]]:
    """All in their order where they are few, else the best by validation, and a sentence on it."""
    if len(rows) <= most:
        return rows, []
    ranked = sorted(rows, key=lambda row: -row.val.mean if row.val.n else float("inf"))
    return ranked[:most], [
        f"The {most} best of {len(rows):,} settings by validation; results.csv has every run."
    ]


def _importance(study: Study) -> list[Picture | None]:
    if len(study.keys) < 2 or not (shares := importance(study)):
        return []
    label = "share of the variance of validation accuracy, %"
    return [
        plots.importance_chart(study, shares, label, "importance"),
        plots.parallel_chart(study, "val/acc", "validation accuracy, %", 100),
    ]


def _pivots(study: Study) -> list[dict[str, Any]]:
    if not study.finished:
        return []
    names = {"val": "validation accuracy, %", "test": "test accuracy, %"}
    return [
        {
            "title": f"{study.short(row)} and {study.short(column)}: {names[split]}",
            "row": study.short(row),
            "column": study.short(column),
            "columns": list(means.columns),
            "lines": [
                (value, list(zip(means.loc[value], counts.loc[value], strict=True)))
                for value in means.index
            ],
        }
        for row, column, split, means, counts in pivots(study, MOST_VALUES)
    ]


def _run(study: Study, run: Run, names: dict[tuple[str, ...], str], folder: Path) -> dict[str, Any]:
    setting = tuple(run.settings[key] for key in study.factors)
    done = run.state == State.FINISHED
    return {
        "number": names.get(setting, ""),
        "settings": [run.settings[key] for key in study.keys],
        "state": run.state,
        "reason": run.reason,
        **{split: accuracy(run, split) if done else nan for split in ("val", "test")},
        "best_epoch": run.result.get("best_epoch", DASH) if done else DASH,
        "seconds": run.result.get("train_seconds", nan),
        "links": _links(run, folder),
    }


def _links(run: Run, folder: Path) -> list[tuple[str, str]]:
    """Of the files that are there, from the report's folder."""
    paths = RunFolder(run.folder)
    files = {
        "folder": run.folder,
        "checkpoint": paths.best,
        "curves": paths.curves,
        "confusion": paths.confusion,
        "error": paths.error,
    }
    return [
        (name, quote(relpath(path.absolute(), folder.absolute())))
        for name, path in files.items()
        if path.is_relative_to(run.folder) and path.exists()
    ]


def _references(
    rows: Sequence[Summary], names: dict[tuple[str, ...], str]
) -> tuple[list[dict[str, Any]], list[str]]:
    lines, notes = [], []
    for row in rows:
        named: dict[Reference, list[Run]] = {}
        for run in row.runs:
            try:
                found = reference(run)
            except UserError as error:
                notes.append(str(error))
                continue
            if found is not None:
                named.setdefault(found, []).append(run)
        for published, runs in named.items():
            counted_images = [run.result.get("n_test") or nan for run in runs]
            test = spread([accuracy(run, "test") for run in runs], counted_images[0])
            lines.append(
                {
                    "name": names[row.setting],
                    "published": published.test_acc,
                    "test": test,
                    "source": published.source or "not named",
                }
            )
    return lines, notes


def machines(runs: Sequence[Run]) -> list[str]:
    """One line where all runs agree; one for each fact that differs."""
    facts: dict[str, Counter[str]] = {}
    for run in runs:
        result = run.result
        versions = result.get("versions")
        known = {
            "device": result.get("device_name"),
            "devices": result.get("devices"),
            "precision": result.get("precision"),
            **(versions if isinstance(versions, dict) else {}),
            "commit": result.get("git_commit"),
        }
        for name, value in known.items():
            if value is not None:
                facts.setdefault(name, Counter())[str(value)] += 1
    same = [f"{name} {next(iter(values))}" for name, values in facts.items() if len(values) == 1]
    lines = [f"All runs: {', '.join(same)}."] if same else []
    for name, values in facts.items():
        if len(values) > 1:
            listed = ", ".join(f"{value} ({_count(n, 'run')})" for value, n in values.most_common())
            lines.append(f"Differs: {name}: {listed}.")
    return lines or ["Nothing is recorded."]

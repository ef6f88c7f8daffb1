"""`resnet-lab report`: read, print a table, and put the report folder in place whole."""

import csv
import os
import re
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table as ScreenTable

from resnet_lab.config.errors import UserError
from resnet_lab.report.compose import (
    MARKER,
    Page,
    compose,
    counted,
    plus_minus,
    shown_settings,
)
from resnet_lab.report.runs import Run, Study, is_run, is_sweep, read
from resnet_lab.report.stats import Summary, summarise
from resnet_lab.run.state import State
from resnet_lab.screen import console

MOST_ON_SCREEN = 20
# The columns of results.csv besides the settings, in this order.
RESULTS = (
    *("model", "data", "seed", "batch_size", "devices", "precision", "n_train", "n_val", "n_test"),
    *("params", "macs", "epochs", "steps", "best_epoch", "train_seconds", "seconds"),
    *("images_per_second", "device_name", "started", "git_commit", "command"),
)


def report(paths: Sequence[Path], out: Path | None = None, png: bool = False) -> Path:
    """Report on sweeps, runs, or folders above them; returns the folder written.

    That is `out`; without it `report/` inside the one sweep or run named, else
    outputs/reports/<date>_<time>. An earlier report there is replaced.

    Args:
        png: write the pictures as files, too.

    Raises:
        UserError: there is nothing to report on, or the folder holds something else; nothing is
            written.
    """
    studies = read(paths)
    single = len(paths) == 1 and (is_sweep(paths[0]) or is_run(paths[0]))
    inside = paths[0] / "report" if single else None
    folder = out or inside or Path(f"outputs/reports/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    _check_replaceable(folder)
    _write(folder, compose(studies, folder), studies, png)
    for study in studies:
        _show(study, len(studies) > 1)
    console.print(f"report      {folder / 'report.html'}", soft_wrap=True)
    return folder


def _check_replaceable(folder: Path) -> None:
    """Raise UserError unless `folder` is absent, empty, or a report and nothing else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the report with --out.")
    there = {path.name for path in folder.iterdir()}
    written: set[str] = set()
    if "report.html" in there:
        head = (folder / "report.html").read_text(errors="replace")[:4000]
        match = re.search(rf'<meta name="{MARKER}" content="([^"]*)">', head)
        written = set(match[1].split("|")) if match else set()
    foreign = sorted(there - written)
    if foreign:
        raise UserError(
            f"{folder} holds what no report wrote ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}); nothing was changed: move it away, or name "
            "another folder with --out."
        )


def _write(folder: Path, page: Page, studies: Sequence[Study], png: bool) -> None:
    """Beside its place first, so that no reader and no crash meets half a report."""
    pictures = page.pictures if png else []
    files = ["report.html", "results.csv", *(f"{picture.file}.png" for picture in pictures)]
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    part.mkdir(parents=True)
    try:
        (part / "report.html").write_text(page.html(files), encoding="utf-8")
        for picture in pictures:
            picture.save_png(part)
        _write_results(part / "results.csv", studies)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_results(path: Path, studies: Sequence[Study]) -> None:
    """A row for each job of whatever state; accuracies in percent."""
    rows = [_result_row(study, run) for study in studies for run in study.runs]
    columns = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def _result_row(study: Study, run: Run) -> dict[str, Any]:
    result = run.result
    row: dict[str, Any] = {"run": run.name, "state": run.state, **run.settings}
    for split in ("val", "test"):
        accuracy = result.get(f"{split}/acc")
        # Four decimals keep one image in a million; more would only be float32's noise.
        row[f"{split}_acc_percent"] = None if accuracy is None else round(100 * accuracy, 4)
        row[f"{split}_loss"] = result.get(f"{split}/loss")
    row |= {name: result.get(name) for name in RESULTS if name not in study.keys}
    row |= {f"version_{name}": value for name, value in result.get("versions", {}).items()}
    return row | {"reason": run.reason, "folder": str(run.folder)}


def _show(study: Study, several: bool) -> None:
    if several:
        console.print(study.data, soft_wrap=True)
    others = [run for run in study.runs if run.state != State.FINISHED]
    if study.finished:
        rows, sentences = shown_settings(summarise(study), MOST_ON_SCREEN)
        console.print(_on_screen(study, rows))
        for sentence in sentences:
            console.print(sentence)
    else:
        console.print("No job has finished yet.")
    for run in others[:MOST_ON_SCREEN]:
        console.print(f"{run.state:<12}{run.name}: {run.reason}", soft_wrap=True)
    if len(others) > MOST_ON_SCREEN:
        console.print(f"and {len(others) - MOST_ON_SCREEN:,} more without a result")
    for note in study.notes:
        console.print(note, soft_wrap=True)


def _on_screen(study: Study, rows: Sequence[Summary]) -> ScreenTable:
    """Narrow enough for a terminal: the intervals are left to the report."""
    screen = ScreenTable(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    for key in study.factors:
        screen.add_column(study.short(key), overflow="fold")
    for title in ("n", "val acc %", "test acc %"):
        screen.add_column(title, justify="right", no_wrap=True)
    screen.add_column("")
    for row in rows:
        best = "best" if row.best and len(rows) > 1 else "not apart" if row.tied else ""
        screen.add_row(*row.setting, counted(row), plus_minus(row.val), plus_minus(row.test), best)
    return screen

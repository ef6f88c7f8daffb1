"""Show what tells two or more runs apart, or two sweeps setting by setting."""

import argparse
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_lab.commands import describe, refuse_existing
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.report.catalogue import Catalogue, named
from resnet_lab.report.differences import Section, code, compare, config, letter
from resnet_lab.report.runs import Run, is_sweep
from resnet_lab.screen import console

if TYPE_CHECKING:  # it imports pandas
    from resnet_lab.report.stats import Spread

MOST_RUNS = 12


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Compares runs: configs, code, versions, machines, data and figures; only what differs is "
        "shown. Compares sweeps setting by setting, over the same seeds where both have them.",
        "resnet-lab diff outputs/runs/FIRST outputs/runs/SECOND\n"
        "resnet-lab diff FIRST SECOND THIRD --png curves.png\n"
        "resnet-lab diff outputs/sweeps/FIRST outputs/sweeps/SECOND",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders or names of runs, or of sweeps"
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="write their curves, overlaid")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write a report of them, with pictures"
    )


def run(options: argparse.Namespace) -> int:
    folders = named(options.runs)
    if len(folders) < 2:
        raise UserError("Name two different runs or sweeps, or more.")
    refuse_existing(options.png)
    sweeps = [folder for folder in folders if is_sweep(folder)]
    if sweeps and len(sweeps) < len(folders):
        raise UserError(
            "Compare runs with runs, or sweeps with sweeps: a job of a sweep is a run, as "
            f"{printable(str(sweeps[0]))}/JOB."
        )
    if not sweeps and len(folders) > MOST_RUNS:
        raise UserError(
            f"{len(folders)} runs are more than {MOST_RUNS}, which is what one table can show; "
            "`resnet-lab report` compares many."
        )
    for n, folder in enumerate(folders):
        console.print(f"{letter(n):<3} {printable(str(folder))}", soft_wrap=True)
    if sweeps:
        for n, folder in enumerate(sweeps[1:], 1):
            _show_sweeps(sweeps[0], folder, n)
        runs = Catalogue(folders).read()
    else:
        runs = [run for folder in folders for run in Catalogue([folder]).read()]
        _show_runs(compare(runs), len(runs))
    if options.png:
        from resnet_lab.report.overlay import save_curves

        names = [f"{letter(n)} {run.name}" for n, run in enumerate(runs)]
        if sweeps:  # a line for each setting, over its seeds
            letters = {folder: letter(n) for n, folder in enumerate(folders)}
            names = [_of_sweep(run, letters) for run in runs]
        save_curves(runs, names, options.png)
        console.print(f"\ncurves      {options.png}", soft_wrap=True)
    if options.out:
        from resnet_lab.report.write import report

        console.print()
        report(folders, options.out, png=True)
    return 0


def _show_runs(sections: Sequence[Section], n_runs: int) -> None:
    if all(section.title == "figures" for section in sections):
        console.print("\nNothing differs in config, code, versions, machine and data.")
    for section in sections:
        _show(section, [letter(n) for n in range(n_runs)])


def _show(section: Section, titles: Sequence[str]) -> None:
    console.print(f"\n{section.title}", style="bold")
    if section.lines:
        table = _table()
        table.add_column("", overflow="fold", min_width=12)
        for title in titles:
            table.add_column(title, overflow="fold", min_width=6)
        for line in section.lines:
            table.add_row(line.key, *line.values)
        console.print(table)
    for note in section.notes:
        console.print(note, style="dim", soft_wrap=not console.is_terminal)


def _table() -> Table:
    return Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))


# ------------------------------------------------------------------ sweeps


def _show_sweeps(first: Path, second: Path, number: int) -> None:
    from resnet_lab.report import sweeps
    from resnet_lab.report.compose import plus_minus

    found = sweeps.compare(first, second)
    here, there = letter(0), letter(number)
    begun = [[run for run in side if run.config] for side in found.runs]
    if all(begun):
        _show_fixed([begun[0][0], begun[1][0]], found.keys, (here, there))
    if not found.matched:
        console.print("\nThe sweeps have no setting in common.")
    for split in sweeps.SPLITS if found.matched else ():
        console.print(f"\n{split} accuracy in %, setting by setting", style="bold")
        table = _table()
        for key in found.keys or ("",):
            table.add_column(key.rpartition(".")[2], overflow="fold")
        for title in (here, "n", there, "n", f"{there} - {here}", "seeds"):
            table.add_column(title, justify="right", no_wrap=True)
        for row in found.matched:
            sides = [cell for o in row.spreads[split] for cell in (plus_minus(o), str(o.n))]
            pairs = str(row.pairs) if row.pairs else "none"
            table.add_row(*(row.setting or ("",)), *sides, _change(row.change[split]), pairs)
        console.print(table)
    for side, name in zip(found.alone, (here, there), strict=True):
        for setting in side:
            shown = " ".join(f"{k}={v}" for k, v in zip(found.keys, setting, strict=True))
            console.print(f"only in {name}   {shown}", soft_wrap=True)
    console.print(
        f"± is the standard deviation over n runs. {there} - {here} is the mean over the seeds "
        "that both have, ± the half width of its 95% interval (Student's t, from three seeds on); "
        "without a common seed it is the difference of the means.",
        style="dim",
        soft_wrap=not console.is_terminal,
    )


def _of_sweep(run: Run, letters: dict[Path, str]) -> str:
    """The sweep and setting of a job, as "A shortcut=none"."""
    keys = [key for key in run.swept if key != "seed"]
    words = [f"{key.rpartition('.')[2]}={run.settings.get(key, '?')}" for key in keys]
    return " ".join([letters.get(run.sweep or run.folder, "?"), *words])


def _change(of: "Spread") -> str:
    if isnan(of.mean):
        return "-"
    return f"{of.mean:+.2f}" + ("" if isnan(of.low) else f" ± {of.mean - of.low:.2f}")


def _show_fixed(runs: list[Run], keys: Sequence[str], titles: Sequence[str]) -> None:
    """What differs between the sweeps besides what they vary, by a run of each."""
    lines = [line for line in config(runs) if line.key not in (*keys, "seed", "data.seed")]
    section = Section("config, besides what they vary", lines)
    for one in (section, code(runs)):
        if one.lines:
            _show(one, titles)

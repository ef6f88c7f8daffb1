"""Print the command that makes a run again, and what has changed since."""

import argparse

from rich.table import Table

from resnet_lab.commands import describe
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.report.catalogue import Catalogue, named
from resnet_lab.report.reproduction import reproduction
from resnet_lab.report.runs import is_sweep
from resnet_lab.screen import console


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Prints what to type to make a run again: its command, and before it the commands that "
        "bring back the code it ran with. Says which versions and which code differ here. Runs "
        "nothing itself: a run folder may come from anybody, so read the command first.",
        "resnet-lab rerun outputs/runs/DATE/RUN\nresnet-lab rerun sweep/JOB --check",
    )
    parser.add_argument("folder", metavar="RUN", help="the folder or the name of a run")
    parser.add_argument(
        "--check", action="store_true", help="exit with status 1 where something differs"
    )


def run(options: argparse.Namespace) -> int:
    (folder,) = named([options.folder])
    runs = Catalogue([folder]).read()
    if is_sweep(folder):
        name = printable(str(folder))
        example = printable(runs[0].folder.name) if runs else "JOB"
        raise UserError(f"{name} is a sweep; name one of its jobs, as {name}/{example}.")
    found = reproduction(runs[0])
    console.print("To make this run again, read and type (nothing is run here):", style="dim")
    for line in (*found.steps, found.command):
        console.print(line, soft_wrap=True)
    console.print()
    if found.changes:
        table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("changed", "then", "now"):
            table.add_column(title, overflow="fold")
        for change in found.changes:
            table.add_row(change.what, change.then, change.now)
        console.print(table)
    else:
        console.print("Versions and code are as they were, as far as the run recorded them.")
    for sentence in found.unknown:
        console.print(sentence, soft_wrap=not console.is_terminal)
    return 1 if options.check and found.changes else 0

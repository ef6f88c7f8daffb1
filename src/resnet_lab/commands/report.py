"""Tables and figures of a sweep, or of any runs."""

import argparse
from pathlib import Path

from resnet_lab.commands import describe
from resnet_lab.config.errors import UserError
from resnet_lab.report.catalogue import Catalogue
from resnet_lab.report.where import select
from resnet_lab.report.write import report


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Writes report.html, a page that opens offline, and results.csv. Reads run folders alone, "
        "also while a sweep is running; needs no torch.",
        "resnet-lab report outputs/sweeps/NAME\n"
        "resnet-lab report outputs/runs/FIRST outputs/runs/SECOND --out comparison\n"
        "resnet-lab report outputs --where 'model==resnet20 and tags==good'",
    )
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="a sweep folder, run folders, or a folder above them",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="(report/ in the sweep or run; outputs/reports/<date>_<time>)",
    )
    parser.add_argument(
        "--where", metavar="CONDITION", help="only runs that meet it, as in `resnet-lab runs`"
    )
    parser.add_argument("--png", action="store_true", help="write the pictures as files, too")


def run(options: argparse.Namespace) -> int:
    paths = options.paths
    if options.where is not None:
        paths = [run.folder for run in select(Catalogue(paths).read(), options.where)]
        if not paths:
            raise UserError(
                f"No run in {', '.join(map(str, options.paths))} meets {options.where}."
            )
    report(paths, options.out, options.png)
    return 0

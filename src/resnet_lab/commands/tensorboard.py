"""Open TensorBoard on one sweep or run alone."""

import argparse
from pathlib import Path

from resnet_lab.commands import describe
from resnet_lab.report.tensorboard import open_board


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Shows the curves and pictures of one sweep or run; Ctrl-C ends it.",
        "resnet-lab tensorboard outputs/sweeps/NAME --mean\n"
        "resnet-lab tensorboard outputs/runs/DATE/RUN --port 6007",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a sweep folder or a run folder")
    parser.add_argument("--port", type=int, default=6006, help="on localhost (6006)")
    parser.add_argument(
        "--mean",
        action="store_true",
        help="of a sweep: a run more for each setting, the mean over its repeats, with training "
        "and validation in one chart; a band of a standard deviation is under CUSTOM SCALARS",
    )


def run(options: argparse.Namespace) -> int:
    return open_board(options.path, options.port, options.mean)

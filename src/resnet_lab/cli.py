"""`resnet-lab ...`: what there is to do besides training; heavy imports wait for their command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="resnet-lab", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "bench",
        help="measure this machine's limit, this project, the common style, and what lies between",
        description="Everything is measured in turns, so that a machine that drifts misleads "
        "nobody; still, let nothing else run on it. Needs a Linux or macOS system.",
    )
    command.add_argument(
        "--only",
        default="",
        metavar="PARTS",
        help="some parts, such as a,b,e: a limit, b ours, c common style, d settings off, "
        "e data pipeline, f cost per step, g start-up, h memory, gpu",
    )
    command.add_argument("--rounds", type=int, default=5, help="turns for each contender (5)")
    command.add_argument(
        "--quick", action="store_true", help="only see that it runs: one round, tiny nets"
    )
    command.add_argument("--out", type=Path, help="folder (outputs/bench/<date>_<time>)")
    command.set_defaults(run=_bench)

    command = commands.add_parser(
        "report",
        help="tables and figures of a sweep, or of any runs",
        description="Reads run folders alone, also while a sweep is running; needs no torch.",
    )
    command.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="a sweep folder, or run folders"
    )
    command.add_argument(
        "--out",
        type=Path,
        help="folder (report/ in the sweep or run; outputs/reports/<date>_<time>)",
    )
    command.set_defaults(run=_report)

    command = commands.add_parser("tensorboard", help="open TensorBoard on one sweep or run alone")
    command.add_argument("path", type=Path, metavar="PATH", help="a sweep folder or a run folder")
    command.add_argument("--port", type=int, default=6006, help="on localhost (6006)")
    command.set_defaults(run=_tensorboard)

    options = parser.parse_args(arguments)
    from resnet_lab.config import one_sentence_errors

    try:
        with one_sentence_errors():
            status: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    return status


def _bench(options: argparse.Namespace) -> int:
    from resnet_lab.bench.run import bench

    only = [word for word in options.only.split(",") if word]
    return bench(only, options.rounds, options.quick, options.out)


def _report(options: argparse.Namespace) -> int:
    from resnet_lab.report.write import report

    report(options.paths, options.out)
    return 0


def _tensorboard(options: argparse.Namespace) -> int:
    from resnet_lab.report.tensorboard import open_board

    open_board(options.path, options.port)


if __name__ == "__main__":
    sys.exit(main())

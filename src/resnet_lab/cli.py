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

    command = commands.add_parser(
        "summary",
        help="what nets are made of: output, parameters and multiply-adds of every stage",
        description="A table for each net, or several side by side. No data is read and no weight "
        "is made, so the largest net takes no longer than the smallest.",
        epilog="examples:\n"
        "  resnet-lab summary model=resnet50 --image-size 224 --classes 1000\n"
        "  resnet-lab summary model=resnet20,resnet56 model.shortcut=A,B   all combinations\n"
        "Image size and classes are those of the data config (data=digits, where none is named).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_overrides(command, "a config as for train.py; several values with commas: all of them")
    command.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images")
    command.add_argument("--classes", type=int, metavar="N", help="the size of the logits")
    command.set_defaults(run=_summary)

    command = commands.add_parser(
        "stats",
        help="what is in a data set: classes, mean and std, sizes, duplicates, broken files",
        description="Looks at every image of a data config, in all its splits. Prints a summary, "
        "and writes all of it as JSON into data.cache_dir; nothing is written where the images "
        "are. Duplicates are images with the same pixels. Broken files are a finding, no error: "
        "the exit status is 0.",
        epilog="examples:\n"
        "  resnet-lab stats data=imagefolder data.root=path/to/images\n"
        "  resnet-lab stats data=cifar10",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_overrides(command, "a data config as for train.py")
    command.set_defaults(run=_stats)

    command = commands.add_parser(
        "find-lr",
        help="a learning rate for a config, from one short training with a rising one",
        description="The learning-rate range test (Smith 2017, arXiv 1506.01186, section 3.3): "
        "the rate rises by the same ratio at every step, all else is as in training. Suggests the "
        "rate where the smoothed loss falls fastest, and draws the curve, into "
        "outputs/find_lr/<date>_<time>-<model>-<data>/. With scheduler=onecycle it is the "
        "peak that is suggested. The same command gives the same curve; other seeds, others.",
        epilog="examples:\n"
        "  resnet-lab find-lr model=resnet20 data=cifar10\n"
        "  resnet-lab find-lr model=resnet56 data=digits optimizer=adamw --to 1 --steps 200",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_overrides(command, "a config as for train.py")
    command.add_argument(
        "--from", type=float, default=1e-6, metavar="LR", dest="low", help="the first (1e-6)"
    )
    command.add_argument(
        "--to", type=float, default=10.0, metavar="LR", dest="high", help="the last (10)"
    )
    command.add_argument(
        "--steps", type=int, default=100, metavar="N", help="unless the loss explodes before (100)"
    )
    command.set_defaults(run=_find_lr)

    options, more = parser.parse_known_args(arguments)
    # argparse takes what follows an option for no part of the list before it.
    if more and hasattr(options, "overrides") and not any(word.startswith("-") for word in more):
        options.overrides += more
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    from resnet_lab.config import one_sentence_errors

    try:
        with one_sentence_errors():
            status: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    return status


def _add_overrides(command: argparse.ArgumentParser, help: str) -> None:
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=help)


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


def _summary(options: argparse.Namespace) -> int:
    from resnet_lab.commands.summary import summary

    summary(options.overrides, options.image_size, options.classes)
    return 0


def _stats(options: argparse.Namespace) -> int:
    from resnet_lab.commands.stats import stats

    stats(options.overrides)
    return 0


def _find_lr(options: argparse.Namespace) -> int:
    from resnet_lab.commands.find_lr import find_lr

    find_lr(options.overrides, options.low, options.high, options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())

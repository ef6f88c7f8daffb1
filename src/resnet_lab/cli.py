"""`resnet-lab COMMAND ...`; heavy imports wait for their command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:  # what is behind it is for Hydra, --help included
        from resnet_lab.commands.train import train

        train(words[1:])
        return 0
    parser = argparse.ArgumentParser(
        prog="resnet-lab", description="Train residual networks, and work with what was trained."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train one net, or several with -m; the same as train.py")

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

    command = _add(
        commands,
        "summary",
        "what nets are made of: output, parameters and multiply-adds of every stage",
        "A table for each net, or several side by side. No data is read and no weight is made, so "
        "the largest net takes no longer than the smallest. Image size and classes are those of "
        "the data config (data=digits, where none is named).",
        "resnet-lab summary model=resnet50 --image-size 224 --classes 1000\n"
        "resnet-lab summary model=resnet20,resnet56 model.shortcut=A,B   all combinations",
    )
    _add_overrides(command, "a config as for train.py; several values with commas: all of them")
    command.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images")
    command.add_argument("--classes", type=int, metavar="N", help="the size of the logits")
    command.set_defaults(run=_summary)

    command = _add(
        commands,
        "stats",
        "what is in a data set: classes, mean and std, sizes, duplicates, broken files",
        "Looks at every image of a data config, in all its splits. Prints a summary, and writes "
        "all of it as JSON into data.cache_dir; nothing is written where the images are. "
        "Duplicates are images with the same pixels. Broken files are a finding, no error: the "
        "exit status is 0.",
        "resnet-lab stats data=imagefolder data.root=path/to/images\nresnet-lab stats data=cifar10",
    )
    _add_overrides(command, "a data config as for train.py")
    command.set_defaults(run=_stats)

    command = _add(
        commands,
        "find-lr",
        "a learning rate for a config, from one short training with a rising one",
        "The learning-rate range test (Smith 2017, arXiv 1506.01186, section 3.3): the rate rises "
        "by the same ratio at every step, all else is as in training. Suggests the rate where the "
        "smoothed loss falls fastest, and draws the curve, into "
        "outputs/find_lr/<date>_<time>-<model>-<data>/. With scheduler=onecycle it is the peak "
        "that is suggested. The same command gives the same curve; other seeds, others.",
        "resnet-lab find-lr model=resnet20 data=cifar10\n"
        "resnet-lab find-lr model=resnet56 data=digits optimizer=adamw --to 1 --steps 200",
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

    command = _add(
        commands,
        "evaluate",
        "a run's figures on its test images, or on others",
        "Loads the run's best checkpoint and scores one split of its data: loss, accuracy, top-5 "
        "accuracy (from 6 classes on), accuracy of each class, confusion matrix. They are printed "
        "and written to a new folder below RUN_DIR/evaluation; result.json stays as it is.",
        "resnet-lab evaluate outputs/runs/2026-01-31/12-00-00-resnet20-cifar10\n"
        "resnet-lab evaluate RUN_DIR --tta flip\n"
        "resnet-lab evaluate RUN_DIR data.root=other/photos trainer.precision=32",
    )
    _add_run(command)
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="of the run's config, data.* and trainer.* can be set here; data=NAME takes another "
        "source of images",
    )
    command.add_argument(
        "--split", choices=["test", "val", "train"], default="test", help="which images (test)"
    )
    command.add_argument(
        "--tta",
        choices=["flip"],
        help="score the mean over each image and its mirror image as well; reported apart",
    )
    command.set_defaults(run=_evaluate)

    command = _add(
        commands,
        "predict",
        "labels and probabilities for any images",
        "Writes a row for each image: its likeliest labels with their probabilities. Images of any "
        "size, as JPEG, PNG, BMP, GIF, TIFF, WebP or PPM; folders are walked in sorted order. "
        "Needs the run folder alone, not its data. A file that cannot be read gets a row with the "
        "error, the others go on, and the exit status is 1 in the end. Nothing is overwritten.",
        "resnet-lab predict RUN_DIR photo.jpg\n"
        "resnet-lab predict RUN_DIR photos/ more/*.png --out labels.csv --grid labels.png",
    )
    _add_run(command)
    command.add_argument(
        "paths", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of them"
    )
    command.add_argument("--top-k", type=int, default=5, metavar="K", help="labels an image (5)")
    command.add_argument("--format", choices=["csv", "json"], default="csv", help="(csv)")
    command.add_argument("--out", type=Path, metavar="FILE", help="a new file (standard output)")
    command.add_argument(
        "--grid", type=Path, metavar="FILE", help="a PNG of the pictures with their likeliest label"
    )
    command.set_defaults(run=_predict)

    command = _add(
        commands,
        "export",
        "the net as a file that needs none of this project",
        "Writes the net in float32, for batches of any size, and beside it FILE.json, which says "
        "how an image becomes its input and what its outputs mean. The file is opened again and "
        "its outputs are compared with the net's before the command says done. Nothing is "
        "overwritten.",
        "resnet-lab export RUN_DIR --format onnx\n"
        "resnet-lab export RUN_DIR --format torch_export --out net.pt2",
    )
    _add_run(command)
    command.add_argument(
        "--format",
        choices=["onnx", "torch_export"],
        required=True,
        help="onnx: for onnxruntime and others (needs the extra [onnx]); torch_export: for "
        "torch.export.load",
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="(RUN_DIR/export/<checkpoint>.onnx or .pt2)"
    )
    command.set_defaults(run=_export)

    options, rest = parser.parse_known_args(words)
    if rest and (any(word.startswith("-") for word in rest) or "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes overrides only in one place, people type them anywhere
        options.overrides += rest
    from resnet_lab.config.messages import one_sentence_errors

    try:
        with one_sentence_errors():
            status: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `resnet-lab ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _add_overrides(command: argparse.ArgumentParser, help: str) -> None:
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=help)


def _add(
    commands: Any, name: str, help: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """A command whose --help ends in examples, a line each."""
    lines = examples.replace("\n", "\n  ")
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=fill(description, 90),
        epilog=f"examples:\n  {lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return command


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a finished run")
    command.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="other weights of this run (its best: RUN_DIR/checkpoints/best.ckpt)",
    )
    command.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="your own code that the run's config may name; otherwise only ours, torch's and "
        "Lightning's is run",
    )


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


def _evaluate(options: argparse.Namespace) -> int:
    from resnet_lab.commands.evaluate import evaluate

    flip = options.tta == "flip"
    evaluate(
        options.run_dir, options.overrides, options.checkpoint, options.split, flip, options.trust
    )
    return 0


def _predict(options: argparse.Namespace) -> int:
    from resnet_lab.commands.predict import predict

    failed = predict(
        options.run_dir,
        options.paths,
        checkpoint=options.checkpoint,
        top_k=options.top_k,
        kind=options.format,
        out=options.out,
        grid=options.grid,
        trust=options.trust,
    )
    return 1 if failed else 0


def _export(options: argparse.Namespace) -> int:
    from resnet_lab.commands.export import export

    export(options.run_dir, options.format, options.out, options.checkpoint, options.trust)
    return 0


if __name__ == "__main__":
    sys.exit(main())

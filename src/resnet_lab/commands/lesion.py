"""What a net does without some of its blocks, or with blocks in another order."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_lab.commands import _analysis, describe
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.screen import console

if TYPE_CHECKING:
    from resnet_lab.analysis.lesion_picture import Net
    from resnet_lab.analysis.subject import Subject

BATCH = 100  # images at once
PATH_IMAGES = 200  # for the gradients of paths, each with a path of its own of each length


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Leaves out each block of a trained net in turn, several at random, and swaps blocks of "
        "the same shape, without training again: the error by block, by number of blocks and by "
        "order. For nets with shortcuts also which paths carry the gradient, by their length "
        "(Veit et al. 2016, arXiv 1605.06431). Of a residual block the shortcut stays; a block of "
        "a plain net becomes the identity, or shortcut A where it changes the shape. Writes "
        "lesion.png and CSV files.",
        "resnet-lab lesion RUN_DIR\n"
        "resnet-lab lesion RESIDUAL_RUN PLAIN_RUN --images 1000\n"
        "resnet-lab lesion RUN_DIR --samples 3 --images 200",
    )
    _analysis.add_runs(parser)
    _analysis.add_images(parser, 500)
    parser.add_argument(
        "--samples",
        type=int,
        default=10,
        metavar="N",
        help="random choices for each number of blocks or swaps (10)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (0)")
    _analysis.add_out(parser)


def run(options: argparse.Namespace) -> int:
    if options.samples < 1:
        raise UserError(f"--samples {options.samples}: must be 1 or more.")
    _analysis.refuse_filled(options.out)
    subjects = _analysis.subjects(options)

    from resnet_lab import charts
    from resnet_lab.analysis import lesion, lesion_picture
    from resnet_lab.analysis.subject import titles
    from resnet_lab.language import translator

    for subject in subjects:  # refuse before minutes of work
        lesion.chain(subject.net, subject.normalised(subject.pixels[:1]))
    classes = len(subjects[0].run.class_names)
    if any(len(subject.run.class_names) != classes for subject in subjects):
        raise UserError("The runs have other numbers of classes; study them one by one.")
    say = translator(options.language, lesion_picture.KOREAN)
    names = titles([subject.run for subject in subjects], say)
    nets = [_study(subject, name, options) for subject, name in zip(subjects, names, strict=True)]
    folder = _analysis.result_folder(options, "lesion")
    images = min(len(subject.labels) for subject in subjects)
    charts.write_png(folder / "lesion.png", lambda: lesion_picture.draw(nets, classes, images, say))
    _write(folder, [str(path) for path in options.run_dirs], nets)
    _show(nets, images, options.split)
    console.print(f"\nwritten     {folder}", soft_wrap=True)
    return 0


def _study(subject: "Subject", name: str, options: argparse.Namespace) -> "Net":
    from resnet_lab.analysis import lesion, paths
    from resnet_lab.analysis.lesion_picture import Net

    links = lesion.chain(subject.net, subject.normalised(subject.pixels[:1]))
    batches = list(subject.batches(BATCH))
    shown = printable(name)
    found = lesion.study(links, batches, options.samples, options.seed, f"lesions of {shown}")
    blocks = [links[place] for place in lesion.blocks(links)]
    if not all(block.is_residual for block in blocks):
        return Net(name, found, None)
    step = -(-len(subject.labels) // PATH_IMAGES)
    some = [(images[::step], labels[::step]) for images, labels in batches]
    modules = [block.module for block in blocks]
    by_length = paths.by_length(subject.net, modules, some, options.seed, f"paths of {shown}")
    return Net(name, found, by_length)


# ------------------------------------------------------------------ what is written and shown


def _write(folder: Path, runs: Sequence[str], nets: Sequence["Net"]) -> None:
    """One CSV for each part of the picture; errors are shares, from 0 to 1."""
    pairs = list(zip(map(printable, runs), nets, strict=True))
    _analysis.write_csv(
        folder / "blocks.csv",
        "run block changes_shape error whole_net_error",
        (
            (run, single.name, not single.keeps_shape, single.error, net.lesions.error)
            for run, net in pairs
            for single in net.lesions.single
        ),
    )
    _analysis.write_csv(
        folder / "several.csv",
        "run blocks_left_out error",
        ((run, draw.size, draw.error) for run, net in pairs for draw in net.lesions.several),
    )
    _analysis.write_csv(
        folder / "swaps.csv",
        "run swaps kendall_tau error",
        (
            (run, draw.size, draw.tau, draw.error)
            for run, net in pairs
            for draw in net.lesions.swaps
        ),
    )
    if any(net.paths for _, net in pairs):
        _analysis.write_csv(
            folder / "paths.csv",
            "run branches paths gradient share_of_paths share_of_gradient",
            (
                (run, *length, of_paths, of_gradient)
                for run, net in pairs
                if net.paths
                for length, of_paths, of_gradient in zip(
                    net.paths.lengths,
                    net.paths.share_of_paths,
                    net.paths.share_of_gradient,
                    strict=True,
                )
            ),
        )


def _show(nets: Sequence["Net"], images: int, split: str) -> None:
    console.print(
        f"error on {images:,} {split} images in %, and what lesions add to it in points\n"
    )
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("net", overflow="fold")
    titles = "blocks", "error", "without one: median", "worst", "without half", "most swaps"
    for title in titles:
        table.add_column(title, justify="right")
    for net in nets:
        lesions, n = net.lesions, len(net.lesions.single)
        worst = max(lesions.single, key=lambda single: single.error)
        half = min({draw.size for draw in lesions.several}, key=lambda count: abs(2 * count - n))
        most = max((draw.size for draw in lesions.swaps), default=0)
        table.add_row(
            printable(net.title),
            str(n),
            f"{100 * lesions.error:.1f}",
            f"{100 * median(lesions.costs):+.1f}",
            f"{100 * max(lesions.costs):+.1f} ({worst.name})",
            _mean_cost(net, [draw.error for draw in lesions.several if draw.size == half]),
            _mean_cost(net, [draw.error for draw in lesions.swaps if draw.size == most]),
        )
    console.print(table)
    for net in nets:
        name = printable(net.title)
        if net.paths is None:
            text = "no shortcut, so its gradient has one path, through all blocks"
        else:
            low, high = net.paths.middle()
            text = (
                f"paths through {low} to {high} of the {len(net.lesions.single)} branches carry "
                "95% of the gradient"
            )
        console.print(f"\n{name}: {text}", soft_wrap=True)


def _mean_cost(net: "Net", errors: Sequence[float]) -> str:
    return f"{100 * (fmean(errors) - net.lesions.error):+.1f}" if errors else "-"

"""How much of its accuracy a net keeps on noisy, blurred, foggy or compressed images."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_lab.commands import _analysis, describe
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable, replacing
from resnet_lab.screen import console

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from resnet_lab.analysis.corruptions_picture import Net
    from resnet_lab.analysis.subject import Subject

IMAGES = 1000


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Shows nets the same images in eleven kinds of corruption and five levels each, after "
        "Hendrycks and Dietterich 2019 (arXiv 1903.12261). They are made here, with strengths of "
        "our own: figures are NOT those of CIFAR-10-C and cannot be compared with published ones. "
        "Writes corruptions.png, corruptions_examples.png and corruptions.csv.",
        "resnet-lab corruptions RUN_DIR\n"
        "resnet-lab corruptions RESIDUAL_RUN PLAIN_RUN --images 500\n"
        "resnet-lab corruptions RUN_DIR --example 7",
    )
    _analysis.add_runs(parser)
    _analysis.add_images(parser, IMAGES)
    parser.add_argument("--seed", type=int, default=0, help="of the corruptions (0)")
    parser.add_argument(
        "--example",
        type=int,
        default=0,
        metavar="N",
        help="number of the image in corruptions_examples.png, from 0 (0)",
    )
    _analysis.add_out(parser)


def run(options: argparse.Namespace) -> int:
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more.")
    if options.example < 0:
        raise UserError(f"--example {options.example}: must be 0 or more.")
    _analysis.refuse_filled(options.out)
    subjects = _analysis.subjects(options)

    from resnet_lab import charts
    from resnet_lab.analysis import corruptions_picture
    from resnet_lab.analysis.subject import titles
    from resnet_lab.language import translator

    classes = subjects[0].run.class_names
    if any(subject.run.class_names != classes for subject in subjects):
        raise UserError("The runs know other classes; study them one by one.")
    images = min(len(subject.labels) for subject in subjects)
    if options.example >= images:
        raise UserError(f"--example {options.example}: there are {images:,} images, 0 the first.")
    say = translator(options.language, corruptions_picture.KOREAN)
    names = titles([subject.run for subject in subjects], say)
    nets = [_study(*pair, options.seed) for pair in zip(subjects, names, strict=True)]
    strips = _strips(subjects[0].pixels[[options.example]], options.seed)
    folder = _analysis.result_folder(options, "corruptions")
    charts.write_png(
        folder / "corruptions.png",
        lambda: corruptions_picture.draw(nets, len(classes), images, say),
    )
    charts.write_png(
        folder / "corruptions_examples.png", lambda: corruptions_picture.examples(strips, say)
    )
    _write(folder, [printable(str(path)) for path in options.run_dirs], nets, images)
    _show(nets, images, options.split)
    console.print(f"\nwritten     {folder}", soft_wrap=True)
    return 0


def _study(subject: "Subject", name: str, seed: int) -> "Net":
    from resnet_lab.analysis.corruptions import study
    from resnet_lab.analysis.corruptions_picture import Net
    from resnet_lab.data.cache import progress

    def accuracy(pixels: "Tensor") -> float:
        answers = subject.logits(pixels).argmax(dim=1)
        return float((answers == subject.labels).double().mean())

    what = f"corruptions of {printable(name)}"
    found = study(accuracy, subject.pixels, seed, lambda all_: progress(all_, len(all_), what))
    return Net(name, found)


def _strips(image: "Tensor", seed: int) -> "list[tuple[str, np.ndarray]]":
    """Each corruption of uint8 [1, h, w, channels], at levels 0 to 5."""
    import numpy as np

    from resnet_lab.analysis.corruptions import CORRUPTIONS, LEVELS, corrupt

    return [
        (kind.name, np.concatenate([corrupt(image, kind, n, seed) for n in range(LEVELS + 1)]))
        for kind in CORRUPTIONS
    ]


# ------------------------------------------------------------------ what is written and shown


def _write(folder: Path, runs: Sequence[str], nets: Sequence["Net"], images: int) -> None:
    """A row for each net, corruption and level; level 0 is the images as they are."""
    with replacing(folder / "corruptions.csv", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "corruption", "level", "images", "accuracy", "relative_to_clean"])
        for run, (_, found) in zip(runs, nets, strict=True):
            for name, levels in found.levels.items():
                for level, accuracy in enumerate((found.clean, *levels)):
                    relative = f"{accuracy / found.clean:.6g}" if found.clean else ""
                    writer.writerow([run, name, level, images, f"{accuracy:.6g}", relative])


def _show(nets: Sequence["Net"], images: int, split: str) -> None:
    from resnet_lab.analysis.corruptions_picture import shown

    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("accuracy, %")
    for net in nets:
        table.add_column(printable(net.title), justify="right", overflow="fold")
    table.add_row("as they are", *(f"{100 * net.found.clean:.1f}" for net in nets))
    for name in nets[0].found.levels:
        table.add_row(shown(name), *(f"{100 * net.found.means[name]:.1f}" for net in nets))
    table.add_row("mean of all", *(f"{100 * net.found.mean:.1f}" for net in nets))
    kept = [net.found.mean / net.found.clean if net.found.clean else 0.0 for net in nets]
    table.add_row("of that as they are", *(f"{100 * share:.0f}%" for share in kept))
    console.print(table)
    half = 100 * 1.96 * (0.25 / images) ** 0.5
    console.print(
        f"\n{images:,} {split} images; each kind is the mean of levels 1 to 5. The 95% interval of "
        f"one level is up to {half:.1f} points wide to each side.\nStrengths are our own: these "
        "are not the images of CIFAR-10-C, and not comparable with published figures.",
        soft_wrap=True,
    )

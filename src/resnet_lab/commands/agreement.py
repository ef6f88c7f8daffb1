"""How far nets agree: the same mistakes, different answers, and all nets together."""

import argparse
import csv
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_lab.commands import _analysis, describe
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable, replacing, write_json
from resnet_lab.report.catalogue import Catalogue
from resnet_lab.run.state import State
from resnet_lab.screen import console

if TYPE_CHECKING:
    from torch import Tensor

    from resnet_lab.analysis.agreement import Agreement
    from resnet_lab.analysis.subject import Subject
    from resnet_lab.run.load import Finished


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Compares the answers of two or more nets on the same images: how often they differ, how "
        "many mistakes they share beside what independent nets would, which images all of them get "
        "wrong, and the accuracy of their ensemble (the mean of their probabilities). Writes "
        "agreement.png, all_wrong.png, pairs.csv, images.csv and agreement.json.",
        "resnet-lab agreement outputs/runs/FIRST outputs/runs/SECOND\n"
        "resnet-lab agreement outputs/sweeps/SEEDS\n"
        "resnet-lab agreement outputs/sweeps/SEEDS --images 2000",
    )
    _analysis.add_runs(parser)
    _analysis.add_images(parser, None)
    parser.add_argument(
        "--rows", type=int, default=3, metavar="N", help="of images that all nets get wrong (3)"
    )
    _analysis.add_out(parser)


def run(options: argparse.Namespace) -> int:
    if options.rows < 1:
        raise UserError(f"--rows {options.rows}: must be 1 or more.")
    _analysis.refuse_filled(options.out)
    options.run_dirs = _finished(options.run_dirs)
    runs, found, first = _answers(options)

    from resnet_lab import charts
    from resnet_lab.analysis import agreement_picture
    from resnet_lab.analysis.agreement import independent
    from resnet_lab.analysis.subject import titles
    from resnet_lab.language import translator

    say = translator(options.language, agreement_picture.KOREAN)
    names = titles(runs, say)
    n = len(found.labels)
    classes = runs[0].class_names
    expected = independent(found.accuracies)
    folder = _analysis.result_folder(options, "agreement")
    charts.write_png(
        folder / "agreement.png",
        lambda: agreement_picture.draw(
            names, found.nets_right(), expected, found.disagreement(), n, say
        ),
    )
    if missed := found.missed_by_all(8 * options.rows):
        charts.write_png(
            folder / "all_wrong.png",
            lambda: agreement_picture.missed(
                first.pixels[[miss.image for miss in missed]].numpy(),
                [classes[found.labels[miss.image]] for miss in missed],
                [classes[miss.mistake] for miss in missed],
                [miss.probability for miss in missed],
                len(runs),
                say,
            ),
        )
    _write(folder, [run.run_dir for run in runs], [printable(name) for name in classes], found)
    _show(names, found, expected, options.split)
    console.print(f"\nwritten     {folder}", soft_wrap=True)
    return 0


def _finished(paths: Sequence[Path]) -> list[Path]:
    """The finished runs in some folders, in order; says which are left out."""
    folders = []
    for path in paths:
        runs = Catalogue([path]).read()
        if not runs:
            raise UserError(f"{printable(str(path))}: there is no run in it.")
        for run in runs:
            if run.state == State.FINISHED:
                folders.append(run.folder)
            else:
                place = printable(str(run.folder))
                console.print(f"left out    {place} ({run.state})", soft_wrap=True)
    folders = list(dict.fromkeys(folders))
    if len(folders) < 2:
        raise UserError(
            "Agreement is of two finished runs or more: name their folders, or that of a sweep."
        )
    return folders


def _answers(options: argparse.Namespace) -> "tuple[list[Finished], Agreement, Subject]":
    """The runs, what their nets answer, and the first of them with its images.

    Raises:
        UserError: they have different images or classes.
    """
    import torch

    from resnet_lab.analysis.agreement import Agreement
    from resnet_lab.data.cache import progress

    runs: list[Finished] = []
    probabilities: list[Tensor] = []
    first: Subject | None = None
    for folder in progress(options.run_dirs, len(options.run_dirs), "answers"):
        one = argparse.Namespace(**{**vars(options), "run_dirs": [folder]})
        (subject,) = _analysis.subjects(one)  # one at a time: their images fill the memory
        first = first or subject
        _refuse_others(first, subject)
        runs.append(subject.run)
        probabilities.append(subject.logits().double().softmax(dim=1))
        subject.net.cpu()
    assert first is not None
    return runs, Agreement(torch.stack(probabilities), first.labels), first


def _refuse_others(first: "Subject", other: "Subject") -> None:
    """Raise UserError where two runs are shown different images; their sizes may differ."""
    import torch

    same = first.run.class_names == other.run.class_names
    same = same and torch.equal(first.labels, other.labels)
    if first.pixels.shape == other.pixels.shape:
        same = same and torch.equal(first.pixels, other.pixels)
    if not same:
        one, two = (printable(str(subject.run.run_dir)) for subject in (first, other))
        raise UserError(
            f"{one} and {two} have different images or classes, so their answers cannot be "
            "compared; name runs on the same data."
        )


# ------------------------------------------------------------------ what is written and shown


def _write(
    folder: Path, run_dirs: Sequence[Path], classes: Sequence[str], found: "Agreement"
) -> None:
    from resnet_lab.analysis.agreement import independent

    runs = [printable(str(run_dir)) for run_dir in run_dirs]
    accuracies, different = found.accuracies, found.disagreement()
    both, same = found.both_wrong(), found.same_mistake()
    with replacing(folder / "pairs.csv", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        header = "run other different both_wrong both_wrong_if_independent same_mistake"
        writer.writerow(header.split())
        for a, b in combinations(range(len(runs)), 2):
            chance = (1 - accuracies[a]) * (1 - accuracies[b])
            shares = different[a][b], both[a][b], chance, same[a][b]
            writer.writerow([runs[a], runs[b], *(f"{share:.6g}" for share in shares)])
    sure, answers = found.ensemble.max(dim=1)
    with replacing(folder / "images.csv", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "class", "nets_right", "ensemble", "probability"])
        columns = found.labels, found.right.sum(dim=0), answers, sure
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for n, (label, right, answer, probability) in enumerate(rows):
            writer.writerow([n, classes[label], right, classes[answer], f"{probability:.4f}"])
    write_json(
        folder / "agreement.json",
        {
            "runs": runs,
            "images": len(found.labels),
            "accuracies": accuracies,
            "ensemble_accuracy": found.ensemble_accuracy,
            "accuracy_sd": stdev(accuracies),
            "accuracy_sd_if_images_are_independent": found.expected_spread(),
            "nets_right": found.nets_right(),
            "nets_right_if_independent": independent(accuracies),
        },
    )


def _show(names: Sequence[str], found: "Agreement", expected: Sequence[float], split: str) -> None:
    accuracies, n, k = found.accuracies, len(found.labels), len(names)
    console.print(f"accuracy on {n:,} {split} images, in %\n")
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    table.add_column("", justify="right")
    table.show_header = False
    for name, accuracy in zip(names, accuracies, strict=True):
        table.add_row(printable(name), f"{100 * accuracy:.2f}")
    table.add_row("ensemble of all", f"{100 * found.ensemble_accuracy:.2f}")
    console.print(table)

    pairs = list(combinations(range(k), 2))
    different, both, same = found.disagreement(), found.both_wrong(), found.same_mistake()
    chance = fmean((1 - accuracies[a]) * (1 - accuracies[b]) for a, b in pairs)
    right = found.nets_right()
    lines = [
        ("", "these nets", "independent nets"),
        ("all are right", f"{right[k]:.1%}", f"{expected[k]:.1%}"),
        ("none is right", f"{right[0]:.1%}", f"{expected[0]:.1%}"),
        ("two are both wrong", f"{fmean(both[a][b] for a, b in pairs):.1%}", f"{chance:.1%}"),
        ("two make the same mistake", f"{fmean(same[a][b] for a, b in pairs):.1%}", ""),
        ("two answer differently", f"{fmean(different[a][b] for a, b in pairs):.1%}", ""),
    ]
    console.print("\nshare of images; two: the mean over all pairs of nets\n")
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    for number, title in enumerate(lines[0]):
        table.add_column(title, justify="right" if number else "left")
    for line in lines[1:]:
        table.add_row(*line)
    console.print(table)
    spread = found.expected_spread()
    if k > 2 and spread is not None:
        console.print(
            f"\nstandard deviation of the accuracies: {100 * stdev(accuracies):.2f} points; nets "
            f"that differ by their seed alone: {100 * spread:.2f}, if no image depends on another",
            soft_wrap=True,
        )

"""Whether a net is right as often as its probabilities say, before and after a temperature."""

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
    from resnet_lab.analysis.calibration import Calibration
    from resnet_lab.analysis.calibration_picture import Net
    from resnet_lab.analysis.subject import Subject

FIGURES = (
    *("images", "accuracy", "nll", "brier", "ece", "low", "high", "by_chance", "chance_limit"),
    "ece_equal_mass",
)


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Compares confidence and accuracy on test images: reliability diagram, expected "
        "calibration error (ECE, 15 bins), negative log likelihood (NLL) and Brier score. Then "
        "fits a temperature on the run's validation images and measures again (Guo et al. 2017, "
        "arXiv 1706.04599). The temperature does not change which answer a net gives. Writes "
        "calibration.png, calibration.csv and bins.csv.",
        "resnet-lab calibration RUN_DIR\n"
        "resnet-lab calibration RESIDUAL_RUN PLAIN_RUN\n"
        "resnet-lab calibration RUN_DIR --images 2000 --device cpu",
    )
    _analysis.add_runs(parser)
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="how many of the test and of the validation images, evenly spaced (all)",
    )
    _analysis.add_device(parser)
    parser.add_argument("--root", metavar="FOLDER", help="where the images are now (as in the run)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    _analysis.add_out(parser)


def run(options: argparse.Namespace) -> int:
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more.")
    _analysis.refuse_filled(options.out)

    from resnet_lab import charts
    from resnet_lab.analysis import calibration_picture
    from resnet_lab.analysis.subject import titles
    from resnet_lab.language import translator

    say = translator(options.language, calibration_picture.KOREAN)
    found = [_study(run_dir, options) for run_dir in options.run_dirs]
    names = titles([subject.run for subject, _ in found], say)
    nets = [net._replace(title=name) for name, (_, net) in zip(names, found, strict=True)]
    folder = _analysis.result_folder(options, "calibration")
    charts.write_png(folder / "calibration.png", lambda: calibration_picture.draw(nets, say))
    _write(folder, [printable(str(path)) for path in options.run_dirs], nets)
    _show(nets)
    console.print(f"\nwritten     {folder}", soft_wrap=True)
    return 0


def _study(run_dir: Path, options: argparse.Namespace) -> "tuple[Subject, Net]":
    from resnet_lab.analysis.calibration import fit_temperature, measure
    from resnet_lab.analysis.calibration_picture import Net

    test = _subject(run_dir, "test", options)
    validation = _validation(run_dir, test, options)
    logits = test.logits()
    if not logits.isfinite().all():
        raise UserError(f"{printable(str(run_dir))}: the net's answers are NaN or infinite.")
    before = measure(logits, test.labels, seed=options.seed)
    if validation is None:
        return test, Net("", before, None, None)
    temperature = fit_temperature(validation.logits(), validation.labels)
    after = measure(logits, test.labels, temperature, options.seed)
    return test, Net("", before, after, temperature)


def _subject(run_dir: Path, split: str, options: argparse.Namespace) -> "Subject":
    one = {**vars(options), "run_dirs": [run_dir], "split": split}
    return _analysis.subjects(argparse.Namespace(**one))[0]


def _validation(run_dir: Path, test: "Subject", options: argparse.Namespace) -> "Subject | None":
    """The run with its validation images; None, and a line on the console, where it has none."""
    if test.run.result.get("n_val") == 0:
        console.print(
            f"{printable(str(run_dir))}: no validation images (data.val_size=0), so no temperature "
            "is fitted.",
            soft_wrap=True,
        )
        return None
    return _subject(run_dir, "val", options)


# ------------------------------------------------------------------ what is written and shown


def _both(net: "Net") -> "list[tuple[float, Calibration]]":
    """Each temperature with what was measured: 1, and the fitted one where there is one."""
    fitted = [] if net.after is None else [(net.temperature or 1.0, net.after)]
    return [(1.0, net.before), *fitted]


def _write(folder: Path, runs: Sequence[str], nets: Sequence["Net"]) -> None:
    """All shares from 0 to 1."""
    with replacing(folder / "calibration.csv", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "temperature", *FIGURES])
        for run, net in zip(runs, nets, strict=True):
            for temperature, found in _both(net):
                figures = [f"{getattr(found, name):.6g}" for name in FIGURES]
                writer.writerow([run, f"{temperature:.6g}", *figures])
    with replacing(folder / "bins.csv", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "temperature", "low", "high", "images", "confidence", "accuracy"])
        for run, net in zip(runs, nets, strict=True):
            for temperature, found in _both(net):
                for one in found.bins:
                    ends = f"{one.low:.6g}", f"{one.high:.6g}"
                    means = (
                        [f"{one.confidence:.6g}", f"{one.accuracy:.6g}"] if one.count else ["", ""]
                    )
                    writer.writerow([run, f"{temperature:.6g}", *ends, one.count, *means])


def _show(nets: Sequence["Net"]) -> None:
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("net", overflow="fold")
    columns = "T", "accuracy, %", "ECE, %", "95%", "by chance", "equal mass", "NLL", "Brier"
    for column in columns:
        table.add_column(column, justify="right")
    for net in nets:
        for number, (temperature, found) in enumerate(_both(net)):
            table.add_row(
                "" if number else printable(net.title),
                f"{temperature:.2f}",
                f"{100 * found.accuracy:.1f}",
                f"{100 * found.ece:.2f}",
                f"{100 * found.low:.1f} to {100 * found.high:.1f}",
                f"{100 * found.by_chance:.2f}",
                f"{100 * found.ece_equal_mass:.2f}",
                f"{found.nll:.4f}",
                f"{found.brier:.4f}",
            )
    console.print(table)
    fewest = min(net.before.images for net in nets)
    console.print(
        f"\nAn ECE is never 0: on {fewest:,} images a calibrated net gets the one under "
        '"by chance", and so much of every ECE may be chance. The 95% interval corrects for it.',
        soft_wrap=True,
    )
    for net in nets:
        if net.before.ece <= net.before.chance_limit:
            name = printable(net.title)
            text = "cannot be told from a calibrated net by so many images, as it was trained"
            console.print(f"{name}: {text}.", soft_wrap=True)

"""What the commands that look into finished runs share: arguments, and where results go."""

import argparse
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_lab.commands import check_trust
from resnet_lab.config.compose import quoted
from resnet_lab.config.errors import UserError
from resnet_lab.files import write_rows
from resnet_lab.language import LANGUAGES

if TYPE_CHECKING:  # which imports torch
    from resnet_lab.analysis.subject import Subject


def add_runs(parser: argparse.ArgumentParser, nargs: str | int = "+") -> None:
    """Folders of finished runs in `options.run_dirs`, and packages in `options.trust`."""
    parser.add_argument(
        "run_dirs", type=Path, nargs=nargs, metavar="RUN_DIR", help="folders of finished runs"
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package of your own that a run's config may name; may be given several times",
    )


def add_images(parser: argparse.ArgumentParser, images: int | None, split: str = "test") -> None:
    """Which images a net is shown, and on which device."""
    parser.add_argument(
        "--split", choices=["test", "val", "train"], default=split, help=f"of the run ({split})"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=images,
        metavar="N",
        help=f"how many of them, evenly spaced ({'all' if images is None else images})",
    )
    add_device(parser)
    parser.add_argument("--root", metavar="FOLDER", help="where the images are now (as in the run)")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="auto: a GPU where there is one; cpu, cuda, cuda:1 (auto)"
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """Where results go, and the language of their pictures."""
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="a new or empty folder for the results (outputs/analysis/COMMAND-DATE)",
    )
    parser.add_argument(
        "--language", choices=LANGUAGES, default="en", help="of the picture's texts (en)"
    )


def subjects(options: argparse.Namespace) -> "list[Subject]":
    """The runs of `add_runs` with the images of `add_images`."""
    if options.images is not None and options.images < 1:
        raise UserError(f"--images {options.images}: must be 1 or more.")
    for run_dir in options.run_dirs:
        check_trust(run_dir, options.trust)

    from resnet_lab.analysis.subject import open_subject

    return [
        open_subject(
            run_dir,
            split=options.split,
            images=options.images,
            device=options.device,
            overrides=[] if options.root is None else [f"data.root={quoted(options.root)}"],
            trust=options.trust,
        )
        for run_dir in options.run_dirs
    ]


def result_folder(options: argparse.Namespace, command: str) -> Path:
    """The folder for the results, made now: nothing that is there is overwritten.

    Raises:
        UserError: the user's folder holds something.
    """
    if options.out is None:
        from resnet_lab.run.folder import RunFolder

        name = f"{command}-{datetime.now():%Y-%m-%d_%H-%M-%S}"
        return RunFolder(Path("outputs/analysis", name)).claim().path
    folder: Path = options.out
    refuse_filled(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def refuse_filled(folder: Path | None) -> None:
    """Raise UserError where `--out` names a file, or a folder that holds something."""
    if folder is None or not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise UserError(f"--out {folder}: there is something already; name a new folder.")


def write_csv(path: Path, header: str, rows: Iterable[Iterable[object]]) -> None:
    """A CSV file with the columns of `header`, split at spaces; numbers with six digits."""
    write_rows(
        path,
        header.split(),
        ([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows),
    )

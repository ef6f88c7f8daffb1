"""Labels and probabilities for any images."""

import argparse
import csv
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from resnet_lab.commands import add_run, describe, refuse_existing
from resnet_lab.config.errors import UserError
from resnet_lab.data.decode import evaluation_zoom
from resnet_lab.data.statistics import evenly_spaced

if TYPE_CHECKING:
    from resnet_lab.charts import Tile
    from resnet_lab.run.predict import Labels, Picture

MOST_IN_GRID = 48


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Writes a row for each image: its likeliest labels with their probabilities. Images of any "
        "size, as JPEG, PNG, BMP, GIF, TIFF, WebP or PPM; folders are walked in sorted order. "
        "Needs the run folder alone, not its data. A file that cannot be read gets a row with the "
        "error, and the exit status is 1 in the end. Nothing is overwritten.",
        "resnet-lab predict RUN_DIR photo.jpg\n"
        "resnet-lab predict RUN_DIR photos/ more/*.png --out labels.csv --grid labels.png",
    )
    add_run(parser)
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of them"
    )
    parser.add_argument(
        "--device", default="auto", help="auto: a GPU where there is one; cpu, cuda, cuda:1 (auto)"
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="labels an image (5)")
    parser.add_argument("--format", choices=["csv", "json"], default="csv", help="(csv)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a new file (standard output)")
    parser.add_argument(
        "--grid",
        type=Path,
        metavar="FILE",
        help="a PNG of the pictures with their likeliest label; where folders have the names of "
        "classes, also whether it is right",
    )


def run(options: argparse.Namespace) -> int:
    """A row goes out as soon as it is known, so that memory does not grow with their number.

    The net is fed what it would be fed in evaluation, and computes in float32, on every device
    with all its digits.
    """
    if options.top_k < 1:
        raise UserError(f"--top-k {options.top_k}: must be 1 or more.")
    if options.grid is not None and options.grid.suffix.lower() != ".png":
        raise UserError(f"--grid {options.grid}: it becomes a PNG, so its name must end in .png.")
    refuse_existing(options.out, options.grid)

    from resnet_lab.data.cache import progress
    from resnet_lab.run import machine
    from resnet_lab.run.load import load_run
    from resnet_lab.run.predict import decoded, find, labelled, tile

    device = machine.named(options.device)
    on_cpu = ["trainer.accelerator=cpu"] if device.type == "cpu" else []
    run = load_run(options.run_dir, options.checkpoint, on_cpu, trust=options.trust)
    machine.allow_tf32(False)
    files = [file for path in options.paths for file in find(path)]
    shown = set(evenly_spaced(len(files), MOST_IN_GRID)) if options.grid is not None else set()
    top_k = min(options.top_k, len(run.class_names))

    tiles: list[Tile] = []
    failed = 0
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module="PIL")  # serious faults are raised
        pictures = decoded(files, run.cfg.data.image_size, shown)
        answers = labelled(run, device, pictures, top_k)
        if options.out is not None or not sys.stdout.isatty():  # on a terminal the rows show it
            answers = progress(answers, len(files), f"{len(files):,} images")
        file = sys.stdout if options.out is None else stack.enter_context(_create(options.out))
        write_row = stack.enter_context(_rows(file, options.format, top_k))
        for number, (picture, labels) in enumerate(answers):
            write_row(picture, labels)
            if picture.error is not None:
                failed += 1
                print(f"error: {picture.path}: {picture.error}", file=sys.stderr)
            if number in shown:
                tiles.append(tile(picture, labels, run.class_names))
    if options.grid is not None:
        _write_grid(options.grid, tiles, len(files), evaluation_zoom(run.cfg.data.image_size))
    print(f"{len(files) - failed:,} of {len(files):,} images labelled", file=sys.stderr)
    return 1 if failed else 0


def _create(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file name that is no UTF-8 is written as the bytes that it is.
    return path.open("x", encoding="utf-8", errors="surrogateescape", newline="")


@contextmanager
def _rows(file: TextIO, kind: str, top_k: int) -> Iterator[Callable[["Picture", "Labels"], None]]:
    """A function that writes one row; what surrounds the rows is written on the way in and out."""
    if kind == "csv":
        writer = csv.writer(file, lineterminator="\n")
        places = range(1, top_k + 1)
        titles = [f"{what}_{place}" for place in places for what in ("label", "probability")]
        writer.writerow(["file", *titles, "error"])

        def write_csv(picture: "Picture", labels: "Labels") -> None:
            cells = [cell for label, p in labels for cell in (label, f"{p:.6f}")]
            writer.writerow([picture.path, *(cells or [""] * 2 * top_k), picture.error or ""])

        yield write_csv
        return

    separator = "[\n"

    def write_json(picture: "Picture", labels: "Labels") -> None:
        nonlocal separator
        row: dict[str, Any] = {"file": str(picture.path)}
        if picture.error is None:
            row["labels"] = [{"label": label, "probability": round(p, 6)} for label, p in labels]
        else:
            row["error"] = picture.error
        file.write(separator + json.dumps(row))
        separator = ",\n"

    try:
        yield write_json
    finally:
        file.write("\n]\n")


def _write_grid(path: Path, tiles: list["Tile"], n: int, seen: float) -> None:
    """A PNG of the tiles, which are some of `n`; see `charts.grid` for `seen`."""
    from resnet_lab import charts

    number = f"{len(tiles):,} of {n:,} images" if len(tiles) < n else f"{n:,} images"
    title = f"{number}; dashed: what the net sees"
    columns = min(8, math.ceil(math.sqrt(len(tiles) * 1.3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    charts.write_png(path, lambda: charts.grid(tiles, title, columns=columns, side=1.6, seen=seen))

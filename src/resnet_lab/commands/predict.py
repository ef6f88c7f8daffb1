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

from resnet_lab.commands import add_run, check_trust, describe, refuse_existing
from resnet_lab.config.errors import UserError
from resnet_lab.data.decode import evaluation_zoom
from resnet_lab.data.statistics import evenly_spaced
from resnet_lab.language import LANGUAGES

if TYPE_CHECKING:
    import torch
    from torch import nn

    from resnet_lab.charts import Tile
    from resnet_lab.run.load import Finished
    from resnet_lab.run.predict import Labels, Picture

MOST_IN_GRID, MOST_EXPLAINED = 48, 12


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Writes a row for each image: its likeliest labels with their probabilities. Images of any "
        "size, as JPEG, PNG, BMP, GIF, TIFF, WebP or PPM; folders are walked in sorted order. "
        "Needs the run folder alone, not its data. A file that cannot be read gets a row with the "
        "error, and the exit status is 1 in the end. Nothing is overwritten.",
        "resnet-lab predict RUN_DIR photo.jpg\n"
        "resnet-lab predict RUN_DIR photos/ more/*.png --out labels.csv --grid labels.png\n"
        "resnet-lab predict RUN_DIR photo.jpg --explain heat.png",
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
    parser.add_argument(
        "--explain",
        type=Path,
        metavar="FILE",
        help="a PNG of heat maps (Grad-CAM): where the net sees evidence for the two likeliest "
        f"labels and, where a folder names it, the true one; of {MOST_EXPLAINED} images at most",
    )
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="of --explain: stage2, stage2.1, or a module (the last one before pooling)",
    )
    parser.add_argument(
        "--language", choices=LANGUAGES, default="en", help="of the texts of --explain (en)"
    )


def run(options: argparse.Namespace) -> int:
    """A row goes out as soon as it is known, so that memory does not grow with their number.

    The net is fed what it would be fed in evaluation, and computes in float32, on every device
    with all its digits.
    """
    if options.top_k < 1:
        raise UserError(f"--top-k {options.top_k}: must be 1 or more.")
    for name in ("grid", "explain"):
        path = getattr(options, name)
        if path is not None and path.suffix.lower() != ".png":
            raise UserError(f"--{name} {path}: it becomes a PNG, so its name must end in .png.")
    if options.explain is None and options.layer is not None:
        raise UserError("--layer is of --explain FILE.png; add that, or leave --layer out.")
    if options.explain is not None and options.explain == options.grid:
        raise UserError("--grid and --explain need two files.")
    refuse_existing(options.out, options.grid, options.explain)
    check_trust(options.run_dir, options.trust)

    from resnet_lab.data.cache import progress
    from resnet_lab.run import machine
    from resnet_lab.run.load import load_run
    from resnet_lab.run.predict import decoded, find, labelled, tile

    device = machine.named(options.device)
    accelerator = "cpu" if device.type == "cpu" else "auto"
    run = load_run(
        options.run_dir, options.checkpoint, trust=options.trust, accelerator=accelerator
    )
    machine.allow_tf32(False)
    files = [file for path in options.paths for file in find(path)]
    shown = set(evenly_spaced(len(files), MOST_IN_GRID)) if options.grid is not None else set()
    most = 0 if options.explain is None else MOST_EXPLAINED
    to_explain = set(evenly_spaced(len(files), most))
    layer = None if options.explain is None else _layer(run, device, options.layer)
    top_k = min(options.top_k, len(run.class_names))

    tiles: list[Tile] = []
    explained: list[Picture] = []
    failed = 0
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module="PIL")  # serious faults are raised
        pictures = decoded(files, run.cfg.data.image_size, shown | to_explain)
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
            if number in to_explain and picture.error is None:
                explained.append(picture)
    if options.grid is not None and failed < len(files):
        _write_grid(options.grid, tiles, len(files), evaluation_zoom(run.cfg.data.image_size))
    if layer is not None and explained:
        _write_explained(options.explain, run, layer, explained, options.language)
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

    images = "image" if n == 1 else "images"
    title = f"{len(tiles):,} of {n:,} {images}" if len(tiles) < n else f"{n:,} {images}"
    if any(charts.is_cut(tile.picture, seen) for tile in tiles):
        title += "; dashed: what the net sees"
    columns = min(8, math.ceil(math.sqrt(len(tiles) * 1.3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    charts.write_png(path, lambda: charts.grid(tiles, title, columns=columns, side=1.6, seen=seen))


def _layer(run: "Finished", device: "torch.device", name: str | None) -> "nn.Module":
    """The layer that heat maps are made of, found before any image is read."""
    import torch

    from resnet_lab.analysis.gradcam import find_layer

    data = run.cfg.data
    blank = torch.zeros(1, len(data.mean), data.image_size, data.image_size, device=device)
    return find_layer(run.net.to(device), blank, name)


def _write_explained(
    path: Path, run: "Finished", layer: "nn.Module", pictures: "list[Picture]", language: str
) -> None:
    """A PNG of heat maps over what the net sees of the pictures."""
    import numpy as np
    import torch

    from resnet_lab import charts
    from resnet_lab.analysis import gradcam, gradcam_picture
    from resnet_lab.analysis.gradcam_picture import Block, Cell
    from resnet_lab.data.augment import normalise, scale_and_shift
    from resnet_lab.files import printable
    from resnet_lab.language import translator
    from resnet_lab.run.predict import folder_class, seen

    say = translator(language, gradcam_picture.KOREAN)
    names, data = run.class_names, run.cfg.data
    device = next(run.net.parameters()).device
    pixels = torch.from_numpy(np.stack([p.pixels for p in pictures if p.pixels is not None]))
    images = normalise(pixels.to(device), *scale_and_shift(data.mean, data.std, device))
    with torch.inference_mode():
        probabilities = run.net(images).float().softmax(dim=1).cpu()
    classes = probabilities.topk(min(2, len(names)), dim=1).indices
    truths = [folder_class(picture, names) for picture in pictures]
    if any(truths):  # of a picture without one its likeliest class stands in, and is not drawn
        known = [names.index(t) if t else int(c[0]) for t, c in zip(truths, classes, strict=True)]
        classes = torch.cat([classes, torch.tensor(known)[:, None]], dim=1)
    maps = gradcam.heat_maps(run.net, layer, images, classes)

    rows = []
    for number, picture in enumerate(pictures):
        image, truth = seen(picture, data.image_size), truths[number]
        name = charts.shortened(printable(picture.path.name), 20)
        cells = [Cell(image, f"{name}\n{say('it is {name}', name=truth)}" if truth else name)]
        drawn: list[int] = []
        for kind, heat in zip(classes[number].tolist(), maps[number].numpy(), strict=True):
            if kind not in drawn:
                share = f"{probabilities[number, kind]:.0%}"
                cells.append(Cell(image, f"{charts.shortened(names[kind], 18)}  {share}", heat))
                drawn.append(kind)
        rows.append(cells)
    heads = [
        say("what the net sees"),
        say("likeliest class"),
        say("second class"),
        say("true class"),
    ]
    half = -(-len(rows) // 2) if len(rows) > 3 else len(rows)
    blocks = [
        Block("", heads[: max(map(len, part))], part) for part in (rows[:half], rows[half:]) if part
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    charts.write_png(path, lambda: gradcam_picture.draw(blocks, say))

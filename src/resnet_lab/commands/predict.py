"""`resnet-lab predict`: what a run's net says of any images."""

import csv
import json
import math
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from PIL import Image

from resnet_lab import charts
from resnet_lab.config.errors import UserError
from resnet_lab.data.augment import normalise, scale_and_shift
from resnet_lab.data.cache import progress
from resnet_lab.data.decode import EXTENSIONS, evaluation_zoom, fit, open_image, reason, to_rgb
from resnet_lab.data.statistics import evenly_spaced
from resnet_lab.run.load import Finished, load_run

BATCH = 64
MOST_IN_GRID = 48
THUMBNAIL = 240  # pixels of the longer side, in the grid


class Picture(NamedTuple):
    """A file, decoded: or, where it could not be, the reason in one line."""

    path: Path
    pixels: np.ndarray | None = None  # uint8 [image_size, image_size, 3], what the net is fed
    thumbnail: Image.Image | None = None  # all of it, for the grid
    error: str | None = None


# The likeliest labels with their probabilities, the likeliest first.
Labels = list[tuple[str, float]]


def predict(
    run_dir: Path,
    paths: Sequence[Path],
    *,
    checkpoint: Path | None = None,
    top_k: int = 5,
    kind: str = "csv",
    out: Path | None = None,
    grid: Path | None = None,
    trust: Sequence[str] = (),
) -> int:
    """Label images with a run's net; returns how many of the files could not be read.

    A row for each file of `paths` (folders are walked in sorted order) goes to `out`, or stdout,
    as soon as it is known, so that memory does not grow with their number.

    kind: "csv" or "json".
    grid: a PNG to be made of the pictures, or 48 of them, each with its likeliest label.

    The net is fed what it would be fed in evaluation, and computes in float32. Nothing is
    overwritten. ValueError, before anything is written, for what cannot be done.
    """
    if top_k < 1:
        raise UserError(f"--top-k {top_k}: must be 1 or more.")
    if grid is not None and grid.suffix.lower() != ".png":
        raise UserError(f"--grid {grid}: it becomes a PNG, so its name must end in .png.")
    for path in (out, grid):
        if path is not None and path.exists():
            raise UserError(f"{path} is there already; remove it, or name another file.")
    run = load_run(run_dir, checkpoint, trust=trust)
    files = [file for path in paths for file in find(path)]
    shown = set(evenly_spaced(len(files), MOST_IN_GRID)) if grid is not None else set()

    tiles: list[charts.Tile] = []
    failed = 0
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module="PIL")  # what matters to us it raises
        pictures = decoded(files, run.cfg.data.image_size, shown)
        answers = _labelled(run, pictures, min(top_k, len(run.class_names)))
        if out is not None or not sys.stdout.isatty():  # on a terminal the rows show it
            answers = progress(answers, len(files), f"{len(files):,} images")
        file = sys.stdout if out is None else stack.enter_context(_create(out))
        write_row = stack.enter_context(_rows(file, kind, min(top_k, len(run.class_names))))
        for number, (picture, labels) in enumerate(answers):
            write_row(picture, labels)
            if picture.error is not None:
                failed += 1
                print(f"error: {picture.path}: {picture.error}", file=sys.stderr)
            if number in shown:
                tiles.append(_tile(picture, labels))
    if grid is not None:
        _write_grid(grid, tiles, len(files), evaluation_zoom(run.cfg.data.image_size))
    print(f"{len(files) - failed:,} of {len(files):,} images labelled", file=sys.stderr)
    return failed


def find(path: Path) -> Iterator[Path]:
    """The file itself, or the images below a folder, sorted; what is hidden is left out."""
    if not path.is_dir():
        yield path
        return
    none = True
    for folder, inside, names in os.walk(path):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                none = False
                yield Path(folder, name)
    if none:
        raise UserError(f"{path} holds no image ({' '.join(EXTENSIONS)}).")


def decoded(files: Iterable[Path], size: int, shown: set[int]) -> Iterator[Picture]:
    """The files in their order, read by threads that are never far ahead."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        ahead: deque[Future[Picture]] = deque()
        try:
            for number, path in enumerate(files):
                ahead.append(pool.submit(_decode, path, size, number in shown))
                if len(ahead) > 2 * BATCH:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C nobody waits for the others


def _decode(path: Path, size: int, show: bool) -> Picture:
    try:
        with open_image(path) as image:
            pixels = np.asarray(fit(image, size, evaluation_zoom(size)))
        if not show:
            return Picture(path, pixels)
        with open_image(path) as image:
            image.draft(None, (THUMBNAIL, THUMBNAIL))
            thumbnail = to_rgb(image)
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        return Picture(path, pixels, thumbnail)
    except Exception as error:  # of a damaged file Pillow's plugins raise anything
        return Picture(path, error=reason(error))


def _labelled(
    run: Finished, pictures: Iterable[Picture], top_k: int
) -> Iterator[tuple[Picture, Labels]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = run.net.to(device)
    scale, shift = scale_and_shift(run.cfg.data.mean, run.cfg.data.std, device)
    pictures = iter(pictures)
    while batch := list(islice(pictures, BATCH)):
        pixels = [picture.pixels for picture in batch if picture.pixels is not None]
        answers: Iterator[Labels] = iter(())
        if pixels:
            images = torch.from_numpy(np.stack(pixels)).to(device)
            with torch.inference_mode():
                probabilities = net(normalise(images, scale, shift)).softmax(dim=1)
            answers = iter(_named(probabilities, run.class_names, top_k))
        for picture in batch:
            yield picture, [] if picture.pixels is None else next(answers)


def _named(probabilities: torch.Tensor, names: Sequence[str], top_k: int) -> list[Labels]:
    values, indices = probabilities.topk(top_k, dim=1)
    return [
        [(names[i], value) for i, value in zip(row, of_row, strict=True)]
        for row, of_row in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def _create(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file name that is no UTF-8 is written as the bytes that it is.
    return path.open("x", encoding="utf-8", errors="surrogateescape", newline="")


@contextmanager
def _rows(file: TextIO, kind: str, top_k: int) -> Iterator[Callable[[Picture, Labels], None]]:
    """What writes one row; what surrounds the rows is written on the way in and out."""
    if kind == "csv":
        writer = csv.writer(file, lineterminator="\n")
        places = range(1, top_k + 1)
        titles = [f"{what}_{place}" for place in places for what in ("label", "probability")]
        writer.writerow(["file", *titles, "error"])

        def write_csv(picture: Picture, labels: Labels) -> None:
            cells = [cell for label, p in labels for cell in (label, f"{p:.6f}")]
            writer.writerow([picture.path, *(cells or [""] * 2 * top_k), picture.error or ""])

        yield write_csv
        return

    separator = "[\n"

    def write_json(picture: Picture, labels: Labels) -> None:
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


def _tile(picture: Picture, labels: Labels) -> charts.Tile:
    name = charts.shortened(picture.path.name, 24)
    if picture.error is not None:
        return charts.Tile(None, "cannot be read", name)
    label, probability = labels[0]
    return charts.Tile(
        np.asarray(picture.thumbnail), f"{charts.shortened(label, 20)}  {probability:.0%}", name
    )


def _write_grid(path: Path, tiles: Sequence[charts.Tile], n: int, seen: float) -> None:
    """A PNG of the tiles, which are some of `n`; see `charts.grid` for `seen`."""
    number = f"{len(tiles):,} of {n:,} images" if len(tiles) < n else f"{n:,} images"
    title = f"{number}; dashed: what the net sees"
    columns = min(8, math.ceil(math.sqrt(len(tiles) * 1.3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    charts.write_png(path, lambda: charts.grid(tiles, title, columns=columns, side=1.6, seen=seen))

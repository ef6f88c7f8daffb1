"""Labels and probabilities of any images, by the net of a finished run."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from resnet_lab.charts import Tile, shortened
from resnet_lab.config.errors import UserError
from resnet_lab.data.augment import normalise, scale_and_shift
from resnet_lab.data.decode import (
    EXTENSIONS,
    evaluation_zoom,
    fit,
    in_turn,
    open_image,
    reason,
    to_rgb,
)
from resnet_lab.files import printable
from resnet_lab.run.load import Finished

BATCH = 64
THUMBNAIL = 240  # pixels of the longer side


class Picture(NamedTuple):
    """A file, decoded: or, where it could not be, the reason in one line."""

    path: Path
    pixels: np.ndarray | None = None  # uint8 [image_size, image_size, 3], what the net is fed
    thumbnail: Image.Image | None = None  # all of it, for the grid
    error: str | None = None


# The likeliest labels with their probabilities, the likeliest first.
Labels = list[tuple[str, float]]


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
            with in_turn(image):
                thumbnail = to_rgb(image)
                thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        return Picture(path, pixels, thumbnail)
    except Exception as error:  # of a damaged file Pillow's plugins raise anything
        return Picture(path, error=reason(error))


def labelled(
    run: Finished, device: torch.device, pictures: Iterable[Picture], top_k: int
) -> Iterator[tuple[Picture, Labels]]:
    """Each picture with its `top_k` likeliest labels, computed batch by batch."""
    net = run.net.to(device)
    scale, shift = scale_and_shift(run.cfg.data.mean, run.cfg.data.std, device)
    pictures = iter(pictures)
    while batch := list(islice(pictures, BATCH)):
        answers: Iterator[Labels] = iter(())
        if pixels := [picture.pixels for picture in batch if picture.pixels is not None]:
            images = torch.from_numpy(np.stack(pixels)).to(device)
            with torch.inference_mode():
                probabilities = net(normalise(images, scale, shift)).softmax(dim=1)
            values, indices = (part.tolist() for part in probabilities.topk(top_k, dim=1))
            answers = (
                [(run.class_names[i], value) for i, value in zip(*row, strict=True)]
                for row in zip(indices, values, strict=True)
            )
        for picture in batch:
            yield picture, [] if picture.pixels is None else next(answers)


def fitted(image: Image.Image, size: int, number: int) -> Picture:
    """A picture in memory, by its number in place of a name; UserError where it is none."""
    try:
        pixels = np.asarray(fit(image.copy(), size, evaluation_zoom(size)))
        thumbnail = to_rgb(image.copy())
    except Exception as error:  # Pillow's, of any kind
        raise UserError(f"image {number}: {reason(error)}") from error
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return Picture(Path(str(number)), pixels, thumbnail)


def folder_class(picture: Picture, class_names: Sequence[str]) -> str | None:
    """The name of its file's folder, if a class is called so, as in test/cat/1.jpg."""
    folder = printable(picture.path.absolute().parent.name)
    in_memory = picture.path.name.isdecimal()  # a number in place of a name
    return folder if folder in class_names and not in_memory else None


def seen(picture: Picture, size: int) -> np.ndarray:
    """What the net sees of a picture with a thumbnail, uint8 [side, side, 3] of the thumbnail."""
    assert picture.thumbnail is not None
    width, height = picture.thumbnail.size
    side = max(1, round(min(width, height) * evaluation_zoom(size)))
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(picture.thumbnail.crop((left, top, left + side, top + side)))


def tile(
    picture: Picture, labels: Labels, class_names: Sequence[str], truth: str | None = None
) -> Tile:
    """The picture with its likeliest label, and whether that is right, where it is known.

    Args:
        truth: what it is; by default its `folder_class`.
    """
    path = picture.path
    is_file = not path.name.isdecimal()  # a picture in memory has a number in place of a name
    name = shortened(printable(path.name), 24) if is_file else ""
    if picture.error is not None:
        return Tile(None, "cannot be read", name)
    label, probability = labels[0]
    text = f"{shortened(label, 20)}  {probability:.0%}"
    truth = folder_class(picture, class_names) if truth is None else truth
    if truth is not None:
        verdict = "right" if truth == label else f"wrong, it is {shortened(truth, 18)}"
        text = f"{text}\n{verdict}"
    return Tile(np.asarray(picture.thumbnail), text, name)

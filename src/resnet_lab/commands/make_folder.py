"""Write a data set as an image folder: train/CLASS/00017.jpg."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_lab.commands import add_overrides, describe
from resnet_lab.commands._new_folder import new_folder, refuse_existing_folder
from resnet_lab.config.check import check
from resnet_lab.config.compose import compose, pasted
from resnet_lab.config.errors import UserError
from resnet_lab.config.suggest import offer
from resnet_lab.files import printable
from resnet_lab.screen import console

if TYPE_CHECKING:
    from resnet_lab.data.sources import Source

# As the figures of docs/results.md were made: Pillow's own quality and subsampling.
QUALITY, SUBSAMPLING = 75, "4:2:0"
FOREIGN = re.compile(r'[/\\:*?"<>|]|^\.|[. ]$')  # not in the name of a folder on every system


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Writes every image of a data set into DIR/SPLIT/CLASS, which data=imagefolder reads. A "
        "file's name is the image's index in its split, from 0, in the order of the set's own "
        "files: train/frog/00000.jpg is the first training image of CIFAR-10. The default, JPEG "
        "of quality 75 with subsampling 4:2:0, is that of the CIFAR-10 folder that the figures of "
        "docs/results.md were measured on. The same Pillow writes the same bytes.",
        "resnet-lab make-folder data=cifar10 data/cifar10-jpeg\n"
        "resnet-lab make-folder data=digits digits --format png\n"
        "resnet-lab make-folder data=cifar10 data/pets --classes cat,dog",
    )
    add_overrides(parser, "the new folder, and a data config as for train.py")
    parser.usage = "%(prog)s data=NAME [KEY=VALUE ...] DIR [options]"
    parser.add_argument(
        "--format", choices=["jpeg", "png"], default="jpeg", help="png keeps every pixel (jpeg)"
    )
    parser.add_argument(
        "--quality", type=int, metavar="N", help=f"of JPEG, from 1 to 100 ({QUALITY})"
    )
    parser.add_argument(
        "--classes", metavar="A,B,...", help="only images of these classes (all of them)"
    )


def run(options: argparse.Namespace) -> int:
    folders = [word for word in options.overrides if "=" not in word]
    if len(folders) != 1:
        found = f"not {len(folders)}: {', '.join(folders)}" if folders else "none is given"
        raise UserError(f"give one folder to write into ({found}).")
    quality = QUALITY if options.quality is None else options.quality
    if options.format == "png" and options.quality is not None:
        raise UserError("--quality belongs to --format jpeg; PNG keeps every pixel.")
    if not 1 <= quality <= 100:
        raise UserError(f"--quality {quality}: must be from 1 to 100.")
    out = Path(folders[0]).expanduser()
    refuse_existing_folder(out)
    cfg, choices = compose([word for word in options.overrides if "=" in word])
    check(cfg)

    from resnet_lab.data.sources import ImageFolder
    from resnet_lab.run.build import build_source

    source = build_source(cfg)
    if isinstance(source, ImageFolder):
        raise UserError(f"data={choices['data']} is a folder of images already; give another data=")
    names = _folder_names(source.class_names)
    kept = _kept(source.class_names, options.classes)
    counts = {}
    with new_folder(out) as folder:
        for split in source.splits:
            chosen = {label: names[label] for label in kept}
            counts[split] = write(source, split, chosen, folder / split, options.format, quality)
    images = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    kind = f"JPEG, quality {quality}, {SUBSAMPLING}" if options.format == "jpeg" else "PNG"
    console.print(f"{printable(str(out))}: {images}; {len(kept)} classes; {kind}", soft_wrap=True)
    console.print("train on it:", soft_wrap=True)
    command = f"resnet-lab train data=imagefolder {pasted('data.root', str(out))} model=resnet20"
    console.print(f"  {command}", soft_wrap=True)
    return 0


def write(
    source: "Source", split: str, names: Mapping[int, str], folder: Path, form: str, quality: int
) -> int:
    """Write the images of a split into a folder per class, and return how many there are.

    Args:
        names: of the folders, by label; images of other labels are left out.
        folder: of the split; it is made.
        form: "jpeg" or "png".
    """
    from resnet_lab.data.cache import in_threads

    labels = source.labels(split).tolist()
    chosen = [index for index, label in enumerate(labels) if label in names]
    for label in sorted({labels[index] for index in chosen}):
        (folder / names[label]).mkdir(parents=True)
    ending = "jpg" if form == "jpeg" else "png"

    def save(chunk: Sequence[int]) -> None:
        for index in chunk:
            path = folder / names[labels[index]] / f"{index:05d}.{ending}"
            image = source.read(split, index)
            if form == "jpeg":
                image.save(path, "JPEG", quality=quality, subsampling=SUBSAMPLING)
            else:
                image.save(path, "PNG")

    for _ in in_threads(save, chosen, f"writing {len(chosen):,} images of {split}"):
        pass
    return len(chosen)


def _kept(class_names: Sequence[str], classes: str | None) -> list[int]:
    """The labels of the classes that are asked for; UserError where one does not exist."""
    if classes is None:
        return list(range(len(class_names)))
    wanted = [name.strip() for name in classes.split(",")]
    for name in wanted:
        if name not in class_names:
            raise UserError(f"--classes {name}: there is no such class; {offer(name, class_names)}")
    if len(kept := sorted({class_names.index(name) for name in wanted})) < 2:
        raise UserError(f"--classes {classes}: give two classes or more.")
    return kept


def _folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder for each class: its name, without what cannot be in the name of a folder."""
    names = [FOREIGN.sub("_", name) or "_" for name in class_names]
    if len({name.casefold() for name in names}) < len(names):
        raise UserError(f"two classes would share a folder: {', '.join(class_names)}; rename one.")
    return names

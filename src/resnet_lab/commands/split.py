"""Make train/, val/ and test/ of a folder with a folder of images per class."""

import argparse
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from resnet_lab.commands import describe
from resnet_lab.commands._deal import Photo, deal, look, same_pixels
from resnet_lab.commands._new_folder import new_folder, refuse_existing_folder
from resnet_lab.config.compose import pasted
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.run.folder import shown
from resnet_lab.screen import console

MOST_LINES = 20  # classes, bad images and duplicates on the screen


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Every class is divided in the same shares. Which image goes where depends on --seed and "
        "the files' content alone, not on their names or order. Images with the same pixels stay "
        "on one side. FOLDER stays as it is: the new folder has hard links to its files where the "
        "file system allows it (the same file under two names, which takes no room), else copies.",
        "resnet-lab split photos\n"
        "resnet-lab split photos --out photos-parts --val 0 --test 0.1 --copy",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="holds a folder of images per class"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="(FOLDER-split)")
    parser.add_argument(
        "--val", type=float, default=0.1, metavar="SHARE", help="of each class; 0: no val/ (0.1)"
    )
    parser.add_argument(
        "--test", type=float, default=0.2, metavar="SHARE", help="of each class (0.2)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    parser.add_argument("--copy", action="store_true", help="copy the files, make no hard links")
    parser.add_argument(
        "--on-bad-image",
        choices=["error", "skip"],
        default="error",
        help="what images that cannot be read do: stop the command, or be left out (error)",
    )


def run(options: argparse.Namespace) -> int:
    if not 0 <= options.val < 1:
        raise UserError(f"--val {options.val:g}: must be a share of each class below 1, or 0.")
    if not 0 < options.test < 1:
        raise UserError(f"--test {options.test:g}: must be a share of each class, between 0 and 1.")
    if options.val + options.test >= 1:
        raise UserError(f"--val {options.val:g} --test {options.test:g}: leave nothing for train/.")
    folder = Path(os.path.abspath(options.folder.expanduser()))
    out = (options.out or folder.with_name(f"{folder.name}-split")).expanduser()
    _check_places(options.folder, folder, out)

    from resnet_lab.data.sources import ImageFolder

    # The folder is the one split that is read, of the folder that it lies in.
    source = ImageFolder(str(folder.parent), cache_dir="", only=(folder.name,))
    names, unknown_files = source.class_names, source.unknown_files(folder.name)
    unknown_files += Counter(_ending(e.name) for e in os.scandir(folder) if _is_stray(e))
    if len(names) < 2:
        raise UserError(
            f"{printable(str(options.folder))} holds one class alone ({names[0]}), so there is "
            "nothing to tell apart; give each class a folder."
        )
    photos, bad = look(source, folder.name)
    _report_bad(bad, options)
    shares = {"val": options.val, "test": options.test}
    sides = deal(photos, {side: s for side, s in shares.items() if s}, names, options.seed)

    with new_folder(out) as part:
        linked = sum(
            _place(folder / photo.path, part / side / photo.path, options.copy)
            for side, some in sides.items()
            for photo in some
        )
    console.print(_table(sides, names))
    for line in _remarks(photos, unknown_files):
        console.print(line, soft_wrap=True)
    where = shown(out)
    if linked == len(photos):
        console.print(
            f"{printable(where)}: hard links; a file that is changed in place changes in both",
            soft_wrap=True,
        )
    else:
        others = f", {linked:,} hard links" if linked else ""
        console.print(
            f"{printable(where)}: {len(photos) - linked:,} copies{others}", soft_wrap=True
        )
    command = f"resnet-lab train data=imagefolder {pasted('data.root', where)} model=resnet18"
    console.print(f"train on it:\n  {command}", soft_wrap=True)
    return 0


def _check_places(typed: Path, folder: Path, out: Path) -> None:
    """Raise UserError for a folder that cannot be split, or a new one that may not lie there."""
    shown = printable(str(typed))
    if not folder.is_dir():
        raise UserError(f"{shown} is no folder; name the one that holds a folder per class.")
    if (folder / "train").is_dir():
        root = pasted("data.root", str(typed))
        raise UserError(
            f"{shown} has train/ already, so it is split: train with data=imagefolder {root}."
        )
    refuse_existing_folder(out)
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
        raise UserError(
            f"--out {printable(str(out))}: lies in {shown}, which stays as it is; name another."
        )
    with os.scandir(folder) as entries:
        there = [e for e in entries if not e.name.startswith(".")]
    if there and not any(e.is_dir() for e in there):
        raise UserError(
            f"{shown} holds files, and no folder per class; put the images of each class into a "
            "folder that has its name."
        )


def _is_stray(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file beside the folders of classes."""
    return not entry.name.startswith(".") and entry.is_file()


def _ending(name: str) -> str:
    return f"{os.path.splitext(name)[1].lower() or 'none'} beside the classes"


def _report_bad(bad: Mapping[str, str], options: argparse.Namespace) -> None:
    """Stop for bad images, or tell which are left out."""
    if not bad:
        return
    lines = [f"  {path}: {why}" for path, why in bad.items()]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"  ... and {len(lines) - MOST_LINES:,} more"]
    listed = "\n".join(lines)
    if options.on_bad_image == "error":
        raise UserError(
            f"{printable(str(options.folder))} holds {len(bad):,} bad image"
            f"{'s' * (len(bad) != 1)}; remove or replace what is bad, or leave it out by "
            f"--on-bad-image skip:\n{listed}"
        )
    console.print(f"left out, {len(bad):,} that cannot be read:\n{listed}", soft_wrap=True)


def _place(origin: Path, target: Path, copy: bool) -> bool:
    """Put a file into its new place; whether by a hard link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(os.path.realpath(origin), target)  # of the file, where it is a symbolic link
            return True
        except OSError:  # another file system, or one without hard links, or too many of them
            target.unlink(missing_ok=True)
    shutil.copy2(origin, target)
    return False


def _table(sides: Mapping[str, Sequence[Photo]], names: Sequence[str]) -> Table:
    """A row for each class, the first of many, and their sums."""
    counts = {side: Counter(photo.label for photo in photos) for side, photos in sides.items()}
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("class", "images")
    for side, photos in sides.items():
        table.add_column(side, f"{len(photos):,}", justify="right")
    for label, name in enumerate(names[:MOST_LINES]):
        table.add_row(name, *(f"{of_side[label]:,}" for of_side in counts.values()))
    if len(names) > MOST_LINES:
        table.add_row(f"... {len(names) - MOST_LINES:,} more")
    return table


def _remarks(photos: Sequence[Photo], unknown_files: Mapping[str, int]) -> list[str]:
    """What was left out, and what is there twice."""
    lines = []
    if unknown_files:
        endings = ", ".join(f"{ending} ({n:,})" for ending, n in sorted(unknown_files.items()))
        lines.append(f"left out, no images by their names: {endings}")
    doubled = [group for group in same_pixels(photos) if len(group) > 1]
    if doubled:
        surplus = sum(len(group) - 1 for group in doubled)
        lines.append(
            f"duplicates: {surplus:,} images have the same pixels as another one, and are on its "
            "side"
        )
    mixed = [group for group in doubled if len({photo.label for photo in group}) > 1]
    if mixed:
        lines.append(f"the same pixels under two classes, look at them: {len(mixed):,}")
        lines += [
            "  " + " = ".join(printable(photo.path) for photo in group)
            for group in mixed[:MOST_LINES]
        ]
    return lines

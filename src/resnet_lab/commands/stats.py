"""What is in a data set: classes, mean and std, sizes, duplicates, broken files."""

import argparse
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from resnet_lab.commands import add_overrides, describe
from resnet_lab.config.check import check
from resnet_lab.config.compose import compose
from resnet_lab.config.errors import UserError
from resnet_lab.files import create_cache_folder, write_json
from resnet_lab.screen import console

MOST_CLASSES = 20  # rows on the screen; all are in the file
MOST_LINES = 10  # of broken files and of duplicates on the screen; all are in the file


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Reads every image of a data config, in all its splits. Prints a summary, and writes "
        "all of it as JSON into data.cache_dir; nothing is written where the images are. "
        "Duplicates are images with the same pixels. Near duplicates are images of two splits "
        "that look almost the same by their difference hashes: look at them yourself. Broken "
        "files are a finding, no error: the exit status is 0.",
        "resnet-lab stats data=imagefolder data.root=path/to/images\nresnet-lab stats data=cifar10",
    )
    add_overrides(parser, "a data config as for train.py")


def run(options: argparse.Namespace) -> int:
    cfg, choices = compose(options.overrides)
    check(cfg)

    from resnet_lab.data.cache import digest
    from resnet_lab.data.inspect import examine
    from resnet_lab.run.build import build_source

    source = build_source(cfg)
    result = {"data": choices["data"], "root": cfg.data.get("root"), **examine(source)}
    key = digest(*(source.fingerprint(split) for split in source.splits))
    path = Path(cfg.data.cache_dir, f"stats-{choices['data']}-{key}.json")
    try:
        create_cache_folder(path.parent)
        write_json(path, result)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}); set data.cache_dir to a writable folder."
        ) from error
    show(result)
    console.print(f"written to  {path}", soft_wrap=True)
    return 0


def show(result: dict[str, Any]) -> None:
    """Print what `run` writes, the longest lists cut short."""
    where = f" in {result['root']}" if result.get("root") else ""
    console.print(f"data        {result['data']}{where}", soft_wrap=True)
    console.print(_classes(result["splits"]))

    lines: list[tuple[str, str]] = []
    for name in ("mean", "std"):
        if result[name] is not None:
            values = ",".join(f"{value:.4f}" for value in result[name])
            lines.append((name, f"data.{name}=[{values}]"))
    sizes = result["sizes"]
    if "width" in sizes:
        lines += [(side, _range(sizes[side])) for side in ("width", "height")]
        common = ", ".join(
            f"{s['width']} x {s['height']} ({s['images']:,})" for s in sizes["most_common"]
        )
        lines.append(("sizes", f"{sizes['different']:,} different; most common: {common}"))
    for name in ("formats", "modes"):
        lines.append((name, ", ".join(f"{k} ({n:,})" for k, n in result[name].items()) or "none"))

    duplicates = result["duplicates"]
    text = "none (no two images have the same pixels)"
    if duplicates["groups"]:
        text = (
            f"{duplicates['groups']:,} groups of images with the same pixels, "
            f"{duplicates['surplus']:,} images too many; {duplicates['across_splits']:,} groups "
            f"across splits, {duplicates['across_classes']:,} across classes"
        )
    # What is in training and in test, or under two classes, matters most.
    groups = sorted(
        duplicates["images"],
        key=lambda g: (-len({(image["split"], image["class"]) for image in g}), -len(g)),
    )
    lines += _listed("duplicates", text, [_equal(group) for group in groups], "groups")

    near = result["near_duplicates"]
    text = "none across splits"
    if near:
        n = len({pair["images"][1]["image"] for pair in near})
        text = f"{n:,} images look almost like one of another split ({len(near):,} pairs)"
    pairs = [_equal(pair["images"], " ~ ") for pair in near]
    lines += _listed("near", text, pairs, "pairs")

    broken = result["broken"]
    text = f"{len(broken):,} images cannot be read" if broken else "none"
    lines += _listed("broken", text, [f"{b['image']}: {b['reason']}" for b in broken], "images")
    for name, text in lines:
        console.print(f"{name:<12}{text}", soft_wrap=True)


def _classes(splits: dict[str, Any]) -> Table:
    """A row for each class, and below them their sum and ratio."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("class", "images\nmost / fewest")
    for split, figures in splits.items():
        ratio = figures["imbalance"]
        footer = f"{figures['images']:,}\n{'-' if ratio is None else f'{ratio:.2f}'}"
        table.add_column(split, footer, justify="right")
    train = splits["train"]["classes"]
    names, cut, end = list(train), len(train), 0
    if len(names) > MOST_CLASSES:
        names.sort(key=lambda name: -train[name])
        cut, end = MOST_CLASSES // 2, len(names) - MOST_CLASSES // 2
    for number, name in enumerate(names):
        if number < cut or number >= end > 0:
            table.add_row(name, *(f"{split['classes'][name]:,}" for split in splits.values()))
        elif number == cut:
            table.add_row(f"... {end - cut:,} more")
    return table


def _range(spread: dict[str, float]) -> str:
    if spread["min"] == spread["max"]:
        return f"{spread['min']} pixels"
    return f"{spread['min']} to {spread['max']} pixels, median {spread['median']:g}"


def _equal(images: list[dict[str, str]], sign: str = " = ") -> str:
    return sign.join(image["image"] for image in images)


def _listed(name: str, text: str, lines: list[str], what: str) -> list[tuple[str, str]]:
    """A heading and the first of its lines."""
    shown = [(name, text), *(("", line) for line in lines[:MOST_LINES])]
    if len(lines) > MOST_LINES:
        shown.append(("", f"... and {len(lines) - MOST_LINES:,} more {what}"))
    return shown

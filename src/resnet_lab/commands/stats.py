"""`resnet-lab stats`: what is in a data set, and what is wrong with it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from resnet_lab.config.check import check
from resnet_lab.config.compose import compose
from resnet_lab.config.errors import UserError
from resnet_lab.data.cache import digest, in_threads
from resnet_lab.data.decode import open_image, reason, to_rgb
from resnet_lab.data.sources import ImageFolder, Source
from resnet_lab.data.statistics import level_statistics
from resnet_lab.files import create_cache_folder
from resnet_lab.screen import console

MOST_CLASSES = 20  # rows on the screen; all are in the file
MOST_LINES = 10  # of broken files and of duplicates on the screen; all are in the file
MOST_SIZES = 5


@dataclass
class Found:
    """What was seen in some images of one split."""

    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # width, height
    # By number of pixels: how often each level of each channel occurs, int64 [768].
    levels: dict[int, np.ndarray] = field(default_factory=dict)
    pixels: list[tuple[int, bytes]] = field(default_factory=list)  # index, digest of the picture
    broken: list[tuple[int, str]] = field(default_factory=list)  # index, reason

    def add(self, other: "Found") -> None:
        for mine, theirs in (
            (self.formats, other.formats),
            (self.modes, other.modes),
            (self.sizes, other.sizes),
        ):
            mine.update(theirs)  # type: ignore[arg-type]
        for area, levels in other.levels.items():
            self.levels[area] = self.levels.get(area, 0) + levels
        self.pixels += other.pixels
        self.broken += other.broken


def stats(overrides: Sequence[str]) -> Path:
    """Look at every image of the data config, print what is there, and write it as JSON.

    The file lies in `data.cache_dir`, under a name that changes with the data; its path is
    returned. Nothing is written where the images are. ValueError where the config is wrong or the
    folder has not the form that a data set must have; a broken image is no error but a finding.
    """
    cfg, choices = compose(overrides)
    check(cfg)

    from resnet_lab.run import build, folder

    source = build.build_source(cfg)
    result = {"data": choices["data"], "root": cfg.data.get("root"), **examine(source)}
    key = digest(*(source.fingerprint(split) for split in source.splits))
    path = Path(cfg.data.cache_dir, f"stats-{choices['data']}-{key}.json")
    try:
        create_cache_folder(path.parent)
        folder.write_json(path, result)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}); set data.cache_dir to a writable folder."
        ) from error
    show(result)
    console.print(f"written to  {path}", soft_wrap=True)
    return path


def examine(source: Source) -> dict[str, Any]:
    """All that `stats` writes about the images themselves, ready for JSON.

    mean, std: of each channel over the training images, for pixels from 0 to 1, each image with
        the same weight whatever its size; None where no training image can be read.
    sizes, formats, modes: over all splits; the format is "array" where there are no files.
    duplicates: groups of images whose pixels are the same, whatever their files look like.
    """
    found = {split: _inspect_all(source, split) for split in source.splits}
    names = source.class_names
    splits: dict[str, Any] = {}
    whole = Found()
    groups: dict[bytes, list[dict[str, str]]] = defaultdict(list)
    broken: list[dict[str, str]] = []
    for split, seen in found.items():
        labels = source.labels(split)
        counts = np.bincount(labels, minlength=len(names)).tolist()
        # Files that are not listed, since they can be no image, are broken images here.
        faults = dict(source.faults(split)) if isinstance(source, ImageFolder) else {}
        for path in faults:
            counts[names.index(path.split("/")[1])] += 1
        faults |= {source.describe(split, index): why for index, why in seen.broken}
        splits[split] = {
            "images": sum(counts),
            "broken": len(faults),
            "imbalance": round(max(counts) / min(counts), 4) if min(counts) else None,
            "classes": dict(zip(names, counts, strict=True)),
        }
        for index, picture in seen.pixels:
            image = source.describe(split, index)
            groups[picture].append({"image": image, "split": split, "class": names[labels[index]]})
        broken += [{"image": path, "split": split, "reason": why} for path, why in faults.items()]
        whole.add(seen)

    mean = std = None
    train = found["train"].levels
    if train:
        images = sum(int(levels[:256].sum()) // area for area, levels in train.items())
        share = np.sum([levels / area for area, levels in train.items()], axis=0) / images
        mean, std = level_statistics(share.reshape(3, 256))
    duplicates = [group for group in groups.values() if len(group) > 1]
    return {
        "splits": splits,
        "mean": mean,
        "std": std,
        "sizes": _sizes(whole.sizes),
        "formats": dict(whole.formats.most_common()),
        "modes": dict(whole.modes.most_common()),
        "duplicates": {
            "groups": len(duplicates),
            "surplus": sum(len(group) - 1 for group in duplicates),
            "across_splits": sum(len({d["split"] for d in group}) > 1 for group in duplicates),
            "across_classes": sum(len({d["class"] for d in group}) > 1 for group in duplicates),
            "images": duplicates,
        },
        "broken": broken,
    }


def _sizes(sizes: Counter[tuple[int, int]]) -> dict[str, Any]:
    def spread(side: int) -> dict[str, float]:
        values = np.repeat([size[side] for size in sizes], list(sizes.values()))
        return {
            "min": int(values.min()),
            "median": float(np.median(values)),
            "max": int(values.max()),
        }

    return {
        "different": len(sizes),
        **({"width": spread(0), "height": spread(1)} if sizes else {}),
        "most_common": [
            {"width": width, "height": height, "images": images}
            for (width, height), images in sizes.most_common(MOST_SIZES)
        ],
    }


# ------------------------------------------------------------------ looking at images


def _inspect_all(source: Source, split: str) -> Found:
    n = len(source.labels(split))
    whole = Found()
    for found in in_threads(
        partial(_inspect, source, split), range(n), f"looking at {n} images of {split}"
    ):
        whole.add(found)
    return whole


def _inspect(source: Source, split: str, indices: Sequence[int]) -> Found:
    found = Found()
    for index in indices:
        try:
            if isinstance(source, ImageFolder):
                with open_image(source.path(split, index)) as image:
                    form, mode = image.format or "unknown", image.mode
                    rgb = to_rgb(image)
            else:
                rgb = source.read(split, index)
                form, mode = "array", rgb.mode
        except Exception as error:  # a damaged file raises anything: PIL's plugins promise nothing
            found.broken.append((index, reason(error)))
            continue
        found.formats[form] += 1
        found.modes[mode] += 1
        found.sizes[rgb.size] += 1
        area = rgb.width * rgb.height
        found.levels[area] = found.levels.get(area, 0) + np.array(rgb.histogram())
        picture = hashlib.blake2b(repr(rgb.size).encode() + rgb.tobytes(), digest_size=16)
        found.pixels.append((index, picture.digest()))
    return found


# ------------------------------------------------------------------ on the screen


def show(result: dict[str, Any]) -> None:
    """Print what `examine` found, the longest lists cut short."""
    where = f" in {result['root']}" if result.get("root") else ""
    splits = result["splits"]
    console.print(f"data        {result['data']}{where}", soft_wrap=True)
    console.print(_classes(splits))

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
    lines.append(("duplicates", _duplicates(result["duplicates"])))
    groups = result["duplicates"]["images"]
    # What is in training and in test, or under two classes, matters most.
    groups = sorted(groups, key=lambda g: (-len({(d["split"], d["class"]) for d in g}), -len(g)))
    lines += [("", " = ".join(d["image"] for d in group)) for group in groups[:MOST_LINES]]
    lines += _rest(len(groups), "groups")
    broken = result["broken"]
    lines.append(("broken", f"{len(broken):,} images cannot be read" if broken else "none"))
    lines += [("", f"{b['image']}: {b['reason']}") for b in broken[:MOST_LINES]]
    lines += _rest(len(broken), "images")
    for name, text in lines:
        console.print(f"{name:<12}{text}", soft_wrap=True)


def _classes(splits: dict[str, Any]) -> Table:
    """A row for each class, and below it what they come to."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("class", "images\nmost / fewest")
    for split, figures in splits.items():
        ratio = figures["imbalance"]
        table.add_column(
            split,
            f"{figures['images']:,}\n{'-' if ratio is None else f'{ratio:.2f}'}",
            justify="right",
        )
    train = splits["train"]["classes"]
    names = list(train)
    if len(names) > MOST_CLASSES:
        names = sorted(names, key=lambda name: -train[name])
    half = MOST_CLASSES // 2
    for name in names if len(names) <= MOST_CLASSES else names[:half]:
        table.add_row(name, *(f"{s['classes'][name]:,}" for s in splits.values()))
    if len(names) > MOST_CLASSES:
        table.add_row(f"... {len(names) - 2 * half:,} more")
        for name in names[-half:]:
            table.add_row(name, *(f"{s['classes'][name]:,}" for s in splits.values()))
    return table


def _range(spread: dict[str, float]) -> str:
    if spread["min"] == spread["max"]:
        return f"{spread['min']} pixels"
    return f"{spread['min']} to {spread['max']} pixels, median {spread['median']:g}"


def _duplicates(duplicates: dict[str, Any]) -> str:
    if not duplicates["groups"]:
        return "none (no two images have the same pixels)"
    return (
        f"{duplicates['groups']:,} groups of images with the same pixels, {duplicates['surplus']:,}"
        f" images too many; {duplicates['across_splits']:,} groups across splits, "
        f"{duplicates['across_classes']:,} across classes"
    )


def _rest(n: int, what: str) -> list[tuple[str, str]]:
    return [("", f"... and {n - MOST_LINES:,} more {what}")] if n > MOST_LINES else []

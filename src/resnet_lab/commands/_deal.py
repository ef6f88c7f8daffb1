"""Which images of a folder go into train/, val/ and test/."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from resnet_lab.config.errors import UserError

if TYPE_CHECKING:
    from resnet_lab.data.sources import ImageFolder


class Photo(NamedTuple):
    path: str  # below the folder, as on the disk: "cat/2024/a.jpg"
    label: int
    content: bytes  # digest of the file
    pixels: bytes  # digest of size and pixels: the same for copies in other formats


Group = list[Photo]  # which stay together


def look(source: "ImageFolder", split: str) -> tuple[list[Photo], dict[str, str]]:
    """The images of a split, and those that cannot be trained on: path -> reason, `printable`."""
    from resnet_lab.data.cache import in_threads
    from resnet_lab.data.decode import in_turn, open_image, reason, to_rgb

    labels = source.labels(split).tolist()

    def read(index: int) -> Photo | str:
        path = source.path(split, index)
        try:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, hashlib.blake2b).digest()
            with open_image(path) as image, in_turn(image):
                rgb = to_rgb(image)
                pixels = hashlib.blake2b(repr(rgb.size).encode() + rgb.tobytes()).digest()
        except Exception as error:  # of a damaged file Pillow's plugins raise anything
            return reason(error)
        below = os.path.relpath(path, os.path.join(source.root, split))
        return Photo(below, labels[index], content, pixels)

    chunks = in_threads(
        lambda chunk: [(index, read(index)) for index in chunk],
        range(len(labels)),
        f"reading {len(labels):,} images",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # serious faults are raised
        found = [pair for chunk in chunks for pair in chunk]
    faults = {source.describe(split, index): why for index, why in found if isinstance(why, str)}
    photos = [photo for _, photo in found if isinstance(photo, Photo)]
    return photos, dict(sorted((source.faults(split) | faults).items()))


def same_pixels(photos: Sequence[Photo]) -> list[Group]:
    """The photos in groups of the same pixels, most of them groups of one."""
    groups: dict[bytes, Group] = {}
    for photo in photos:
        groups.setdefault(photo.pixels, []).append(photo)
    return list(groups.values())


def deal(
    photos: Sequence[Photo], shares: Mapping[str, float], names: Sequence[str], seed: int
) -> dict[str, list[Photo]]:
    """Every photo on one side: those of `shares`, or "train".

    Each class is dealt out by itself. A group goes to the first side with room for all of it, so
    the counts are those of the shares but for groups that are too large.

    Args:
        shares: of each class, by side.
        names: of the classes.
        seed: with it and the files' content the outcome is the same, whatever they are called.

    Returns:
        "train" first; each with at least one photo of every class.

    Raises:
        UserError: a class has too few different images for that.
    """

    def drawn(group: Group) -> bytes:
        first = min(photo.content for photo in group)
        return hashlib.blake2b(first, key=str(seed).encode()).digest()

    groups = sorted(same_pixels(photos), key=drawn)
    room = _room(Counter(photo.label for photo in photos), shares)
    sides: dict[str, list[Group]] = {side: [] for side in ("train", *shares)}
    for group in groups:
        wanted = Counter(photo.label for photo in group)
        side = next((side for side, free in room.items() if wanted <= free), "train")
        if side != "train":
            room[side] -= wanted
        sides[side].append(group)
    for label, name in enumerate(names):
        for side in shares:
            _see_to_one(sides, side, label, name)
    return {side: [photo for group in some for photo in group] for side, some in sides.items()}


def _room(counts: Counter[int], shares: Mapping[str, float]) -> dict[str, Counter[int]]:
    """How many images of each class each side takes, so that one is left for train/."""
    room = {side: Counter[int]() for side in shares}
    for label, n in counts.items():
        wanted = {side: max(1, round(n * share)) for side, share in shares.items()}
        while sum(wanted.values()) >= n and max(wanted.values()) > 1:
            wanted[max(wanted, key=lambda side: wanted[side])] -= 1
        for side, number in wanted.items():
            room[side][label] = number
    return room


def _see_to_one(sides: dict[str, list[Group]], side: str, label: int, name: str) -> None:
    """Where a side has no photo of a class, give it the smallest group that train/ can spare."""

    def of_class(where: str) -> list[Group]:
        return [group for group in sides[where] if any(photo.label == label for photo in group)]

    there = of_class("train")
    if of_class(side) and there:
        return
    alone = [group for group in there if all(photo.label == label for photo in group)]
    if len(there) < 2 or not alone:
        n = sum(len(of_class(where)) for where in sides)
        every = ", ".join(f"{where}/" for where in sides)
        without = ", or leave val/ out (--val 0)" if "val" in sides else ""
        raise UserError(
            f"class {name} has {n} different image{'s' * (n != 1)}, and each of {every} needs one "
            f"that lies under no other class; add images, or remove the class{without}."
        )
    given = min(alone, key=len)
    sides["train"].remove(given)
    sides[side].append(given)

"""Which residual nets exist: the depth arithmetic of the two families. Imports no torch."""

from collections.abc import Sequence
from typing import NamedTuple

from resnet_lab.config.errors import UserError

# Blocks per stage; arXiv 1512.03385, Table 1, and 1603.05027, Section 5 (200 layers).
IMAGENET_DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


class Plan(NamedTuple):
    """A net's outline: its block, and for each stage the number of blocks and their width."""

    block: str
    depths: tuple[int, ...]
    widths: tuple[int, ...]


def cifar_plan(depth: int, block: str = "basic") -> Plan:
    """The three-stage net of `depth` layers for small images.

    Each of the three stages holds n blocks of two (basic) or three (bottleneck) convolutions, and
    the stem and the head add two layers: 6n+2 or 9n+2. Widths are 16, 32 and 64; a bottleneck's
    output is four times as wide. Source: arXiv 1512.03385, Section 4.2, and 1603.05027, Section 4.

    Raises:
        UserError: there is no such net; names the nearest depths.
    """
    period = 9 if "bottleneck" in block else 6
    blocks, rest = divmod(depth - 2, period)
    if rest or blocks < 1:
        below, above = blocks * period + 2, (blocks + 1) * period + 2
        nearest = f"nearest are {below} and {above}" if blocks >= 1 else f"smallest is {period + 2}"
        kind = "bottleneck" if period == 9 else "basic"
        raise UserError(
            f"depth={depth}: a CIFAR ResNet of {kind} blocks has {period}n+2 layers; the {nearest}."
        )
    return Plan(block, (blocks,) * 3, (16, 32, 64))


def imagenet_plan(depth: int, preact: bool = False) -> Plan:
    """The four-stage net of `depth` layers for large images; basic blocks below 50 layers.

    Widths are 64, 128, 256 and 512; a bottleneck's output is four times as wide. Source:
    arXiv 1512.03385, Table 1.

    Raises:
        UserError: there is no such net; names the depths there are.
    """
    if depth not in IMAGENET_DEPTHS:
        *depths, last = IMAGENET_DEPTHS
        raise UserError(
            f"depth={depth}: an ImageNet ResNet has {', '.join(map(str, depths))} or {last} layers."
        )
    block = "basic" if depth < 50 else "bottleneck"
    return Plan(f"preact_{block}" if preact else block, IMAGENET_DEPTHS[depth], (64, 128, 256, 512))


def scale(widths: Sequence[int], width: float) -> tuple[int, ...]:
    """`widths` times the multiplier `width`, each a whole number of at least 1.

    Not rounded to a multiple of 8, as some families do for speed: a quarter must be a quarter, or
    a sweep over widths compares something else.
    """
    return tuple(max(1, round(channels * width)) for channels in widths)

"""Which residual nets exist: the depth arithmetic of the two families, and the checks of options.

Imports no torch, so that a config is refused before torch is loaded. `models.resnet` builds what
is described here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from resnet_lab.config.errors import UserError

BLOCKS = ("basic", "bottleneck", "preact_basic", "preact_bottleneck")
SHORTCUTS = ("A", "B", "C", "none")
STEMS = ("cifar", "imagenet")
NORMS = ("batch", "group", "none")

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

    Raises ValueError naming the nearest depths where there is no such net.
    """
    check_options({"depth": depth, "block": block})
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

    Raises ValueError naming the depths there are.
    """
    check_options({"depth": depth, "preact": preact})
    if depth not in IMAGENET_DEPTHS:
        raise UserError(f"depth={depth}: an ImageNet ResNet has {_or(IMAGENET_DEPTHS)} layers.")
    block = "basic" if depth < 50 else "bottleneck"
    return Plan(f"preact_{block}" if preact else block, IMAGENET_DEPTHS[depth], (64, 128, 256, 512))


def scale(widths: Sequence[int], width: float) -> tuple[int, ...]:
    """`widths` times the multiplier `width`, each a whole number of at least 1.

    Not rounded to a multiple of 8, as some families do for speed: a quarter must be a quarter, or
    a sweep over widths compares something else.
    """
    return tuple(max(1, round(channels * width)) for channels in widths)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _are_counts(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and len(value) > 0 and all(map(_is_count, value))


def _one_of(names: Sequence[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in names


def _or(names: Any) -> str:
    *most, last = map(str, names)
    return f"{', '.join(most)} or {last}"


_COUNT = (_is_count, "a whole number, 1 or more")
_COUNTS = (_are_counts, "a list of whole numbers, each 1 or more")
_SWITCH = (lambda value: isinstance(value, bool), "true or false")

# Each option: is a value possible, and in words what is.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "block": (_one_of(BLOCKS), _or(BLOCKS)),
    "depth": _COUNT,
    "depths": _COUNTS,
    "image_size": (
        lambda value: value is None or _is_count(value),
        "a whole number of pixels, 1 or more, or null",
    ),
    "in_channels": _COUNT,
    "norm": (_one_of(NORMS), _or(NORMS)),
    "num_classes": _COUNT,
    "preact": _SWITCH,
    "shortcut": (_one_of(SHORTCUTS), _or(SHORTCUTS)),
    "stem": (
        lambda value: value is None or _one_of(STEMS)(value),
        f"{', '.join(STEMS)} or null (then the image size decides)",
    ),
    "width": (_is_positive, "a number above 0"),
    "widths": _COUNTS,
    "zero_init_residual": _SWITCH,
}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError, one sentence that says what is possible, for options no net can have.

    Holds for any part of the options of `models.resnet`, by their names there.
    """
    for name, value in options.items():
        possible, words = _RULES[name]
        if not possible(value):
            raise UserError(f"{name}={value}: use {words}.")

    widths = options.get("widths", ())
    if "depths" in options and len(options["depths"]) != len(widths):
        raise UserError(
            f"depths={list(options['depths'])} and widths={list(widths)}: "
            "give both for the same number of stages."
        )
    shortcut = options.get("shortcut")
    if shortcut == "A" and list(widths) != sorted(widths):
        raise UserError(
            f"shortcut=A: it can only add channels, but widths={list(widths)} take some away; "
            "use B, C or none, or widths that never fall."
        )
    if shortcut == "none" and options.get("zero_init_residual"):
        raise UserError(
            "zero_init_residual=true: without a shortcut every block would put out zeros and never "
            "learn; use shortcut A, B or C, or zero_init_residual=false."
        )


_ROOM = "resnet_lab.models.resnet."
# What each net is outlined by: the options it must have, and those it may. The rest they share.
_OUTLINES: dict[str, tuple[set[str], set[str]]] = {
    "ResNet": ({"block", "depths", "widths"}, set()),
    "cifar_resnet": ({"depth"}, {"block"}),
    "imagenet_resnet": ({"depth"}, {"preact"}),
}
_SHARED = set(_RULES) - {"block", "depth", "depths", "preact", "widths"}


def check(target: str, options: Mapping[str, Any]) -> None:
    """Refuse a model config that `models.resnet` could not build, without importing it.

    `target` is the config's `_target_` and `options` its other keys (those that begin with an
    underscore are Hydra's own). `num_classes` and `image_size` may be None: not known yet. A
    target outside `models.resnet` is not looked at.

    Raises ValueError, one sentence that says what is possible.
    """
    name = target.removeprefix(_ROOM)
    if name == target or name not in _OUTLINES:
        return
    needed, more = _OUTLINES[name]
    known = sorted(needed | more | _SHARED)
    given = {key: value for key, value in options.items() if not key.startswith("_")}
    for key in given:
        if key not in known:
            raise UserError(f"{key}: {name} has no such option; it has {', '.join(known)}.")
    for key in sorted(needed - set(given)):
        raise UserError(f"{key}: {name} needs it; use {_RULES[key][1]}.")
    if "num_classes" in given and given["num_classes"] is None:
        del given["num_classes"]

    if name == "cifar_resnet":
        cifar_plan(given["depth"], given.get("block", "basic"))
    elif name == "imagenet_resnet":
        imagenet_plan(given["depth"], given.get("preact", False))
    check_options(given)

"""Lesions: the error of a trained net with blocks left out, or in another order.

Source: Veit, Wilber and Belongie 2016, arXiv 1605.06431, Section 4.
"""

import math
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnet_lab.config.errors import UserError
from resnet_lab.data.cache import progress
from resnet_lab.models.resnet import PadShortcut

SEED = 0  # of the random choices
MOST_COUNTS = 10  # numbers of blocks left out at once that are tried
SWAPS = (1, 2, 4, 8, 16, 32)
NOT_A_CHAIN = (
    "it is no stem, stages of blocks and head, one after the other; lesions need a net of "
    "models/resnet.py, or HResNet."
)


# ------------------------------------------------------------------ the net as a chain


class Link(NamedTuple):
    """One part of a chain, with the shapes (channels, height, width) ahead of and behind it."""

    stage: str  # "stem", "stage1", ..., "head"
    name: str  # "stem", "stage1.1", ..., "head"
    module: nn.Module
    before: tuple[int, ...]
    behind: tuple[int, ...]

    @property
    def is_block(self) -> bool:
        return hasattr(self.module, "branch")

    @property
    def is_residual(self) -> bool:
        return self.is_block and self.module.shortcut is not None

    @property
    def keeps_shape(self) -> bool:
        return self.before == self.behind


def chain(net: nn.Module, image: Tensor) -> list[Link]:
    """The net as parts of which each gets what the one before it gives.

    Args:
        net: in evaluation mode.
        image: [1, channels, height, width], to try it on.

    Raises:
        UserError: the net is none, or has no blocks.
    """
    stem, stages, head = (getattr(net, name, None) for name in ("stem", "stages", "head"))
    if not isinstance(stages, nn.Sequential) or not isinstance(head, nn.Module):
        raise UserError(f"{type(net).__name__}: {NOT_A_CHAIN}")
    parts: list[tuple[str, str, nn.Module]] = []
    if isinstance(stem, nn.Module):  # HResNet has none
        parts.append(("stem", "stem", stem))
    for number, stage in enumerate(stages, 1):
        children = enumerate(stage if isinstance(stage, nn.Sequential) else [stage], 1)
        parts += [(f"stage{number}", f"stage{number}.{n}", module) for n, module in children]
    parts.append(("head", "head", head))
    links, x = [], image
    with torch.inference_mode():
        for of_stage, name, module in parts:
            before, x = tuple(x.shape[1:]), module(x)
            links.append(Link(of_stage, name, module, before, tuple(x.shape[1:])))
        same = torch.allclose(x, net(image), rtol=1e-3, atol=1e-4, equal_nan=True)
        if not same or not any(link.is_block for link in links):
            raise UserError(f"{type(net).__name__}: {NOT_A_CHAIN}")
    return links


def blocks(links: Sequence[Link]) -> list[int]:
    """The places of the blocks in a chain."""
    return [place for place, link in enumerate(links) if link.is_block]


# ------------------------------------------------------------------ blocks left out


class Zero(nn.Module):
    """A branch that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


@contextmanager
def _without_branch(block: nn.Module) -> Iterator[None]:
    branch, block.branch = block.branch, Zero()
    try:
        yield
    finally:
        block.branch = branch


def leave_out(link: Link, x: Tensor) -> Tensor:
    """What comes out of a block that is left out.

    Of a residual block the shortcut stays, with what follows the sum: relu(shortcut(x)). A block of
    a plain net becomes the identity; where it changes the shape, shortcut A, which has no weights.
    """
    if link.is_residual:
        with _without_branch(link.module):
            out: Tensor = link.module(x)
        return out
    stride = -(-link.before[1] // link.behind[1])
    return x if link.keeps_shape else PadShortcut(link.before[0], link.behind[0], stride)(x)


# ------------------------------------------------------------------ changed nets, evaluated


class Step(NamedTuple):
    """A part of a changed net: its place in the chain, and whether it is left out."""

    place: int
    left_out: bool = False


Variant = tuple[Step, ...]  # a changed net, from input to output


def without(links: Sequence[Link], places: Collection[int]) -> Variant:
    """The net without the blocks at some places of its chain."""
    return tuple(Step(place, place in places) for place in range(len(links)))


def outputs(
    links: Sequence[Link], images: Tensor, variants: Sequence[Variant]
) -> Iterator[tuple[int, Tensor]]:
    """(number of the variant, its logits), each variant once, in an order that saves time.

    Variants that begin alike share what they have in common: all nets that lack one block cost
    half of what they would one by one.
    """

    def onward(x: Tensor, depth: int, numbers: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        alike: dict[Step, list[int]] = {}
        for number in numbers:
            if depth == len(variants[number]):
                yield number, x
            else:
                alike.setdefault(variants[number][depth], []).append(number)
        for step, group in alike.items():
            link = links[step.place]
            after = leave_out(link, x) if step.left_out else link.module(x)
            yield from onward(after, depth + 1, group)

    yield from onward(images, 0, range(len(variants)))


def errors(
    links: Sequence[Link],
    batches: Sequence[tuple[Tensor, Tensor]],
    variants: Sequence[Variant],
    what: str = "lesions",
) -> list[float]:
    """The share of wrong answers of each variant, from 0 to 1.

    Args:
        batches: images [b, channels, height, width] and labels [b].
        what: is being done, for the bar.
    """

    def all_outputs() -> Iterator[tuple[int, Tensor]]:
        for images, labels in batches:
            for number, logits in outputs(links, images, variants):
                yield number, (logits.argmax(dim=1) != labels).sum()

    wrong = [0] * len(variants)
    with torch.inference_mode():
        for number, count in progress(all_outputs(), len(batches) * len(variants), what):
            wrong[number] += int(count)
    n = sum(len(labels) for _, labels in batches)
    return [count / n for count in wrong]


# ------------------------------------------------------------------ random choices


def counts(n: int, most: int = MOST_COUNTS) -> list[int]:
    """Whole numbers from 1 to n, evenly spaced, not more than `most`."""
    return sorted({max(1, round(n * part / most)) for part in range(1, most + 1)})


def subsets(places: Sequence[int], size: int, samples: int, rng: random.Random) -> list[set[int]]:
    """Different sets of `size` places at random: `samples` of them, or as many as there are."""
    found: dict[tuple[int, ...], None] = {}
    while len(found) < min(samples, math.comb(len(places), size)):
        found[tuple(sorted(rng.sample(places, size)))] = None
    return [set(subset) for subset in found]


def swappable(links: Sequence[Link]) -> list[tuple[int, int]]:
    """The pairs of blocks that can take each other's place: of one shape, ahead and behind.

    As in the paper, blocks that change the shape stay where they are.
    """
    kept = [place for place in blocks(links) if links[place].keeps_shape]
    return [(a, b) for a in kept for b in kept if a < b and links[a].before == links[b].before]


def swapped(n: int, pairs: Sequence[tuple[int, int]], swaps: int, rng: random.Random) -> list[int]:
    """The places 0 to n - 1 after random swaps."""
    order = list(range(n))
    for a, b in rng.choices(pairs, k=swaps):
        order[a], order[b] = order[b], order[a]
    return order


def kendall_tau(order: Sequence[int]) -> float:
    """The rank correlation of an order with the sorted one: 1 if it is sorted, -1 if reversed.

    Of all pairs, the share that stands in the right order less the share that does not.
    """
    n = len(order)
    wrong = sum(order[a] > order[b] for b in range(n) for a in range(b))
    return 1 - 4 * wrong / (n * (n - 1)) if n > 1 else 1.0


# ------------------------------------------------------------------ the study


class Single(NamedTuple):
    """One block left out."""

    stage: str
    name: str
    keeps_shape: bool
    error: float


class Draw(NamedTuple):
    """A random choice of `size` blocks that are left out, or of `size` swaps.

    Attributes:
        tau: `kendall_tau` of the order of the blocks.
    """

    size: int
    tau: float
    error: float


@dataclass
class Lesions:
    """Errors, from 0 to 1, of a net and of what lesions make of it."""

    error: float
    single: list[Single]
    several: list[Draw]
    swaps: list[Draw]

    @property
    def costs(self) -> list[float]:
        """By block: by how much the error grows without it."""
        return [single.error - self.error for single in self.single]


def study(
    links: Sequence[Link],
    batches: Sequence[tuple[Tensor, Tensor]],
    samples: int,
    seed: int = SEED,
    what: str = "lesions",
) -> Lesions:
    """All lesions of a net: each block alone, several at random, swaps.

    Args:
        links, batches, what: as in `errors`.
        samples: random choices for each number of blocks or swaps.
    """
    rng = random.Random(seed)
    places = blocks(links)
    several = [
        (count, subset)
        for count in counts(len(places))
        for subset in subsets(places, count, samples, rng)
    ]
    pairs = swappable(links)
    swaps = [
        (count, swapped(len(links), pairs, count, rng))
        for count in SWAPS
        if count <= len(pairs)  # more would only undo each other
        for _ in range(samples)
    ]
    variants = [without(links, ())]
    variants += [without(links, {place}) for place in places]
    variants += [without(links, subset) for _, subset in several]
    variants += [tuple(Step(place) for place in order) for _, order in swaps]
    found = iter(errors(links, batches, variants, what))
    return Lesions(
        error=next(found),
        single=[
            Single(link.stage, link.name, link.keeps_shape, next(found))
            for link in (links[place] for place in places)
        ],
        several=[Draw(count, 1.0, next(found)) for count, _ in several],
        swaps=[
            Draw(count, kendall_tau([order[place] for place in places]), next(found))
            for count, order in swaps
        ],
    )

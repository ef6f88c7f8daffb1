"""Which paths through a residual net carry the gradient.

A residual net of n blocks is a sum over 2^n paths: each block is passed through its branch or its
shortcut. Source: Veit, Wilber and Belongie 2016, arXiv 1605.06431, Sections 3 and 5.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from resnet_lab.data.cache import progress

SEED = 0  # of the random paths


class Length(NamedTuple):
    """The paths that pass through `branches` branches and, elsewhere, through shortcuts.

    Attributes:
        paths: how many there are.
        gradient: of the loss by the image, its L2 norm through one path, the mean over images.
    """

    branches: int
    paths: int
    gradient: float


@dataclass
class Paths:
    """All paths of a net, by length, from 0 to the number of blocks."""

    lengths: list[Length]

    @property
    def share_of_paths(self) -> list[float]:
        """By length: how many of all paths have it, from 0 to 1."""
        whole = sum(length.paths for length in self.lengths)
        return [length.paths / whole for length in self.lengths]

    @property
    def share_of_gradient(self) -> list[float]:
        """By length: what its paths carry together, of what all paths carry. NaN: nothing at all.

        Norms are added, as if no path cancelled another.
        """
        of_paths = zip(self.share_of_paths, self.lengths, strict=True)
        carried = [share * length.gradient for share, length in of_paths]
        whole = math.fsum(carried)
        return [part / whole if whole > 0 else math.nan for part in carried]

    def middle(self, share: float = 0.95) -> tuple[int, int]:
        """The shortest and the longest of the paths that carry `share` of the gradient.

        Half of the rest is carried by shorter paths at most, and half by longer ones.
        """
        rest = (1 - share) / 2
        below = list(accumulate(self.share_of_gradient))
        low = next((n for n, sum_ in enumerate(below) if sum_ > rest), 0)
        high = next((n for n, sum_ in enumerate(below) if sum_ >= 1 - rest), len(below) - 1)
        return self.lengths[low].branches, self.lengths[high].branches


@contextmanager
def one_path(blocks: Sequence[nn.Module], through: Tensor) -> Iterator[None]:
    """Within it the gradient of each image takes one path; the forward pass is as always.

    Args:
        blocks: with a branch and a shortcut.
        through: bool [images, blocks], true where it goes through the branch, else the shortcut.
    """

    def opened(module: Any, where: Tensor) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            return torch.where(where.view(-1, 1, 1, 1), output, output.detach())

        handle: RemovableHandle = module.register_forward_hook(hook)
        return handle

    handles = []
    try:
        for block, taken in zip(blocks, through.unbind(dim=1), strict=True):
            handles += [opened(block.branch, taken), opened(block.shortcut, ~taken)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def gradient_norms(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """L2 norms of the gradient of each image's loss by that image, float32 [n].

    Args:
        net: in evaluation mode, so that images do not influence each other.
        images: [n, channels, height, width].
        labels: int64 [n].
    """
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(net(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient.flatten(1).norm(dim=1)


def random_paths(images: int, blocks: int, branches: int, generator: torch.Generator) -> Tensor:
    """For each image a path through `branches` of the blocks, bool [images, blocks]."""
    ranks = torch.rand(images, blocks, generator=generator).argsort(dim=1)
    return ranks < branches


def by_length(
    net: nn.Module,
    blocks: Sequence[nn.Module],
    batches: Sequence[tuple[Tensor, Tensor]],
    seed: int = SEED,
    what: str = "paths",
) -> Paths:
    """The gradient by the length of its path, from 0 to all blocks.

    Each image gets a random path of each length.

    Args:
        blocks: all of the net's, with a branch and a shortcut, from input to output.
        batches: images [b, channels, height, width] and labels [b].
        what: is being done, for the bar.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(blocks)
    total = sum(len(labels) for _, labels in batches)
    found = []
    for branches in progress(range(n + 1), n + 1, what):
        norms = 0.0
        for images, labels in batches:
            through = random_paths(len(images), n, branches, generator).to(images.device)
            with one_path(blocks, through):
                norms += float(gradient_norms(net, images, labels).double().sum())
        found.append(Length(branches, math.comb(n, branches), norms / total))
    return Paths(found)

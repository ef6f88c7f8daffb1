"""Running statistics of batch norms: left as they are, or taken anew for other weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def statistics_kept(net: nn.Module) -> Iterator[None]:
    """Within it, batch norms normalise as in training, and their running statistics stay."""
    norms: list[Any] = [m for m in net.modules() if getattr(m, "track_running_stats", False)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def learning_norms(net: nn.Module) -> list[_BatchNorm]:
    """The batch norms of `net` whose statistics move: those that are in training mode."""
    norms = (m for m in net.modules() if isinstance(m, _BatchNorm))
    return [norm for norm in norms if norm.training and norm.track_running_stats]


@torch.no_grad()
def refresh_statistics(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Make the running statistics of `learning_norms` the mean over `batches` at these weights.

    The rest of the net is in evaluation mode meanwhile, so that nothing is drawn. It is called by
    its `forward`, which no torch.compile has replaced.
    """
    norms, modes = learning_norms(net), [(m, m.training) for m in net.modules()]
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    for taken, images in enumerate(batches, 1):
        for norm in norms:
            norm.momentum = 1 / taken
        net.forward(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes:
        module.training = mode

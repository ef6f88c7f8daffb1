"""Optimizers that neither torch nor a well-kept package has."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from torch.optim import SGD


class SAM(SGD):
    """Sharpness-aware minimisation around SGD: Foret et al. 2020, arXiv 2010.01412, Algorithm 1.

    Each step takes two passes over its batch: the weights climb by `rho` along the gradient g, to
    w + rho * g / |g|, and come back; SGD steps from w with the gradient found up there. The norm is
    that of all gradients together. Weight decay is SGD's, and no part of g: the paper's equation 1.

    Args:
        params, lr, momentum, weight_decay, nesterov: SGD's.
        rho: how far the climb goes, in the distance of weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        rho: float = 0.05,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
        )
        self.rho = rho

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: clears the gradients, computes those of the batch and returns its loss.

        Returns:
            The loss before the climb.
        """
        assert closure is not None  # config.check refuses what steps without one
        loss = _with_gradients(closure)
        learning = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.detach().clone() for p in learning]
        try:
            self._climb(learning)
            _with_gradients(closure)
        finally:  # the very bits, also where the second pass ends the run
            _copy(learning, before)
        super().step()
        return loss

    @torch.no_grad()
    def _climb(self, learning: list[torch.Tensor]) -> None:
        gradients = [p.grad for p in learning if p.grad is not None]
        share = self.rho / (get_total_norm(gradients) + 1e-12)  # [], and zero gradients stay so
        torch._foreach_add_(learning, torch._foreach_mul(gradients, share))


@torch.enable_grad()
def _with_gradients(closure: Callable[[], Any]) -> Any:
    return closure()


@torch.no_grad()
def _copy(places: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    for place, value in zip(places, values, strict=True):
        place.copy_(value)

"""Learning-rate schedules: each gives the factor on `optimizer.lr` at every optimizer step.

A schedule is called by the classifier with the optimizer and the run's length,
`multistep(optimizer, total_steps, steps_per_epoch, ...)`, and returns a LambdaLR to be stepped
after every optimizer step. Lengths are counted in `unit`: "epoch", "step" or "run" (a fraction
of the whole run).
"""

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def _steps(length: float, unit: str, total_steps: int, steps_per_epoch: int) -> int:
    return round(length * {"step": 1, "epoch": steps_per_epoch, "run": total_steps}[unit])


def _warm(
    factor: Callable[[int], float], warmup_steps: int, warmup_from: float, warmup_shape: str
) -> Callable[[int], float]:
    """`factor` behind a warm-up: "linear" from `warmup_from` up to 1, or "constant" at it."""

    def warmed(step: int) -> float:
        if step >= warmup_steps:
            return factor(step)
        if warmup_shape == "constant":
            return warmup_from
        return warmup_from + (1 - warmup_from) * (step + 1) / (warmup_steps + 1)

    return warmed


def constant(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    warmup: float = 0,
    warmup_from: float = 0.0,
    warmup_shape: str = "linear",
    unit: str = "epoch",
) -> LambdaLR:
    """`optimizer.lr` throughout, after the warm-up."""
    warmup_steps = _steps(warmup, unit, total_steps, steps_per_epoch)
    return LambdaLR(optimizer, _warm(lambda _: 1.0, warmup_steps, warmup_from, warmup_shape))


def multistep(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    milestones: Sequence[float] = (0.5, 0.75),
    gamma: float = 0.1,
    warmup: float = 0,
    warmup_from: float = 0.0,
    warmup_shape: str = "linear",
    unit: str = "run",
) -> LambdaLR:
    """Multiplied by `gamma` at each milestone (He et al. 2015, section 4.2)."""
    at = [_steps(m, unit, total_steps, steps_per_epoch) for m in milestones]
    warmup_steps = _steps(warmup, unit, total_steps, steps_per_epoch)

    def factor(step: int) -> float:
        return float(gamma ** sum(step >= m for m in at))

    return LambdaLR(optimizer, _warm(factor, warmup_steps, warmup_from, warmup_shape))


def cosine(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    final: float = 0.0,
    warmup: float = 0,
    warmup_from: float = 0.0,
    warmup_shape: str = "linear",
    unit: str = "epoch",
) -> LambdaLR:
    """Half a cosine from 1 after the warm-up to `final` after the last step (arXiv 1608.03983)."""
    warmup_steps = _steps(warmup, unit, total_steps, steps_per_epoch)

    def factor(step: int) -> float:
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, _warm(factor, warmup_steps, warmup_from, warmup_shape))


def onecycle(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    peak: float = 0.3,
    start: float = 0.04,
    final: float = 0.0001,
) -> LambdaLR:
    """Two half cosines: from `start` up to 1 at the fraction `peak` of the run, down to `final`.

    Smith and Topin, arXiv 1708.07120; momentum is left as it is.
    """
    top = peak * total_steps

    def factor(step: int) -> float:
        low, done = (
            (start, 1 - step / top)
            if step < top
            else (
                final,
                min(1.0, (step - top) / max(1.0, total_steps - top)),
            )
        )
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def exponential(
    optimizer: Optimizer, total_steps: int, steps_per_epoch: int, start: float, final: float
) -> LambdaLR:
    """From `start` at the first step to `final` at the last, by the same ratio every step."""
    ratio = (final / start) ** (1 / max(1, total_steps - 1))
    return LambdaLR(optimizer, lambda step: start * ratio**step)

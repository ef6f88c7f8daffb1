"""Stops a run whose loss or gradients are no longer numbers."""

from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from resnet_lab.config.errors import UserError

MOST_SKIPPED = 20  # steps in a row: float16's loss scale has been halved a million times over


class NanGuard(Callback):
    """Ends the run with a sentence, before a NaN or an infinity reaches the weights.

    Looks at the loss and at the norm of all gradients in every optimizer step. In float16 the
    gradients may overflow now and then, and the step is skipped; 20 in a row end the run.

    A fused optimizer on CUDA is told on the device to skip the step, and every one after it, so
    that no step waits for the device; the run ends when the host reads of it, some steps later.
    """

    def __init__(self) -> None:
        self._loss: Tensor | float = 0.0  # of the batches of the current optimizer step
        self._skipped = 0
        self._first: Tensor | None = None  # [] on the device: the first bad step, or -1
        self._copy: Tensor = torch.tensor(-1)  # [] of it on the host, written by the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fused = all(group.get("fused") for group in trainer.optimizers[0].param_groups)
        if pl_module.device.type == "cuda" and fused:
            self._first = torch.full((), -1, device=pl_module.device)
            self._copy = torch.full((), -1).pin_memory()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self._loss = self._loss + loss.detach()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        loss, self._loss = torch.as_tensor(self._loss), 0.0
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        finite = (loss + get_total_norm(gradients)).isfinite()
        if self._first is not None:
            self._first = self._first.where(finite | (self._first >= 0), trainer.global_step)
            optimizer.found_inf = (self._first >= 0).float()  # type: ignore[attr-defined]
            _check(trainer, self._copy)
            self._copy.copy_(self._first, non_blocking=True)
        elif finite:
            self._skipped = 0
        elif not loss.isfinite():
            _give_up(trainer, trainer.global_step, "the loss is nan or infinite")
        elif trainer.precision != "16-mixed":
            _give_up(trainer, trainer.global_step, "the gradient is nan or infinite")
        else:
            self._skipped += 1
            if self._skipped == MOST_SKIPPED:
                _give_up(trainer, trainer.global_step, f"float16 overflows {MOST_SKIPPED} times")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._first is not None:  # a checkpoint waits for the device anyway
            _check(trainer, self._first)


def _check(trainer: Trainer, first: Tensor) -> None:
    if first >= 0:
        _give_up(trainer, int(first), "the loss or the gradient is nan or infinite")


def _give_up(trainer: Trainer, step: int, what: str) -> NoReturn:
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    raise UserError(
        f"{what} at step {step + 1}, learning rate {rate:.3g}; that step was not taken, and the "
        "checkpoints hold finite weights. Try a lower optimizer.lr (resnet-lab find-lr suggests "
        "one), a warm-up (scheduler.warmup), trainer.gradient_clip_val=1, or more precision "
        "(trainer.precision=bf16-mixed or 32)."
    )

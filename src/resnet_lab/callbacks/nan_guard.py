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

    On CUDA no step waits for it: a fused optimizer is told on the device to skip the step, and
    every one after it (in float16 the scaler sees to that), and the run ends when the host reads of
    it, some steps later. Optimizers of other kinds wait once a step.
    """

    def __init__(self) -> None:
        self._loss: Tensor | float = 0.0  # of the batches of the current optimizer step
        self._skipped: Tensor | int = 0  # steps in a row; [] on the device where `_first` is
        self._first: Tensor | None = None  # [] on the device: the first bad step, or -1
        self._stop = torch.zeros(())  # [] there: 1 from that step on; a fused optimizer reads it
        self._copy: Tensor = torch.tensor(-1)  # [] of it on the host, written by the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fused = all(group.get("fused") for group in trainer.optimizers[0].param_groups)
        if pl_module.device.type == "cuda" and (fused or trainer.precision == "16-mixed"):
            self._watch_on(pl_module.device, trainer)
            self._copy = self._copy.pin_memory()

    def _watch_on(self, device: torch.device, trainer: Trainer) -> None:
        self._first = torch.full((), -1, device=device)
        self._skipped = torch.zeros_like(self._first)
        self._stop = torch.zeros((), dtype=torch.float32, device=device)
        if trainer.precision != "16-mixed":
            trainer.optimizers[0].found_inf = self._stop  # type: ignore[attr-defined]

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
            bad = ~finite
            if trainer.precision == "16-mixed":
                self._skipped = (self._skipped + 1) * bad
                bad = ~loss.isfinite() | (self._skipped >= MOST_SKIPPED)
            self._first = self._first.where(~bad | (self._first >= 0), trainer.global_step)
            self._stop.copy_(self._first >= 0)
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
        overflows = f", or float16 overflows {MOST_SKIPPED} times,"
        again = overflows if trainer.precision == "16-mixed" else ""
        _give_up(trainer, int(first), f"the loss or the gradient is nan or infinite{again}")


def _give_up(trainer: Trainer, step: int, what: str) -> NoReturn:
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    raise UserError(
        f"{what} at step {step + 1}, learning rate {rate:.3g}; that step was not taken, and the "
        "checkpoints hold finite weights. Try a lower optimizer.lr (resnet-lab find-lr suggests "
        "one), a warm-up (scheduler.warmup), trainer.gradient_clip_val=1, or more precision "
        "(trainer.precision=bf16-mixed or 32)."
    )

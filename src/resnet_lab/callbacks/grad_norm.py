"""How large the gradient is, from the first block to the last."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from resnet_lab.callbacks.picture import publish
from resnet_lab.callbacks.tables import EpochTable
from resnet_lab.charts import GradientLine, gradients
from resnet_lab.models.parts import Part, parts
from resnet_lab.style import PALETTE

COLUMNS = ("epoch", "position", "stage", "block", "params", "norm")


class GradNorm(Callback):
    """Writes the L2 norm of every block's gradient, and draws it.

    grad_norm.csv has a row for each epoch and block. Epoch 0 is the first step's gradient, that of
    the weights as they were initialised; of every later epoch it is the mean over `samples` steps,
    evenly spaced. Taken as the optimizer gets them: summed up over accumulated batches, averaged
    over devices, unscaled, not yet clipped. A step whose gradient overflows in float16 is left
    out, as the optimizer leaves it out. The loggers get `grad_norm/<stage>`, and grad_norm.png is
    drawn when training ends.
    """

    def __init__(self, run_dir: str, samples: int = 8) -> None:
        self.table = EpochTable(Path(run_dir, "grad_norm.csv"), COLUMNS)
        self.samples = samples
        self._parts: list[Part] = []
        self._chosen: set[int] = set()
        self._initial: Tensor | None = None  # [blocks], of the run's first step
        self._measured: list[Tensor] = []  # each [blocks], on the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        net: nn.Module = pl_module.net  # type: ignore[assignment]
        self._parts = parts(net)
        self._measured = [norms.to(pl_module.device) for norms in self._measured]  # when resumed
        if trainer.is_global_zero:
            self.table.resume(trainer.current_epoch)
        steps = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        self._chosen = {steps * i // self.samples for i in range(self.samples)}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measured = []

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self._initial, "measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._initial, self._measured = state_dict["initial"], state_dict["measured"]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        batch = trainer.fit_loop.epoch_loop.batch_idx
        if batch // trainer.accumulate_grad_batches in self._chosen:
            self._measured.append(_norms(self._parts, pl_module.device))
            if trainer.global_step == 0:
                self._initial = self._measured[0]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not self._measured:
            return
        if self._initial is not None:
            self._write(trainer, 0, self._initial[None])
            self._initial = None
        self._write(trainer, trainer.current_epoch + 1, torch.stack(self._measured))

    def _write(self, trainer: Trainer, epoch: int, measured: Tensor) -> None:
        """`measured` [steps, blocks]; a row for each block, and a figure for each stage."""
        measured = measured.float().cpu()
        self.table.add(
            {
                "epoch": epoch,
                "position": position,
                "stage": part.stage,
                "block": part.name,
                "params": sum(p.numel() for p in part.module.parameters()),
                "norm": norm,
            }
            for position, (part, norm) in enumerate(
                zip(self._parts, _mean(measured), strict=True), 1
            )
        )
        figures = {}
        for stage in dict.fromkeys(part.stage for part in self._parts):
            inside = [i for i, part in enumerate(self._parts) if part.stage == stage]
            (figures[f"grad_norm/{stage}"],) = _mean(measured[:, inside].norm(dim=1, keepdim=True))
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step if epoch else 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found: dict[int, list[tuple[str, float]]] = {}
        for row in self.table.rows:
            found.setdefault(int(row["epoch"]), []).append((row["stage"], float(row["norm"])))
        line = GradientLine("", PALETTE[0], [found])
        publish(trainer, self.table.path.with_suffix(".png"), lambda: gradients([line]))


def _norms(of: list[Part], device: torch.device) -> Tensor:
    """The norm of each block's gradient [blocks], on the device; 0 where nothing is trained."""
    gradients = ([p.grad for p in part.module.parameters() if p.grad is not None] for part in of)
    nothing = torch.zeros((), device=device)
    return torch.stack([get_total_norm(g) if g else nothing for g in gradients])


def _mean(measured: Tensor) -> list[float]:
    """Over the steps [steps, n] that are finite."""
    means: list[float] = measured.where(measured.isfinite(), torch.nan).nanmean(dim=0).tolist()
    return means

"""How large the gradient is, from the first block to the last."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from resnet_lab.callbacks.picture import publish
from resnet_lab.callbacks.tables import EpochTable
from resnet_lab.charts import GradientLine, gradients
from resnet_lab.style import PALETTE

COLUMNS = ("epoch", "position", "stage", "block", "params", "norm")


class Block(NamedTuple):
    """Some layers of a net that stand together in its depth, and the stage they belong to."""

    stage: str
    name: str
    parameters: list[nn.Parameter]


def blocks(net: nn.Module) -> list[Block]:
    """The blocks of a net from input to output, those with parameters.

    They are its children; a Sequential of larger parts than layers is opened. A ResNet gives its
    stem, "stage1.1", "stage1.2", ..., and its head.
    """
    found = []
    for name, module in _opened("", net):
        first, *rest = name.split(".")
        if first == "stages":
            first, rest = f"stage{int(rest[0]) + 1}", [str(int(n) + 1) for n in rest[1:]]
        if parameters := list(module.parameters()):
            found.append(Block(first, ".".join([first, *rest]), parameters))
    return found


def _opened(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if isinstance(child, nn.Sequential) and any(list(part.children()) for part in child):
            yield from _opened(path, child)
        else:
            yield path, child


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
        self._blocks: list[Block] = []
        self._chosen: set[int] = set()
        self._initial: Tensor | None = None  # [blocks], of the run's first step
        self._measured: list[Tensor] = []  # each [blocks], on the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        net: nn.Module = pl_module.net  # type: ignore[assignment]
        self._blocks = blocks(net)
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
            self._measured.append(_norms(self._blocks, pl_module.device))
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
                "stage": block.stage,
                "block": block.name,
                "params": sum(p.numel() for p in block.parameters),
                "norm": norm,
            }
            for position, (block, norm) in enumerate(
                zip(self._blocks, _mean(measured), strict=True), 1
            )
        )
        figures = {}
        for stage in dict.fromkeys(block.stage for block in self._blocks):
            inside = [i for i, block in enumerate(self._blocks) if block.stage == stage]
            (figures[f"grad_norm/{stage}"],) = _mean(measured[:, inside].norm(dim=1, keepdim=True))
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step if epoch else 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found: dict[int, list[tuple[str, float]]] = {}
        for row in self.table.rows:
            found.setdefault(int(row["epoch"]), []).append((row["stage"], float(row["norm"])))
        line = GradientLine("", PALETTE[0], [found])
        publish(trainer, self.table.path.with_suffix(".png"), lambda: gradients([line]))


def _norms(of: list[Block], device: torch.device) -> Tensor:
    """The norm of each block's gradient [blocks], on the device; 0 where nothing is trained."""
    gradients = ([p.grad for p in block.parameters if p.grad is not None] for block in of)
    nothing = torch.zeros((), device=device)
    return torch.stack([get_total_norm(g) if g else nothing for g in gradients])


def _mean(measured: Tensor) -> list[float]:
    """Over the steps [steps, n] that are finite."""
    means: list[float] = measured.where(measured.isfinite(), torch.nan).nanmean(dim=0).tolist()
    return means

"""How large the gradient is, from the first block to the last."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from resnet_lab.callbacks.picture import publish
from resnet_lab.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        self.path = Path(run_dir, "grad_norm.csv")
        self.samples = samples
        self._blocks: list[Block] = []
        self._chosen: set[int] = set()
        self._initial: Tensor | None = None  # [blocks], of the run's first step
        self._measured: list[Tensor] = []  # each [blocks], on the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        net: nn.Module = pl_module.net  # type: ignore[assignment]
        self._blocks = blocks(net)
        if trainer.is_global_zero:
            # After a resume: epochs that the checkpoint does not know are trained again.
            known = _read(self.path) if trainer.global_step else []
            with self.path.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(r for r in known if int(r["epoch"]) <= trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        self._chosen = {steps * i // self.samples for i in range(self.samples)}
        self._measured = []

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
        rows = zip(self._blocks, _mean(measured), strict=True)
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(
                (epoch, position, b.stage, b.name, sum(p.numel() for p in b.parameters), norm)
                for position, (b, norm) in enumerate(rows, 1)
            )
        figures = {}
        for stage in dict.fromkeys(block.stage for block in self._blocks):
            inside = [i for i, block in enumerate(self._blocks) if block.stage == stage]
            (figures[f"grad_norm/{stage}"],) = _mean(measured[:, inside].norm(dim=1, keepdim=True))
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step if epoch else 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        publish(trainer, self.path.with_suffix(".png"), lambda: draw(_read(self.path)))


def _norms(of: list[Block], device: torch.device) -> Tensor:
    """The norm of each block's gradient [blocks], on the device; 0 where nothing is trained."""
    gradients = ([p.grad for p in block.parameters if p.grad is not None] for block in of)
    nothing = torch.zeros((), device=device)
    return torch.stack([get_total_norm(g) if g else nothing for g in gradients])


def _mean(measured: Tensor) -> list[float]:
    """Over the steps [steps, n] that are finite."""
    means: list[float] = measured.where(measured.isfinite(), torch.nan).nanmean(dim=0).tolist()
    return means


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def draw(rows: list[dict[str, str]]) -> Figure:
    """The rows of grad_norm.csv: left by depth before and after training, right by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = sorted({int(row["epoch"]) for row in rows})
    by_stage: dict[str, dict[int, float]] = {}  # sums of squares
    ends: dict[str, int] = {}
    for row in rows:
        of = by_stage.setdefault(row["stage"], {})
        epoch = int(row["epoch"])
        of[epoch] = of.get(epoch, 0.0) + float(row["norm"]) ** 2
        ends[row["stage"]] = int(row["position"])
    shown = dict.fromkeys((epochs[0], epochs[len(epochs) // 2], epochs[-1]))
    for epoch, colour in zip(shown, PALETTE, strict=False):
        points = [(int(r["position"]), float(r["norm"])) for r in rows if int(r["epoch"]) == epoch]
        name = f"epoch {epoch}" if epoch else "before training"
        left.plot(*zip(*points, strict=True), color=colour, marker="o", ms=3, label=name)
    for stage, colour in zip(by_stage, PALETTE, strict=False):
        points = [(epoch, square**0.5) for epoch, square in sorted(by_stage[stage].items())]
        right.plot(*zip(*points, strict=True), color=colour, marker="o", ms=3, label=stage)
    begins = [1, *(end + 1 for end in ends.values())]
    for edge in begins[1:-1]:
        left.axvline(edge - 0.5, color="0.8", lw=0.8, zorder=0)
    left.set_xlabel("block, from input to output")
    right.set_xlabel("epoch")
    left.set_title("Gradient of each block")
    right.set_title("Gradient of each stage")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.set_ylabel("L2 norm of the gradient")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return figure

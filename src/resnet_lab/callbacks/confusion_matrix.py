"""Which classes are taken for which."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from resnet_lab.callbacks.picture import publish, shortened
from resnet_lab.style import PALETTE, PAPER

MOST_COUNTS, MOST_NAMES = 20, 100  # classes up to which cells show counts, and axes names


class ConfusionMatrix(Callback):
    """Counts the test images by true and predicted class: confusion_matrix.csv and .png.

    Needs a `test_step` that returns the logits [b, classes]. Counted on the device, over all
    devices, each image once; a label of -1 is not counted. (torchmetrics would drop those rows by
    a mask, for which the host must wait in every batch.)
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)
        self.names: list[str] = []
        self.counts: Tensor | None = None  # int64 [true class, predicted class], after the test

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.names = list(data.class_names)
        n = len(self.names)
        # The last row, which -1 is the index of, takes the labels that do not count.
        self.counts = torch.zeros(n + 1, n, dtype=torch.long, device=pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self.counts is not None
        labels = batch[1]
        once = torch.ones_like(labels)
        self.counts.index_put_((labels, outputs.argmax(dim=1)), once, accumulate=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.counts is not None
        summed: Any = trainer.strategy.reduce(self.counts, reduce_op="sum")
        self.counts = summed[:-1].cpu()
        if trainer.is_global_zero:
            self._write(self.run_dir / "confusion_matrix.csv")
        counts, names = self.counts.numpy(), self.names
        publish(trainer, self.run_dir / "confusion_matrix.png", lambda: draw(counts, names))

    def accuracy_per_class(self) -> dict[str, float | None]:
        """The share of each class's test images that is recognised; None where there are none."""
        assert self.counts is not None, "known after the test"
        right, total = self.counts.diagonal().tolist(), self.counts.sum(dim=1).tolist()
        return {
            name: r / n if n else None for name, r, n in zip(self.names, right, total, strict=True)
        }

    def _write(self, path: Path) -> None:
        """A row for each true class: how often each class was predicted, and its accuracy."""
        assert self.counts is not None
        accuracies = self.accuracy_per_class()
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["true class", *self.names, "accuracy"])
            for name, row in zip(self.names, self.counts.tolist(), strict=True):
                writer.writerow([name, *row, accuracies[name]])


def draw(counts: np.ndarray, names: list[str]) -> Figure:
    """`counts` int [true, predicted]: cells as shares of their row, and each row's accuracy."""
    n = len(names)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    # Narrower cells for more classes, but the names must still be read.
    side = 2.2 + 0.42 * n if n <= MOST_COUNTS else 3 + 0.11 * min(n, MOST_NAMES)
    figure = Figure(figsize=(1.3 * side + 0.9, side + 0.7), layout="constrained")
    axes, bars = figure.subplots(1, 2, width_ratios=(5, 1), sharey=True)
    # The square root brings out the rare confusions beside a full diagonal.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    axes.grid(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if n <= MOST_NAMES:
        size = 9 if n <= MOST_COUNTS else 9 - 0.03 * n
        short = [shortened(name, 18) for name in names]
        axes.set_xticks(range(n), short, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(n), short, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    if n <= MOST_COUNTS:
        for row, column in np.argwhere(counts):
            axes.text(
                column,
                row,
                f"{counts[row, column]:,}",
                ha="center",
                va="center",
                fontsize=7.5,
                color=PAPER if shares[row, column] > 0.3 else "black",
            )
    right = 100 * shares.diagonal()
    bars.barh(range(n), right, color=PALETTE[0], height=0.7)
    bars.set_xlim(0, 100)
    bars.set_xlabel("accuracy, %")
    bars.tick_params(axis="y", length=0, labelleft=False)
    bars.grid(axis="y", visible=False)
    if n <= MOST_COUNTS:
        for row, value in enumerate(right):
            inside = value > 45
            bars.text(
                value + (-3 if inside else 3),
                row,
                f"{value:.1f}",
                va="center",
                fontsize=7.5,
                ha="right" if inside else "left",
                color=PAPER if inside else "black",
            )
    total = counts.sum()
    accuracy = counts.diagonal().sum() / max(1, total)
    axes.set_title(f"{total:,} test images, {accuracy:.2%} recognised")
    bar = figure.colorbar(image, ax=bars, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], fraction=0.12)
    bar.ax.set_yticklabels(["0", "1", "5", "20", "50", "100"])
    bar.set_label("share of the true class, %")
    return figure

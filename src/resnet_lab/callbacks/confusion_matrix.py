"""Which classes are taken for which."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from resnet_lab.callbacks.picture import publish
from resnet_lab.charts import shortened
from resnet_lab.files import write_rows
from resnet_lab.style import PAPER

MOST_COUNTS, MOST_NAMES = 20, 100  # classes up to which cells show counts, and axes names


class Confusion(nn.Module):
    """Counts images by true and predicted class, each once; a label of -1 is not counted.

    The sums stay on the device. (torchmetrics would drop those rows by a mask, for which the host
    must wait in every batch.)

    Args:
        names: of the classes.
    """

    counts: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        n = len(self.names)
        # The last row, which -1 is the index of, takes the labels that do not count.
        self.register_buffer("counts", torch.zeros(n + 1, n, dtype=torch.long), persistent=False)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [b, classes], labels [b]."""
        cells = labels, logits.argmax(dim=1)
        self.counts.index_put_(cells, torch.ones_like(labels), accumulate=True)

    @property
    def matrix(self) -> np.ndarray:
        """int64 [true class, predicted class]."""
        matrix: np.ndarray = self.counts[:-1].cpu().numpy()
        return matrix

    def accuracy_per_class(self) -> dict[str, float | None]:
        """The accuracy on each class's images; None where there are none."""
        right, total = self.matrix.diagonal().tolist(), self.matrix.sum(axis=1).tolist()
        shares = (r / n if n else None for r, n in zip(right, total, strict=True))
        return dict(zip(self.names, shares, strict=True))

    def write(self, path: Path) -> None:
        """A row for each true class: how often each class was predicted, and its accuracy."""
        rows = zip(self.matrix.tolist(), self.accuracy_per_class().items(), strict=True)
        columns = ["true class", *self.names, "accuracy"]
        write_rows(path, columns, ([name, *row, share] for row, (name, share) in rows))


class ConfusionMatrix(Callback):
    """Counts the test images of all devices: confusion_matrix.csv and .png.

    Needs a `test_step` that returns the logits [b, classes].
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)
        self.confusion = Confusion([])

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.confusion = Confusion(data.class_names).to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.confusion.update(outputs, batch[1])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        confusion = self.confusion
        summed: Any = trainer.strategy.reduce(confusion.counts, reduce_op="sum")
        confusion.counts = summed
        if trainer.is_global_zero:
            confusion.write(self.run_dir / "confusion_matrix.csv")
        path = self.run_dir / "confusion_matrix.png"
        publish(trainer, path, lambda: draw(confusion.matrix, confusion.names))

    def accuracy_per_class(self) -> dict[str, float | None]:
        """As `Confusion` has it, after the test."""
        return self.confusion.accuracy_per_class()


def draw(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """`counts` int [true, predicted]: cells coloured by their share of the row."""
    from sklearn.metrics import ConfusionMatrixDisplay  # takes a second to import

    n = len(names)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    # Narrower cells for more classes, but the names must still be read.
    side = 2.2 + 0.42 * n if n <= MOST_COUNTS else 3 + 0.11 * min(n, MOST_NAMES)
    figure = Figure(figsize=(1.1 * side + 1.2, side + 0.7), layout="constrained")
    axes = figure.add_subplot()
    display = ConfusionMatrixDisplay(
        shares, display_labels=[shortened(name, 18) for name in names]
    ).plot(
        ax=axes,
        include_values=n <= MOST_COUNTS,
        colorbar=False,
        xticks_rotation="vertical",
        # The square root brings out the rare confusions beside a full diagonal.
        im_kw={"cmap": "Blues", "norm": PowerNorm(0.5, 0, 1)},
        text_kw={"fontsize": 7.5},
    )
    for (row, column), count in np.ndenumerate(counts if n <= MOST_COUNTS else counts[:0]):
        text = display.text_[row, column]
        text.set_text(f"{count:,}" if count else "")
        text.set_color(PAPER if shares[row, column] > 0.3 else "black")
    axes.grid(False)
    axes.tick_params(length=0, labelsize=9 if n <= MOST_COUNTS else 9 - 0.03 * n)
    if n > MOST_NAMES:
        axes.set(xticks=[], yticks=[])
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a class may be called "$"
    axes.set(xlabel="predicted class", ylabel="true class")
    total = counts.sum()
    accuracy = counts.diagonal().sum() / max(1, total)
    axes.set_title(f"{total:,} test images, test accuracy {100 * accuracy:.2f} %")
    bar = figure.colorbar(display.im_, ax=axes, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1", "5", "20", "50", "100"])
    bar.set_label("share of the true class, %")
    return figure

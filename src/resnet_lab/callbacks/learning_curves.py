"""Loss and accuracy by epoch, in one picture."""

import csv
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from resnet_lab.callbacks.picture import publish
from resnet_lab.style import MUTED, PALETTE

Rows = list[dict[str, str]]


class LearningCurves(Callback):
    """Draws metrics.csv, which EpochLog writes, into curves.png when training ends."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = self.run_dir / "metrics.csv"
        if trainer.is_global_zero and metrics.exists():
            with metrics.open(newline="") as file:
                rows = list(csv.DictReader(file))
            publish(trainer, self.run_dir / "curves.png", lambda: draw(rows))


def draw(rows: Rows) -> Figure:
    """The curves of `rows`, as metrics.csv has them: a row an epoch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    best = max(
        (row for row in rows if row["val/acc"]),
        key=lambda row: float(row["val/acc"]),
        default=None,
    )
    for axes, name, scale in ((left, "loss", 1), (right, "acc", 100)):
        for split, label, colour in (
            ("train", "training", PALETTE[0]),
            ("val", "validation", PALETTE[1]),
        ):
            points = [
                (int(row["epoch"]), scale * float(row[f"{split}/{name}"]))
                for row in rows
                if row[f"{split}/{name}"]
            ]
            if points:
                marker = "o" if len(points) <= 30 else ""
                axes.plot(
                    *zip(*points, strict=True), color=colour, marker=marker, ms=3, label=label
                )
        if best is not None:
            axes.axvline(int(best["epoch"]), color=MUTED, lw=1, ls=(0, (4, 3)), zorder=0)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.set_ylabel("loss, nats")
    right.set_ylabel("accuracy, %")
    if best is not None:
        figure.suptitle(
            f"Best epoch (dashed): {best['epoch']} of {rows[-1]['epoch']}, "
            f"validation accuracy {100 * float(best['val/acc']):.2f} %",
            fontsize=10,
        )
    right.legend(loc="lower right")
    return figure

"""Loss and accuracy by epoch, in one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from resnet_lab.callbacks.picture import publish
from resnet_lab.charts import by_epoch
from resnet_lab.files import read_rows
from resnet_lab.style import MUTED, PALETTE


class LearningCurves(Callback):
    """Draws metrics.csv, which EpochLog writes, into curves.png when training ends."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = self.run_dir / "metrics.csv"
        if metrics.exists():
            chosen = getattr(trainer.checkpoint_callback, "monitor", None) or "val/acc"
            by = chosen if chosen in ("val/acc", "val/loss") else "val/acc"
            publish(trainer, self.run_dir / "curves.png", lambda: draw(read_rows(metrics), by))


def draw(rows: Sequence[Mapping[str, str]], by: str = "val/acc") -> Figure:
    """The curves of `rows`, as metrics.csv has them: a row an epoch.

    Args:
        by: what chooses the best epoch, val/acc or val/loss.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    validated = [row for row in rows if row["val/acc"]]
    sign = 1 if by == "val/acc" else -1
    best = max(validated, key=lambda row: sign * float(row[by]), default=None)
    for axes, name, scale in ((left, "loss", 1), (right, "acc", 100)):
        for split, known, label, colour in (
            ("train", rows, "training", PALETTE[0]),
            ("val", validated, "validation", PALETTE[1]),
        ):
            points = [(int(row["epoch"]), scale * float(row[f"{split}/{name}"])) for row in known]
            if points:
                by_epoch(axes, points, color=colour, label=label)
        if best is not None:
            axes.axvline(int(best["epoch"]), color=MUTED, lw=1, ls=(0, (4, 3)), zorder=0)
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

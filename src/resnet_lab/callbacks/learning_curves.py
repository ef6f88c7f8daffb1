"""Loss and accuracy by epoch, in one picture, which names over-fitting."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_lab.callbacks.picture import publish
from resnet_lab.charts import by_epoch
from resnet_lab.files import read_rows
from resnet_lab.style import MUTED, PALETTE

LEAST_EPOCHS = 3  # after the lowest validation loss: fewer may be chance
LEAST_RISE = 0.05


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


class Overfitting(NamedTuple):
    """`epoch`: of the lowest validation loss. `rise`: of its mean since, as a share of it.
    `train`, `val`: the accuracies of the last epoch, from 0 to 1."""

    epoch: int
    rise: float
    train: float
    val: float


def overfitting(rows: Sequence[Mapping[str, str]]) -> Overfitting | None:
    """What the epochs after the lowest validation loss show; None where it is no over-fitting.

    A net over-fits where in these epochs, three at least, the mean of the validation loss is 5% or
    more above the lowest, while training accuracy has risen further, and above that of validation.
    Training accuracy is that of augmented images and changing weights, so it is rather too low.
    Under-fitting is not named: the curves of one run do not say what another net could reach.
    """
    names = ("epoch", "train/acc", "val/loss", "val/acc")
    known = [row for row in rows if all(row.get(name) for name in names)]
    table = [tuple(float(row[name]) for name in names) for row in known]
    table = [figures for figures in table if all(map(isfinite, figures))]
    if not table:
        return None
    lowest = min(table, key=lambda figures: figures[2])
    since = table[table.index(lowest) + 1 :]
    if len(since) < LEAST_EPOCHS or not lowest[2]:
        return None
    rise = fmean(figures[2] for figures in since) / lowest[2] - 1
    _, train, _, val = since[-1]
    if rise < LEAST_RISE or train <= max(val, lowest[1]):
        return None
    return Overfitting(int(lowest[0]), rise, train, val)


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
    found = overfitting(rows)
    if best is not None:
        title = (
            f"Best epoch (dashed): {best['epoch']} of {rows[-1]['epoch']}, "
            f"validation accuracy {100 * float(best['val/acc']):.2f} %"
        )
        if found is not None:
            title += (
                f"\nOver-fitting: validation loss was lowest at epoch {found.epoch}, and "
                f"{found.rise:.0%} higher on average since, while training accuracy rose"
            )
        figure.suptitle(title, fontsize=10)
    if found is not None:
        _shade(left, validated, "loss", found.epoch)
        _shade(right, validated, "acc", found.epoch)
        right.annotate(
            f"gap\n{100 * (found.train - found.val):.1f} points",
            (1.01, 50 * (found.train + found.val)),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
        )
    right.legend(loc="lower right")
    return figure


def _shade(axes: Axes, rows: Sequence[Mapping[str, str]], name: str, since: int) -> None:
    """What lies between training and validation, from epoch `since` on."""
    scale = 100 if name == "acc" else 1
    points = [
        (int(row["epoch"]), scale * float(row[f"train/{name}"]), scale * float(row[f"val/{name}"]))
        for row in rows
        if int(row["epoch"]) >= since
    ]
    epochs, train, val = zip(*points, strict=True)
    axes.fill_between(epochs, train, val, color=PALETTE[1], alpha=0.15, lw=0)

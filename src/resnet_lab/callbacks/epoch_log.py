"""What every epoch leaves: a row in metrics.csv, a line in the log, figures in the loggers."""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from resnet_lab.callbacks.tables import EpochTable
from resnet_lab.screen import duration

log = logging.getLogger(__name__)

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train/loss",
    "train/acc",
    "val/loss",
    "val/acc",
    "images_per_second",
    "train_seconds",
)


class EpochLog(Callback):
    """Keeps `metrics.csv` in `run_dir` (a row an epoch), and measures the training speed.

    Speed is training images of all devices divided by the time spent in training steps and what
    feeds them, without validation and checkpoints. Every `trainer.log_every_n_steps` steps the
    loss of that step (on the first device) and the learning rate go to the loggers. The line in
    the log ends with the time that is left until the test, as fast as this process has trained and
    validated so far.
    """

    def __init__(self, run_dir: str) -> None:
        self.table = EpochTable(Path(run_dir, "metrics.csv"), COLUMNS)
        self.images = 0
        self.train_seconds = 0.0
        self._epoch_images = 0
        self._epoch_seconds = 0.0
        self._since: float | None = None  # while the clock runs
        self._began = 0.0, 0  # when this process began to train, and the batches done by then
        self._validated = False
        self._known: list[dict[str, Any]] = []  # rows of the checkpoint that is resumed

    @property
    def images_per_second(self) -> float:
        """Over the whole run, resumed parts included."""
        return self.images / self.train_seconds if self.train_seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return {
            "images": self.images,
            "train_seconds": self.train_seconds,
            "epoch_images": self._epoch_images,
            "epoch_seconds": self._epoch_seconds + running,
            "rows": [dict(row) for row in self.table.rows],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images = state_dict["images"]
        self.train_seconds = state_dict["train_seconds"]
        self._epoch_images = state_dict["epoch_images"]
        self._epoch_seconds = state_dict["epoch_seconds"]
        self._known = state_dict.get("rows", [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()  # resumed in mid-epoch, that epoch's start is over
        self._began = self._since, batches_done(trainer)
        if trainer.is_global_zero:
            self.table.resume(trainer.current_epoch, self._known)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_images = 0
        self._epoch_seconds = 0.0
        self._since = time.monotonic()
        self._validated = False

    def _stop_clock(self, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # steps are queued, not done
        if self._since is not None:
            self._epoch_seconds += time.monotonic() - self._since
        self._since = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.training or trainer.validating:
            self._stop_clock(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()
        self._validated = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._epoch_images += len(batch[1]) * trainer.world_size
        step = trainer.global_step
        if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            figures = {"train/loss_step": float(outputs["loss"].detach()), "lr": _lr(trainer)}
            for logger in trainer.loggers:
                logger.log_metrics(figures, step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_clock(pl_module)
        self.images += self._epoch_images
        self.train_seconds += self._epoch_seconds
        speed = self._epoch_images / self._epoch_seconds
        for logger in trainer.loggers:
            logger.log_metrics({"images_per_second": speed}, trainer.global_step)
        # The classifier logs these in its own hook, which comes after this one.
        train = pl_module.train_tally.compute()  # type: ignore[operator,union-attr]
        # Lightning keeps the figures of the last validation, which may be another epoch's.
        val = trainer.callback_metrics if self._validated else {}
        row: dict[str, float | int] = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": _lr(trainer),
            "images_per_second": round(speed, 1),
            "train_seconds": round(self._epoch_seconds, 3),
            **{f"train/{name}": float(value) for name, value in train.items()},
            **{k: float(v) for k, v in val.items() if k.startswith("val/")},
        }
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.table.add([row])
        shown = f"val {row['val/loss']:.4f} {row['val/acc']:.4f}   " if "val/acc" in row else ""
        began, before = self._began
        left = seconds_left(trainer, time.monotonic() - began, batches_done(trainer) - before)
        log.info(
            f"epoch {row['epoch']:>3}/{epochs_in_all(trainer)}   train {row['train/loss']:.4f} "
            f"{row['train/acc']:.4f}   {shown}lr {row['lr']:.2g}   {speed:,.0f} images/s   "
            f"{duration(self._epoch_seconds)}"
            + ("" if left is None else f"   {duration(left)} left")
        )


def batches_done(trainer: Trainer) -> int:
    """Training batches of the run so far."""
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1


def seconds_left(trainer: Trainer, seconds: float, batches: int) -> float | None:
    """Until the end of training, where `batches` took `seconds`; None where nobody knows."""
    total = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
    if batches < 1 or total == float("inf"):
        return None
    return seconds / batches * max(0, total - batches_done(trainer))


def epochs_in_all(trainer: Trainer) -> str:
    return str(trainer.max_epochs) if (trainer.max_epochs or -1) > 0 else "?"


def _lr(trainer: Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])

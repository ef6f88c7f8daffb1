"""The progress bar, on a terminal only."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from resnet_lab.screen import console

REFRESH_SECONDS = 0.5  # the loss is read from the device no more often than this


class LiveBar(ProgressBar):
    """Epoch, loss of the last step, newest validation accuracy, images/s and time left.

    Where the output is not a terminal it shows nothing: a bar redrawn into a file fills it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._due = 0.0
        self._seen = (0.0, 0)  # time and batches done at the last refresh

    def disable(self) -> None:
        """Called by Lightning on all but the first process, which are silent anyway."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (trainer.is_global_zero and console.is_terminal):
            return
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}  val acc {task.fields[acc]}"),
            TextColumn("{task.fields[speed]} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
            refresh_per_second=4,
        )
        total = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        self._task = self._progress.add_task(
            "", total=total, epoch="", loss="-", acc="-", speed="-"
        )
        self._progress.start()
        self._seen = (time.monotonic(), self._done(trainer))

    @staticmethod
    def _done(trainer: Trainer) -> int:
        return trainer.fit_loop.epoch_loop.total_batch_idx + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self._progress is None or now < self._due:
            return
        self._due = now + REFRESH_SECONDS
        done = self._done(trainer)
        images = (done - self._seen[1]) * len(batch[1]) * trainer.world_size
        accuracy = trainer.callback_metrics.get("val/acc")
        epochs = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else "?"
        self._progress.update(
            self._task,
            completed=done,
            epoch=f"{trainer.current_epoch + 1}/{epochs}",
            loss=f"{float(outputs['loss'].detach()):.3f}",
            acc="-" if accuracy is None else f"{float(accuracy):.4f}",
            speed=f"{images / max(now - self._seen[0], 1e-9):,.0f}",
        )
        self._seen = (now, done)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

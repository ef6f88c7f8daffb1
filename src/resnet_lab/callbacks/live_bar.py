"""The progress bar, on a terminal only."""

import time
from typing import Any

import rich
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from resnet_lab.screen import console, duration

REFRESH_SECONDS = 0.5  # the loss is read from the device no more often than this


class LiveBar(RichProgressBar):
    """Epoch, loss of the last step, newest validation accuracy, images/s and time left.

    Where the output is not a terminal it shows nothing: a bar redrawn into a file fills it.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=4, console_kwargs={"highlight": False, "markup": False})
        if not console.is_terminal:
            self.disable()
        self._due = 0.0
        self._began = self._seen = (0.0, 0)  # times, and the batches done by then
        self._total = 0.0  # batches of the run
        self._figures: dict[str, Any] = {}

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        # Lightning has just renewed rich's own console, as `rich.reconfigure` does it; ours becomes
        # the same one, so that what is printed appears above the bar.
        console.__dict__ = rich.get_console().__dict__
        where, bar, batches, *_ = super().configure_columns(trainer)
        bar.bar_width = None  # all the room there is
        return [where, bar, batches]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return self._figures  # Lightning's would ask the device for numbers in every step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.progress is not None:
            self.progress.live.transient = True
            self._total = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
            self._began = self._seen = (time.monotonic(), _batches(trainer))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        if self.progress is not None:
            self.progress.live.transient = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now = time.monotonic()
        if self.progress is None or self.train_progress_bar_id is None or now < self._due:
            return
        self._due = now + REFRESH_SECONDS
        done = _batches(trainer)
        speed = (done - self._seen[1]) / max(now - self._seen[0], 1e-9)
        pace = (now - self._began[0]) / max(done - self._began[1], 1)  # validation included
        left = pace * (self._total - done)
        accuracy = trainer.callback_metrics.get("val/acc")
        self._figures = {
            "loss": float(outputs["loss"].detach()),
            "val acc": "-" if accuracy is None else f"{float(accuracy):.4f}",
            "images/s": f"{speed * len(batch[1]) * trainer.world_size:,.0f}",
            "left": duration(left) if left < float("inf") else "?",
        }
        epochs = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else "?"
        epoch = f"epoch {trainer.current_epoch + 1}/{epochs}"
        self.progress.update(self.train_progress_bar_id, description=epoch)
        self._seen = (now, done)


def _batches(trainer: Trainer) -> int:
    """Training batches done."""
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1

"""The progress bar, on a terminal only."""

import time
from typing import Any

import rich
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from resnet_lab.callbacks.epoch_log import batches_done, epochs_in_all, seconds_left
from resnet_lab.screen import console, duration

REFRESH_SECONDS = 0.5  # the loss is read from the device no more often than this


class LiveBar(RichProgressBar):
    """Epoch, loss of the last step, newest validation accuracy, images/s, and the run's times.

    Beside each bar are the time since it began and the time until it ends (an epoch, a validation,
    the test); `elapsed` and `left` are of the run's training. The time left is estimated when an
    epoch ends, and in the first epoch from its steps, validation not included.

    Where the output is not a terminal it shows nothing: a bar redrawn into a file fills it.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=4, console_kwargs={"highlight": False, "markup": False})
        if not console.is_terminal:
            self.disable()
        self._due = 0.0
        self._began = self._seen = (0.0, 0)  # times, and the batches done by then
        self._end: float | None = None  # of training, as the last epoch's end lets expect
        self._figures: dict[str, Any] = {}

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        # Lightning has just renewed rich's own console, as `rich.reconfigure` does it; ours becomes
        # the same one, so that what is printed appears above the bar.
        console.__dict__ = rich.get_console().__dict__
        epoch, bar, batches, times, *_ = super().configure_columns(trainer)
        bar.bar_width = None  # all the width there is
        return [epoch, bar, batches, times]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return self._figures  # Lightning's would ask the device for numbers in every step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began = self._seen = (time.monotonic(), batches_done(trainer))
        if self.progress is not None:
            self.progress.live.transient = True

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
        done = batches_done(trainer)
        speed = (done - self._seen[1]) / max(now - self._seen[0], 1e-9)
        left = None if self._end is None else max(0.0, self._end - now)
        accuracy = trainer.callback_metrics.get("val/acc")
        self._figures = {
            "loss": float(outputs["loss"].detach()),
            "val acc": "-" if accuracy is None else f"{float(accuracy):.4f}",
            "images/s": f"{speed * len(batch[1]) * trainer.world_size:,.0f}",
            "elapsed": duration(now - self._began[0]),
            "left": _text(self._left(trainer, now) if left is None else left),
        }
        epoch = f"epoch {trainer.current_epoch + 1}/{epochs_in_all(trainer)}"
        self.progress.update(self.train_progress_bar_id, description=epoch)
        self._seen = (now, done)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        now = time.monotonic()
        left = self._left(trainer, now)
        self._end = None if left is None else now + left

    def _left(self, trainer: Trainer, now: float) -> float | None:
        """Seconds, as fast as since the start of this process."""
        return seconds_left(trainer, now - self._began[0], batches_done(trainer) - self._began[1])


def _text(seconds: float | None) -> str:
    return "?" if seconds is None else duration(seconds)

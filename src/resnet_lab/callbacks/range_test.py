"""Records the loss at every step, and ends the training once it explodes."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from resnet_lab.screen import console

EXPLODED = 4.0  # times the lowest loss so far
WINDOW = 5  # steps that are averaged for this, so that one hard batch ends nothing


class RangeTest(Callback):
    """For a training whose learning rate rises step by step (Smith, arXiv 1506.01186, section 3.3).

    Ends it when the mean loss of the last five steps is four times the lowest such mean, or the
    loss is no finite number any more. A bar is shown on a terminal only.

    Attributes:
        losses: the mean loss of every optimizer step's images, up to the last finite one.
        exploded: whether the training was ended early.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.exploded = False
        self._sum = 0.0  # over the batches of the current optimizer step
        self._lowest = math.inf
        self._bar: tuple[Progress, TaskID] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if console.is_terminal:
            progress = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("lr {task.fields[lr]}  loss {task.fields[loss]}"),
                console=console,
                transient=True,
                expand=True,
            )
            self._bar = progress, progress.add_task("", total=trainer.max_steps, lr="-", loss="-")
            progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._sum += float(outputs["loss"])  # Lightning has divided it by accumulate_grad_batches
        if trainer.global_step == len(self.losses):
            return  # the step goes on with the next batch
        loss, self._sum = self._sum, 0.0
        if not math.isfinite(loss):
            self.exploded = trainer.should_stop = True
            return
        self.losses.append(loss)
        if self._bar is not None:
            progress, task = self._bar
            rate = trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0]
            progress.update(task, completed=len(self.losses), lr=f"{rate:.1e}", loss=f"{loss:.3f}")
        if len(self.losses) >= WINDOW:
            recent = sum(self.losses[-WINDOW:]) / WINDOW
            self._lowest = min(self._lowest, recent)
            if recent > EXPLODED * self._lowest:
                self.exploded = trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

"""Records the loss at every step, and ends the training once it explodes."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

EXPLODED = 4.0  # times the lowest loss so far
WINDOW = 5  # steps that are averaged for this, so that one hard batch ends nothing


class RangeTest(Callback):
    """For a training whose learning rate rises step by step (Smith, arXiv 1506.01186, section 3.3).

    Ends it when the mean loss of the last five steps is four times the lowest such mean, or the
    loss is no finite number any more.

    Attributes:
        losses: the mean loss of every optimizer step's images, up to the last finite one.
        exploded: whether the training was ended early.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.exploded = False
        self._sum = 0.0  # over the batches of the current optimizer step
        self._lowest = math.inf

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._sum += float(outputs["loss"])  # Lightning has divided it by accumulate_grad_batches
        if trainer.global_step == len(self.losses):
            return  # the step continues with the next batch
        loss, self._sum = self._sum, 0.0
        if not math.isfinite(loss):
            self.exploded = trainer.should_stop = True
            return
        self.losses.append(loss)
        if len(self.losses) >= WINDOW:
            recent = sum(self.losses[-WINDOW:]) / WINDOW
            self._lowest = min(self._lowest, recent)
            if recent > EXPLODED * self._lowest:
                self.exploded = trainer.should_stop = True

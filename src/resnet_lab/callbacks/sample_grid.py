"""The images that the net is trained on, after augmentation."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from resnet_lab.callbacks.picture import grid, publish
from resnet_lab.charts import shortened


class SampleGrid(Callback):
    """Draws the first `count` images of the run's first batch into `samples.png`.

    They are the input of the net, after augmentation; only the normalisation is undone. On several
    devices they are those of the first one's share. Drawn at the end of the first epoch, where it
    does not add to the time of training.
    """

    def __init__(self, run_dir: str, count: int = 32) -> None:
        self.path = Path(run_dir, "samples.png")
        self.count = count
        self._kept: tuple[Tensor, Tensor] | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.global_step == 0:
            images, labels, *draws = batch
            if draws:  # not yet prepared
                images, labels = trainer.datamodule.prepare(batch)  # type: ignore[attr-defined]
            self._kept = images[: self.count].clone(), labels[: self.count].clone()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._kept is None:
            return
        images, labels = self._kept
        self._kept = None
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        captions = [shortened(data.class_names[label], 16) for label in labels.tolist()]
        title = "The first training images, after augmentation"
        publish(trainer, self.path, lambda: grid(images, captions, title, data.mean, data.std))

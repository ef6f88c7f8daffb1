"""The images that the net is trained on, after augmentation."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from resnet_lab.callbacks.picture import publish
from resnet_lab.data.pictures import caption, pictures


class SampleGrid(Callback):
    """Draws the first `count` images of the run's first batch into `samples.png`.

    They are the input of the net, after augmentation; only the normalisation is undone. Images that
    are mixed of two have both classes below them. On several devices they are those of the first
    one's share. Drawn at the end of the first epoch, where it does not add to the time of training.
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
        captions = [caption(target, data.class_names) for target in labels]
        title = "The first training images, after augmentation"
        publish(trainer, self.path, lambda: pictures(images, captions, title, data.mean, data.std))

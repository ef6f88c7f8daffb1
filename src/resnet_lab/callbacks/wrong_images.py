"""The test images that the net gets wrong with the highest confidence."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from resnet_lab.callbacks.picture import publish
from resnet_lab.charts import shortened
from resnet_lab.data.pictures import pictures


class WrongImages(Callback):
    """Draws the test images with the most confident wrong answers into `wrong_images.png`.

    Confidence is the softmax probability of the predicted class. Only the `count` worst so far
    are kept while testing, on the device; the worst of all devices are drawn.
    """

    def __init__(self, run_dir: str, count: int = 32) -> None:
        self.path = Path(run_dir, "wrong_images.png")
        self.count = count
        self._worst: tuple[Tensor, ...] | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._worst = None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        images, labels = batch
        confidence, predicted = outputs.float().softmax(dim=1).max(dim=1)
        wrong = (predicted != labels) & (labels >= 0)
        batch_worst = self._top(confidence.where(wrong, -1.0), predicted, labels, images)
        if self._worst is not None:
            both = zip(self._worst, batch_worst, strict=True)
            batch_worst = self._top(*(torch.cat(pair) for pair in both))
        self._worst = batch_worst

    def _top(self, confidence: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """The `count` most confident rows, or as many as there are."""
        confidence, rows = confidence.topk(min(self.count, len(confidence)))
        return confidence, *(other[rows] for other in others)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._worst is None:
            return
        gathered: list[Any] = [pl_module.all_gather(kept) for kept in self._worst]
        if trainer.world_size > 1:  # a leading dimension of devices
            gathered = [kept.flatten(0, 1) for kept in gathered]
        confidence, predicted, labels, images = (t.cpu() for t in self._top(*gathered))
        self._worst = None
        n = int((confidence >= 0).sum())  # the others stand in where fewer are wrong
        if n == 0:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        names = data.class_names
        captions = [
            f"{shortened(names[label], 16)},\ntaken for {shortened(names[answer], 11)}\n"
            f"({100 * sure:.0f} %)"
            for label, answer, sure in zip(
                labels[:n].tolist(), predicted[:n].tolist(), confidence[:n].tolist(), strict=True
            )
        ]
        title = "Test images: the most confident mistakes, with the confidence"
        publish(
            trainer,
            self.path,
            lambda: pictures(images[:n], captions, title, data.mean, data.std),
        )

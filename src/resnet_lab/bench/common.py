"""The common style of a Lightning project, to be compared with: judge for yourself if it is fair.

What the usual templates and tutorials have: images through PIL transforms one by one in DataLoader
workers (which stay alive), float32, contiguous (NCHW) tensors, loss and torchmetrics accuracy
logged at every step and epoch, default progress bar, TensorBoard and checkpoints. Net, optimizer,
schedule and batch size are those it is compared with.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms

from resnet_lab.bench.gate import Gate
from resnet_lab.bench.noise import MEAN, STD
from resnet_lab.bench.training import LONG, SKIP, Turns, ready_batches, run_config
from resnet_lab.data.sources import Source
from resnet_lab.run import build

TRAIN_TRANSFORM = transforms.Compose(
    [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)
VAL_TRANSFORM = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


class Images(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR10: arrays in memory, a PIL image and its transform for each item."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def train_loader(source: Source, workers: int, batch_size: int = 128) -> DataLoader[Any]:
    """Training batches: images float32 [b, 3, 32, 32], labels int64 [b]."""
    images = Images(np.array(source.images("train", 32)), source.labels("train"), TRAIN_TRANSFORM)
    return DataLoader(
        images,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def val_loader(source: Source, workers: int, batch_size: int = 128) -> DataLoader[Any]:
    """Validation batches, of the test images."""
    images = Images(np.array(source.images("test", 32)), source.labels("test"), VAL_TRANSFORM)
    return DataLoader(
        images, batch_size=batch_size, num_workers=workers, persistent_workers=workers > 0
    )


class CommonModule(LightningModule):
    """Loss and accuracy through `self.log`, every step."""

    def __init__(self, net: nn.Module, optimizer: dict[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.optimizer = optimizer
        self.train_acc = MulticlassAccuracy(num_classes=10, average="micro")
        self.val_acc = MulticlassAccuracy(num_classes=10, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        loss = F.cross_entropy(logits, labels)
        self.train_acc(logits, labels)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.net(images)
        self.val_acc(logits, labels)
        self.log("val/loss", F.cross_entropy(logits, labels), prog_bar=True)
        self.log("val/acc", self.val_acc, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), **self.optimizer)
        total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.optimizer["lr"], total_steps=total_steps, cycle_momentum=False
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def common(gate: Gate, work: Path, overrides: list[str], steps: int, workers: int = 2) -> None:
    """The common style from end to end."""
    cfg = run_config(work, "common", overrides)
    parts = build.build(cfg)
    source, net = parts.datamodule.source, parts.net.to(memory_format=torch.contiguous_format)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=LONG,
        logger=TensorBoardLogger(work, name="common"),
        callbacks=[Turns()],
        limit_train_batches=SKIP + steps,
        limit_val_batches=2,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        CommonModule(net, _options(cfg.optimizer)),
        train_loader(source, workers, cfg.data.batch_size),
        val_loader(source, workers),
    )


class SilentModule(CommonModule):
    """The same without a metric or a log."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)


def one_layer(
    gate: Gate, work: Path, overrides: list[str], steps: int, logged: bool = True
) -> None:
    """The same module around one layer, on batches that lie ready and without a progress bar.

    Args:
        logged: False leaves out figures, logger and checkpoints: the least a Trainer costs.
    """
    cfg = run_config(work, "one-layer", overrides, one_layer=True)
    parts = build.build(cfg)
    batches = ready_batches(parts.datamodule)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=LONG,
        logger=TensorBoardLogger(work, name="logged") if logged else False,
        callbacks=[Turns()],
        enable_progress_bar=False,
        enable_checkpointing=logged,
        num_sanity_val_steps=0,
    )
    ready: Any = [batches[step % len(batches)] for step in range(SKIP + steps)]
    module = CommonModule if logged else SilentModule
    trainer.fit(
        module(parts.net, _options(cfg.optimizer)),
        DataLoader(ready, batch_size=None),
        DataLoader(ready[:2], batch_size=None),
    )


def _options(optimizer: Any) -> dict[str, Any]:
    return {key: value for key, value in optimizer.items() if not key.startswith("_")}

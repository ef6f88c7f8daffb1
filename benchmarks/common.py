"""The common style of a Lightning project, for comparison.

As in the usual templates and tutorials: images through PIL transforms one by one in DataLoader
workers (which stay alive), float32, contiguous (NCHW) tensors, loss and torchmetrics accuracy
logged at every step and epoch, default progress bar, TensorBoard and checkpoints. Net, optimizer,
schedule and batch size are those of the run it is compared with.
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
from torchvision.transforms import v2

from benchmarks.data import MEAN, STD
from benchmarks.training import LONG, SKIP, Turns, optimizer_options, run_config
from benchmarks.turns import Gate
from resnet_lab.data.sources import Source
from resnet_lab.run.build import build

NORMALISE = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
AUGMENT = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
POLICIES = {  # of PIL images, for which torchvision is faster than for tensors
    "trivial": [v2.TrivialAugmentWide()],
    "rand": [v2.RandAugment()],
    "auto_cifar10": [v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)],
}


class Images(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR10: arrays in memory, a PIL image and its transform for each item."""

    def __init__(self, source: Source, split: str, transform: Any) -> None:
        self.images = np.array(source.images(split, 32))
        self.labels, self.transform = source.labels(split).tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def train_loader(
    source: Source, workers: int, batch_size: int = 128, policy: str | None = None
) -> DataLoader[Any]:
    """Training batches: images float32 [b, 3, 32, 32], labels int64 [b].

    Args:
        policy: a name of `POLICIES`.
    """
    augment = [*AUGMENT, *(POLICIES[policy] if policy else [])]
    return DataLoader(
        Images(source, "train", transforms.Compose([*augment, *NORMALISE])),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
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
    parts = build(cfg)
    source, net = parts.datamodule.source, parts.net.to(memory_format=torch.contiguous_format)
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=LONG,
        logger=TensorBoardLogger(work, name="common"),
        callbacks=[Turns()],
        limit_train_batches=SKIP + steps,
        limit_val_batches=2,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        CommonModule(net, optimizer_options(cfg)),
        train_loader(source, workers, cfg.data.batch_size),
        DataLoader(
            Images(source, "test", transforms.Compose(NORMALISE)),
            batch_size=cfg.data.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
        ),
    )

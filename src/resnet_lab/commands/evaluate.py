"""`resnet-lab evaluate`: a run's figures on one split of its own data or of other data."""

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from resnet_lab.callbacks.confusion_matrix import Confusion
from resnet_lab.classifier import Batch, Tally
from resnet_lab.config.errors import UserError
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.files import write_json
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.load import load_run
from resnet_lab.run.training import known_warnings
from resnet_lab.screen import console

TOP = 5
MATRIX_ON_SCREEN = 12  # classes; larger matrices are in their file only
CLASSES_ON_SCREEN = 20


class TopTally(Tally):
    """Loss and accuracy, and from 6 classes on the share of images whose class is in the top 5."""

    in_top: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("in_top", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
        super().update(loss_sum, logits, labels)
        top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        self.in_top += (top == labels[:, None]).sum()

    def figures(self, classes: int) -> dict[str, float]:
        figures = {name: float(value.float()) for name, value in self.compute().items()}
        return figures | ({f"top{TOP}": float(self.in_top / self.count)} if classes > TOP else {})


class Scores(LightningModule):
    """Counts what `net` gets right in one pass over labelled images, each counted once.

    Args:
        net: images [b, channels, height, width] -> logits [b, num_classes].
        flip: also score the mean of the probabilities of each image and its mirror image, apart.
    """

    def __init__(self, net: torch.nn.Module, datamodule: ImageDataModule, flip: bool) -> None:
        super().__init__()
        self.net = net
        self.datamodule = datamodule
        self.flip = flip
        self.tally, self.flip_tally = TopTally(), TopTally()
        self.confusion = Confusion(datamodule.class_names)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        return self.datamodule.on_after_batch_transfer(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        logits = self.net(images)
        loss_sum = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        self.tally.update(loss_sum, logits, labels)
        self.confusion.update(logits, labels)
        if self.flip:
            mirrored = self.net(images.flip(-1))
            pair = torch.stack([logits, mirrored]).float().log_softmax(-1)
            log_mean = pair.logsumexp(0) - math.log(2)
            loss_sum = F.nll_loss(log_mean, labels, ignore_index=-1, reduction="sum")
            self.flip_tally.update(loss_sum, log_mean, labels)


def evaluate(
    run_dir: Path,
    overrides: Sequence[str] = (),
    checkpoint: Path | None = None,
    split: str = "test",
    flip: bool = False,
    trust: Sequence[str] = (),
) -> Path:
    """Score a run on a split; prints the figures and returns the folder they are written to.

    That is evaluation/<date>_<time> in the run folder, new every time: evaluation.json with loss,
    accuracy, top-5 accuracy (from 6 classes on) and accuracy of each class, all from 0 to 1, and
    confusion_matrix.csv with a row for each true class. result.json stays as it is. `flip` adds
    the figures of mean probabilities over image and mirror image, under `flip`.
    """
    run = load_run(run_dir, checkpoint, overrides, trust)
    cfg = run.cfg
    data = run.datamodule
    data.batch_size = 1  # no training batch is made, for which other data may be too few
    if split == "test":  # whatever else is there, of other data perhaps, need not be cut
        data.train_size, data.val_size = None, 0
    data.setup("test" if split == "test" else "fit")
    known = run.result.get("class_names", data.class_names)  # earlier runs did not keep them
    if data.class_names != known:
        raise UserError(
            f"the run knows the classes {_some(known)}, but the data has "
            f"{_some(data.class_names)}; their figures would mean nothing."
        )
    images = {"train": data.n_train, "val": data.n_val, "test": data.n_test}[split]
    if not images:
        raise UserError(f"--split {split}: this run has no such images (data.val_size=0).")

    scores = Scores(run.net, data, flip)
    with known_warnings():
        trainer = _trainer(cfg)
        data.trainer = trainer  # tells it the device
        trainer.test(scores, dataloaders=data.eval_dataloader(split), verbose=False)

    classes = data.num_classes
    content: dict[str, Any] = {
        "split": split,
        "images": int(scores.tally.count),
        **scores.tally.figures(classes),
        **({"flip": scores.flip_tally.figures(classes)} if flip else {}),
        "acc_per_class": scores.confusion.accuracy_per_class(),
        "checkpoint": str(run.checkpoint),
        "overrides": list(overrides),
        "precision": str(cfg.trainer.precision),
        "root": cfg.data.get("root"),
    }
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = RunFolder(run_dir / "evaluation" / name).claim().path
    scores.confusion.write(folder / "confusion_matrix.csv")
    write_json(folder / "evaluation.json", content)
    _show(content, scores.confusion.matrix, folder)
    return folder


def _trainer(cfg: DictConfig) -> Trainer:
    devices = OmegaConf.to_container(cfg.trainer).get("devices")  # type: ignore[union-attr]
    if devices != 1 and not (isinstance(devices, list) and len(devices) == 1):
        raise UserError(
            f"trainer.devices={devices}: one device evaluates; say 1, or name it, such as [1]."
        )
    try:
        return Trainer(
            accelerator=cfg.trainer.accelerator,
            devices=devices,
            precision=cfg.trainer.precision,
            limit_test_batches=cfg.trainer.limit_test_batches,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, TypeError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names)})" if len(names) > 10 else "")


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(titles[0], overflow="fold")
    for title in titles[1:]:
        table.add_column(title, justify="right")
    return table


def _show(content: dict[str, Any], matrix: np.ndarray, folder: Path) -> None:
    images = f"{content['images']:,} {content['split']} images"
    figures = _table(images, *(k for k in ("loss", "acc", f"top{TOP}") if k in content))
    for name, scores in (("as they are", content), ("mean with mirror image", content.get("flip"))):
        if scores:
            values = (scores.get(k) for k in ("loss", "acc", f"top{TOP}"))
            figures.add_row(name, *(f"{value:.4f}" for value in values if value is not None))
    console.print(figures)

    names = list(content["acc_per_class"])
    accuracies = cast(dict[str, float | None], content["acc_per_class"])
    known = sorted(
        (accuracy, number)
        for number, accuracy in enumerate(accuracies.values())
        if accuracy is not None
    )
    many = len(known) > CLASSES_ON_SCREEN
    chosen = known[:CLASSES_ON_SCREEN] if many else sorted(known, key=lambda pair: pair[1])
    title = f"the {CLASSES_ON_SCREEN} hardest classes" if many else "class"
    with_matrix = len(names) <= MATRIX_ON_SCREEN
    table = _table(title, "images", "acc", *(names if with_matrix else ["mostly taken for"]))
    for accuracy, number in chosen:
        row = matrix[number].tolist()
        if with_matrix:
            rest = [str(n) for n in row]
        else:
            n, wrong = max((n, other) for other, n in enumerate(row) if other != number)
            rest = [f"{names[wrong]} ({n})" if n else ""]
        table.add_row(names[number], f"{sum(row):,}", f"{accuracy:.4f}", *rest)
    console.print()
    console.print(table)
    console.print(f"\nwritten     {folder}", soft_wrap=True)

"""A run's figures on its test images, or on others."""

import argparse
import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table

from resnet_lab.commands import add_overrides, add_run, check_trust, describe
from resnet_lab.config.errors import UserError
from resnet_lab.screen import console

if TYPE_CHECKING:  # which import torch
    from lightning.pytorch import Callback, Trainer
    from omegaconf import DictConfig
    from torch import Tensor, nn

    from resnet_lab.callbacks.confusion_matrix import Confusion
    from resnet_lab.run.load import Finished

TOP = 5
MATRIX_ON_SCREEN = 12  # classes; larger matrices are in their file only
CLASSES_ON_SCREEN = 20


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Loads the run's best checkpoint and scores one split of its data: loss, accuracy, top-5 "
        "accuracy (from 6 classes on), accuracy of each class, confusion matrix. They are printed "
        "and written to a new folder below RUN_DIR/evaluation; result.json stays as it is. Of an "
        "image folder only the split that is scored needs to be there.",
        "resnet-lab evaluate outputs/runs/2026-01-31/12-00-00-resnet20-cifar10\n"
        "resnet-lab evaluate RUN_DIR --tta flip\n"
        "resnet-lab evaluate RUN_DIR data.root=other/photos trainer.precision=32",
    )
    add_run(parser)
    add_overrides(
        parser,
        "of the run's config, data.* and trainer.* can be set here; data=NAME takes another "
        "source of images",
    )
    parser.add_argument(
        "--split", choices=["test", "val", "train"], default="test", help="which images (test)"
    )
    parser.add_argument(
        "--tta",
        choices=["flip"],
        help="also score the mean over each image and its mirror image; reported apart",
    )


def run(options: argparse.Namespace) -> int:
    """Score the run; writes evaluation.json (shares from 0 to 1) and confusion_matrix.csv."""
    if not options.overrides:  # which may take foreign code out
        check_trust(options.run_dir, options.trust)

    from resnet_lab.files import write_json
    from resnet_lab.run.folder import RunFolder
    from resnet_lab.run.images import open_split
    from resnet_lab.run.load import load_run

    run = load_run(options.run_dir, options.checkpoint, options.overrides, options.trust)
    split = options.split
    open_split(run, split)
    figures, confusion = _score(run, split)
    content: dict[str, Any] = {
        "split": split,
        "images": int(confusion.matrix.sum()),
        **figures,
        "acc_per_class": confusion.accuracy_per_class(),
        "checkpoint": str(run.checkpoint),
        "overrides": list(options.overrides),
        "precision": str(run.cfg.trainer.precision),
        "root": run.cfg.data.get("root"),
    }
    if options.tta:
        run.net.register_forward_hook(_mean_with_mirror_image)
        content["flip"], _ = _score(run, split)
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = RunFolder(options.run_dir / "evaluation" / name).claim().path
    confusion.write(folder / "confusion_matrix.csv")
    write_json(folder / "evaluation.json", content)
    _show(content, confusion)
    console.print(f"\nwritten     {folder}", soft_wrap=True)
    return 0


def _trainer(cfg: "DictConfig", callback: "Callback") -> "Trainer":
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer
    from omegaconf import OmegaConf

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
            callbacks=[callback],
        )
    except (MisconfigurationException, TypeError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _score(run: "Finished", split: str) -> tuple[dict[str, float], "Confusion"]:
    """Loss, accuracy, top-5 accuracy from 6 classes on, and the confusion matrix."""
    from lightning.pytorch.callbacks import LambdaCallback

    from resnet_lab.callbacks.confusion_matrix import Confusion
    from resnet_lab.run.training import known_warnings

    data, classifier = run.datamodule, run.classifier
    confusion = Confusion(data.class_names)
    in_top: list[Tensor] = []  # of each batch, on the device: reading them would wait for it

    def count(trainer: Any, classifier: Any, logits: "Tensor", batch: Any, *_: Any) -> None:
        labels = batch[1]
        confusion.update(logits, labels)
        top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        in_top.append((top == labels[:, None]).sum())

    with known_warnings():
        trainer = _trainer(run.cfg, LambdaCallback(on_test_batch_end=count))
        confusion.to(trainer.strategy.root_device)
        data.trainer = trainer  # it asks for the device
        hook = data.on_after_batch_transfer
        classifier.on_after_batch_transfer = hook  # type: ignore[method-assign]
        trainer.test(classifier, dataloaders=data.eval_dataloader(split), verbose=False)
    figures = {name: float(trainer.callback_metrics[f"test/{name}"]) for name in ("loss", "acc")}
    if len(data.class_names) > TOP:
        figures[f"top{TOP}"] = int(sum(in_top)) / int(confusion.matrix.sum())
    return figures, confusion


def _mean_with_mirror_image(
    net: "nn.Module", inputs: "tuple[Tensor]", logits: "Tensor"
) -> "Tensor":
    """A forward hook: log of the mean probabilities of images and their mirror images."""
    import torch

    pair = torch.stack([logits, net.forward(inputs[0].flip(-1))]).float().log_softmax(-1)
    return pair.logsumexp(0) - math.log(2)


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(titles[0], overflow="fold")
    for title in titles[1:]:
        table.add_column(title, justify="right")
    return table


def _show(content: dict[str, Any], confusion: "Confusion") -> None:
    columns = [name for name in ("loss", "acc", f"top{TOP}") if name in content]
    figures = _table(f"{content['images']:,} {content['split']} images", *columns)
    for name, scores in (("plain", content), ("mean with mirror image", content.get("flip"))):
        if scores:
            figures.add_row(name, *(f"{scores[column]:.4f}" for column in columns))
    console.print(figures)

    names, matrix = confusion.names, confusion.matrix
    known = [
        (share, number)
        for number, share in enumerate(confusion.accuracy_per_class().values())
        if share is not None
    ]
    title = "class"
    if len(known) > CLASSES_ON_SCREEN:
        known = sorted(known)[:CLASSES_ON_SCREEN]
        title = f"the {CLASSES_ON_SCREEN} hardest classes"
    with_matrix = len(names) <= MATRIX_ON_SCREEN
    table = _table(title, "images", "acc", *(names if with_matrix else ["mostly taken for"]))
    for share, number in known:
        row = matrix[number].tolist()
        if with_matrix:
            rest = [str(n) for n in row]
        else:
            n, wrong = max((n, other) for other, n in enumerate(row) if other != number)
            rest = [f"{names[wrong]} ({n})" if n else ""]
        table.add_row(names[number], f"{sum(row):,}", f"{share:.4f}", *rest)
    console.print()
    console.print(table)

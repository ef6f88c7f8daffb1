"""Learning rates of a config at every step, before any training."""

import math
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from resnet_lab.config.errors import UserError
from resnet_lab.run import build

MOST_STEPS = 5_000_000
CIFAR_IMAGES = 50_000


class Rates(NamedTuple):
    """What the optimizer takes each step with; an entry for each step.

    Attributes:
        rate: the learning rate; where groups of parameters have others, the largest.
        momentum: likewise, of Adam the first beta; empty where the optimizer has none.
        steps_per_epoch: optimizer steps.
        groups: how many learning rates there are at once.
    """

    rate: list[float]
    momentum: list[float]
    steps_per_epoch: int
    groups: int


def batches_per_epoch(cfg: DictConfig) -> tuple[int, str]:
    """Training batches of an epoch, and why they are assumed, or "".

    Images are listed and not decoded. Nothing is downloaded: of CIFAR it is known how many there
    are.

    Raises:
        UserError: the data are wrong.
    """
    cfg = _copy(build.follow_trunk(cfg))
    is_cifar = ".CIFAR10" in cfg.data.source._target_
    if is_cifar:
        cfg.data.source.download = False
    data = build.build_data(cfg)
    try:
        data.thin("train", 2**62)  # lists the images and keeps all
    except UserError as error:
        if not is_cifar:
            raise
        val = cfg.data.val_size * (CIFAR_IMAGES if cfg.data.val_size < 1 else 1)
        n = cfg.data.train_size or CIFAR_IMAGES - round(val)
        return max(1, n // cfg.data.batch_size), str(error)
    return data.train_batches, ""


def rates(cfg: DictConfig, batches: int) -> Rates:
    """The rates of a training, from its own classifier, optimizer and scheduler.

    Args:
        batches: of an epoch.

    Raises:
        UserError: the schedule follows the validation, or the training is too long to follow.
    """
    cfg = _for_the_optimizer(cfg)
    per_epoch, total = _length(cfg, batches)
    if total > MOST_STEPS:
        raise UserError(f"These are {total:,} steps; {MOST_STEPS:,} are the most that are drawn.")
    classifier = build.build_classifier(cfg, build.outline(cfg))
    # All that `configure_optimizers` asks of a trainer.
    trainer: Any = SimpleNamespace(
        fit_loop=SimpleNamespace(setup_data=lambda: None),
        estimated_stepping_batches=total,
        num_training_batches=per_epoch,
        accumulate_grad_batches=1,
        limit_val_batches=1,
    )
    classifier.trainer = trainer
    made: Any = classifier.configure_optimizers()
    optimizer, plan = made["optimizer"], made["lr_scheduler"]
    if "monitor" in plan:
        raise UserError(
            f"{type(plan['scheduler']).__name__}: it follows {plan['monitor']}, so nobody knows "
            "its learning rates before training; the column lr of a run's metrics.csv has them."
        )
    return _follow(optimizer, plan, per_epoch, total)


def _follow(optimizer: Optimizer, plan: dict[str, Any], per_epoch: int, total: int) -> Rates:
    rate, momentum, groups = [], [], 1
    for step in range(total):
        of_groups = [float(group["lr"]) for group in optimizer.param_groups]
        rate.append(max(of_groups))
        groups = max(groups, len(set(of_groups)))
        of_groups = [m for g in optimizer.param_groups if (m := _momentum(g)) is not None]
        momentum += [max(of_groups)] if of_groups else []
        if plan["interval"] == "step" or (step + 1) % per_epoch == 0:
            with warnings.catch_warnings():  # no step has been taken, which torch minds
                warnings.simplefilter("ignore", UserWarning)
                plan["scheduler"].step()
    return Rates(rate, momentum, per_epoch, groups)


def _momentum(group: dict[str, Any]) -> float | None:
    value = group.get("momentum", (group.get("betas") or [None])[0])
    return None if value is None else float(value)


def _length(cfg: DictConfig, batches: int) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the whole training, as Lightning reckons them."""
    trainer = cfg.trainer
    if trainer.fast_dev_run:
        raise UserError("trainer.fast_dev_run: such a training has a step or two; leave it out.")
    limit = trainer.overfit_batches or trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    per_epoch = math.ceil(max(1, batches) / trainer.accumulate_grad_batches)
    total = trainer.max_steps if trainer.max_epochs == -1 else per_epoch * trainer.max_epochs
    return per_epoch, total if trainer.max_steps == -1 else min(total, trainer.max_steps)


def _for_the_optimizer(cfg: DictConfig) -> DictConfig:
    """`cfg` for a net without weights on no device: what depends on either is set, or left out."""
    cfg = _copy(build.follow_trunk(cfg))
    cfg.trainer.accelerator = "cpu"
    cfg.optimizer.pop("fused", None)
    cfg.data.num_classes = cfg.data.num_classes or 10
    cfg.data.image_size = cfg.data.image_size or 32
    if cfg.classifier.get("class_weights") is not None:
        cfg.classifier.class_weights = None
    return cfg


def _copy(cfg: DictConfig) -> DictConfig:
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    return cfg

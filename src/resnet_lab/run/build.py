"""From a composed config to data, net, classifier and trainer; the only user of instantiate."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from resnet_lab.classifier import Classifier
from resnet_lab.config.check import PRETRAINED, trunk_run, undivided
from resnet_lab.config.errors import UserError
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.data.sources import Source
from resnet_lab.models.complexity import Complexity, count
from resnet_lab.models.pretrained import Pretrained, preprocessing
from resnet_lab.run import checkpoint_io
from resnet_lab.run.machine import keep_freed_memory, on_cuda, resolve_precision
from resnet_lab.trust import check_definitions, check_targets, from_environment

FUSED = {"torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW"}


@dataclass
class Parts:
    """A run, put together: `cfg` is resolved, nothing in it is left to be chosen.

    `saved` is `cfg` as files may hold it: for what an environment variable has said, the
    interpolation stands there as it was written.
    """

    cfg: DictConfig
    saved: dict[str, Any]
    datamodule: ImageDataModule
    net: nn.Module
    classifier: Classifier
    trainer: Trainer
    complexity: Complexity


def build(cfg: DictConfig) -> Parts:
    """Put the run of `cfg` together: the data is read, the net made, nothing is trained.

    Everything that `cfg` leaves open is filled in: number of classes, image size, precision.
    ValueError where config, data and machine do not fit together.
    """
    keep_freed_memory()
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    trust = list(cfg.get("trust") or ())
    check_targets(cfg, trust)
    from_outside = from_environment(cfg)
    for key in ("root", "cache_dir"):
        if cfg.data.get(key) is not None:
            cfg.data[key] = os.path.abspath(cfg.data[key])
    cfg.trainer.precision = resolve_precision(cfg.trainer.precision, cfg.trainer.accelerator)
    follow_trunk(cfg)
    check_definitions(cfg, trust)
    datamodule: ImageDataModule = instantiate(cfg.data, _convert_="all")
    datamodule.setup("fit")
    cfg.data.num_classes = datamodule.num_classes
    cfg.data.image_size = datamodule.image_size
    cfg.data.mean, cfg.data.std = datamodule.mean, datamodule.std
    if datamodule.n_val == 0:
        if "best" in cfg.callbacks:
            cfg.callbacks.best.monitor = None  # nothing to choose by: the last epoch is the best
            cfg.callbacks.best.save_on_train_epoch_end = True
        if "early_stopping" in cfg.callbacks:
            raise UserError(
                "callbacks=early_stopping: there is no validation to stop by (data.val_size=0); "
                "set data.val_size, or leave early_stopping out."
            )
    OmegaConf.resolve(cfg)
    check_definitions(cfg, trust)  # once more: what the data has told may stand in a name

    if on_cuda(cfg.trainer.accelerator):
        torch.set_float32_matmul_precision("high")  # TF32 for what is left in float32
        if cfg.optimizer._target_ in FUSED and str(cfg.trainer.precision) != "16-mixed":
            # Not with float16: fused steps unscale gradients themselves, after any clipping.
            cfg.optimizer.setdefault("fused", True)

    seed_everything(cfg.seed, verbose=False)
    net: nn.Module = instantiate(cfg.model).to(memory_format=torch.channels_last)
    if isinstance(net, Pretrained) and not cfg.resume:
        net.load_weights()
    classifier = _classifier(cfg, net)
    try:
        trainer: Trainer = instantiate(
            cfg.trainer,
            callbacks=[instantiate(c) for c in (cfg.callbacks or {}).values()],
            logger=[instantiate(c) for c in (cfg.logger or {}).values()],
            plugins=[checkpoint_io.DurableCheckpointIO()],
            max_time=None,  # LastCheckpoint sees to it: Lightning would call the epoch done
            _convert_="all",
        )
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, MisconfigurationException | ValueError):
            raise UserError(f"trainer: {' '.join(str(cause).split())}") from error
        raise
    if isinstance(trainer.strategy, DDPStrategy | FSDPStrategy):
        trainer.strategy._timeout = timedelta(seconds=cfg.rank_timeout)
    if isinstance(trainer.strategy, FSDPStrategy) and not cfg.classifier.decay_norm_and_bias:
        raise UserError(
            "trainer=fsdp: a parameter's piece has one dimension, so those of normalisation cannot "
            "be told apart; leave out classifier.decay_norm_and_bias=false."
        )
    if isinstance(trainer.strategy, FSDPStrategy) and trainer.strategy.root_device.type != "cuda":
        raise UserError("trainer=fsdp: needs GPUs, and there is none for this run.")
    if cfg.data.batch_size % trainer.world_size:  # trainer.devices=auto: known only now
        raise UserError(undivided(cfg.data.batch_size, trainer.world_size))
    complexity = count(net, datamodule.image_size)
    saved = _without_environment(cfg, from_outside)
    return Parts(cfg, saved, datamodule, net, classifier, trainer, complexity)


def _without_environment(cfg: DictConfig, from_outside: dict[str, str]) -> dict[str, Any]:
    """The content of `cfg` with what the environment has said as it was written; see `Parts`."""
    saved = cfg.copy()
    if saved.get("resume"):
        saved.resume = None  # of the command, as is what it trusts
    saved.pop("trust", None)
    best = "/checkpoints/best.ckpt"  # of the trunk's folder, where `follow_trunk` has put it
    if "model.trunk" in from_outside and str(saved.model.get("weights")).endswith(best):
        from_outside = {"model.weights": from_outside["model.trunk"] + best, **from_outside}
    for key, text in from_outside.items():
        if not OmegaConf.is_config(OmegaConf.select(saved, key)):  # a trunk's own description
            OmegaConf.update(saved, key, text)
    content: dict[str, Any] = OmegaConf.to_container(saved)  # type: ignore[assignment]
    return content


def outline(cfg: DictConfig) -> nn.Module:
    """The net of `cfg` without its weights, on torch's meta device: shapes and no numbers."""
    check_definitions(cfg.model, cfg.get("trust") or ())
    with torch.device("meta"):
        net: nn.Module = instantiate(cfg.model)
    return net


def source(cfg: DictConfig) -> Source:
    """Where the images of `cfg` come from; nothing is decoded yet."""
    check_definitions(cfg.data.source, cfg.get("trust") or ())
    images: Source = instantiate(cfg.data.source, _convert_="all")
    return images


def follow_trunk(cfg: DictConfig) -> None:
    """Write into `cfg` what the trunk of a pretrained net decides; a no-op for others.

    A run's folder as trunk becomes that run's net and checkpoint. Images come as the trunk was
    trained with them, where `cfg` leaves their size, or their mean and std, open.
    """
    if cfg.model._target_ != PRETRAINED:
        return
    trunk, run = cfg.model.trunk, trunk_run(cfg)
    if run is not None and cfg.model.weights == "DEFAULT":
        cfg.model.weights = f"{trunk}/checkpoints/best.ckpt"
    if cfg.model.weights not in (None, "DEFAULT"):
        cfg.model.weights = os.path.abspath(cfg.model.weights)
    if run is not None:
        cfg.model.trunk = run.model.trunk if run.model._target_ == PRETRAINED else run.model
        images = {key: run.data[key] for key in ("image_size", "mean", "std")}
    elif isinstance(trunk, str):
        images = preprocessing(trunk)._asdict()
    else:
        return  # the config of a run: all of this is written there
    if cfg.data.image_size is None:
        cfg.data.image_size = images["image_size"]
    if cfg.data.mean is None and cfg.data.std is None:
        cfg.data.mean, cfg.data.std = images["mean"], images["std"]


def _classifier(cfg: DictConfig, net: nn.Module) -> Classifier:
    classifier: Classifier = instantiate(
        cfg.classifier,
        net=net,
        optimizer=instantiate(cfg.optimizer, _convert_="all"),
        scheduler=instantiate(cfg.scheduler, _convert_="all"),
    )
    return classifier

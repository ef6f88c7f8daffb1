"""From a composed config to data, net, classifier and trainer; the only user of instantiate."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, Strategy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from resnet_lab.classifier import Classifier
from resnet_lab.config.check import PRETRAINED, missing_package, trunk_run
from resnet_lab.config.compose import CONF, absolute, from_environment
from resnet_lab.config.errors import UserError
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.data.sources import Source
from resnet_lab.models.complexity import Complexity, count
from resnet_lab.models.pretrained import Pretrained, preprocessing
from resnet_lab.run.checkpoint_io import DurableCheckpointIO
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.machine import (
    allow_tf32,
    claim,
    count_devices,
    keep_freed_memory,
    on_cuda,
    resolve_precision,
)

log = logging.getLogger(__name__)

NCCL_LATER = 60  # seconds
FUSED = {"torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW"}


@dataclass
class Parts:
    """A run, put together.

    Attributes:
        cfg: resolved, nothing in it is left open.
        saved: `cfg` as files may hold it: what an environment variable has said stands there as
            the interpolation that asked for it.
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

    `cfg` itself stays as it is; what it leaves open is filled in in `Parts.cfg`.

    Raises:
        UserError: config, data and machine do not fit together.
    """
    keep_freed_memory()
    if on_cuda(cfg.trainer.accelerator):
        allow_tf32(True)  # for what is left in float32
    written: Any = OmegaConf.to_container(cfg)
    cfg = _on_this_machine(cfg)
    datamodule = build_data(cfg)
    datamodule.setup("fit")
    cfg = _with_data(cfg, datamodule)
    seed_everything(cfg.seed, verbose=False)
    net = build_net(cfg)
    if isinstance(net, Pretrained) and not cfg.resume:
        net.load_weights()
    trainer = _trainer(cfg)
    claim(trainer.strategy.root_device)
    return Parts(
        cfg,
        _without_environment(cfg, written),
        datamodule,
        net,
        build_classifier(cfg, net),
        trainer,
        count(net, datamodule.image_size, datamodule.channels),
    )


def build_classifier(cfg: DictConfig, net: nn.Module) -> Classifier:
    """The classifier of `cfg` around `net`."""
    if package := missing_package(cfg):  # of a run that is evaluated, which nothing has checked
        raise UserError(
            f"optimizer={cfg.optimizer._target_}: the package {package} is missing; "
            "pip install -e '.[optim]'."
        )
    fused = {}
    if on_cuda(cfg.trainer.accelerator) and cfg.optimizer._target_ in FUSED:
        # Not with float16: fused steps unscale gradients themselves, after any clipping.
        fused = {"fused": str(cfg.trainer.precision) != "16-mixed"}
    classifier: Classifier = instantiate(
        cfg.classifier,
        net=net,
        optimizer=instantiate(
            _fitting(cfg, "optimizer"), _convert_="all", **{**fused, **_given(cfg, "fused")}
        ),
        scheduler=instantiate(_fitting(cfg, "scheduler"), _convert_="all"),
    )
    return classifier


def _fitting(cfg: DictConfig, group: str) -> DictConfig:
    """A section of `cfg` without the settings of our own files that its `_target_` does not take.

    So `optimizer._target_=torch.optim.RMSprop` need not take SGD's nesterov away.
    """
    section = _open_copy(cfg[group])
    parameters = inspect.signature(get_object(section._target_)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return section
    files = [*(CONF / group).glob("*.yaml"), CONF / f"{group}_options.yaml"]
    contents: Any = [OmegaConf.load(file) for file in files if file.exists()]
    ours = {str(key) for content in contents for key in content.get(group, content)}
    for key in [str(key) for key in section]:
        if not key.startswith("_") and key not in parameters and key in ours:
            log.info(f"{group}.{key}: {section._target_} takes none, so it is left out")
            del section[key]
    return section


def _given(cfg: DictConfig, key: str) -> dict[str, Any]:
    return {key: cfg.optimizer[key]} if key in cfg.optimizer else {}


def build_data(cfg: DictConfig) -> ImageDataModule:
    """The data module of `cfg`; nothing is read yet."""
    datamodule: ImageDataModule = instantiate(cfg.data, _convert_="all")
    return datamodule


def build_source(cfg: DictConfig) -> Source:
    """Where the images of `cfg` come from; nothing is decoded yet."""
    source: Source = instantiate(cfg.data.source, _convert_="all")
    return source


def build_net(cfg: DictConfig) -> nn.Module:
    """The net of `cfg` with the weights that it is initialised with, in channels_last."""
    net: nn.Module = instantiate(cfg.model)
    return net.to(memory_format=torch.channels_last)


def outline(cfg: DictConfig) -> nn.Module:
    """The net of `cfg` without its weights, on torch's meta device: shapes and no numbers."""
    with torch.device("meta"):
        net: nn.Module = instantiate(cfg.model)
    return net


def _open_copy(cfg: DictConfig) -> DictConfig:
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    return cfg


def _on_this_machine(cfg: DictConfig) -> DictConfig:
    """`cfg` with absolute paths, the precision of this machine, and what a trunk decides."""
    cfg = _open_copy(cfg)
    for group in ("callbacks", "logger"):  # absent where its list is empty
        cfg.setdefault(group, {})
    for key in ("root", "cache_dir"):
        if cfg.data.get(key) is not None:
            cfg.data[key] = absolute(cfg.data[key])
    cfg.trainer.precision = resolve_precision(cfg.trainer.precision, cfg.trainer.accelerator)
    return follow_trunk(cfg)


def follow_trunk(cfg: DictConfig) -> DictConfig:
    """`cfg` with what the trunk of a pretrained net decides; as it is for other nets.

    A run's folder as trunk becomes that run's net and checkpoint. Images come as the trunk was
    trained with them, where `cfg` leaves their size, or their mean and std, open.
    """
    if cfg.model._target_ != PRETRAINED:
        return cfg
    cfg = _open_copy(cfg)
    trunk, run = cfg.model.trunk, trunk_run(cfg)
    if run is not None and cfg.model.weights == "DEFAULT":
        cfg.model.weights = str(RunFolder(trunk).own_best())
    if cfg.model.weights not in (None, "DEFAULT"):
        cfg.model.weights = absolute(cfg.model.weights)
    if run is not None:
        cfg.model.trunk = run["model"]
        images = run["data"]
    elif isinstance(trunk, str):
        images = preprocessing(trunk)._asdict()
    else:
        return cfg  # the config of a run: all of this is written there
    if cfg.data.image_size is None:
        cfg.data.image_size = images["image_size"]
    if cfg.data.mean is None and cfg.data.std is None:
        cfg.data.mean, cfg.data.std = images["mean"], images["std"]
    return cfg


def _with_data(cfg: DictConfig, datamodule: ImageDataModule) -> DictConfig:
    """`cfg`, resolved, with what the data says: its classes, and the size and statistics of images.

    Without validation images there is nothing to choose an epoch by: the last one is the best.
    """
    cfg = _open_copy(cfg)
    cfg.data.num_classes, cfg.data.image_size = datamodule.num_classes, datamodule.image_size
    cfg.data.mean, cfg.data.std = datamodule.mean, datamodule.std
    if (weights := cfg.classifier.get("class_weights")) == "balanced":
        cfg.classifier.class_weights = balanced(datamodule.train_counts)
    elif weights is not None and len(weights) != datamodule.num_classes:
        raise UserError(
            f"classifier.class_weights has {len(weights)} numbers for {datamodule.num_classes} "
            "classes."
        )
    if datamodule.n_val == 0:
        if "best" in cfg.callbacks:
            cfg.callbacks.best.update(monitor=None, save_on_train_epoch_end=True, save_top_k=1)
        if "early_stopping" in cfg.callbacks:
            raise UserError(
                "callbacks=early_stopping: there is no validation to stop by (data.val_size=0); "
                "set data.val_size, or leave early_stopping out."
            )
    if "best" in cfg.callbacks and cfg.callbacks.best.get("save_top_k", 1) != 1:
        cfg.callbacks.best.enable_version_counter = True  # else one file overwrites the other
    OmegaConf.resolve(cfg)
    return cfg


def balanced(counts: Sequence[int]) -> list[float]:
    """A weight for each class in inverse proportion to its images, 1 for the mean image."""
    there = [n for n in counts if n]
    return [sum(there) / (len(there) * n) if n else 1.0 for n in counts]


def _trainer(cfg: DictConfig) -> Trainer:
    if cfg.trainer.sync_batchnorm and not on_cuda(cfg.trainer.accelerator):
        raise UserError(
            "trainer.sync_batchnorm=true: torch synchronises BatchNorm on GPUs alone; leave it out."
        )
    try:
        trainer: Trainer = instantiate(
            cfg.trainer,
            callbacks=[instantiate(c) for c in (cfg.callbacks or {}).values()],
            logger=[instantiate(c) for c in (cfg.logger or {}).values()],
            plugins=[DurableCheckpointIO()],
            strategy=_strategy(cfg),
            default_root_dir=cfg.run_dir,
            max_time=None,  # LastCheckpoint sees to it: Lightning would call the epoch done
            _convert_="all",
        )
    except Exception as error:
        # The arguments are the user's, or of a run folder: whatever is wrong with them.
        cause = error.__cause__ or error
        raise UserError(f"trainer: {' '.join(str(cause).split())}") from error
    return trainer


def _strategy(cfg: DictConfig) -> str | Strategy | Any:
    """What `trainer.strategy` says; DDP gets the time that one device waits for another."""
    strategy, n = cfg.trainer.strategy, count_devices(cfg.trainer.devices, cfg.trainer.accelerator)
    if strategy == "ddp" or (strategy == "auto" and n * cfg.trainer.num_nodes > 1):
        return DDPStrategy(timeout=patience(cfg), gradient_as_bucket_view=True)
    return instantiate(strategy) if OmegaConf.is_config(strategy) else strategy


def patience(cfg: DictConfig) -> timedelta:
    """How long one device's process waits for another's in a collective operation.

    NCCL then ends a process without a word, so the exchange on the host shall notice first.
    """
    later = NCCL_LATER if on_cuda(cfg.trainer.accelerator) else 0
    return timedelta(seconds=cfg.rank_timeout + later)


def _without_environment(cfg: DictConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `cfg` with what the environment has said as it was written; see `Parts`."""
    saved = cfg.copy()
    saved.resume = None  # of the command, not of the run
    from_outside = from_environment(written)
    # The weights lie in the trunk's folder, where `follow_trunk` has found them.
    _, in_folder, name = str(saved.model.get("weights")).rpartition("/checkpoints/")
    if "model.trunk" in from_outside and in_folder:
        weights = f"{from_outside['model.trunk']}{in_folder}{name}"
        from_outside = {"model.weights": weights, **from_outside}
    for key, text in from_outside.items():
        if not OmegaConf.is_config(OmegaConf.select(saved, key)):  # a trunk's own description
            OmegaConf.update(saved, key, text)
    content: dict[str, Any] = OmegaConf.to_container(saved)  # type: ignore[assignment]
    return content

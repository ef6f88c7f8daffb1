"""What a run tells: result.json, the header, the closing table, its row in HPARAMS."""

import csv
import logging
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch import nn

from resnet_lab.board import Board
from resnet_lab.config.compose import ABSENT, flat, moved, typed
from resnet_lab.run.build import Parts
from resnet_lab.run.folder import _told, write_json, write_text
from resnet_lab.run.machine import device_name
from resnet_lab.run.resume import change
from resnet_lab.screen import duration

log = logging.getLogger(__name__)


FEW_FOR_BATCHNORM = 16  # images: below, one batch's mean and variance say little about the data's


def _describe(parts: Parts) -> dict[str, Any]:
    cfg, data, trainer = parts.cfg, parts.datamodule, parts.trainer
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return {
        "status": "running",
        "model": choices.get("model", type(parts.net).__name__),
        "data": choices.get("data", type(data.source).__name__),
        "class_names": data.class_names,
        "params": parts.complexity.params,
        "macs": parts.complexity.macs,
        "n_train": data.n_train,
        "n_val": data.n_val,
        "n_test": data.n_test,
        "seed": cfg.seed,
        "batch_size": cfg.data.batch_size,
        "devices": trainer.world_size,
        "precision": str(cfg.trainer.precision),
        "device_name": device_name(trainer.strategy.root_device),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", _shown(Path(sys.argv[0])), *sys.argv[1:]]),
        "git_commit": _git_commit(),
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics")
            },
        },
    }


def _git_commit() -> str | None:
    """The commit of this source tree, "-dirty" where it was changed; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _begin(parts: Parts, run_dir: Path, result: dict[str, Any]) -> None:
    """Leave the config and a first result in the run folder, and print the header."""
    if not parts.trainer.is_global_zero:
        return
    cfg, data = parts.cfg, parts.datamodule
    text = OmegaConf.to_yaml(OmegaConf.create(parts.saved))
    run_dir.mkdir(parents=True, exist_ok=True)
    if cfg.resume:
        before: Any = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
        before = moved(before, str(before.get("run_dir")), str(cfg.run_dir))
        after = flat(parts.saved)
        for key, value in flat(before).items():
            if key != "resume" and after.get(key, ABSENT) != value:
                log.info(f"{'changed':<12}{change(key, {key: value}, after.get(key, ABSENT))}")
    write_text(run_dir / "config.yaml", text)
    write_json(run_dir / "result.json", result)
    for logger in parts.trainer.loggers:
        if isinstance(logger, Board) and not cfg.resume:
            logger.log_config(text)
    learning = sum(p.numel() for p in parts.net.parameters() if p.requires_grad)
    frozen = f" ({learning:,} of them learn)" if learning < result["params"] else ""
    ranks = parts.trainer.world_size
    share = f" ({cfg.data.batch_size // ranks} on each of {ranks} devices)" if ranks > 1 else ""
    lines = {
        "net": f"{result['model']}: {result['params']:,} parameters{frozen}, "
        f"{result['macs'] / 1e6:,.2f} M multiply-adds",
        "data": f"{result['data']}: {data.num_classes} classes, {data.image_size} pixels, "
        f"{data.n_train:,} train, {data.n_val:,} val, {data.n_test:,} test images",
        "batch": f"{cfg.data.batch_size}{share}, {data.train_batches:,} steps an epoch",
        "device": f"{result['device_name']}, precision {result['precision']}",
        "run folder": _shown(run_dir) + (", resumed" if cfg.resume else ""),
    }
    for name, value in lines.items():
        log.info(f"{name:<12}{value}")
    together = cfg.data.batch_size // (1 if cfg.trainer.sync_batchnorm else ranks)
    if together < FEW_FOR_BATCHNORM and trains_batchnorm(parts.net):
        log.warning(
            f"BatchNorm's statistics on a batch of {together} are noisy: give each device at least "
            f"{FEW_FOR_BATCHNORM} images (data.batch_size), or the net another norm "
            "(model.norm=group)."
        )


def trains_batchnorm(net: nn.Module) -> bool:
    """Whether the net normalises by the batch's statistics; a frozen BatchNorm has its own."""
    return any(
        parameter.requires_grad
        for module in net.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters()
    )


def _shown(path: Path) -> str:
    """`path` from the current folder where it lies below it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _row(metrics: Path, epoch: int) -> dict[str, float]:
    """The validation figures of one epoch in metrics.csv."""
    if not metrics.exists():
        return {}
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["epoch"]) == epoch:
                return {k: float(row[k]) for k in ("val/loss", "val/acc") if row[k]}
    return {}


def _close(parts: Parts, run_dir: Path, result: dict[str, Any]) -> None:
    """HPARAMS on the board, and the closing table on the screen."""
    scores: dict[str, float] = {
        key: result[key] for key in ("val/acc", "test/acc") if key in result
    }
    for logger in parts.trainer.loggers:
        if isinstance(logger, Board):
            logger.log_result(_choices(parts, result), scores, result["steps"])
        logger.finalize("success")
    log.info(f"\n{'':<12}{'loss':>10}{'accuracy':>10}{'images':>10}")
    for split in ("val", "test"):
        if f"{split}/acc" in result:
            log.info(
                f"{split:<12}{result[f'{split}/loss']:>10.4f}{result[f'{split}/acc']:>10.4f}"
                f"{result[f'n_{split}']:>10,}"
            )
    speed = (
        f" at {result['images_per_second']:,.0f} images/s" if "images_per_second" in result else ""
    )
    log.info(f"\n{'trained':<12}{result['epochs']} epochs in {duration(result['seconds'])}{speed}")
    paths = {
        "best": f"checkpoints/best.ckpt (epoch {result.get('best_epoch')})",
        "last": "checkpoints/last.ckpt",
        "result": "result.json",
        "epochs": "metrics.csv",
        "board": "tensorboard   (make tensorboard)",
    }
    for name, path in paths.items():
        if (run_dir / path.split()[0]).exists():
            log.info(f"{name:<12}{_shown(run_dir)}/{path}")


def _choices(parts: Parts, result: dict[str, Any]) -> dict[str, Any]:
    """The run's row in HPARAMS: of a job of a sweep what is swept, else what tells runs apart."""
    job = _told(Path(parts.cfg.run_dir) / "sweep_job.json")
    if "swept" in job:
        return {key: _number(value) for key, value in job["swept"].items()}
    composed: Any = HydraConfig.instance().cfg
    overrides = [] if composed is None else typed(composed, "task")
    settings = flat(parts.saved)
    return {
        "model": result["model"],
        "data": result["data"],
        **{
            key: settings[key]
            for key in ("seed", "optimizer.lr", "data.batch_size", "trainer.max_epochs")
        },
        **dict(o.lstrip("+").partition("=")[::2] for o in overrides if "=" in o),
    }


def _number(text: str) -> str | float:
    """For the board, which draws an axis for numbers."""
    try:
        return float(text)
    except ValueError:
        return text

"""What a run reports: result.json, the header, the closing table, its scores in the loggers."""

import logging
import platform
import shlex
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch import nn

from resnet_lab import loggers
from resnet_lab.callbacks.compile_net import CompileNet
from resnet_lab.callbacks.confusion_matrix import ConfusionMatrix
from resnet_lab.callbacks.epoch_log import EpochLog
from resnet_lab.callbacks.last_checkpoint import LastCheckpoint
from resnet_lab.config.compose import ABSENT, flat, moved, pasted, typed
from resnet_lab.data.identity import identity
from resnet_lab.files import read_text, replacing, write_text
from resnet_lab.run import checkout
from resnet_lab.run.build import Parts
from resnet_lab.run.folder import RunFolder, program, shown
from resnet_lab.run.machine import arithmetic, device_name, usable
from resnet_lab.run.resume import as_text
from resnet_lab.run.stop import Paused, Stopped
from resnet_lab.screen import duration

log = logging.getLogger(__name__)

FEW_FOR_BATCHNORM = 16  # images: below, one batch's mean and variance say little about the data's


class Record:
    """Around a training: begins result.json and the header, and closes both however it ends.

    result: what result.json holds.
    """

    def __init__(self, parts: Parts, folder: RunFolder) -> None:
        self.parts, self.folder = parts, folder
        self.trainer = parts.trainer
        self.result = describe(parts)
        if parts.cfg.resume:  # the command that says what the run is, not the one that resumes it
            before = folder.read_result()
            kept = ("model", "data", "command")
            self.result |= {key: before[key] for key in kept if key in before}

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self.trainer.is_global_zero:
            self._begin()
        else:
            logging.getLogger().setLevel(logging.WARNING)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._failed(error)
        self._measure()
        if self.trainer.is_global_zero:
            try:
                self.folder.write_result(self.result)
            except OSError as failure:
                if error is None:
                    raise
                log.warning(f"{self.folder.result} cannot be written ({failure})")
            settings: dict[str, Any] = {}
            scores: dict[str, float] = {}
            if error is None:
                self._show_table()
                names = ("val/acc", "test/acc")
                scores = {name: self.result[name] for name in names if name in self.result}
                settings = self._settings()
            status, step = self.result["status"], self.result.get("steps", 0)
            loggers.end(self.trainer.loggers, status, settings, scores, step)

    def trained(self) -> None:
        """The last epoch is over; its weights speak for the run, unless others are `chosen`."""
        self.result |= {"epochs": self.trainer.current_epoch, "steps": self.trainer.global_step}
        figures = self.trainer.callback_metrics.items()
        self.result |= {name: float(value) for name, value in figures if name.startswith("val/")}

    def chosen(self, path: str, checkpoint: dict[str, Any]) -> None:
        """The weights of this checkpoint speak for the run, with the figures of the validation
        after which it was saved."""
        epoch = checkpoint["epoch"] + 1
        figures = checkpoint.get("validation") or self.folder.validation(epoch)
        file = Path(path).absolute()
        if file.is_relative_to(self.folder.path.absolute()):
            file = file.relative_to(self.folder.path.absolute())
        self.result |= {"best_epoch": epoch, "best_checkpoint": str(file), **figures}

    def tested(self, scores: Any) -> None:
        """The test is over, and with it the run."""
        self.result |= {k: float(v) for k, v in scores.items() if k.startswith("test/")}
        if confusion := self._callback(ConfusionMatrix):
            self.result["test/acc_per_class"] = confusion.accuracy_per_class()
        self.end("fast_dev_run" if self.parts.cfg.trainer.fast_dev_run else "finished")

    def end(self, status: str) -> None:
        self.result["status"] = status

    def _callback(self, kind: type[Any]) -> Any:
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, kind)), None)

    def _failed(self, error: BaseException) -> None:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        text = str(error) if interrupted else f"{type(error).__name__}: {error}"
        self.result |= {
            "status": "interrupted" if interrupted else "failed",
            "error": " ".join(text.split()),
        }
        if isinstance(error, Paused):
            self.trained()
            self.result |= {"status": "paused", **self.folder.validation(self.result["epochs"])}
        if isinstance(error, Stopped):
            train = "python train.py" if program()[0] == "python" else "resnet-lab train"
            resume = pasted("resume", shown(self.folder.path))
            log.info(f"\n{error}; resume it with: {train} {resume}")

    def _measure(self) -> None:
        self.result["seconds"] = round(time.monotonic() - self._began, 3)
        # Images that were counted: less than the data has, where the trainer limits its batches.
        tallies = self.parts.classifier.tallies.items()
        self.result |= {f"n_{split}": tally.counted for split, tally in tallies if tally.counted}
        self.result["compiled"] = getattr(self._callback(CompileNet), "compiled", False)
        if epoch_log := self._callback(EpochLog):
            self.result["train_seconds"] = round(epoch_log.train_seconds, 3)
            self.result["images_per_second"] = round(epoch_log.images_per_second, 1)

    # ------------------------------------------------------------------ begin

    def _begin(self) -> None:
        """Leave the config and a first result in the folder, and print the header."""
        parts, cfg = self.parts, self.parts.cfg
        tags = {"model": self.result["model"], "data": self.result["data"]}
        if sweep := loggers.sweep_of(self.folder):
            tags["sweep"] = sweep
        loggers.begin(self.trainer.loggers, parts.saved, tags, bool(cfg.resume))
        text = OmegaConf.to_yaml(OmegaConf.create(parts.saved))
        self.folder.path.mkdir(parents=True, exist_ok=True)
        if cfg.resume:
            self._show_changes()
        write_text(self.folder.config, text)
        self.folder.write_result(self.result)
        self._write_patch()
        for name, value in self._header().items():
            log.info(f"{name:<12}{value}")
        if not (self._callback(LastCheckpoint) or cfg.trainer.fast_dev_run):
            others = ",".join(str(name) for name in cfg.callbacks)
            log.warning(
                "No checkpoint is kept: this run cannot be resumed, and what is tested is its last "
                "epoch, not its best. callbacks=... replaces the default callbacks; perhaps "
                f"callbacks=[default{',' if others else ''}{others}] was meant."
            )
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        if on_cpu and cfg.trainer.accelerator == "auto" and (fault := usable().fault):
            log.warning(f"the GPU of this machine is not used: {fault}.")
        devices = 1 if cfg.trainer.sync_batchnorm else self.trainer.world_size
        together = cfg.data.batch_size // devices
        if together < FEW_FOR_BATCHNORM and trains_batchnorm(parts.net):
            log.warning(
                f"BatchNorm's statistics on a batch of {together} are noisy: give each device at "
                f"least {FEW_FOR_BATCHNORM} images (data.batch_size), or the net another norm "
                "(model.norm=group)."
            )

    def _write_patch(self) -> None:
        """Leave what the checkout has changed since its commit; of a resumed run the latest, as the
        commit is, and an earlier one beside it."""
        path, earlier = self.folder.patch, self.folder.earlier_patch
        try:
            patch = checkout.patch()
            before = read_text(path) if path.exists() else ""
            if patch and patch != before:
                with replacing(path, keep=earlier) as file:
                    file.write(patch)
            elif before and not patch:
                path.replace(earlier)
        except (OSError, ValueError) as error:
            log.warning(f"{path} cannot be written ({error})")

    def _show_changes(self) -> None:
        before = self.folder.read_config()
        before = moved(before, str(before.get("run_dir")), str(self.parts.cfg.run_dir))
        after = flat(self.parts.saved)
        for key, value in flat(before).items():
            new = after.get(key, ABSENT)
            if key != "resume" and new != value:
                log.info(f"{'changed':<12}{key}: {as_text(value)} -> {as_text(new)}")

    def _header(self) -> dict[str, str]:
        cfg, data, result = self.parts.cfg, self.parts.datamodule, self.result
        learning = sum(p.numel() for p in self.parts.net.parameters() if p.requires_grad)
        frozen = f" ({learning:,} of them trainable)" if learning < result["params"] else ""
        devices = self.trainer.world_size
        precision = arithmetic(result["precision"], self.trainer.strategy.root_device)
        share = f" ({cfg.data.batch_size // devices} on each of {devices} devices)"
        return {
            "net": f"{result['model']}: {result['params']:,} parameters{frozen}, "
            f"{result['macs'] / 1e6:,.2f} M multiply-adds",
            "data": f"{result['data']}: {data.num_classes} classes, {data.image_size} pixels, "
            f"{data.n_train:,} train, {data.n_val:,} val, {data.n_test:,} test images",
            "batch": f"{cfg.data.batch_size}{share if devices > 1 else ''}, "
            f"{data.train_batches:,} steps an epoch",
            "device": f"{result['device_name']}, precision {precision}",
            "run folder": shown(self.folder.path) + (", resumed" if cfg.resume else ""),
        }

    # ------------------------------------------------------------------ close

    def _show_table(self) -> None:
        result = self.result
        log.info(f"\n{'':<12}{'loss':>10}{'accuracy':>10}{'images':>10}")
        for split in ("val", "test"):
            if f"{split}/acc" in result:
                log.info(
                    f"{split:<12}{result[f'{split}/loss']:>10.4f}{result[f'{split}/acc']:>10.4f}"
                    f"{result[f'n_{split}']:>10,}"
                )
        speed = result.get("images_per_second")
        at = "" if speed is None else f" at {speed:,.0f} images/s"
        log.info(f"\n{'trained':<12}{result['epochs']} epochs in {duration(result['seconds'])}{at}")
        best = self.folder.path / result.get("best_checkpoint", "absent")
        for name, path, note in (
            ("best", best, f" (epoch {result.get('best_epoch')})"),
            ("last", self.folder.last, ""),
            ("result", self.folder.result, ""),
            ("epochs", self.folder.metrics, ""),
            ("board", self.folder.board, "   (make tensorboard)"),
        ):
            if path.exists():
                log.info(f"{name:<12}{shown(path)}{note}")

    def _settings(self) -> dict[str, Any]:
        """The row in HPARAMS: of a job of a sweep what is swept, else what tells runs apart."""
        swept = self.folder.read_job().get("swept")
        if isinstance(swept, dict):
            return {key: _number(value) for key, value in swept.items()}
        composed: Any = HydraConfig.instance().cfg
        overrides = [] if composed is None else typed(composed, "task")
        if self.parts.cfg.resume:
            overrides = self.folder.read_overrides() or []
        settings = flat(self.parts.saved)
        return {
            "model": self.result["model"],
            "data": self.result["data"],
            **{
                key: settings[key]
                for key in ("seed", "optimizer.lr", "data.batch_size", "trainer.max_epochs")
            },
            **dict(o.lstrip("+").partition("=")[::2] for o in overrides if "=" in o),
        }


def describe(parts: Parts) -> dict[str, Any]:
    """What is known of a run before its first step."""
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
        "data_identity": identity(data.source),
        "seed": cfg.seed,
        "batch_size": cfg.data.batch_size,
        "devices": trainer.world_size,
        "precision": str(cfg.trainer.precision),
        "device_name": device_name(trainer.strategy.root_device),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*program(), *sys.argv[1:]]),
        "git_commit": checkout.commit(),
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics")
            },
        },
    }


def trains_batchnorm(net: nn.Module) -> bool:
    """Whether the net normalises by the batch's statistics; a frozen BatchNorm has its own."""
    return any(
        parameter.requires_grad
        for module in net.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters()
    )


def _number(text: str) -> str | float:
    """For the board, which draws an axis for numbers."""
    try:
        return float(text)
    except ValueError:
        return text

"""From a composed config to a trained network: the only file that instantiates configs."""

import csv
import ctypes
import json
import logging
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from resnet_lab import checkpoint_io, ranks
from resnet_lab.board import Board
from resnet_lab.callbacks.compile_net import CompileNet
from resnet_lab.callbacks.confusion_matrix import ConfusionMatrix
from resnet_lab.callbacks.epoch_log import EpochLog
from resnet_lab.callbacks.last_checkpoint import LastCheckpoint, position
from resnet_lab.callbacks.prune import Prune
from resnet_lab.classifier import Classifier
from resnet_lab.config import (
    PRETRAINED,
    apply_overrides,
    check,
    run_config,
    trunk_run,
    typed,
    undivided,
)
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.data.sources import Source
from resnet_lab.models.complexity import Complexity, count
from resnet_lab.models.pretrained import Pretrained, preprocessing
from resnet_lab.rendezvous import join
from resnet_lab.resume import ABSENT, change, flat, moved
from resnet_lab.screen import duration
from resnet_lab.stop import Paused, Stopped, die_with_parent, handlers_kept, locks
from resnet_lab.trust import check_definitions, check_targets, from_environment

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FUSED = {"torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW"}
FEW_FOR_BATCHNORM = 16  # images: below, one batch's mean and variance say little about the data's

log = logging.getLogger(__name__)
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)  # our header says what they would


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
            raise ValueError(
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
            raise ValueError(f"trainer: {' '.join(str(cause).split())}") from error
        raise
    if isinstance(trainer.strategy, DDPStrategy | FSDPStrategy):
        trainer.strategy._timeout = timedelta(seconds=cfg.rank_timeout)
    if isinstance(trainer.strategy, FSDPStrategy) and not cfg.classifier.decay_norm_and_bias:
        raise ValueError(
            "trainer=fsdp: a parameter's piece has one dimension, so those of normalisation cannot "
            "be told apart; leave out classifier.decay_norm_and_bias=false."
        )
    if isinstance(trainer.strategy, FSDPStrategy) and trainer.strategy.root_device.type != "cuda":
        raise ValueError("trainer=fsdp: needs GPUs, and there is none for this run.")
    if cfg.data.batch_size % trainer.world_size:  # trainer.devices=auto: known only now
        raise ValueError(undivided(cfg.data.batch_size, trainer.world_size))
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


@dataclass
class Finished:
    """A run folder, ready for use: `net`, in `classifier`, has the weights of `checkpoint`.

    `class_names` are those of its data, in the order of the logits; `result` is its result.json.
    Of the data nothing was read: `datamodule` waits for its `setup`.
    """

    run_dir: Path
    cfg: DictConfig
    datamodule: ImageDataModule
    net: nn.Module
    classifier: Classifier
    checkpoint: Path
    class_names: list[str]
    result: dict[str, Any]


def load_run(
    run_dir: Path,
    checkpoint: Path | None = None,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> Finished:
    """The run in `run_dir`, from this folder alone, with the weights that training chose.

    checkpoint: other weights of the same net; a run that is not finished needs to have it named.
    overrides: key=value for keys of its config below data and trainer. The trainer's accelerator
        is auto and devices 1 before they are applied: the machine may be another one.
    trust: packages besides ours that its config may name; see `check_targets`.

    ValueError, a sentence, where the folder is no run, asks for what `check_targets` refuses, or
    has no weights that fit its net. The net is in evaluation mode, on the CPU.
    """
    cfg = run_config(run_dir)
    for part in ("callbacks", "logger"):  # made for training alone, so they may say what they like
        cfg[part] = {}
    result = _told(run_dir / "result.json")
    checkpoint = checkpoint or _chosen(run_dir, result.get("status", "without a result.json"))
    cfg.trainer.update(accelerator="auto", devices=1, num_nodes=1)
    if overrides:
        apply_overrides(cfg, overrides, ("data", "trainer"))
    cfg.trust = list(trust)
    check_targets(cfg, trust, foreign=True)
    check_definitions(cfg, trust)
    if overrides:
        check(cfg)

    keep_freed_memory()
    if on_cuda(cfg.trainer.accelerator):
        torch.set_float32_matmul_precision("high")  # as in training
    weights = checkpoint_io.load_weights(checkpoint)
    net: nn.Module = instantiate(cfg.model).to(memory_format=torch.channels_last)
    classifier = _classifier(cfg, net)
    expected = classifier.state_dict()
    strange = sorted(expected.keys() ^ weights.keys()) or [
        name for name, value in expected.items() if value.shape != weights[name].shape
    ]
    if strange:
        raise ValueError(
            f"{checkpoint} does not fit the net of {run_dir / 'config.yaml'}: {strange[0]} is "
            f"missing in one of them or has another shape ({len(strange)} such in all); it belongs "
            "to another run."
        )
    classifier.load_state_dict(weights)
    return Finished(
        run_dir,
        cfg,
        instantiate(cfg.data, _convert_="all"),
        net,
        classifier.eval(),
        checkpoint,
        result.get("class_names") or [str(number) for number in range(cfg.data.num_classes)],
        result,
    )


def _chosen(run_dir: Path, status: str) -> Path:
    """The weights that speak for a run: those of its best epoch, else of its last one."""
    found = [
        path
        for name in ("best", "last")
        if (path := run_dir / "checkpoints" / f"{name}.ckpt").is_file()
    ]
    if not found:
        raise ValueError(f"{run_dir}: it has no checkpoint (the run is {status}); train it again.")
    if status != "finished":
        raise ValueError(
            f"{run_dir}: this run is {status}, not finished, so its best weights are not settled; "
            f"go on with it (resume={run_dir}) or say --checkpoint {found[0]}."
        )
    return found[0]


def keep_freed_memory() -> None:
    """Have the C library keep what a step frees for the next one (glibc only).

    It would give large blocks back to the system and fetch them again, page by page, in every
    step; on a CPU that took a fifth of the time and more, see docs/performance.md.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: blocks up to 1 GiB come from the heap
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: the heap shrinks by 2 GiB or not at all


def resolve_precision(precision: str | int, accelerator: str) -> str:
    """ "auto" becomes "bf16-mixed" where the device computes in it natively, else "32"."""
    if str(precision) != "auto":
        return str(precision)
    if on_cuda(accelerator):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        native = False
    else:
        native = bool({"avx512_bf16", "amx_bf16"} & cpu_flags())
    return "bf16-mixed" if native else "32"


def on_cuda(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def cpu_flags() -> set[str]:
    """The processor's instruction sets as Linux names them; elsewhere empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def device_name(device: torch.device) -> str:
    """The model of the GPU or processor, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
        except OSError:
            pass
    return platform.processor() or device.type


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train, choose the best epoch by validation, test it once; returns what result.json holds.

    Everything is written into `cfg.run_dir`, which must be this run's own. With `cfg.resume` it
    goes on from the newest whole checkpoint there. `Stopped` where the run was told to stop;
    ValueError where it cannot go on, with what to do.
    """
    run_dir = Path(cfg.run_dir)
    with known_warnings(), handlers_kept(), _alone_in(run_dir), _parent_and_child():
        parts = build(cfg)
        cfg, trainer, classifier = parts.cfg, parts.trainer, parts.classifier
        if not trainer.is_global_zero:
            logging.getLogger().setLevel(logging.WARNING)
        result = _describe(parts)
        checkpoint = None
        if cfg.resume:
            checkpoint, state = checkpoint_io.newest(run_dir)
            if trainer.is_global_zero:
                for board in (logger for logger in trainer.loggers if isinstance(logger, Board)):
                    board.go_on(**position(state))
            # The command that says what the run is, not the one that went on with it.
            result["command"] = _told(run_dir / "result.json").get("command", result["command"])
        _begin(parts, run_dir, result)
        callbacks = {type(c): c for c in trainer.callbacks}  # type: ignore[attr-defined]
        epoch_log = callbacks.get(EpochLog)
        confusion = callbacks.get(ConfusionMatrix)
        if LastCheckpoint in callbacks:
            callbacks[LastCheckpoint].pause_after = _told(run_dir / "sweep_job.json").get("rung")
        began = time.monotonic()
        try:
            if ranks.by_torchrun() and isinstance(trainer.strategy, DDPStrategy | FSDPStrategy):
                backend = trainer.strategy._get_process_group_backend()
                patience = timedelta(seconds=cfg.rank_timeout)
                join(backend, trainer.strategy.root_device, patience)  # before Lightning does
            trainer.fit(classifier, datamodule=parts.datamodule, ckpt_path=checkpoint)
            result.update(epochs=trainer.current_epoch, steps=trainer.global_step)
            best = run_dir / "checkpoints" / "best.ckpt"
            if best.exists():
                chosen = checkpoint_io.load(best)
                if isinstance(trainer.strategy, FSDPStrategy):  # it has left the net in pieces
                    classifier = _classifier(cfg, instantiate(cfg.model))
                classifier.load_state_dict(chosen["state_dict"])
                result.update(best_epoch=chosen["epoch"] + 1)
                result.update(_row(run_dir / "metrics.csv", chosen["epoch"] + 1))
            if getattr(callbacks.get(Prune), "pruned", False):
                result["status"] = "pruned"  # given up, so there is nothing to test
            else:
                test = trainer.test(classifier, datamodule=parts.datamodule, verbose=False)[0]
                result.update({key: float(value) for key, value in test.items()})
                if confusion is not None:
                    result["test/acc_per_class"] = confusion.accuracy_per_class()
                result["status"] = "fast_dev_run" if cfg.trainer.fast_dev_run else "finished"
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            result["status"] = "interrupted" if interrupted else "failed"
            result["error"] = str(error) if interrupted else f"{type(error).__name__}: {error}"
            if isinstance(error, Paused):
                done = trainer.current_epoch
                result.update(status="paused", epochs=done, steps=trainer.global_step)
                result.update(_row(run_dir / "metrics.csv", done))
            if isinstance(error, Stopped):
                log.info(f"\n{error}; go on with: python train.py resume={_shown(run_dir)}")
            if _is_out_of_memory(error):
                raise ValueError(
                    f"out of memory ({str(error).splitlines()[0]}). data.batch_size is "
                    f"{cfg.data.batch_size}; try half of it with a learning rate of half the size, "
                    f"or keep it with trainer.accumulate_grad_batches=2, or a smaller net "
                    "(model.width), or trainer.precision=bf16-mixed."
                ) from error
            raise
        finally:
            result["seconds"] = round(time.monotonic() - began, 3)
            result["compiled"] = getattr(callbacks.get(CompileNet), "compiled", False)
            if epoch_log is not None:
                result["train_seconds"] = round(epoch_log.train_seconds, 3)
                result["images_per_second"] = round(epoch_log.images_per_second, 1)
            if trainer.is_global_zero:
                write_json(run_dir / "result.json", result)
        if trainer.is_global_zero:
            _close(parts, run_dir, result)
        return result


def _is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of the host as torch's allocator says it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def _alone_in(run_dir: Path) -> Iterator[None]:
    """Nobody else trains in this folder; ValueError where somebody does.

    The processes of one run share it: the first holds it for all.
    """
    if fcntl is None or not ranks.is_first():
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    folder = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"{run_dir}: another process is training in it; wait for it, or stop it."
        ) from error
    except OSError:
        log.debug("this file system has no locks")
    locks.add(folder)
    try:
        yield
    finally:
        locks.discard(folder)
        os.close(folder)


@contextmanager
def _parent_and_child() -> Iterator[None]:
    """In a process that another one of the run has started: neither outlives the other (Linux).

    The parent of a process that fails hears of it, unless it is frozen.
    """
    started = os.environ.get("LOCAL_RANK", "0") != "0" and not ranks.from_outside()
    if started or ranks.by_torchrun():
        die_with_parent()
    if sys.platform != "linux" or not started:
        yield
        return
    parent = os.getppid()
    try:
        yield
    except Exception:
        state = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            traceback.print_exc()  # this process goes with it
            os.kill(parent, signal.SIGKILL)
        raise


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


def _told(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where it cannot be read."""
    try:
        told: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return told


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as `write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader finds the old file or the new one, whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)


@contextmanager
def known_warnings() -> Iterator[None]:
    """Silence Lightning's warnings that do not hold for the way we work."""
    with warnings.catch_warnings():
        for message in (
            # Our figures are summed over all ranks by the Tally before they are logged.
            r".*It is recommended to use `self.log\(.*sync_dist=True\)`.*",
            # We log at epoch ends; the interval of trainer.log_every_n_steps is by global step.
            r".*The number of training batches \(.*\) is smaller than the logging interval.*",
            # Memory needs no workers; where images are decoded, data.workers says how many.
            r".*does not have many workers.*",
            r".*Trying to infer the `batch_size`.*",
            # After a resume it is as it should be; otherwise the folder is new.
            r".*Checkpoint directory .* exists and is not empty.*",
            # On a cluster a run may well be started without it.
            r"The `srun` command is available on your system but is not used.*",
            # What is frozen of a pretrained net shall be.
            r"Found \d+ module\(s\) in eval mode at the start of training.*",
            # Lightning 2.6 under torch 2.15.
            r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",
        ):
            warnings.filterwarnings("ignore", message)
        yield

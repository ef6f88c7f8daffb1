"""Train, choose the best epoch, test it once."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from resnet_lab.board import Board
from resnet_lab.callbacks.last_checkpoint import steps_done
from resnet_lab.callbacks.prune import Prune
from resnet_lab.config.errors import UserError
from resnet_lab.config.messages import NO_ROOM, NOT_A_FILE, cannot_write
from resnet_lab.data.batches import worker_error
from resnet_lab.loggers import CSV
from resnet_lab.run import checkpoint_io, distributed, gpu
from resnet_lab.run.build import Parts, build, patience
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.record import Record
from resnet_lab.run.rendezvous import join
from resnet_lab.run.stop import handlers_kept
from resnet_lab.screen import tolerant

# As torch's allocators, CUDA (for its contexts, and memory to copy from), cuBLAS and cuDNN say it.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "ALLOCATION_FAILED")

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)  # our header says what they would


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train, choose the best epoch by validation, test it once.

    Everything is written into `cfg.run_dir`, which must be this run's own. With `cfg.resume` the
    run is continued from the newest whole checkpoint there.

    Returns:
        What result.json holds.

    Raises:
        UserError: the run cannot be made or cannot go on.
        Stopped: it was told to stop; where it stands has been saved.
    """
    folder = RunFolder(cfg.run_dir)
    with known_warnings(), handlers_kept(), tolerant(), folder.lock():
        parts = build(cfg)
        trainer, classifier, data = parts.trainer, parts.classifier, parts.datamodule
        checkpoint = _resume_point(parts, folder) if cfg.resume else None
        with Record(parts, folder) as record, plain_errors(parts.cfg):
            _join_processes(parts)
            trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint)
            record.trained()
            if path := best_checkpoint(trainer):
                best = checkpoint_io.load(path)
                classifier.load_state_dict(best["state_dict"])
                record.chosen(path, best)
            if _pruned(parts):
                record.end("pruned")  # given up, so there is nothing to test
            elif not trainer.limit_test_batches:
                record.end("finished")  # trainer.limit_test_batches=0: no test is wanted
            else:
                trainer.test(classifier, datamodule=data, verbose=False)
                record.tested(trainer.callback_metrics)
        return record.result


def best_checkpoint(trainer: Trainer) -> str:
    """What Lightning's ModelCheckpoint has chosen, the first that has a monitor where there are
    several; "" where none has saved anything."""
    callbacks = (c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint))
    saved = [c for c in callbacks if c.best_model_path]
    saved.sort(key=lambda callback: callback.monitor is None)
    return saved[0].best_model_path if saved else ""


def _resume_point(parts: Parts, folder: RunFolder) -> str:
    """The checkpoint to resume from; local loggers forget what will be written again."""
    path, state = checkpoint_io.newest(folder)
    for logger in parts.trainer.loggers:
        if isinstance(logger, Board | CSV) and parts.trainer.is_global_zero:
            logger.resume(steps_done(state))
    return str(path)


def _join_processes(parts: Parts) -> None:
    """Make one process group of what torchrun has started, before Lightning would; see `join`."""
    trainer = parts.trainer
    if distributed.by_torchrun() and isinstance(trainer.strategy, DDPStrategy):
        device = trainer.strategy.root_device
        backend = torch.distributed.Backend.default_device_backend_map.get(device.type, "gloo")
        join(backend, device, patience(parts.cfg))


def _pruned(parts: Parts) -> bool:
    callbacks: list[Any] = parts.trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, Prune) and callback.pruned for callback in callbacks)


@contextmanager
def plain_errors(cfg: DictConfig) -> Iterator[None]:
    """What happens to a training from outside, each in one sentence: out of memory (of a GPU, or of
    the host as torch's allocator says it), a worker's death (torch raises it wherever this process
    is), a full disk, a folder that is gone."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not Path(cfg.run_dir).is_dir():
            raise UserError(
                f"{cfg.run_dir}: this run's folder was removed or renamed while it trained; put it "
                "back, and go on with resume=..."
            ) from error
        if error.errno not in (*NO_ROOM, *NOT_A_FILE):
            raise
        raise UserError(cannot_write(error.filename or f"into {cfg.run_dir}", error)) from error
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise UserError(
            "BatchNorm cannot normalise one value per channel: give it a larger batch "
            f"(data.batch_size is {cfg.data.batch_size}) or larger images, or take "
            "model.norm=group."
        ) from error
    except (RuntimeError, MemoryError) as error:
        if str(error).startswith("DataLoader worker"):
            raise worker_error(error) from error
        text = str(error)
        if not (isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)):
            raise
        where = (text.splitlines() or ["of the host"])[0]
        if "CU" in text and torch.cuda.is_available():
            where += gpu.others(torch.cuda.current_device())
        raise UserError(
            f"out of memory ({where}). data.batch_size is "
            f"{cfg.data.batch_size}; try half of it with a learning rate of half the size, "
            f"or keep it with trainer.accumulate_grad_batches=2, or a smaller net "
            "(model.width), or trainer.precision=bf16-mixed."
        ) from error


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

"""Train, choose the best epoch, test it once."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from omegaconf import DictConfig

from resnet_lab.board import Board
from resnet_lab.callbacks.compile_net import CompileNet
from resnet_lab.callbacks.confusion_matrix import ConfusionMatrix
from resnet_lab.callbacks.epoch_log import EpochLog
from resnet_lab.callbacks.last_checkpoint import LastCheckpoint, position
from resnet_lab.callbacks.prune import Prune
from resnet_lab.config.errors import UserError
from resnet_lab.run import checkpoint_io, distributed
from resnet_lab.run.build import _classifier, build
from resnet_lab.run.folder import _alone_in, _parent_and_child, _told, write_json
from resnet_lab.run.record import _begin, _close, _describe, _row, _shown
from resnet_lab.run.rendezvous import join
from resnet_lab.run.stop import Paused, Stopped, handlers_kept

log = logging.getLogger(__name__)


for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)  # our header says what they would


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
            if distributed.by_torchrun() and isinstance(
                trainer.strategy, DDPStrategy | FSDPStrategy
            ):
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
                raise UserError(
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

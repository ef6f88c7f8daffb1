"""The checkpoint that a run resumes from, and the moments at which the run may stop."""

import logging
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.loops.evaluation_loop import RestartStage
from torch import Tensor

from resnet_lab.config.compose import moved
from resnet_lab.config.errors import UserError
from resnet_lab.run import distributed
from resnet_lab.run.stop import STATUS, TIME_IS_OVER, Paused, Signals, Stopped

ASK_SECONDS = 0.5  # how often the processes of a run ask each other whether to stop
GPU_SECONDS = 10.0  # between saves at the ends of epochs, which take a quarter of a second there
# Requests, the later the stronger: to save where an epoch ends, to save at once, and to stop; from
# SIGNAL on: SIGNAL plus the signal's number.
NONE, DUE, SAVE, TIME, SIGNAL = range(5)

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`: all that is needed to resume, bit for bit as if nothing had happened.

    It is written at the end of every epoch, before every validation, every `minutes`, and when
    the run is to stop; the one before it stays as `previous.ckpt`. Where an epoch is shorter than
    `seconds`, not at the end of every one.

    SIGTERM, SIGINT, SIGUSR1 and SIGHUP, sent to any of the run's processes, let the current step
    be finished, then all of them save and end (`Stopped`); so does the end of `max_time`. A second
    signal ends its process at once.

    Lightning's own SIGTERM handler takes part in a collective operation, and hangs where only one
    of several processes got the signal. Here a request waits for the end of a step. All processes
    exchange their requests twice a second or so, in an all-reduce of two numbers on the host; each
    time they agree on the number of steps until the next.

    Args:
        dirpath: folder of the two files.
        minutes: at most this much work is lost when the run is killed.
        max_time: "DD:HH:MM:SS" from when training starts in this process; None is no limit.
        pause_after: after so many epochs the run is saved and ends with status 0 (`Paused`).
        rank_timeout: seconds that one process waits for the others to exchange requests.
        seconds: at least so many between two saves at ends of epochs and before validations; None
            is 0, and 10 on a GPU.
    """

    def __init__(
        self,
        dirpath: str,
        minutes: float = 10.0,
        max_time: str | None = None,
        pause_after: int | None = None,
        rank_timeout: float | None = None,
        seconds: float | None = None,
    ) -> None:
        self.path = Path(dirpath, "last.ckpt")
        self.most = minutes * 60
        self.seconds = seconds
        self.rank_timeout = rank_timeout
        self.time_limit = Timer(max_time).time_remaining()
        self.pause_after = pause_after
        self._signals = Signals()
        self._deadline = float("inf")
        self._save_due = float("inf")
        self._between = 0.0
        self._saved = -float("inf")  # when
        self._saved_step = -1
        self._request = NONE
        self._exchange = _Exchange()
        self._step = 0  # the last one seen
        self._epoch_over = False
        self._position: str | None = None  # while one of ours is being written
        self._loaded: dict[str, Any] = {}

    # ------------------------------------------------------------------ when

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._signals.catch()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._signals.catch()  # Lightning has put its own handler there since
        self._exchange = _Exchange(trainer.world_size, self.rank_timeout)
        # Private: asks the device in every step for what the exchange does on the host.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        now = time.monotonic()
        self._save_due = now + self.most
        on_gpu = pl_module.device.type == "cuda"
        self._between = (GPU_SECONDS if on_gpu else 0.0) if self.seconds is None else self.seconds
        self._saved = -float("inf")
        self._deadline = now + (float("inf") if self.time_limit is None else self.time_limit)
        self._step = trainer.global_step
        if trainer.global_rank:  # each device drops units of its own
            torch.manual_seed(torch.initial_seed() + trainer.global_rank * 2**32)
        if self._loaded:
            self._resume(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ask()
        if trainer.global_step == self._step:
            return  # gradients are being accumulated, which no checkpoint holds
        self._step = trainer.global_step
        loop = trainer.fit_loop.epoch_loop
        # Private: the step that loggers get by default, which Lightning miscounts after a resume.
        loop._batches_that_stepped = trainer.global_step - 1
        # Private: whether validation comes next, which depends on six options of the Trainer.
        if loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            self._save_if_due(trainer, "before validation")
        elif loop._is_training_done:  # private: the end of the epoch, or of the run, comes next
            return
        elif self._request >= SAVE:
            self._save(trainer, "in an epoch")
        if self._saved_step == self._step:
            self._stop_if_requested(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        if trainer.training or trainer.validating:
            self._ask()
            if self._saved_step == trainer.global_step:  # else the validation is a short one
                self._stop_if_requested(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_over = True

    # Not in on_train_epoch_end: the loggers get the epoch's figures only after it.
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epoch_over:
            self._epoch_over = False
            self._ask()
            # Not one that is already past it: a user continues it by hand.
            paused = trainer.current_epoch == self.pause_after
            if paused:
                self._save(trainer, "between epochs")
            else:
                self._save_if_due(trainer, "between epochs")
            self._stop_if_requested(trainer)
            if paused:
                raise Paused(f"paused after epoch {self.pause_after}, a rung of its sweep", 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._epoch_over:
            self._epoch_over = False
            self._save(trainer, "between epochs")
        self._deadline = float("inf")  # what is left is the test

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._signals.catch()
        self._exchange = _Exchange(trainer.world_size, self.rank_timeout)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        self._ask()
        self._stop_if_requested(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._signals.let_go()

    # ------------------------------------------------------------------ stopping

    def _ask(self) -> None:
        own, now = NONE, time.monotonic()
        if self._signals.received:
            own = SIGNAL + self._signals.received
        elif now >= self._deadline:
            own = TIME
        elif now >= self._save_due:
            own = SAVE
        elif now >= self._saved + self._between:
            own = DUE
        self._request = max(self._request, self._exchange.agree(own))

    def _stop_if_requested(self, trainer: Trainer) -> None:
        if self._request < TIME:
            return
        if self._request == TIME:
            reason, status = "trainer.max_time is over", TIME_IS_OVER
        else:
            number = signal.Signals(self._request - SIGNAL)
            reason, status = f"stopped by {number.name}", STATUS[number]
        if not distributed.by_torchrun() and not trainer.is_global_zero:
            # Lightning and srun kill the first process, which writes how the run has ended, as soon
            # as another one fails; torchrun lets it finish, but waits for those that succeed.
            status = 0
        raise Stopped(f"{reason} at step {trainer.global_step}", status)

    # ------------------------------------------------------------------ saving

    def _save_if_due(self, trainer: Trainer, position: str) -> None:
        # All processes must agree on it, as they have done on the request.
        if not self._between or self._request >= DUE:
            self._save(trainer, position)

    def _save(self, trainer: Trainer, position: str) -> None:
        self._request = NONE if self._request <= SAVE else self._request
        self._saved_step = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()  # what is written must not be behind the checkpoint
        self._position = position
        trainer.save_checkpoint(
            self.path, storage_options={"previous": self.path.with_name("previous.ckpt")}
        )
        self._position = None
        self._saved = time.monotonic()
        self._save_due = self._saved + self.most

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position, "random": self._exchange.all(_random_state())}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._position is None:
            return  # ModelCheckpoint's
        # Lightning saves in the middle of its loops, whose progress it counts up after the hooks;
        # what it makes of that when it resumes differs by position, and is set right here.
        loops = checkpoint["loops"]["fit_loop"]
        _reset(loops["epoch_loop.val_loop.batch_progress"])
        batches = loops["epoch_loop.batch_progress"]
        if self._position == "in an epoch":
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step
        if self._position == "between epochs":
            checkpoint["callbacks"][self.state_key]["finished"] = trainer.should_stop
            for counts in loops["epoch_progress"].values():
                counts["ready"] = counts["started"] = counts["completed"] = counts["processed"]
            _reset(batches, keep_total=True)
        for counts in (batches["total"], batches["current"]):
            counts["completed"] = counts["processed"]  # the batch whose end this hook belongs to

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning forgets which epoch was best where the run's folder has been moved since.
        folder = os.path.realpath(self.path.parent)
        for name, state in checkpoint["callbacks"].items():
            if "dirpath" in state:
                checkpoint["callbacks"][name] = moved(state, state["dirpath"], folder)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def _resume(self, trainer: Trainer) -> None:
        if self._loaded["position"] == "before validation":
            # Private: Lightning would take the last batch of an epoch for the end of it.
            trainer.fit_loop.epoch_loop.val_loop._restart_stage = (
                RestartStage.RESTARTED_MID_EVALUATION
            )
        trainer.should_stop = self._loaded.get("finished", False)
        states = self._loaded["random"]  # of each process, or, in older checkpoints, of the first
        states = states if isinstance(states, list) else [states]
        if trainer.global_rank < len(states):
            _set_random_state(states[trainer.global_rank])
        self._loaded = {}


def steps_done(checkpoint: dict[str, Any]) -> int:
    """The optimizer steps after which a checkpoint of ours was saved.

    Raises:
        UserError: it is not one of ours.
    """
    if LastCheckpoint.__qualname__ not in checkpoint.get("callbacks", {}):
        raise UserError(
            "this checkpoint does not say where its run stands: it is of an older version, or was "
            "written by something else; begin a new run."
        )
    return int(checkpoint["global_step"])


class _Exchange:
    """The processes of a run agree on the strongest of their requests, every so many calls.

    The number of calls follows the pace of the steps: a fixed one would let a signal wait for long
    where steps are slow, and take time from every step where they are fast.
    """

    def __init__(self, world_size: int = 1, timeout: float | None = None) -> None:
        self._alone = world_size == 1
        self._size = world_size
        self._calls, self._next = 0, 1
        self._since = time.monotonic()
        self._group: Any = None
        if not self._alone and torch.distributed.get_backend() != "gloo":
            limit = None if timeout is None else timedelta(seconds=timeout)
            # On the host, so that no GPU is waited for.
            self._group = torch.distributed.new_group(backend="gloo", timeout=limit)

    def all(self, mine: Any) -> list[Any]:
        """What each process has handed in, by rank; all call it."""
        every = [mine] * self._size
        if not self._alone:
            torch.distributed.all_gather_object(every, mine, group=self._group)
        return every

    def agree(self, request: int) -> int:
        """The strongest request of all, or NONE between two exchanges. All processes call it
        equally often."""
        if self._alone:
            return request
        self._calls += 1
        if self._calls < self._next:
            return NONE
        now = time.monotonic()
        pace = (now - self._since) / self._calls
        calls = min(50, max(1, int(ASK_SECONDS / pace))) if pace > 0 else 50
        agreed = torch.tensor([request, -calls])
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX, group=self._group)
        self._calls, self._since = 0, now
        self._next = -int(agreed[1])
        return int(agreed[0])


def _reset(progress: dict[str, Any], keep_total: bool = False) -> None:
    for name in ("current",) if keep_total else ("current", "total"):
        progress[name] = dict.fromkeys(progress[name], 0)
    progress["is_last_batch"] = False


def _random_state() -> dict[str, Tensor]:
    """Of torch's generators, on the host and, where there is one, on this process's GPU."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())

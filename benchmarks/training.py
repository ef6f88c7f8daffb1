"""Contenders that train: bare loops, and this project's runs from end to end."""

import logging
import os
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch.nn import functional as F

from benchmarks.data import NOISE
from benchmarks.turns import Gate, gate
from resnet_lab.config.compose import compose
from resnet_lab.run.build import build
from resnet_lab.run.machine import on_cuda
from resnet_lab.run.training import train

SKIP = 8  # steps at the start of a segment that are not timed: their batches may exist already
READY_BATCHES = 8
DEVICE = "cuda" if on_cuda("auto") else "cpu"
LONG = 1000  # epochs; no contender gets there, but compile=auto depends on the steps to come


class Setting(NamedTuple):
    """How a bare loop computes."""

    precision: str  # fp32 | bf16 (autocast)
    layout: str  # NCHW | channels_last
    mode: str  # eager | compiled | graphed (CUDA: the whole step, optimizer and all)


SETTINGS = tuple(
    Setting(*words)
    for words in product(("fp32", "bf16"), ("NCHW", "channels_last"), ("eager", "compiled"))
)


def run_config(work: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    """A run on synthetic CIFAR-10, as `train.py` would compose it, with its folders in `work`."""
    folders = (f"data.cache_dir={work / 'cache'}", f"run_dir={work / name}")
    cfg, _ = compose([*NOISE, *folders, *overrides])
    OmegaConf.set_struct(cfg, False)
    return cfg


def optimizer_options(cfg: DictConfig) -> dict[str, Any]:
    """The arguments of torch's SGD that a run has."""
    return {str(k): v for k, v in cfg.optimizer.items() if not str(k).startswith("_")}


def now(device: torch.device) -> float:
    """The clock in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class BareLoop:
    """Forward, loss, backward and SGD over batches in memory: the limit of a machine."""

    def __init__(self, cfg: DictConfig, setting: Setting) -> None:
        parts = build(cfg)
        channels_last = setting.layout == "channels_last"
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = torch.device(DEVICE)
        self.net = parts.net.to(self.device).to(memory_format=layout)
        if setting.mode == "compiled":
            self.net.compile(dynamic=False)
        fused = {"fused": True} if DEVICE == "cuda" else {}
        options = {**optimizer_options(cfg), **fused}
        self.optimizer = torch.optim.SGD(self.net.parameters(), **options)
        self.bf16 = setting.precision == "bf16"
        # The first training batches, augmented and normalised.
        data = parts.datamodule
        self.batches = [
            [part.to(self.device) for part in data.prepare(batch)]
            for batch, _ in zip(data.train_dataloader(), range(READY_BATCHES), strict=False)
        ]
        for batch in self.batches:
            batch[0] = batch[0].contiguous(memory_format=layout)
        self.graph: Any = None
        self.graphed = setting.mode == "graphed"
        if self.graphed:
            self._record()

    def _record(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=self.device)
        self.static = [part.clone() for part in self.batches[0]]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step(*self.static)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        with torch.cuda.graph(self.graph):
            self._step(*self.static)

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        cached = not self.graphed  # a graph would keep the first step's casts
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.bf16, cache_enabled=cached):
            loss = F.cross_entropy(self.net(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def run(self, steps: int) -> dict[str, Any]:
        """The figures of so many steps."""
        began = now(self.device)
        for step in range(steps):
            images, labels = self.batches[step % len(self.batches)]
            if self.graph is None:
                self._step(images, labels)
                continue
            for place, part in zip(self.static, (images, labels), strict=True):
                place.copy_(part)
            self.graph.replay()
        seconds = now(self.device) - began
        return {"seconds": seconds, "images": steps * len(labels), "steps": steps}


def settings(gate: Gate, work: Path, overrides: Sequence[str], steps: int) -> None:
    """Images/s of every setting for a few steps, to find the best one of this machine."""
    loops = {
        " ".join(setting): BareLoop(run_config(work, "settings", overrides), setting)
        for setting in SETTINGS
    }
    gate.wait()
    while True:
        ran = {name: loop.run(steps) for name, loop in loops.items()}
        gate.wait(**{name: segment["images"] / segment["seconds"] for name, segment in ran.items()})


def bare(
    gate: Gate, work: Path, setting: Sequence[str], overrides: Sequence[str], steps: int
) -> None:
    """A bare loop at one setting."""
    loop = BareLoop(run_config(work, "bare", overrides), Setting(*setting))
    gate.wait()
    while True:
        loop.run(SKIP)
        gate.wait(**loop.run(steps))


def ours(gate: Gate, work: Path, overrides: Sequence[str], steps: int) -> None:
    """A run of this project from end to end, with all default callbacks and loggers."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = run_config(work, f"ours-{os.getpid()}", overrides)
    cfg.trainer.max_epochs = LONG
    cfg.trainer.limit_train_batches = SKIP + steps
    cfg.trainer.limit_val_batches = 2  # not timed
    cfg.callbacks.turns = {"_target_": "benchmarks.training.Turns"}
    train(cfg)


class Turns(Callback):
    """Makes every epoch of a Lightning run one segment: it waits for its turn before each epoch.

    Hands in `seconds` for the epoch's steps after the first `SKIP`, with their data, and
    `boundary_seconds` for the time between that and the next epoch's first step: figures, logs,
    checkpoints, a new loader, all but validation. Segments are shorter than an epoch, so the two
    must be kept apart.
    """

    def __init__(self) -> None:
        self._gate = gate()
        self._figures: dict[str, Any] = {}
        self._began = self._ended = self._validation = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            if self._figures:
                boundary = now(pl_module.device) - self._ended - self._validation
                self._figures["boundary_seconds"] = boundary
            self._gate.wait(**self._figures)
            self._validation = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == SKIP - 1:
            self._began = now(pl_module.device)
        elif batch_idx == trainer.num_training_batches - 1:
            self._ended = now(pl_module.device)
            steps = batch_idx + 1 - SKIP
            self._figures = {
                "seconds": self._ended - self._began,
                "images": steps * len(batch[1]),
                "steps": steps,
                "compiled": pl_module.net._compiled_call_impl is not None,  # type: ignore[union-attr]
            }

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation -= now(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation += now(pl_module.device)


class StopAfterFirstStep(Callback):
    """Ends the process as soon as one step is done.

    Args:
        note: a file for the age of the process at that time, in seconds (Linux only).
    """

    def __init__(self, note: str | None = None) -> None:
        self.note = note

    def on_train_batch_end(self, *_: Any) -> None:
        if self.note is not None:
            fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
            began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc(5): field 22, since boot
            Path(self.note).write_text(str(time.clock_gettime(time.CLOCK_BOOTTIME) - began))
        os._exit(0)

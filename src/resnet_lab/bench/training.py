"""Contenders that train: bare loops, this project's full path, and what both share."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_lab.bench.gate import Gate, here
from resnet_lab.config.compose import CONF, VERSION_BASE
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.run import build, training
from resnet_lab.run import machine as host

SKIP = 8  # steps at the head of a segment off the clock: their batches may have been made before
READY_BATCHES = 8
LONG = 1000  # epochs; no contender gets there, but compile=auto looks how much is ahead


class Setting(NamedTuple):
    """How a bare loop computes."""

    precision: str  # fp32 | bf16 (autocast)
    layout: str  # NCHW | channels_last
    mode: str  # eager | compiled | CUDA graphs


SETTINGS = tuple(
    Setting(*words)
    for words in product(("fp32", "bf16"), ("NCHW", "channels_last"), ("eager", "compiled"))
)


class OneLayer(nn.Module):
    """Flatten and one linear layer: next to nothing to compute, so the rest can be seen."""

    def __init__(self, image_size: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * image_size**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def run_config(
    work: Path, name: str, overrides: Sequence[str] = (), one_layer: bool = False
) -> DictConfig:
    """A run on made-up CIFAR-10, as `train.py` would compose it, with its folders below `work`."""
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        cfg = compose("train", overrides=["data=cifar10", *overrides])
    OmegaConf.set_struct(cfg, False)
    cfg.data.source._target_ = "resnet_lab.bench.noise.Noise"
    cfg.data.cache_dir = str(work / "cache")
    cfg.run_dir = str(work / name)
    if one_layer:
        cfg.model = {
            "_target_": "resnet_lab.bench.training.OneLayer",
            "image_size": "${data.image_size}",
            "num_classes": "${data.num_classes}",
        }
    return cfg


def now(device: torch.device) -> float:
    """The clock in seconds, once the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class BareLoop:
    """Forward, loss, backward and SGD over batches that lie ready: the limit of a machine."""

    def __init__(self, cfg: DictConfig, setting: Setting, device: str = "cpu") -> None:
        parts = build.build(cfg)
        channels_last = setting.layout == "channels_last"
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = torch.device(device)
        self.net = parts.net.to(self.device).to(memory_format=layout)
        if setting.mode != "eager":
            graphs = "reduce-overhead" if setting.mode == "CUDA graphs" else None
            self.net.compile(dynamic=False, mode=graphs)
        options = {k: v for k, v in cfg.optimizer.items() if not str(k).startswith("_")}
        if device == "cuda":
            options["fused"] = True
        self.optimizer = torch.optim.SGD(self.net.parameters(), **options)
        self.bf16 = setting.precision == "bf16"
        self.macs = parts.complexity.macs
        self.batches = [
            (images.to(self.device, memory_format=layout), labels.to(self.device))
            for images, labels in ready_batches(parts.datamodule)
        ]

    def run(self, steps: int) -> float:
        """Seconds for so many steps."""
        began = now(self.device)
        for step in range(steps):
            images, labels = self.batches[step % len(self.batches)]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = F.cross_entropy(self.net(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return now(self.device) - began


def ready_batches(data: ImageDataModule) -> list[tuple[Tensor, Tensor]]:
    """The first training batches, augmented and normalised."""
    batches = zip(data.train_dataloader(), range(READY_BATCHES), strict=False)
    return [data.on_after_batch_transfer(batch) for batch, _ in batches]


def tournament(gate: Gate, work: Path, overrides: Sequence[str], steps: int) -> None:
    """Every setting for a few steps: which is the best here?"""
    loops = {
        " ".join(setting): BareLoop(run_config(work, "tournament", overrides), setting)
        for setting in SETTINGS
    }
    images = steps * len(next(iter(loops.values())).batches[0][1])
    gate.wait()
    while True:
        gate.wait(**{name: images / loop.run(steps) for name, loop in loops.items()})


def bare(
    gate: Gate,
    work: Path,
    setting: Sequence[str],
    overrides: Sequence[str],
    steps: int,
    one_layer: bool = False,
    device: str = "cpu",
) -> None:
    """A bare loop at one setting."""
    loop = BareLoop(run_config(work, "bare", overrides, one_layer), Setting(*setting), device)
    gate.wait()
    while True:
        loop.run(SKIP)
        seconds = loop.run(steps)
        images = steps * len(loop.batches[0][1])
        gate.wait(seconds=seconds, images=images, steps=steps, macs=loop.macs)


def ours(
    gate: Gate,
    work: Path,
    name: str,
    overrides: Sequence[str],
    steps: int,
    one_layer: bool = False,
    device: str = "cpu",
) -> None:
    """A run of this project, end to end, with everything on that a user has."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = run_config(work, name, overrides, one_layer)
    cfg.trainer.accelerator = device
    cfg.trainer.max_epochs = LONG
    cfg.trainer.limit_train_batches = SKIP + steps
    cfg.trainer.limit_val_batches = 2  # off the clock
    cfg.callbacks.turns = {"_target_": "resnet_lab.bench.training.Turns"}
    training.train(cfg)


class Turns(Callback):
    """Makes every epoch of a Lightning run one segment: passes the gate before its first step.

    Hands in `seconds` for the epoch's steps after the first `SKIP`, with what feeds them, and
    `boundary_seconds` for what comes between that and the next epoch's first step: figures,
    logs, checkpoints, a new loader, all but validation. Segments are shorter than an epoch, so
    the two must be told apart.
    """

    def __init__(self) -> None:
        self._gate = here()
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
        note: a file for the process's age then, in seconds (Linux only).
    """

    def __init__(self, note: str | None = None) -> None:
        self.note = note

    def on_train_batch_end(self, *_: Any) -> None:
        if self.note is not None:
            fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
            began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc(5): field 22, since boot
            Path(self.note).write_text(str(time.clock_gettime(time.CLOCK_BOOTTIME) - began))
        os._exit(0)


def machine(gate: Gate) -> None:
    """What only torch knows of this machine."""
    facts: Mapping[str, Any] = {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": host.device_name(torch.device("cpu")),
        "precision": host.resolve_precision("auto", "cpu"),
        "cuda": torch.cuda.is_available(),
    }
    gate.wait(**facts)

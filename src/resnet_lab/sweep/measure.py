"""The plan's helper process, the only one that imports torch: what nets cost, and one timing.

    python -m resnet_lab.sweep.measure < {"jobs": [config, ...]} > {"jobs": [...], "step": ...}

For each job: `params`, `macs`, `batch` (images of one device), `steps` and `eval_images` of the
whole run. `step`: seconds of a training step of the job `largest`, the median of two after one.
"""

import json
import os
import sys
import tempfile
import time
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from resnet_lab.config.messages import one_sentence_errors
from resnet_lab.run import build, training

TIMED_STEPS = 2


class Clock(Callback):
    """When each step had been done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.times.append(time.monotonic())


def measure(configs: list[dict[str, Any]], run_dir: str) -> dict[str, Any]:
    """See the head of this file; `run_dir` may be written to."""
    described: dict[str, dict[str, Any]] = {}
    jobs = []
    for config in configs:
        # Jobs of the same net on the same data, as those of other seeds, cost the same.
        same = json.dumps(
            [config["model"], {**config["data"], "seed": None}, config["trainer"]], sort_keys=True
        )
        if same not in described:
            described[same] = _describe(_quiet(config, run_dir))
        jobs.append(described[same])
    largest = max(range(len(jobs)), key=lambda n: jobs[n]["macs"] * jobs[n]["batch"])
    step = _time_step(_quiet(configs[largest], run_dir), jobs[largest]["batch"])
    return {"jobs": jobs, "largest": largest, "step": step}


def _quiet(config: dict[str, Any], run_dir: str) -> DictConfig:
    """The config without whatever would leave something behind or start other processes."""
    cfg = OmegaConf.create({**config, "run_dir": run_dir, "callbacks": {}, "logger": {}})
    cfg.trainer.enable_checkpointing = False
    return cfg


def _describe(cfg: DictConfig) -> dict[str, Any]:
    cfg = cfg.copy()
    devices = cfg.trainer.devices if isinstance(cfg.trainer.devices, int) else 1
    cfg.trainer.devices = 1
    parts = build.build(cfg)
    data, trainer = parts.datamodule, parts.trainer
    epochs = trainer.max_epochs or 1
    steps = epochs * data.train_batches
    if trainer.max_steps > 0:
        steps = min(steps, trainer.max_steps) if epochs > 0 else trainer.max_steps
        epochs = -(-steps // data.train_batches)
    return {
        "params": parts.complexity.params,
        "macs": parts.complexity.macs,
        "batch": data.batch_size // max(1, devices),
        "steps": steps,
        "eval_images": (epochs * data.n_val + data.n_test) // max(1, devices),
    }


def _time_step(cfg: DictConfig, batch: int) -> float:
    cfg.trainer.devices = 1
    cfg.data.batch_size = batch
    cfg.trainer.max_steps = 1 + TIMED_STEPS
    cfg.trainer.limit_val_batches = 0
    cfg.trainer.enable_progress_bar = False
    with training.known_warnings():
        parts = build.build(cfg)
        clock = Clock()
        parts.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        parts.trainer.fit(parts.classifier, datamodule=parts.datamodule)
    return median(b - a for a, b in zip(clock.times, clock.times[1:], strict=False))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed meanwhile must not look like an answer
    with one_sentence_errors(), tempfile.TemporaryDirectory() as folder:
        json.dump(measure(json.load(sys.stdin)["jobs"], folder), answers)
    answers.close()


if __name__ == "__main__":
    main()

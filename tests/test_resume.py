"""A run that was stopped, however and wherever, ends where it would have ended."""

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_lab import checkpoint_io, experiment
from resnet_lab.callbacks.epoch_log import EpochLog
from resnet_lab.stop import Stopped

# Four epochs of four steps in a second.
SMALL_NET = ("model=cifar_resnet", "model.depth=8", "model.width=0.25")
TINY = (
    "data.train_size=128",
    "data.val_size=32",
    "data.batch_size=32",
    "trainer.max_epochs=4",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=2",
)
STEPS = 16
TIMES = ("train_seconds", "images_per_second")


def resumed(run_dir: Path) -> DictConfig:
    """What `resume=RUN_DIR` makes of the run's config."""
    cfg = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(cfg, DictConfig)
    cfg.resume = str(run_dir)
    return cfg


def run(cfg: DictConfig, stop: Callable[[Any], bool] | None = None, hook: str = "train") -> int:
    """Train; SIGTERM to this process where `stop(trainer)` holds. The exit status, 0 at the end."""
    name = f"on_{hook}_batch_end"
    before = getattr(EpochLog, name)

    def watched(self: EpochLog, trainer: Any, *args: Any, **kwargs: Any) -> None:
        before(self, trainer, *args, **kwargs)
        if stop is not None and stop(trainer):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochLog, name, watched)
        try:
            experiment.train(cfg)
        except Stopped as end:
            return int(str(end.code))
    return 0


def at(step: int) -> Callable[[Any], bool]:
    return lambda trainer: trainer.global_step == step


def outcome(run_dir: Path) -> dict[str, Any]:
    """All that a run leaves which is not a time: checkpoints, figures, points on the board."""
    last = checkpoint_io.load(run_dir / "checkpoints" / "last.ckpt")
    best = checkpoint_io.load(run_dir / "checkpoints" / "best.ckpt")
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    points = {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if "images_per_second" not in tag
    }
    result = json.loads((run_dir / "result.json").read_text())
    return {
        "last": {key: last[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")},
        "loops": last["loops"]["fit_loop"],
        "best": (best["state_dict"], best["epoch"]),
        "rows": rows,
        "points": points,
        "result": [result[key] for key in ("status", "epochs", "steps", "best_epoch")]
        + [result[f"{split}/{what}"] for split in ("val", "test") for what in ("loss", "acc")],
    }


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), (where, one, two)
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, where


@pytest.fixture
def whole(config, tmp_path) -> Callable[..., dict[str, Any]]:
    """The outcome of a run that nothing stops."""

    def train(*overrides: str) -> dict[str, Any]:
        cfg = config(*TINY, *overrides, f"run_dir={tmp_path}/whole")
        assert run(cfg) == 0
        return outcome(tmp_path / "whole")

    return train


KINDS = {
    "plain": SMALL_NET,
    "ema": (
        *SMALL_NET,
        "callbacks=[default,ema,grad_norm]",
    ),
    "accumulating": (*SMALL_NET, "trainer.accumulate_grad_batches=2", "data.batch_size=16"),
    "every second epoch": (*SMALL_NET, "trainer.check_val_every_n_epoch=2", "scheduler=cosine"),
    "by steps": (
        *SMALL_NET,
        "trainer.max_epochs=-1",
        "trainer.max_steps=14",
        "scheduler=multistep",
    ),
    "dropout": (
        "model=pretrained",
        "model.trunk=resnet18",
        "model.weights=null",
        "model.freeze=none",
        "model.head=[16]",
        "data.image_size=32",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_of_stops_changes_nothing(kind, whole, config, tmp_path):
    """Stopped four times: in an epoch, at its last step, in validation, and at the step after."""
    expected = whole(*KINDS[kind])
    run_dir = tmp_path / "stopped"
    cfg = config(*TINY, *KINDS[kind], f"run_dir={run_dir}")
    stops = [(at(2), "train"), (at(4), "train"), (at(8), "validation"), (at(9), "train")]
    for stop, hook in stops:
        assert run(cfg, stop, hook) == 143, (kind, hook)
        cfg = resumed(run_dir)
    assert run(cfg) == 0
    assert_same(expected, outcome(run_dir))

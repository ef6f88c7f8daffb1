"""A run that was stopped, however and wherever, ends where it would have ended."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import (
    SMALL_NET,
    WITHOUT_PICTURES,
    assert_same,
    board,
    composed,
    read_csv,
    read_result,
    resumed,
    slow_except,
)
from omegaconf import DictConfig, OmegaConf

from resnet_lab.callbacks.epoch_log import EpochLog
from resnet_lab.callbacks.last_checkpoint import LastCheckpoint
from resnet_lab.config.compose import moved
from resnet_lab.run import checkpoint_io, training
from resnet_lab.run.stop import Stopped

# Four epochs of four steps in a second.
TINY = (
    *("data.train_size=128", "data.val_size=32", "data.batch_size=32", "trainer.max_epochs=4"),
    *("trainer.accelerator=cpu", "trainer.log_every_n_steps=2", WITHOUT_PICTURES),
)
TIMES = ("train_seconds", "images_per_second")


def run(cfg: DictConfig, stop: Callable[[Any], bool] | None = None, hook: str = "train") -> int:
    """Train; SIGTERM to this process where `stop(trainer)` holds. The exit status, 0 at the end."""
    name = f"on_{hook}_batch_end"
    before = getattr(EpochLog, name)
    sent = stop is None

    def watched(self: EpochLog, trainer: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal sent
        before(self, trainer, *args, **kwargs)
        if not sent and stop(trainer):
            sent = True  # a second signal would end this very process
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochLog, name, watched)
        try:
            training.train(cfg)
        except Stopped as end:
            return int(str(end.code))
    return 0


def at(batch: int) -> Callable[[Any], bool]:
    return lambda trainer: trainer.fit_loop.epoch_loop.total_batch_idx + 1 == batch


def outcome(run_dir: Path) -> dict[str, Any]:
    """All that a run leaves which is not a time: checkpoints, figures, points on the board."""
    last = checkpoint_io.load(run_dir / "checkpoints" / "last.ckpt")
    best = checkpoint_io.load(run_dir / "checkpoints" / "best.ckpt")
    table = read_csv(run_dir / "metrics.csv")
    shown = board(run_dir / "tensorboard")
    points = {
        # Sorted, since files begun within one second are not read in their order; once, since a run
        # killed between an epoch's figures and its checkpoint writes them again, alike.
        tag: sorted({(event.step, event.value) for event in shown.Scalars(tag)})
        for tag in shown.Tags()["scalars"]
        if "images_per_second" not in tag
    }
    result, gradients = read_result(run_dir), run_dir / "grad_norm.csv"
    kept = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers")
    return {
        "last": {key: last.get(key) for key in kept},
        "loops": last["loops"]["fit_loop"],
        "best": (best["state_dict"], best["epoch"]),
        "rows": [{k: v for k, v in row.items() if k not in TIMES} for row in table],
        "gradients": gradients.read_text() if gradients.exists() else None,
        "points": points,
        "result": [result[key] for key in ("status", "epochs", "steps", "best_epoch")]
        + [result[f"{split}/{what}"] for split in ("val", "test") for what in ("loss", "acc")],
    }


WHOLE: dict[tuple[str, ...], dict[str, Any]] = {}


@pytest.fixture
def whole(shared_cache, tmp_path) -> Callable[..., dict[str, Any]]:
    """The outcome of a run that nothing stops, trained once for all tests."""

    def train(*overrides: str) -> dict[str, Any]:
        if overrides not in WHOLE:
            folders = (f"run_dir={tmp_path}/whole", f"data.cache_dir={shared_cache}")
            assert run(composed(*TINY, *overrides, *folders)) == 0
            WHOLE[overrides] = outcome(tmp_path / "whole")
        return WHOLE[overrides]

    return train


KINDS = {
    "plain": SMALL_NET,
    "callbacks": (
        *SMALL_NET,
        "callbacks=[checkpoints,epoch_log,ema,grad_norm,early_stopping]",
        "callbacks.early_stopping.patience=2",
        "callbacks.early_stopping.min_delta=1",  # nothing is an improvement: it ends after epoch 3
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


# ---------------------------------------------------------------------- in the default suite


@pytest.mark.parametrize("kind", slow_except(("callbacks",), KINDS))
def test_a_chain_of_stops_changes_nothing(kind, whole, config, tmp_path):
    """Stopped four times: in an epoch, at its last batch, in validation, at the batch after."""
    expected = whole(*KINDS[kind])
    run_dir = tmp_path / "stopped"
    cfg = config(*TINY, *KINDS[kind], f"run_dir={run_dir}")
    stops = [(at(2), "train"), (at(4), "train"), (at(8), "validation"), (at(9), "train")]
    for stop, hook in stops:
        assert run(cfg, stop, hook) == 143, (kind, hook)
        cfg = resumed(run_dir)
    assert run(cfg) == 0
    assert_same(expected, outcome(run_dir))


STREAMED = ("data.memory_limit=0", "data.workers=0")


@pytest.mark.slow
def test_images_from_files_change_nothing(whole, config, tmp_path):
    cfg = config(*TINY, *SMALL_NET, *STREAMED, f"run_dir={tmp_path}/other")
    assert run(cfg) == 0
    assert_same(whole(*SMALL_NET), outcome(tmp_path / "other"))


@pytest.mark.slow
def test_a_run_with_workers_is_stopped_and_resumed(whole, config, tmp_path):
    workers = (*STREAMED, "data.workers=2")
    cfg = config(*TINY, *SMALL_NET, *workers, f"run_dir={tmp_path}/other")
    assert run(cfg, at(6)) == 143
    assert run(resumed(tmp_path / "other"), at(10)) == 143
    assert run(resumed(tmp_path / "other")) == 0
    assert_same(whole(*SMALL_NET), outcome(tmp_path / "other"))


def test_a_killed_run_forgets_what_it_will_write_again(whole, config, tmp_path):
    """Killed between two checkpoints: figures and points after the last one are there already."""
    expected = whole(*SMALL_NET)

    class Killed(Exception):
        pass

    before = LastCheckpoint.on_train_epoch_end

    def kill(self, trainer, pl_module):
        before(self, trainer, pl_module)
        if trainer.current_epoch == 2:
            raise Killed

    cfg = config(*TINY, *SMALL_NET, f"run_dir={tmp_path}/killed")
    with pytest.MonkeyPatch.context() as patch:
        # After the third epoch's row and points, before its checkpoint.
        patch.setattr(LastCheckpoint, "on_train_epoch_end", kill)
        with pytest.raises(Killed):
            training.train(cfg)
    assert len((tmp_path / "killed" / "metrics.csv").read_text().splitlines()) == 1 + 3
    assert run(resumed(tmp_path / "killed")) == 0
    assert_same(expected, outcome(tmp_path / "killed"))


@pytest.mark.parametrize("stop", [None, at(2)])
def test_signals_are_handled_as_before_when_a_run_is_over(config, stop):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    assert run(config(*TINY, *SMALL_NET, "trainer.max_epochs=1"), stop) == (143 if stop else 0)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_checkpoint_of_another_program_is_refused(config, tmp_path):
    cfg = config(*TINY, *SMALL_NET, "trainer.max_epochs=1", f"run_dir={tmp_path}/run")
    assert run(cfg, at(2)) == 143
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": {}, "global_step": 2, "epoch": 0, "callbacks": {}}, last)
    with pytest.raises(ValueError, match="does not say where its run stands"):
        training.train(resumed(tmp_path / "run"))


def test_a_moved_run_knows_its_best_epoch(whole, config, tmp_path):
    """Nothing after the first epoch is better, with rates by which nothing is learned."""
    rates = ("optimizer.lr=1e-12", "scheduler=constant")
    expected = whole(*SMALL_NET, *rates)
    assert expected["best"][1] == 0
    run_dir = tmp_path / "before"
    assert run(config(*TINY, *SMALL_NET, *rates, f"run_dir={run_dir}"), at(6)) == 143
    cfg = moved_to(run_dir.rename(tmp_path / "after"), run_dir)
    assert run(cfg) == 0
    assert_same(expected, outcome(tmp_path / "after"))


def moved_to(run_dir: Path, before: Path) -> DictConfig:
    """What `resume=RUN_DIR` makes of a run that was in the folder `before`."""
    cfg = OmegaConf.create(
        moved(OmegaConf.to_container(resumed(run_dir)), str(before), str(run_dir))
    )
    OmegaConf.save(cfg, run_dir / "config.yaml")
    return cfg


def test_a_damaged_checkpoint_costs_one_save(whole, config, tmp_path, caplog):
    expected = whole(*SMALL_NET)
    run_dir = tmp_path / "damaged"
    assert run(config(*TINY, *SMALL_NET, f"run_dir={run_dir}"), at(10)) == 143
    last = run_dir / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    assert run(resumed(run_dir)) == 0
    assert "last.ckpt is damaged" in caplog.text
    assert_same(expected, outcome(run_dir))


# ---------------------------------------------------------------------- long: make test-faults


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_of_every_kind(kind, whole, config, tmp_path, figure):
    """One stop each, at every step and in every validation."""
    expected = whole(*KINDS[kind])
    batches = expected["loops"]["epoch_loop.batch_progress"]["total"]["ready"]
    per_step = batches // expected["result"][2]
    points = [(batch, "train") for batch in range(1, batches + 1)]
    points += [(point[0] * per_step, "validation") for point in expected["points"]["val/loss"]]
    survived = 0
    for batch, hook in points:
        run_dir = tmp_path / f"{hook}{batch}"
        cfg = config(*TINY, *KINDS[kind], f"run_dir={run_dir}")
        assert run(cfg, at(batch), hook) == 143, (batch, hook)
        assert run(resumed(run_dir)) == 0
        assert_same(expected, outcome(run_dir))
        survived += 1
        shutil.rmtree(run_dir)
    figure(f"single stops survived bit for bit, {kind}", f"{survived} of {len(points)}")


@pytest.mark.faults
def test_all_pairs_of_steps(config, tmp_path, figure):
    """Stopped at i, gone on, stopped at j, gone on to the end: for all pairs of 32 steps."""
    options = (*TINY, *SMALL_NET, "trainer.max_epochs=8", "callbacks=[checkpoints,epoch_log]")

    def end(run_dir: Path) -> dict[str, Any]:
        last = checkpoint_io.load(run_dir / "checkpoints" / "last.ckpt")
        kept = {key: last[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")}
        return kept | {"loops": last["loops"]["fit_loop"]}

    assert run(config(*options, f"run_dir={tmp_path}/whole")) == 0
    expected = end(tmp_path / "whole")
    steps = expected["loops"]["epoch_loop.batch_progress"]["total"]["ready"]
    assert steps == 32
    survived, pairs = 0, 0
    for first in range(1, steps):
        start = tmp_path / "first"
        assert run(config(*options, f"run_dir={start}"), at(first)) == 143
        for second in range(first + 1, steps + 1):
            pairs += 1
            run_dir = tmp_path / "second"
            shutil.copytree(start, run_dir)
            assert run(moved_to(run_dir, start), at(second)) == 143
            assert run(resumed(run_dir)) == 0
            assert_same(expected, end(run_dir), f"{first}, {second}")
            survived += 1
            shutil.rmtree(run_dir)
        shutil.rmtree(start)
    figure(
        "chains of two stops survived bit for bit, all pairs of 32 steps", f"{survived} of {pairs}"
    )

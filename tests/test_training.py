"""A run from config to result: what it leaves behind, and that its numbers are right."""

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from resnet_lab.run import build, checkpoint_io, machine, training
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.resume import resumed

ROOT = Path(__file__).resolve().parents[1]

# A net and a schedule that take a second or two.
QUICK = (
    "model=cifar_resnet",
    "model.depth=8",
    "model.width=0.25",
    "data.train_size=256",
    "data.batch_size=64",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=2",
)


def epochs(run_dir: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_stopped_run_goes_on_and_ends_where_it_would_have(config, tmp_path):
    """Stopped in its second epoch; the resumed run is bit for bit the one that never stopped."""
    whole = config(*QUICK, "trainer.max_epochs=3", f"run_dir={tmp_path}/whole")
    training.train(whole)

    class Stop(Exception):
        pass

    def stop(self, trainer, pl_module, *_):
        if trainer.global_step == 6:
            raise Stop

    cfg = config(*QUICK, "trainer.max_epochs=3", f"run_dir={tmp_path}/stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnet_lab.callbacks.epoch_log.EpochLog.on_train_batch_end", stop)
        patch.setattr("sys.argv", [str(Path.cwd() / "train.py"), "seed=0"])  # as in a sweep
        with pytest.raises(Stop):
            training.train(cfg)
    run_dir = tmp_path / "stopped"
    told = json.loads((run_dir / "result.json").read_text())
    assert (told["status"], told["command"]) == ("failed", "python train.py seed=0")

    told["model"] = "resnet20"  # the choice, which the command that resumes it does not name
    (run_dir / "result.json").write_text(json.dumps(told))
    asked = config()
    OmegaConf.set_struct(asked, False)
    asked.hydra = {"overrides": {"task": [f"resume={run_dir}"]}}
    result = training.train(resumed(asked, RunFolder(run_dir)))
    assert (result["command"], result["model"]) == ("python train.py seed=0", "resnet20")
    assert not {"step", "epoch"} & result.keys()
    one, two = (
        checkpoint_io.load(tmp_path / name / "checkpoints" / "last.ckpt")
        for name in ("whole", "stopped")
    )
    assert one["global_step"] == two["global_step"] == 12
    for key, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][key]), key
    rows = epochs(run_dir)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]

    with pytest.raises(SystemExit) as end:
        resumed(asked, RunFolder(run_dir))
    assert end.value.code == 0


def board_row(run_dir: Path) -> dict[str, str | float]:
    """The run's row in HPARAMS."""
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    content = board.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    row = HParamsPluginData.FromString(content).session_start_info.hparams
    return {key: value.string_value or value.number_value for key, value in row.items()}


def test_a_job_of_a_sweep_shows_what_is_swept(config, finished):
    run_dir, _ = finished
    assert {"model", "data", "seed", "optimizer.lr"} <= set(board_row(run_dir))
    cfg = config(*QUICK, "trainer.max_epochs=1")
    cfg.run_dir = f"{run_dir}-job"
    job = Path(cfg.run_dir)
    job.mkdir()
    swept = {"swept": {"model.shortcut": "A", "optimizer.lr": "0.1"}}
    (job / "sweep_job.json").write_text(json.dumps(swept))
    training.train(cfg)
    assert board_row(job) == {"model.shortcut": "A", "optimizer.lr": 0.1}


@pytest.fixture
def finished(config):
    """A finished quick run: its folder and what `train` returned."""
    cfg = config(*QUICK)
    result = training.train(cfg)
    return Path(cfg.run_dir), result


def test_a_run_folder_holds_all_that_it_promises(finished):
    run_dir, result = finished
    assert json.loads((run_dir / "result.json").read_text()) == result
    assert result["status"] == "finished"
    assert result["epochs"] == 2
    assert result["steps"] == 2 * (256 // 64)
    assert result["n_train"] == 256
    assert result["n_train"] + result["n_val"] < 1797 - result["n_test"] + 1
    assert result["devices"] == 1
    assert result["seed"] == 0
    assert result["batch_size"] == 64
    assert result["images_per_second"] > 0
    for key in ("val/loss", "val/acc", "test/loss", "test/acc", "macs", "params", "git_commit"):
        assert key in result
    saved = OmegaConf.load(run_dir / "config.yaml")
    assert saved.trainer.precision in ("bf16-mixed", "32")
    assert saved.model.num_classes == 10
    assert "${" not in (run_dir / "config.yaml").read_text()

    rows = epochs(run_dir)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["4", "8"]
    best = max(rows, key=lambda row: float(row["val/acc"]))
    assert result["best_epoch"] == int(best["epoch"])
    assert result["val/acc"] == float(best["val/acc"])


def test_checkpoints_are_plain_data_with_clean_names(finished):
    run_dir, _ = finished
    names = ("best.ckpt", "last.ckpt", "previous.ckpt")
    for name in names:
        checkpoint = torch.load(run_dir / "checkpoints" / name, weights_only=True)
        assert all(key.startswith("net.") for key in checkpoint["state_dict"])
        assert not any("_orig_mod" in key for key in checkpoint["state_dict"])
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == list(names)


def test_the_test_accuracy_is_that_of_the_best_checkpoint_on_every_test_image(finished, config):
    run_dir, result = finished
    parts = build.build(config(*QUICK))
    weights = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    parts.classifier.load_state_dict(weights)
    net = parts.net.eval()
    source, data = parts.datamodule.source, parts.datamodule
    images = torch.tensor(np.asarray(source.images("test", 32))).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (data.mean, data.std))
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=result["precision"] != "32"),
    ):
        logits = net((images - mean) / std).float()
    right = int((logits.argmax(1).numpy() == source.labels("test")).sum())
    # Rounding to bfloat16 can turn a near tie.
    assert abs(right - result["test/acc"] * result["n_test"]) <= 1
    assert result["n_test"] == len(source.labels("test"))


def test_the_board_shows_every_figure_by_step_and_by_epoch(finished):
    run_dir, result = finished
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    scalars = set(board.Tags()["scalars"])
    figures = {f"{split}/{what}" for split in ("train", "val") for what in ("loss", "acc")}
    assert figures <= scalars
    assert {f"by_epoch/{figure.replace('/', '_')}" for figure in figures} <= scalars
    assert {"test/acc", "test/loss", "lr", "images_per_second", "train/loss_step"} <= scalars
    assert [event.step for event in board.Scalars("val/acc")] == [4, 8]
    assert [event.step for event in board.Scalars("by_epoch/val_acc")] == [1, 2]
    assert [event.step for event in board.Scalars("train/loss_step")] == [2, 4, 6, 8]
    assert board.Scalars("final/test/acc")[0].value == pytest.approx(result["test/acc"])
    assert "hp_metric" not in scalars
    assert "config/text_summary" in board.Tags()["tensors"]


def test_training_twice_gives_the_same_weights(config, tmp_path):
    weights = []
    for name in ("one", "two"):
        cfg = config(*QUICK, f"run_dir={tmp_path}/{name}")
        training.train(cfg)
        weights.append(checkpoint_io.load(Path(cfg.run_dir, "checkpoints/last.ckpt"))["state_dict"])
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def test_without_validation_the_last_epoch_is_the_best(config):
    cfg = config(*QUICK, "data.val_size=0")
    result = training.train(cfg)
    assert result["n_val"] == 0
    assert result["best_epoch"] == 2
    assert "val/acc" not in result
    assert result["test/acc"] > 0


def test_the_test_set_is_read_once_and_after_training(config, monkeypatch):
    from resnet_lab.data.sources import Digits

    opened: list[str] = []
    images = Digits.images

    def watched(self, split, image_size):
        opened.append(split)
        return images(self, split, image_size)

    monkeypatch.setattr(Digits, "images", watched)
    parts = build.build(config(*QUICK))
    parts.trainer.fit(parts.classifier, datamodule=parts.datamodule)
    assert "test" not in opened
    parts.trainer.test(parts.classifier, datamodule=parts.datamodule, verbose=False)
    assert opened.count("test") == 1


def test_decay_can_leave_norm_and_bias_alone(config):
    parts = build.build(config(*QUICK, "classifier.decay_norm_and_bias=false"))
    decayed, spared = parts.classifier.parameter_groups()
    assert all(p.ndim > 1 for p in decayed["params"])
    assert spared["weight_decay"] == 0
    assert len(decayed["params"]) + len(spared["params"]) == len(list(parts.net.parameters()))


def test_one_batch_can_be_learned_by_heart(config):
    result = training.train(
        config("experiment=overfit_one_batch", "model.width=0.5", "trainer.accelerator=cpu")
    )
    assert result["steps"] >= 50
    rows = epochs(Path(config().run_dir))
    assert float(rows[-1]["train/acc"]) == 1.0
    assert float(rows[-1]["train/loss"]) < 0.1


def test_fast_dev_run_leaves_no_checkpoint(config):
    cfg = config(*QUICK, "trainer.fast_dev_run=true")
    result = training.train(cfg)
    assert result["status"] == "fast_dev_run"
    assert not Path(cfg.run_dir, "checkpoints").exists()


def test_a_failed_run_says_so_in_its_result(config, monkeypatch):
    cfg = config(*QUICK)

    def broken(*_):
        raise RuntimeError("on purpose")

    monkeypatch.setattr("resnet_lab.classifier.Classifier.training_step", broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        training.train(cfg)
    result = json.loads(Path(cfg.run_dir, "result.json").read_text())
    assert result["status"] == "failed"
    assert "on purpose" in result["error"]


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_every_optimizer_trains_in_both_precisions(config, optimizer, precision):
    result = training.train(
        config(*QUICK, f"optimizer={optimizer}", f"trainer.precision={precision}")
    )
    assert result["precision"] == precision
    assert 0 < result["test/loss"] < 20


def test_accumulation_takes_a_step_every_so_many_batches(config):
    result = training.train(config(*QUICK, "trainer.accumulate_grad_batches=2"))
    assert result["steps"] == 2 * (256 // 64 // 2)


def test_precision_auto_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for flags, expected in (({"avx2"}, "32"), ({"amx_bf16"}, "bf16-mixed")):
        monkeypatch.setattr(machine, "cpu_flags", lambda flags=flags: flags)
        assert machine.resolve_precision("auto", "auto") == expected
    assert machine.resolve_precision(32, "cpu") == "32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert machine.resolve_precision("auto", "gpu") == "32"


def test_two_devices_train_as_one(tmp_path, shared_cache):
    """The command line on two CPU processes: one folder, and the figures of one device."""
    results = []
    for devices in (1, 2):
        run_dir = tmp_path / f"devices{devices}"
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / "train.py"),
                *QUICK,
                "model.norm=none",
                "model.zero_init_residual=true",
                "trainer.precision=32",
                "optimizer.lr=0.01",
                "data.crop_padding=2",
                "trainer.max_epochs=5",
                f"data.cache_dir={shared_cache}",
                f"trainer.devices={devices}",
                f"hydra.run.dir={run_dir}",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "LOCAL_RANK"},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("run folder") == 1
        results.append(json.loads((run_dir / "result.json").read_text()))
    one, two = results
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["steps"] == two["steps"]
    assert one["steps"] == 20
    weights = [
        checkpoint_io.load_weights(tmp_path / f"devices{n}" / "checkpoints" / "last.ckpt")
        for n in (1, 2)
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-5)
    assert one["test/loss"] == pytest.approx(two["test/loss"], rel=1e-4)
    assert one["val/loss"] == pytest.approx(two["val/loss"], rel=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["devices1", "devices2"]


def test_a_mistake_that_only_the_data_shows_is_one_line(tmp_path, shared_cache):
    command = [sys.executable, str(ROOT / "train.py"), f"data.cache_dir={shared_cache}"]
    done = subprocess.run(
        [*command, "data.batch_size=2048"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: data.batch_size=2048 is more than there are training images; "
        "the largest possible is 1294\n"
    )


def test_the_log_has_a_line_an_epoch_and_no_bar(config, caplog):
    with caplog.at_level(logging.INFO, logger="resnet_lab"):
        training.train(config(*QUICK))
    lines = [m for m in caplog.messages if m.startswith("epoch ")]
    assert len(lines) == 2
    assert "epoch   1/2" in lines[0]

"""A run from config to result: what it leaves behind, and that its numbers are right."""

import json
import logging
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lab import (
    CONF,
    CPU,
    EXACT,
    QUICK,
    SMALL_NET,
    WITHOUT_PICTURES,
    assert_same,
    board,
    read_csv,
    read_result,
    train_here,
    train_py,
    weights,
)
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.optim.lr_scheduler import StepLR

from resnet_lab.classifier import Classifier
from resnet_lab.config.check import check
from resnet_lab.config.compose import VERSION_BASE
from resnet_lab.config.errors import UserError
from resnet_lab.run import build, load, machine, training
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.resume import resumed


def test_a_failed_run_is_recorded_and_resumes_as_the_same_run(config, monkeypatch):
    cfg = config(*QUICK)

    def broken(self, trainer, *_):
        if trainer.global_step == 6:
            raise RuntimeError("on purpose")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnet_lab.callbacks.epoch_log.EpochLog.on_train_batch_end", broken)
        patch.setattr("sys.argv", [str(Path.cwd() / "train.py"), "seed=0"])  # as in a sweep
        with pytest.raises(RuntimeError, match="on purpose"):
            training.train(cfg)
    folder = RunFolder(Path(cfg.run_dir))
    result = folder.read_result()
    assert (result["status"], result["command"]) == ("failed", "python train.py seed=0")
    assert "on purpose" in result["error"]

    # The choice of a model, which the command that resumes the run does not name.
    folder.write_result(result | {"model": "resnet20"})
    asked = config()
    OmegaConf.set_struct(asked, False)
    asked.hydra = {"overrides": {"task": [f"resume={cfg.run_dir}"]}}
    result = training.train(resumed(asked, folder))
    assert (result["command"], result["model"]) == ("python train.py seed=0", "resnet20")
    assert (result["status"], result["steps"]) == ("finished", 8)
    assert not {"step", "epoch"} & result.keys()
    assert [row["epoch"] for row in read_csv(folder.path / "metrics.csv")] == ["1", "2"]


def board_row(run_dir: Path) -> dict[str, str | float]:
    """The run's row in HPARAMS."""
    content = board(run_dir / "tensorboard").PluginTagToContent("hparams")[
        "_hparams_/session_start_info"
    ]
    row = HParamsPluginData.FromString(content).session_start_info.hparams
    return {key: value.string_value or value.number_value for key, value in row.items()}


def test_a_job_of_a_sweep_shows_what_is_swept(config, finished):
    assert {"model", "data", "seed", "optimizer.lr"} <= set(board_row(finished))
    cfg = config(*QUICK, "trainer.max_epochs=1")
    job = Path(cfg.run_dir)
    job.mkdir()
    swept = {"swept": {"model.shortcut": "A", "optimizer.lr": "0.1"}}
    (job / "sweep_job.json").write_text(json.dumps(swept))
    training.train(cfg)
    assert board_row(job) == {"model.shortcut": "A", "optimizer.lr": 0.1}


def test_a_run_folder_holds_all_that_it_promises(finished):
    run_dir, result = finished, read_result(finished)
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

    rows = read_csv(run_dir / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["4", "8"]
    best = max(rows, key=lambda row: float(row["val/acc"]))
    assert result["best_epoch"] == int(best["epoch"])
    assert result["val/acc"] == float(best["val/acc"])


def test_checkpoints_are_plain_data_with_clean_names(finished):
    names = ("best.ckpt", "last.ckpt", "previous.ckpt")
    for name in names:
        checkpoint = torch.load(finished / "checkpoints" / name, weights_only=True)
        assert all(key.startswith("net.") for key in checkpoint["state_dict"])
        assert not any("_orig_mod" in key for key in checkpoint["state_dict"])
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == list(names)


def test_the_test_accuracy_is_that_of_the_best_checkpoint_on_every_test_image(finished, config):
    result = read_result(finished)
    parts = build.build(config(*QUICK))
    parts.classifier.load_state_dict(weights(finished, "best"))
    net = parts.net.eval()
    source, data = parts.datamodule.source, parts.datamodule
    images = torch.tensor(np.asarray(source.images("test", 32))).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (data.mean, data.std))
    with torch.no_grad():
        logits = net((images - mean) / std)
    right = int((logits.argmax(1).numpy() == source.labels("test")).sum())
    assert right == round(result["test/acc"] * result["n_test"])
    assert result["n_test"] == len(source.labels("test"))


def test_the_board_shows_every_figure_by_step_and_by_epoch(finished):
    result, shown = read_result(finished), board(finished / "tensorboard")
    scalars = set(shown.Tags()["scalars"])
    figures = {f"{split}/{what}" for split in ("train", "val") for what in ("loss", "acc")}
    assert figures <= scalars
    assert {f"by_epoch/{figure.replace('/', '_')}" for figure in figures} <= scalars
    assert {"test/acc", "test/loss", "lr", "images_per_second", "train/loss_step"} <= scalars
    assert [event.step for event in shown.Scalars("val/acc")] == [4, 8]
    assert [event.step for event in shown.Scalars("by_epoch/val_acc")] == [1, 2]
    assert [event.step for event in shown.Scalars("train/loss_step")] == [2, 4, 6, 8]
    assert shown.Scalars("final/test/acc")[0].value == pytest.approx(result["test/acc"])
    assert "hp_metric" not in scalars
    assert "config/text_summary" in shown.Tags()["tensors"]


def test_training_twice_gives_the_same_weights_and_figures(config, tmp_path):
    one, two = (training.train(config(*QUICK, f"run_dir={tmp_path}/{i}")) for i in "12")
    assert one == read_result(tmp_path / "1")
    for figure in ("val/loss", "val/acc", "test/loss", "test/acc"):
        assert one[figure] == two[figure]
    assert_same(weights(tmp_path / "1"), weights(tmp_path / "2"))


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


@pytest.mark.slow
def test_one_batch_can_be_learned_by_heart(config):
    small = (*SMALL_NET, "model.width=0.5", "optimizer.lr=0.01", *CPU, WITHOUT_PICTURES)
    cfg = config("experiment=overfit_one_batch", *small)
    result = training.train(cfg)
    assert result["steps"] >= 50
    rows = read_csv(Path(cfg.run_dir, "metrics.csv"))
    assert float(rows[-1]["train/acc"]) == 1.0
    assert float(rows[-1]["train/loss"]) < 0.1


def test_fast_dev_run_leaves_no_checkpoint(config):
    cfg = config(*QUICK, "trainer.fast_dev_run=true")
    result = training.train(cfg)
    assert result["status"] == "fast_dev_run"
    assert not Path(cfg.run_dir, "checkpoints").exists()


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        ("adamw", "bf16-mixed"),
        pytest.param("sgd", "bf16-mixed", marks=pytest.mark.slow),
        pytest.param("adam", "32", marks=pytest.mark.slow),
    ],
)
def test_every_optimizer_trains_and_so_does_bfloat16(config, optimizer, precision):
    result = training.train(
        config(
            *(*QUICK, "trainer.max_epochs=1"),
            *(f"optimizer={optimizer}", f"trainer.precision={precision}"),
        )
    )
    assert result["precision"] == precision
    assert 0 < result["test/loss"] < 20


def test_accumulation_takes_a_step_every_so_many_batches(config):
    result = training.train(config(*QUICK, "trainer.accumulate_grad_batches=2"))
    assert result["steps"] == 2 * (256 // 64 // 2)


def test_precision_auto_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(machine, "usable", lambda: machine.Usable(0))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for flags, expected in (({"avx2"}, "32"), ({"amx_bf16"}, "bf16-mixed")):
        monkeypatch.setattr(machine, "cpu_flags", lambda flags=flags: flags)
        assert machine.resolve_precision("auto", "auto") == expected
    assert machine.resolve_precision(32, "cpu") == "32"
    monkeypatch.setattr(machine, "usable", lambda: machine.Usable(1))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert machine.resolve_precision("auto", "gpu") == "32"


@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [
        # The rate when an epoch's row is written: before Lightning has a plateau looked for, after
        # the step of the others. No loss is better than the best by a threshold of 100 times it.
        pytest.param(
            ["StepLR", "+scheduler.step_size=2", "+scheduler.gamma=0.5"],
            [0.1, 0.05, 0.05],
            marks=pytest.mark.slow,
        ),
        (["ReduceLROnPlateau", "+scheduler.patience=0", "+scheduler.threshold=100"], [0.1, 0.01]),
        pytest.param(
            ["ExponentialLR", "+scheduler.gamma=0.1"], [0.01, 0.001], marks=pytest.mark.slow
        ),
    ],
)
def test_torchs_own_schedulers_step_after_each_epoch(config, scheduler, rates):
    name, *options = scheduler
    target = f"scheduler._target_=torch.optim.lr_scheduler.{name}"
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        cfg = compose("train", overrides=[*QUICK, "trainer.max_epochs=3", target, *options])
    cfg.run_dir = config().run_dir
    cfg.data.cache_dir = config().data.cache_dir
    training.train(cfg)
    found = [float(row["lr"]) for row in read_csv(Path(cfg.run_dir, "metrics.csv"))]
    assert found[: len(rates)] == pytest.approx(rates)
    load.load_run(Path(cfg.run_dir))  # its config may name it


@pytest.mark.slow
def test_a_scheduler_in_python_may_be_torchs(config):
    parts = build.build(config(*QUICK))
    made = []
    bare = ("callbacks=[]", "logger=[]", "trainer.enable_checkpointing=false")

    def scheduler(optimizer):
        made.append(StepLR(optimizer, 1))
        return made[-1]

    for given in (partial(StepLR, step_size=1), scheduler):
        classifier = Classifier(parts.net, partial(torch.optim.SGD, lr=0.1), given)
        trainer = build.build(config(*QUICK, *bare)).trainer
        trainer.fit(classifier, datamodule=build.build(config(*QUICK)).datamodule)
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)
    assert len(made) == 1


def test_another_optimizer_need_not_take_the_settings_of_ours_away(config, caplog):
    with caplog.at_level(logging.INFO):
        parts = build.build(config("optimizer._target_=torch.optim.RMSprop"))
    optimizer = parts.classifier._optimizer([{"params": list(parts.net.parameters())}])
    assert type(optimizer) is torch.optim.RMSprop
    assert optimizer.defaults["momentum"] == 0.9
    said = [record.getMessage() for record in caplog.records]
    assert "optimizer.nesterov: torch.optim.RMSprop takes none, so it is left out" in said


def test_what_cannot_be_is_one_sentence(config):
    def made(cfg):
        check(cfg)
        return build.build(cfg)

    for wish, sentence in (
        ("optimizer._target_=torch.optim.LBFGS", "many passes over a batch"),
        ("trainer.devices=[0,1]", "should be an int > 0"),
        ("trainer.sync_batchnorm=true", "on GPUs alone"),
    ):
        with pytest.raises(UserError, match=sentence) as error:
            made(config(*QUICK, wish))
        assert "\n" not in str(error.value)


def test_no_logger_no_callback_and_no_test_are_wishes_like_any(config):
    result = training.train(
        config(*QUICK[:-1], "logger=[]", "callbacks=[]", "trainer.limit_test_batches=0")
    )
    assert result["status"] == "finished"
    assert "val/acc" in result
    assert "test/acc" not in result


def test_a_run_that_works_in_its_folder_reads_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (tmp_path / "photos" / split / kind).mkdir(parents=True)
            for i in range(4):
                image = Image.new("RGB", (8, 8), (60 * i, 0, 0))
                image.save(tmp_path / "photos" / split / kind / f"{i}.png")
    done = train_here(
        tmp_path,
        *(*QUICK, "data.train_size=null", "data.batch_size=2", "data=imagefolder"),
        *("data.root=photos", "data.cache_dir=~/cache", "hydra.job.chdir=true"),
        *("hydra.run.dir=run", "data.val_size=2"),
    )
    assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / "run")["n_test"] == 8
    assert (tmp_path / "home" / "cache").is_dir()
    assert not list(tmp_path.rglob("~"))


@pytest.mark.slow
def test_two_devices_train_as_one(config, tmp_path, shared_cache):
    """Two CPU processes of the command line: one folder, and the figures of one device."""
    same = (*QUICK, *EXACT, "data.crop_padding=2")
    one = training.train(config(*same, f"run_dir={tmp_path}/one"))
    command = (*same, "trainer.devices=2", "hydra.run.dir=two", f"data.cache_dir={shared_cache}")
    done = train_py(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    two = read_result(tmp_path / "two")
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["steps"] == two["steps"] == 8
    torch.testing.assert_close(
        weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-4, atol=1e-5
    )
    for figure in ("test/loss", "val/loss"):
        assert one[figure] == pytest.approx(two[figure], rel=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_a_mistake_that_only_the_data_shows_is_one_line(tmp_path, shared_cache):
    done = train_here(tmp_path, f"data.cache_dir={shared_cache}", "data.batch_size=2048")
    assert done.returncode == 1
    assert done.stderr == (
        "error: data.batch_size=2048 is more than there are training images; "
        "the largest possible is 1294\n"
    )


def test_the_log_has_a_line_an_epoch_and_no_bar(finished):
    log = (finished / "run.log").read_text()
    assert re.findall(r"epoch +(\d+)/2 ", log) == ["1", "2"]
    assert "\x1b" not in log

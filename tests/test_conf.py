"""Every file under conf/ is composed and turned into what it describes."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from torch import nn

from resnet_lab.config.check import check
from resnet_lab.data.plan import TrainPlan, split_validation
from resnet_lab.report import runs
from resnet_lab.run import build, record, training

CONF = Path(__file__).resolve().parents[1] / "conf"
EXTRAS = {"wandb": "wandb", "mlflow": "mlflow"}


def choices(group: str) -> list[str]:
    folder = CONF / group
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


def test_every_group_has_its_test():
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    tested = {"model", "data", "optimizer", "scheduler", "callbacks", "logger", "trainer"}
    assert groups == tested | {"experiment", "hydra"}


@pytest.mark.parametrize("name", choices("model"))
def test_model(config, name):
    with torch.device("meta"):  # shapes without numbers: resnet1202 in no time
        net = instantiate(config(f"model={name}").model)
        assert isinstance(net, nn.Module)
        assert net(torch.empty(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", choices("data"))
def test_data(config, name, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "photos" / split / "cat").mkdir(parents=True)
    cfg = config(f"data={name}", f"++data.root={tmp_path}/photos")
    check(cfg)
    assert isinstance(instantiate(cfg.data, _convert_="all"), LightningDataModule)


@pytest.mark.parametrize("name", choices("optimizer"))
def test_optimizer(config, name):
    make = instantiate(config(f"optimizer={name}").optimizer, _convert_="all")
    assert isinstance(make([nn.Parameter(torch.zeros(1))]), torch.optim.Optimizer)


@pytest.mark.parametrize("name", choices("scheduler"))
def test_scheduler(config, name):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    make = instantiate(config(f"scheduler={name}").scheduler, _convert_="all")
    assert isinstance(make(optimizer, 100, 10), torch.optim.lr_scheduler.LRScheduler)


@pytest.mark.parametrize("name", choices("callbacks"))
def test_callbacks(config, name):
    callbacks = config(f"callbacks=[{name}]").callbacks
    assert callbacks
    assert all(isinstance(instantiate(c), Callback) for c in callbacks.values())


@pytest.mark.parametrize("name", choices("logger"))
def test_logger(config, name):
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name], reason=f"the extra [{name}] is not installed")
    overrides = ["++logger.wandb.offline=true"] if name == "wandb" else []
    (logger,) = config(f"logger=[{name}]", *overrides).logger.values()
    assert isinstance(instantiate(logger), Logger)


def test_several_loggers(config):
    assert set(config("logger=[tensorboard,csv]").logger) == {"tensorboard", "csv"}


@pytest.mark.parametrize("name", choices("trainer"))
def test_trainer(config, name):
    cfg = config(f"trainer={name}", "trainer.precision=32").trainer
    assert isinstance(instantiate(cfg, logger=False), Trainer)


@pytest.mark.parametrize("name", choices("experiment"))
def test_experiment(config, name):
    cfg = config(f"experiment={name}", "data=digits")
    check(cfg)
    if "weights" in cfg.model:
        cfg.model.weights = None  # nothing is downloaded here
    parts = build.build(cfg)
    assert parts.complexity.params > 0
    assert parts.datamodule.n_test == 359


# ------------------------------------------------------------------ the papers' recipes

HE2015 = [name for name in choices("experiment") if name.startswith("he2015/")]
HE2016 = [name for name in choices("experiment") if name.startswith("he2016/")]
WARMED_UP = {
    *("he2015/recipe_warmup", "he2015/resnet110", "he2015/resnet1202", "he2015/plain110"),
    *HE2016,
}


@pytest.mark.parametrize("name", HE2015 + HE2016)
def test_the_papers_learning_rates_at_the_papers_steps(config, name):
    cfg = config(f"experiment={name}")
    assert (cfg.trainer.max_epochs, cfg.trainer.max_steps) == (-1, 64_000)
    assert (cfg.optimizer.momentum, cfg.optimizer.weight_decay) == (0.9, 1e-4)
    assert not cfg.optimizer.nesterov
    assert (cfg.data.batch_size, cfg.data.crop_padding, cfg.data.flip) == (128, 4, True)
    optimizer = instantiate(cfg.optimizer, _convert_="all")([nn.Parameter(torch.zeros(1))])
    schedule = instantiate(cfg.scheduler, _convert_="all")(optimizer, 64_000, 351)
    (factor,) = schedule.lr_lambdas
    steps = (0, 399, 400, 31_999, 32_000, 47_999, 48_000, 63_999)
    first = 0.01 if name in WARMED_UP else 0.1
    assert [cfg.optimizer.lr * factor(step) for step in steps] == pytest.approx(
        [first, first, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_64k_steps_are_the_183_epochs_that_the_recipe_says(config):
    data = config("experiment=he2015/recipe").data
    train, val = split_validation(np.repeat(np.arange(10), 5000), data.val_size, seed=0)
    assert (len(train), len(val)) == (45_000, 5_000)
    steps = len(TrainPlan(len(train), data.batch_size, seed=0, epoch=0))
    assert steps == 351
    assert 182 * steps < 64_000 < 183 * steps


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_a_plain_net_differs_from_its_residual_net_in_the_shortcut_alone(config, depth):
    plain = config(f"experiment=he2015/plain{depth}")
    residual = config(f"experiment=he2015/resnet{depth}")
    assert (plain.model.shortcut, residual.model.shortcut) == ("none", "A")
    assert plain.model.depth == depth
    plain.model.shortcut, plain.reference = "A", residual.reference
    assert plain == residual


def told(folder: Path, cfg, data: str) -> runs.Run:
    """A run as its folder tells of it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    (folder / "result.json").write_text(json.dumps({"status": "finished", "data": data}))
    (run,) = runs.read([folder]).runs
    return run


@pytest.mark.parametrize("name", choices("experiment"))
def test_what_an_experiment_is_said_to_reach_stands_in_its_reference(config, tmp_path, name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    said = re.search(r"^# Expected: .*?(test error|test accuracy) ([\d.]+)", text, re.MULTILINE)
    cfg = config(f"experiment={name}")
    found = runs.reference(told(tmp_path / "run", cfg, "cifar10"))
    if said is None:
        assert found is None
        return
    figure = float(said[2])
    percent = {"test error": 100 - figure, "test accuracy": figure * (100 if figure < 1 else 1)}
    assert found.test_acc == pytest.approx(percent[said[1]])
    assert found.source
    # A figure for CIFAR-10 says nothing about a run on other images.
    assert runs.reference(told(tmp_path / "run", cfg, "imagefolder")) is None


def test_a_run_limited_by_steps_stops_at_them_in_mid_epoch(config, tmp_path):
    cfg = config(
        *("experiment=he2015/resnet110", "data=digits", "model=cifar_resnet", "model.depth=8"),
        *("model.width=0.25", "trainer.accelerator=cpu", "trainer.precision=32"),
        *("scheduler.milestones=[8,14]", "scheduler.warmup=3", "trainer.max_steps=16"),
    )
    result = training.train(cfg)  # 1,294 images: ten steps an epoch
    assert (result["status"], result["steps"]) == ("finished", 16)
    rows, _ = runs.epochs(tmp_path / "run")
    assert [(row["step"], row["lr"]) for row in rows.values()] == [
        (10, pytest.approx(0.01)),
        (16, pytest.approx(0.001)),
    ]
    # The second epoch was cut before its validation, and has no figures of the first's.
    assert ["val/acc" in row for row in rows.values()] == [True, False]
    (run,) = runs.read([tmp_path / "run"]).runs
    assert runs.reference(run) is None  # CIFAR-10's figure, and these were digits


# ------------------------------------------------------------------ few images at a time


@pytest.mark.parametrize(
    ("overrides", "noisy"),
    [
        (["experiment=small_folder", "data=digits"], True),
        (["experiment=small_folder", "data=digits", "model.norm=group"], False),
        (["data.batch_size=15", "model=textbook_resnet"], True),
        (["data.batch_size=15", "model=textbook_cnn"], False),
        (["data.batch_size=16"], False),
    ],
)
def test_the_log_says_where_batchnorm_sees_few_images(config, caplog, tmp_path, overrides, noisy):
    parts = build.build(config("trainer.accelerator=cpu", *overrides))
    with caplog.at_level(logging.INFO):
        record._begin(parts, tmp_path / "run", record._describe(parts))
    said = [r.getMessage() for r in caplog.records if "BatchNorm" in r.getMessage()]
    assert len(said) == noisy
    if noisy:
        assert f"on a batch of {parts.cfg.data.batch_size} are noisy" in said[0]
        assert "\n" not in said[0]


def test_a_frozen_batchnorm_is_not_noisy(config):
    net = instantiate(config("model=resnet20").model)
    assert record.trains_batchnorm(net)
    assert not record.trains_batchnorm(net.requires_grad_(False))

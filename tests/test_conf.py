"""Every file under conf/ is composed and turned into what it describes."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import nn

from resnet_lab import experiment
from resnet_lab.config import check

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
    callbacks = config(f"callbacks={name}").callbacks
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
    parts = experiment.build(cfg)
    assert parts.complexity.params > 0
    assert parts.datamodule.n_test == 359

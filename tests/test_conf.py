"""Every file under conf/ is composed and turned into what it describes."""

import inspect
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lab import CONF, CPU, SMALL_NET, WITHOUT_PICTURES, choices, read_csv, slow_except
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import nn

from resnet_lab.classifier import Classifier
from resnet_lab.config.check import check
from resnet_lab.data.datamodule import resolve
from resnet_lab.data.plan import TrainPlan, split_validation
from resnet_lab.report import runs
from resnet_lab.run import build, training
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.record import Record, trains_batchnorm

EXTRAS = {"wandb": "wandb", "mlflow": "mlflow"}
OPTIM = {
    "schedulefree_sgd": "schedulefree",
    **dict.fromkeys(["lars", "lamb", "lion", "muon"], "timm"),
}


MODELS = choices("model")


# One of each kind; those that differ in their depth are built by `make test-slow`.
KINDS = {"resnet20", "cifar_resnet", "resnet", "resnet50d", "preresnet18", "pretrained"}


@pytest.mark.parametrize("name", slow_except(KINDS, MODELS))
def test_model(config, name):
    with torch.device("meta"):  # shapes without numbers: resnet1202 in no time
        cfg = config(f"model={name}")
        check(cfg)
        net = instantiate(cfg.model)
        assert isinstance(net, nn.Module)
        assert net(torch.empty(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", choices("data"))
def test_data(config, name, tmp_path):
    for split in ("train", "val", "test"):
        for kind in ("cat", "dog"):
            (tmp_path / "photos" / split / kind).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / split / kind / "0.png")
    cfg = config(f"data={name}")
    if name != "digits":
        cfg.data.root = f"{tmp_path}/photos"
    check(cfg)
    module = instantiate(cfg.data, _convert_="all")
    assert isinstance(module, LightningDataModule)
    expected = {"digits": (10, 32), "cifar10": (10, 32), "cifar100": (100, 32)}
    found = resolve(module.source, cfg.data.num_classes, cfg.data.image_size)
    assert found == expected.get(name, (2, 224 if name == "imagenet" else 8))


def test_data_keys_are_the_arguments_of_the_data_module(config):
    cfg = config()
    module = instantiate(cfg.data, _convert_="all")
    keys = {key for key in cfg.data if not key.startswith("_")}
    assert keys == set(inspect.signature(type(module)).parameters)


@pytest.mark.parametrize("name", slow_except(("sgd", "adamw", "sam"), choices("optimizer")))
def test_optimizer(config, name):
    if name in OPTIM:
        pytest.importorskip(OPTIM[name], reason="the extra [optim] is not installed")
    cfg = config(f"optimizer={name}")
    check(cfg)
    make = instantiate(cfg.optimizer, _convert_="all")
    assert isinstance(make([nn.Parameter(torch.zeros(1))]), torch.optim.Optimizer)


@pytest.mark.parametrize("name", choices("scheduler"))
def test_scheduler(config, name):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    cfg = config(f"scheduler={name}")
    check(cfg)
    make = instantiate(cfg.scheduler, _convert_="all")
    assert isinstance(make(optimizer, 100, 10), torch.optim.lr_scheduler.LRScheduler)


@pytest.mark.parametrize("name", slow_except(("default", "pictures", "ema"), choices("callbacks")))
def test_callbacks(config, name):
    callbacks = config(f"callbacks=[{name}]").callbacks
    assert callbacks
    assert all(isinstance(instantiate(c), Callback) for c in callbacks.values())


# What SQLAlchemy warns of is mlflow's.
@pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")
@pytest.mark.parametrize("name", slow_except(("csv", "tensorboard", "wandb"), choices("logger")))
def test_logger(config, name):
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name], reason=f"the extra [{name}] is not installed")
    (logger,) = config(f"logger=[{name}]").logger.values()
    if name == "wandb":
        logger.offline = True
    assert isinstance(instantiate(logger), Logger)


def test_several_loggers(config):
    assert set(config("logger=[tensorboard,csv]").logger) == {"tensorboard", "csv"}


# ------------------------------------------------------------------ the trainer


@pytest.mark.parametrize("name", choices("trainer"))
def test_trainer(config, name):
    cfg = config(f"trainer={name}")
    check(cfg)
    cfg.trainer.precision = 32
    assert isinstance(instantiate(cfg.trainer, logger=False), Trainer)


def test_every_argument_of_lightnings_trainer_is_a_key_with_lightnings_default(config):
    lines = (CONF / "trainer" / "default.yaml").read_text().splitlines()
    ours = {line.partition(":")[0] for line in lines if "# ours" in line}
    given_by_the_program = {"logger", "callbacks", "plugins", "default_root_dir", "barebones"}
    arguments = {
        name: argument.default
        for name, argument in inspect.signature(Trainer).parameters.items()
        if name not in given_by_the_program
    }
    keys = dict(config().trainer)
    del keys["_target_"]
    assert keys.keys() == arguments.keys()
    differing = {key for key, value in keys.items() if value != arguments[key]}
    assert differing == ours


@pytest.mark.slow
def test_options_of_lightnings_trainer_are_taken(config, monkeypatch, tmp_path):
    anomalies_detected = []
    monkeypatch.setattr(
        *(Classifier, "on_train_start"),
        lambda self: anomalies_detected.append(torch.is_anomaly_enabled()),
        raising=False,
    )
    clipped = []
    clip = torch.nn.utils.clip_grad_value_
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_value_",
        lambda *args, **more: clipped.append(clip(*args, **more)),
    )
    callbacks = "callbacks=[checkpoints,epoch_log,early_stopping]"
    cfg = config(*SMALL_NET, *CPU, callbacks, "logger=[csv]", "trainer.max_epochs=3")
    cfg.data.train_size, cfg.data.batch_size = 320, 64
    cfg.callbacks.early_stopping.update(patience=0, min_delta=1.0)  # stops as soon as it may
    cfg.trainer.update(
        val_check_interval=0.5,
        overfit_batches=2,
        detect_anomaly=True,
        min_epochs=2,
        gradient_clip_val=0.1,
        gradient_clip_algorithm="value",
    )
    check(cfg)
    result = training.train(cfg)
    assert (result["status"], result["epochs"], result["steps"]) == ("finished", 2, 4)
    rows = read_csv(tmp_path / "run" / "csv" / "metrics.csv")
    validated = [int(row["step"]) for row in rows if row["val/acc"]]
    assert validated == [1, 2, 3, 4]
    assert anomalies_detected == [True]
    assert len(clipped) == 4


# ------------------------------------------------------------------ experiments


BUILT = {
    "cifar10_short",
    "he2015/recipe",
    "textbook_cnn",
    "small_folder",
    "overfit_one_batch",
}


CHECKED = {"cifar10_short", "he2015/resnet20", "rsb/a1", "strong/resnet18", "small_folder"}


def without_a_run_as_trunk(cfg):
    """The trunk of lessons/vehicles is the run of lessons/animals, which nobody has made here."""
    if str(cfg.model.get("trunk")).startswith("outputs/"):
        cfg.model.trunk = "resnet18"


# make test-slow, and .ci/run with it, checks all.
@pytest.mark.parametrize("name", slow_except(CHECKED, choices("experiment")))
def test_the_check_passes_every_experiment(config, name):
    cfg = config(f"experiment={name}")
    cfg.data.source, cfg.data.root = config().data.source, None  # a folder must be there
    without_a_run_as_trunk(cfg)
    check(cfg)


@pytest.mark.parametrize("name", slow_except(BUILT, choices("experiment")))
def test_experiment(config, name):
    cfg = config(f"experiment={name}")
    cfg.data.source, cfg.data.root = config().data.source, None  # data=digits, all else as it is
    cfg.data.batch_size = min(cfg.data.batch_size, 1294)
    if cfg.data.train_size is not None:
        cfg.data.train_size = min(cfg.data.train_size, 1294)
    without_a_run_as_trunk(cfg)
    check(cfg)
    if "weights" in cfg.model:
        cfg.model.weights = None  # nothing is downloaded here
    parts = build.build(cfg)
    assert parts.complexity.params > 0
    assert parts.datamodule.n_test == 359


HE2015 = [name for name in choices("experiment") if name.startswith("he2015/")]
HE2016 = [name for name in choices("experiment") if name.startswith("he2016/")]
WARMED_UP = {
    *("he2015/recipe_warmup", "he2015/resnet110", "he2015/resnet1202", "he2015/plain110"),
    *HE2016,
}


@pytest.mark.parametrize("name", slow_except((*HE2015[:2], *HE2016[:2]), HE2015 + HE2016))
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


# ------------------------------------------------------------------ published figures


def run_folder(folder: Path, cfg: DictConfig, data: str) -> runs.Run:
    """A finished run on `data`, as it is read back from its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    (folder / "result.json").write_text(json.dumps({"status": "finished", "data": data}))
    (study,) = runs.read([folder])
    (run,) = study.runs
    return run


UNPUBLISHED = {
    *("he2015/recipe", "he2015/recipe_warmup", "he2015/plain110", "strong/recipe", "rsb/recipe"),
    *("he2016/table1", "he2016/table2", "cutmix/resnet20"),  # sweeps; no such net in the paper
}
FAMILIES = ("strong", "rsb", "tv2", "goyal2017", "cutmix", "mixup", "sd", "wrn", "resnext")
LATER = [name for name in choices("experiment") if name.startswith(FAMILIES)]
PUBLISHED = sorted({*HE2015, *HE2016, *LATER} - UNPUBLISHED)


@pytest.mark.parametrize("name", slow_except(PUBLISHED[::7], PUBLISHED))
def test_a_published_figure_is_in_percent_has_its_source_and_stands_once(config, tmp_path, name):
    cfg = config(f"experiment={name}")
    (key,) = cfg.reference.keys() & {"test_error", "test_acc"}
    percent = cfg.reference[key]
    assert (2 < percent < 25) if key == "test_error" else (75 < percent < 98)
    assert re.search(r"^\S.* 20\d\d.*, (arXiv \d{4}\.\d{5}|https://\S+)", cfg.reference.source)
    texts = (path.read_text() for path in (CONF / "experiment").rglob("*.yaml"))
    of_text = (re.sub(r"Sections? [\d.]+( (to|and) [\d.]+)?", "", text) for text in texts)
    figures = [float(figure) for text in of_text for figure in re.findall(r"\d+\.\d+", text)]
    assert figures.count(percent) == 1
    found = runs.reference(run_folder(tmp_path / "run", cfg, cfg.reference.data))
    assert found.test_acc == pytest.approx(100 - percent if key == "test_error" else percent)
    assert found.source == cfg.reference.source
    # It says nothing about a run on other images.
    assert runs.reference(run_folder(tmp_path / "run", cfg, "imagefolder")) is None


@pytest.mark.slow
def test_an_experiment_with_no_published_figure_inherits_none(config):
    others = set(choices("experiment")) - set(PUBLISHED)
    assert [name for name in others if config(f"experiment={name}").reference] == []


def test_an_accuracy_is_taken_in_percent_however_small(config, tmp_path):
    cfg = config()
    cfg.reference = {"test_acc": 0.5}
    assert runs.reference(run_folder(tmp_path / "run", cfg, "cifar10")).test_acc == 0.5


def test_a_run_limited_by_steps_stops_at_them_in_mid_epoch(config, tmp_path):
    cfg = config("experiment=he2015/resnet110", "data=digits", *SMALL_NET, *CPU, WITHOUT_PICTURES)
    cfg.scheduler.update(milestones=[8, 14], warmup=3)
    cfg.trainer.max_steps = 16
    result = training.train(cfg)  # 1,294 images: ten steps an epoch
    assert (result["status"], result["steps"]) == ("finished", 16)
    rows, _ = runs.epochs(tmp_path / "run")
    assert [(row["step"], row["lr"]) for row in rows.values()] == [
        (10, pytest.approx(0.01)),
        (16, pytest.approx(0.001)),
    ]
    # The second epoch was cut before its validation, and has no figures of the first's.
    assert ["val/acc" in row for row in rows.values()] == [True, False]
    (study,) = runs.read([tmp_path / "run"])
    (run,) = study.runs
    assert runs.reference(run) is None  # CIFAR-10's figure, and these were digits


# ------------------------------------------------------------------ few images at a time


@pytest.mark.parametrize(
    ("overrides", "noisy"),
    [
        (["experiment=small_folder", "data=digits"], True),
        pytest.param(
            ["experiment=small_folder", "data=digits", "model.norm=group"],
            False,
            marks=pytest.mark.slow,
        ),
        pytest.param(["data.batch_size=15", "model=textbook_resnet"], True, marks=pytest.mark.slow),
        pytest.param(["data.batch_size=15", "model=textbook_cnn"], False, marks=pytest.mark.slow),
        (["data.batch_size=16"], False),
    ],
)
def test_the_log_says_where_batchnorm_sees_few_images(config, caplog, tmp_path, overrides, noisy):
    parts = build.build(config("trainer.accelerator=cpu", *overrides))
    with caplog.at_level(logging.INFO):
        Record(parts, RunFolder(tmp_path / "run")).__enter__()
    warnings = [r.getMessage() for r in caplog.records if "BatchNorm" in r.getMessage()]
    assert len(warnings) == noisy
    if noisy:
        assert f"on a batch of {parts.cfg.data.batch_size} are noisy" in warnings[0]
        assert "\n" not in warnings[0]


def test_a_frozen_batchnorm_is_not_noisy(config):
    net = instantiate(config("model=resnet20").model)
    assert trains_batchnorm(net)
    assert not trains_batchnorm(net.requires_grad_(False))

"""Every logger gets a run's config, name, sweep, pictures and final scores, and counted images."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
from lab import QUICK, board, read_csv, read_result
from lightning.pytorch.loggers import Logger
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from resnet_lab import loggers
from resnet_lab.config.compose import flat
from resnet_lab.config.errors import UserError
from resnet_lab.run import training
from resnet_lab.run.folder import RunFolder, keep_at_home
from resnet_lab.run.stop import Stopped

CONFIG = {"seed": 0, "optimizer": {"lr": 0.1}, "model": {"depth": 20}}
TAGS = {"model": "resnet20", "data": "digits", "sweep": "depths"}


class Recorder(Logger):
    """A logger of the user's own, which keeps what it gets."""

    got: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.got.clear()

    name, version = "recorder", 0

    def log_hyperparams(self, params, *args, **kwargs):
        self.got.append(("config", params))

    def log_metrics(self, metrics, step=None):
        self.got.append((step, metrics))


@pytest.fixture
def job(tmp_path):
    """The folder of a job of the sweep "depths"."""
    path = tmp_path / "depths" / "model.depth=20"
    path.mkdir(parents=True)
    RunFolder(path).job.write_text("{}")
    return path


# Any logger


def test_a_limited_run_is_reported_as_it_was_counted(config, monkeypatch, caplog):
    monkeypatch.setenv("SECRET", "xyzzy")
    caplog.set_level("INFO")
    limits = [f"trainer.limit_{part}_batches={n}" for part, n in (("train", 3), ("test", 2))]
    cfg = config(
        *(*QUICK, *limits, "trainer.limit_val_batches=1", "logger=[tensorboard,csv]"),
        "+logger.own._target_=test_loggers.Recorder",
        "reference={source: '${oc.env:SECRET}'}",
    )
    result = training.train(cfg)
    run_dir = Path(cfg.run_dir)
    assert read_result(run_dir) == result
    assert {split: result[f"n_{split}"] for split in ("train", "val", "test")} == {
        "train": 3 * 64,
        "val": 64,
        "test": 2 * 64,
    }
    table = {line[0]: line[-1] for m in caplog.messages for t in [m] if (line := t.split())}
    assert (table["val"], table["test"]) == ("64", "128")
    assert "256 train, 144 val, 359 test images" in caplog.text  # what the data has

    (_, params), *figures = Recorder.got
    assert params["optimizer.lr"] == cfg.optimizer.lr
    assert params["reference.source"] == "${oc.env:SECRET}"
    assert "xyzzy" not in str(Recorder.got)
    final = {f"final/{name}": result[name] for name in ("val/acc", "test/acc")}
    assert figures[-1] == (result["steps"], final)

    rows = read_csv(run_dir / "csv" / "metrics.csv")
    epochs = [row["epoch"] for row in rows if row["train/loss"]]
    assert epochs == [row["epoch"] for row in read_csv(run_dir / "metrics.csv")] == ["1", "2"]

    events = board(run_dir / "tensorboard")
    (event,) = events.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(event.tensor_proto.string_val[0]).category
    shown = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    assert shown == {
        "loss": ["by_epoch/train_loss$", "by_epoch/val_loss$"],
        "accuracy": ["by_epoch/train_acc$", "by_epoch/val_acc$"],
    }
    tags = events.Tags()["scalars"]
    assert {tag.rstrip("$") for chart in shown.values() for tag in chart} <= set(tags)


def test_images_are_counted_alike_in_a_run_that_was_stopped_in_its_test(config, monkeypatch):
    cfg = config(*QUICK, "trainer.max_epochs=1", "trainer.limit_train_batches=2")
    test_step = "resnet_lab.classifier.Classifier.test_step"
    with monkeypatch.context() as patch:
        patch.setattr(test_step, lambda *_: (_ for _ in ()).throw(Stopped("stopped", 143)))
        with pytest.raises(Stopped):
            training.train(cfg)
    cfg.resume = cfg.run_dir
    result = training.train(cfg)  # no epoch is left
    assert (result["n_train"], result["n_val"], result["n_test"]) == (128, 144, 359)


def test_a_logger_that_fails_in_the_end_costs_no_result(tmp_path, caplog):
    class Broken(Recorder):
        def log_metrics(self, metrics, step=None):
            raise OSError("no network")

    fine = Recorder()
    loggers.end([Broken(), fine], "finished", {}, {"test/acc": 0.5}, 7)
    assert fine.got == [(7, {"final/test/acc": 0.5})]
    assert "Broken: OSError: no network" in caplog.text


def test_the_config_of_a_run_folder_makes_no_logger_with_a_server():
    csv = {"_target_": "lightning.pytorch.loggers.CSVLogger"}
    sent = {"csv": csv} | {
        name: {"_target_": f"resnet_lab.loggers.{name}"} for name in ("Wandb", "MLflow")
    }
    own = {"data": {}, "logger": sent}
    keep_at_home(own, (), "cache")
    assert own["logger"] == {"csv": csv}


# Weights & Biases


class FakeRun:
    def __init__(self, init):
        self.id, self.tags, self.config, self.logged = init["id"], None, {}, []
        self.config = type("Config", (dict,), {"update": self._update})()

    def _update(self, values, allow_val_change):
        dict.update(self.config, values)

    def log(self, figures):
        self.logged.append(figures)

    def finish(self, exit_code):
        self.exit_code = exit_code


def test_wandb_gets_name_group_config_and_goes_on_with_a_resumed_run(job, monkeypatch):
    wandb = pytest.importorskip("wandb")
    inits = []
    monkeypatch.setattr(wandb, "init", lambda **options: inits.append(options) or FakeRun(options))
    for resumed in (False, True):
        logger = loggers.Wandb(str(job), project="resnet-lab", name=None, offline=False)
        loggers.begin([logger], CONFIG, TAGS, resumed)
        assert logger.experiment.config == CONFIG
        assert set(logger.experiment.tags) == {"resnet20", "digits", "depths"}
        loggers.end([logger], "interrupted" if not resumed else "finished", {}, {}, 0)
        assert logger.experiment.exit_code == (not resumed)
    first, second = inits
    assert (first["name"], first["group"], first["dir"]) == (job.name, "depths", str(job))
    assert first["id"] == second["id"] == json.loads((job / "loggers.json").read_text())["wandb"]


def test_wandb_without_a_key_is_told_in_a_sentence(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def no_key(**_):
        raise wandb.Error("api_key not configured (no-tty).")

    monkeypatch.setattr(wandb, "init", no_key)
    with pytest.raises(UserError, match=r"wandb login`, or set logger\.wandb\.offline=true"):
        loggers.begin([loggers.Wandb(str(tmp_path))], CONFIG, TAGS, False)


# MLflow


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, for MLflow
def test_runs_meet_in_one_mlflow_database_and_a_resumed_one_goes_on(tmp_path, job):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/all/mlflow.db"
    picture = tmp_path / "curves.png"
    picture.write_bytes(b"a picture")
    single = tmp_path / "single"
    single.mkdir()
    for folder, status, score in ((job, "interrupted", None), (single, "finished", 0.5)):
        logger = loggers.MLflow(str(folder), uri, run_name=None)
        loggers.begin([logger], CONFIG, TAGS, False)
        loggers.picture([logger], picture, None, 1)
        loggers.end([logger], status, {}, {} if score is None else {"test/acc": score}, 3)
    logger = loggers.MLflow(str(job), uri)
    loggers.begin([logger], CONFIG | {"seed": 1}, TAGS, True)
    loggers.end([logger], "finished", {}, {"test/acc": 0.75}, 4)

    client = MlflowClient(uri)
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert runs.keys() == {"model.depth=20", "single"}
    for run, score in ((runs["model.depth=20"], 0.75), (runs["single"], 0.5)):
        assert run.info.status == "FINISHED"
        assert run.data.params == {key: str(value) for key, value in flat(CONFIG).items()}
        assert run.data.metrics == {"final/test/acc": score}
        assert run.data.tags.items() >= TAGS.items()
        (artifact,) = client.list_artifacts(run.info.run_id)
        assert artifact.path == "curves.png"

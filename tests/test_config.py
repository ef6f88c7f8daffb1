"""Configs: what is shipped composes, and what is wrong is named in one sentence."""

import importlib.util

import pytest
from lab import choices, train_here, without_torch
from omegaconf import OmegaConf

from resnet_lab.config.check import check
from resnet_lab.config.rules import RULES
from resnet_lab.run.folder import RunFolder


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimizer.lr=-1", "optimizer.lr=-1: must be a number above 0"),
        ("optimizer.lr=fast", "optimizer.lr=fast: must be a number above 0"),
        ("data.batch_size=0", "data.batch_size=0: must be a whole number of 1 or more"),
        ("data.val_size=1.5", "data.val_size=1.5: must be a share"),
        ("trainer.devices=abc", "trainer.devices=abc: must be a whole number of 1 or more, a list"),
        ("trainer.devices=[]", "trainer.devices=[]: must be"),
        ("trainer.precision=bf17", "trainer.precision=bf17: must be one of auto, 32, bf16-mixed"),
        ("trainer.accelerator=tpux", "must be one of auto, cpu, gpu"),
        ("trainer.max_epochs=2.5", "trainer.max_epochs=2.5: must be a whole number"),
        ("seed=-1", "seed=-1: must be a whole number from 0"),
        ("data.flip=1", "data.flip=1: must be true or false"),
        ("data.std=[0.2,0.2,0]", "data.std=[0.2,0.2,0]: must be three numbers"),
        ("data.random_resized_crop=[0.5,0.1]", "the smallest and the largest share"),
        ("scheduler.peak=1", "scheduler.peak=1: must be a number between 0 and 1"),
        ("model.depth=21", "model.depth=21"),
        ("model.shortcut=E", "A, B, C, D, scale, gate, "),
        ("model.num_classes=7", "the data has 10 classes"),
        ("optimizer.momentum=0", "optimizer.nesterov=true: needs optimizer.momentum above 0"),
        ("trainer.devices=3", "use 126 or 129"),
        ("trainer.max_epochs=-1", "both without limit"),
        ("data.cutout=40", "larger than the image (32 pixels)"),
        ("compile=maybe", "compile=maybe: must be true, false or auto"),
    ],
)
def test_a_wrong_value_gets_one_sentence(config, override, sentence):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        check(config(override))
    assert sentence in str(error.value)


def test_two_wrong_values_get_two_lines(config):
    with pytest.raises(ValueError, match=r"optimizer\.lr=0") as error:
        check(config("optimizer.lr=0", "seed=x"))
    assert len(str(error.value).splitlines()) == 2


def test_a_logger_without_its_package_is_named(config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the package wandb is missing"):
        check(config("logger=[tensorboard,wandb]"))


def test_milestones_must_rise_and_fit_their_unit(config):
    check(config("scheduler=multistep", "scheduler.milestones=[0.3,0.6]"))
    check(config("scheduler=multistep", "scheduler.milestones=[82,123]", "scheduler.unit=epoch"))
    for wrong in ("[0.6,0.3]", "[82,123]"):
        with pytest.raises(ValueError, match=r"scheduler\.milestones"):
            check(config("scheduler=multistep", f"scheduler.milestones={wrong}"))


def test_an_image_folder_must_be_there(config, tmp_path):
    with pytest.raises(ValueError, match=r"data\.root has no default"):
        check(config("data=imagefolder"))
    with pytest.raises(ValueError, match=r"must hold train/ and test/.* resnet-lab split"):
        check(config("data=imagefolder", f"data.root={tmp_path}"))


SLIPS = {
    "modle=resnet20": "modle=resnet20: there is no such key; did you mean model=resnet20?",
    "model=resnet21": "model=resnet21: there is no such choice; did you mean model=resnet2",
    "callbacks=[default,emma]": "no such choice; did you mean 'callbacks=[default,ema]'?",
    "data.batchsize=64": "there is no such key; did you mean data.batch_size=64?",
    "optimiser.lr=1": "did you mean optimizer.lr=1?",
    "trainer.devices=abc": "trainer.devices=abc: must be",
    "model.depth=21": "6n+2",
    "data.batch_size=[": "data.batch_size=[: cannot be read",
}


def test_the_command_line_needs_no_torch_to_name_a_mistake(tmp_path):
    """A sentence of one line, no traceback, and no folder."""
    for slip, sentence in SLIPS.items():
        done = without_torch(tmp_path, slip, "hydra.run.dir=run")
        assert done.returncode == 1
        assert sentence in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    usage, config = without_torch(tmp_path, "--help"), without_torch(tmp_path, "--cfg", "job")
    assert (usage.returncode, config.returncode) == (0, 0)
    assert "resnet20" in usage.stdout
    assert "depth: 20" in config.stdout


def test_full_error_brings_the_traceback_back(tmp_path):
    done = train_here(tmp_path, "optimizer.lr=-1", HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_no_two_runs_share_a_folder(tmp_path):
    folders = [RunFolder(tmp_path / "a" / "12-00-00-resnet20").claim() for _ in range(3)]
    assert [folder.path.name for folder in folders] == [
        "12-00-00-resnet20",
        "12-00-00-resnet20-2",
        "12-00-00-resnet20-3",
    ]


def test_a_folder_named_by_the_user_must_not_hold_a_run(tmp_path):
    for _ in range(2):
        assert RunFolder(tmp_path / "mine").claim(named=True).path == tmp_path / "mine"
    (tmp_path / "mine" / "config.yaml").touch()
    with pytest.raises(ValueError, match="holds a run already"):
        RunFolder(tmp_path / "mine").claim(named=True)


@pytest.mark.slow
def test_every_rule_names_a_key_that_some_config_has(config):
    chosen = [f"{group}={c}" for group in ("optimizer", "scheduler") for c in choices(group)]
    seen = set()
    for choice in (*chosen, "model=pretrained", "callbacks=[unfreeze]"):
        cfg = config(choice)
        seen |= {key for key in RULES if OmegaConf.select(cfg, key, default=config) is not config}
    assert seen == set(RULES)

"""What may be changed of a run that goes on, and how a refusal shows it; trains only once."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from resnet_lab.config.compose import composed
from resnet_lab.run import checkpoint_io, training
from resnet_lab.run.resume import go_on

ROOT = Path(__file__).resolve().parents[1]
FIXED = ("scheduler=multistep", "scheduler.unit=epoch", "scheduler.milestones=[30,40]")


def begun(run_dir: Path, *overrides: str, status: str = "interrupted") -> Path:
    """A run folder as `train.py` leaves it with these overrides, its checkpoint empty."""
    cfg, choices = composed(overrides)
    OmegaConf.set_struct(cfg, False)
    cfg.run_dir = str(run_dir)
    OmegaConf.resolve(cfg)
    cfg.pop("trust")
    cfg.trainer.precision = "bf16-mixed"  # filled in, as `build` does
    cfg.data.mean, cfg.data.std = [0.3, 0.3, 0.3], [0.2, 0.2, 0.2]
    cfg.optimizer.fused = True
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "last.ckpt").touch()
    OmegaConf.save(cfg, run_dir / "config.yaml")
    (run_dir / "result.json").write_text(json.dumps({"status": status}))
    (run_dir / ".hydra").mkdir()
    told = {"overrides": {"task": list(overrides)}, "runtime": {"choices": choices}}
    OmegaConf.save({"hydra": told}, run_dir / ".hydra" / "hydra.yaml")
    return run_dir


def resumed(run_dir: Path, *overrides: str):
    """The config with which `python train.py resume=RUN_DIR ...` would go on."""
    task = [f"resume={run_dir}", *overrides]
    cfg, _ = composed([])
    OmegaConf.set_struct(cfg, False)
    cfg.hydra = {"overrides": {"task": task}, "run": {}, "runtime": {}}
    go_on(cfg, run_dir)
    return cfg


def refusal(run_dir: Path, *overrides: str) -> list[str]:
    with pytest.raises(ValueError, match="the run goes on with its own config") as error:
        resumed(run_dir, *overrides)
    first, *changes, last = str(error.value).splitlines()
    assert str(run_dir) in first
    assert last == "Leave that out, or begin a new run."
    return [line.strip() for line in changes]


@pytest.fixture
def run_dir(tmp_path):
    return begun(tmp_path / "run", "model=resnet20", "data.batch_size=64", "seed=3", *FIXED)


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("seed=4", ["seed: 3 -> 4"]),  # others follow it, and are not shown
        ("data.batch_size=32", ["data.batch_size: 64 -> 32"]),
        ("optimizer.lr=0.2", ["optimizer.lr: 0.1 -> 0.2"]),
        ("model=resnet32", ["model.depth: 20 -> 32"]),
        ("data.val_size=0.2", ["data.val_size: 0.1 -> 0.2"]),
        ("trainer.devices=2", ["trainer.devices: 1 -> 2"]),
        ("trainer.max_steps=9", ["trainer.max_steps: -1 -> 9"]),
        ("trainer.max_epochs=10", ["trainer.max_epochs: 20 -> 10: it can only become longer."]),
    ],
)
def test_what_would_change_the_run_is_refused_with_the_difference(run_dir, override, changes):
    assert refusal(run_dir, override) == changes


def test_another_data_set_is_refused(run_dir):
    said = refusal(run_dir, "data=cifar10")
    assert any(
        line == "data.source._target_: resnet_lab.data.sources.Digits -> "
        "resnet_lab.data.sources.CIFAR10"
        for line in said
    )


def test_two_changes_are_two_lines(run_dir):
    assert refusal(run_dir, "seed=4", "data.flip=true", "data.workers=1") == [
        "data.flip: False -> True",
        "seed: 3 -> 4",
    ]


def test_what_the_run_has_already_can_be_typed_again(run_dir):
    cfg = resumed(run_dir, "model=resnet20", "seed=3", "data=digits", "trainer.precision=auto")
    own = OmegaConf.load(run_dir / "config.yaml")
    for part in ("model", "data", "optimizer", "scheduler", "trainer", "callbacks", "logger"):
        assert cfg[part] == own[part]
    assert cfg.resume == cfg.run_dir == str(run_dir)


def test_the_images_may_have_moved(tmp_path):
    for place in ("old", "new"):
        for split in ("train", "test"):
            (tmp_path / place / split / "cat").mkdir(parents=True)
    run_dir = begun(tmp_path / "run", "data=imagefolder", f"data.root={tmp_path}/old")
    cfg = resumed(run_dir, f"data.root={tmp_path}/new")
    assert cfg.data.root == cfg.data.source.root == f"{tmp_path}/new"


def test_where_and_how_a_run_goes_on_is_free(run_dir, tmp_path):
    cfg = resumed(
        run_dir,
        *("data.workers=3", f"data.cache_dir={tmp_path}/cache", "compile=false"),
        *("trainer.log_every_n_steps=7", "trainer.max_time=00:01:00:00"),
    )
    assert cfg.data.workers == 3
    # What follows such a key follows it here as well.
    assert cfg.data.source.cache_dir == cfg.data.cache_dir == f"{tmp_path}/cache"
    assert cfg.callbacks.compile_net.wish is False
    assert (cfg.trainer.log_every_n_steps, cfg.trainer.max_time) == (7, "00:01:00:00")
    assert cfg.hydra.overrides.task[:2] == ["model=resnet20", "data.batch_size=64"]
    assert "data.workers=3" in cfg.hydra.overrides.task


@pytest.mark.parametrize(
    ("schedule", "longer"),
    [
        (["scheduler=constant"], True),
        (["scheduler=constant", "scheduler.warmup=2"], True),
        (["scheduler=constant", "scheduler.warmup=0.1", "scheduler.unit=run"], False),
        (["scheduler=multistep", "scheduler.unit=step", "scheduler.milestones=[9]"], True),
        (["scheduler=multistep"], False),  # unit=run
        (["scheduler=cosine"], False),
        (["scheduler=onecycle"], False),
    ],
)
def test_a_run_becomes_longer_where_its_schedule_permits(tmp_path, schedule, longer):
    run_dir = begun(tmp_path / "run", *schedule)
    if longer:
        assert resumed(run_dir, "trainer.max_epochs=40").trainer.max_epochs == 40
    else:
        (said,) = refusal(run_dir, "trainer.max_epochs=40")
        assert said.startswith("trainer.max_epochs: 20 -> 40: every learning rate of resnet_lab.")
        assert "depends on the length of the run" in said


def test_a_longer_run_cannot_be_made_shorter_again(tmp_path):
    run_dir = begun(tmp_path / "run", "scheduler=constant")
    cfg = OmegaConf.load(run_dir / "config.yaml")
    cfg.trainer.max_epochs = 30  # as an earlier resume has left it
    OmegaConf.save(cfg, run_dir / "config.yaml")
    assert resumed(run_dir).trainer.max_epochs == 30
    assert refusal(run_dir, "trainer.max_epochs=20")[0].startswith("trainer.max_epochs: 30 -> 20:")


def test_a_finished_run_says_so_unless_it_becomes_longer(tmp_path, capsys):
    run_dir = begun(tmp_path / "run", "scheduler=constant", status="finished")
    for overrides in ([], ["data.workers=1"], ["trainer.max_epochs=20"]):
        with pytest.raises(SystemExit) as end:
            resumed(run_dir, *overrides)
        assert end.value.code == 0
        assert "this run is finished" in capsys.readouterr().out
    assert resumed(run_dir, "trainer.max_epochs=21").trainer.max_epochs == 21
    assert refusal(run_dir, "seed=1") == ["seed: 0 -> 1"]


def test_what_cannot_be_resumed_is_said(tmp_path):
    with pytest.raises(ValueError, match="no run in it"):
        resumed(tmp_path)
    run_dir = begun(tmp_path / "run")
    with pytest.raises(ValueError, match=r"trainer\.log_every_n_steps=0: must be"):
        resumed(run_dir, "trainer.log_every_n_steps=0")
    (run_dir / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ValueError, match="no checkpoint"):
        resumed(run_dir)
    (run_dir / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is damaged"):
        resumed(run_dir)


@pytest.mark.parametrize(
    ("overrides", "status", "said"),
    [
        (["seed=4", "model=resnet20"], 1, "  seed: 3 -> 4\n"),
        (
            ["data.batchsize=1"],
            1,
            "error: data.batchsize: there is no such key; did you mean batch",
        ),
        (["data=imagefolder", "data.root=nowhere"], 1, "data.source._target_: resnet_lab.data."),
        (["model=resnet20", "seed=3", "data.workers=1"], 0, "this run is finished"),
    ],
)
def test_the_command_line_says_it_without_torch(run_dir, overrides, status, said):
    (run_dir / "result.json").write_text('{"status": "finished"}')
    program = (
        "import sys, runpy; sys.modules['torch'] = None; "
        f"sys.argv = ['train.py', 'resume={run_dir}', *{overrides!r}]; "
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=run_dir.parent, capture_output=True, text=True
    )
    assert (done.returncode, said in done.stdout + done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in run_dir.parent.iterdir()) == ["run"]


def test_images_that_have_moved_are_named_on_the_command_line(tmp_path):
    """Though the config that is composed at first, of digits, has no data.root."""
    photos = tmp_path / "photos"
    for split in ("train", "test"):
        (photos / split / "cat").mkdir(parents=True)
    run_dir = begun(tmp_path / "run", "data=imagefolder", f"data.root={photos}")
    (run_dir / "result.json").write_text('{"status": "finished"}')
    command = [sys.executable, str(ROOT / "train.py"), f"resume={run_dir}"]
    done = subprocess.run([*command, f"data.root={tmp_path}/other"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (run_dir / "result.json").unlink()
    done = subprocess.run([*command, f"data.root={tmp_path}/other"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: data.root={tmp_path}/other: there is no folder")


def test_without_its_command_line_a_run_is_compared_key_by_key(run_dir):
    (run_dir / ".hydra" / "hydra.yaml").unlink()
    assert refusal(run_dir, "seed=0") == ["seed: 3 -> 0"]
    assert resumed(run_dir, "seed=3", "data.workers=1").data.workers == 1
    with pytest.raises(ValueError, match="what it was begun with is not known"):
        resumed(run_dir, "model=resnet20")


def test_so_is_a_run_whose_configs_are_not_here_any_more(run_dir):
    path = run_dir / ".hydra" / "hydra.yaml"
    path.write_text(path.read_text().replace("model=resnet20", "model=of_somebody_else"))
    assert refusal(run_dir, "seed=0") == ["seed: 3 -> 0"]
    assert resumed(run_dir, "data.workers=1").data.workers == 1


def test_a_run_of_an_older_version_gets_the_settings_that_are_new(run_dir):
    cfg = OmegaConf.load(run_dir / "config.yaml")
    del cfg.data["memory_limit"], cfg.trainer["max_time"], cfg["compile"]
    OmegaConf.save(cfg, run_dir / "config.yaml")
    cfg = resumed(run_dir)
    assert (cfg.data.memory_limit, cfg.trainer.max_time, cfg.compile) == (4.0, None, "auto")
    assert cfg.data.batch_size == 64


def test_a_moved_run_writes_where_it_is_now(run_dir, tmp_path):
    moved = run_dir.rename(tmp_path / "elsewhere")
    cfg = resumed(moved)
    assert cfg.callbacks.best.dirpath == f"{moved}/checkpoints"
    assert str(run_dir) + "/" not in OmegaConf.to_yaml(cfg)


@pytest.mark.parametrize("at", ["model", "callbacks", "logger", "deep"])
def test_a_run_folder_that_somebody_sent_runs_no_code(run_dir, at):
    cfg = OmegaConf.load(run_dir / "config.yaml")
    cfg[at] = {"a": [{"_target_": "os.mkdir", "path": "x"}], "_target_": "torch.nn.Identity"}
    OmegaConf.save(cfg, run_dir / "config.yaml")
    with pytest.raises(ValueError, match=rf"{at}\.a\.0\._target_: os\.mkdir is not among"):
        resumed(run_dir)
    cfg[at] = {"_target_": "my_nets.Mine"}
    cfg.trust = ["my_nets"]  # what a file says is worth nothing
    OmegaConf.save(cfg, run_dir / "config.yaml")
    with pytest.raises(ValueError, match=r"my_nets\.Mine is not among"):
        resumed(run_dir)
    if at == "deep":
        assert resumed(run_dir, "trust=[my_nets]").trust == ["my_nets"]


def test_a_run_folder_cannot_read_my_environment(run_dir, monkeypatch):
    monkeypatch.setenv("LAB_CANARY", "do-not-tell")
    cfg = OmegaConf.load(run_dir / "config.yaml")
    cfg.logger.tensorboard.save_dir = "https://x.org/${oc.env:LAB_CANARY}"
    OmegaConf.save(cfg, run_dir / "config.yaml")
    with pytest.raises(ValueError, match=r"give it on the command line: logger\.tensorboard") as no:
        resumed(run_dir)
    assert "do-not-tell" not in str(no.value)
    cfg = resumed(run_dir, f"logger.tensorboard.save_dir={run_dir}/board")
    assert cfg.logger.tensorboard.save_dir == f"{run_dir}/board"
    then = OmegaConf.load(run_dir / ".hydra" / "hydra.yaml")
    then.hydra.runtime.choices.model = "${oc.env:LAB_CANARY}"
    OmegaConf.save(then, run_dir / ".hydra" / "hydra.yaml")
    cfg = resumed(run_dir, f"logger.tensorboard.save_dir={run_dir}/board")
    assert "do-not-tell" not in OmegaConf.to_yaml(cfg, resolve=True)


def test_a_longer_run_ends_as_one_that_was_planned_so(config, tmp_path, caplog):
    quick = (
        *("model=cifar_resnet", "model.depth=8", "model.width=0.25", "scheduler=constant"),
        *("data.train_size=128", "data.batch_size=64", "trainer.accelerator=cpu"),
    )
    for name, epochs in (("whole", 3), ("longer", 2)):
        cfg = config(*quick, f"trainer.max_epochs={epochs}", f"run_dir={tmp_path}/{name}")
        training.train(cfg)
    run_dir = tmp_path / "longer"
    cfg = resumed(run_dir, "trainer.max_epochs=3")
    del cfg["hydra"]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        result = training.train(cfg)
    changed = [line for line in caplog.messages if line.startswith("changed")]
    assert changed == ["changed     trainer.max_epochs: 2 -> 3"]
    assert (result["status"], result["epochs"]) == ("finished", 3)
    weights = [
        checkpoint_io.load(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        for name in ("whole", "longer")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
    saved = OmegaConf.load(run_dir / "config.yaml")
    assert (saved.trainer.max_epochs, saved.resume) == (3, None)

"""What may be changed of a run that is resumed, and how a refusal shows it; trains only once."""

import json
import logging
from pathlib import Path

import pytest
from lab import (
    CPU,
    SMALL_NET,
    WITHOUT_PICTURES,
    assert_same,
    train_here,
    weights,
    without_torch,
)
from lab import resumed_by_command as resumed
from omegaconf import OmegaConf

from resnet_lab.config.compose import compose
from resnet_lab.run import training

FIXED = ("scheduler=multistep", "scheduler.unit=epoch", "scheduler.milestones=[30,40]")
BEGAN = ("model=resnet20", "data.batch_size=64", "seed=3", *FIXED)


def begun(run_dir: Path, *overrides: str, status: str = "interrupted") -> Path:
    """A run folder as `train.py` leaves it with these overrides, its checkpoint empty."""
    cfg, _ = compose(overrides)
    OmegaConf.set_struct(cfg, False)
    cfg.run_dir = str(run_dir)
    OmegaConf.resolve(cfg)
    cfg.trainer.precision = "bf16-mixed"  # filled in, as `build` does
    cfg.data.mean, cfg.data.std = [0.3, 0.3, 0.3], [0.2, 0.2, 0.2]
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "last.ckpt").touch()
    OmegaConf.save(cfg, run_dir / "config.yaml")
    (run_dir / "result.json").write_text(json.dumps({"status": status}))
    (run_dir / ".hydra").mkdir()
    OmegaConf.save(list(overrides), run_dir / ".hydra" / "overrides.yaml")
    return run_dir


def refusal(run_dir: Path, *overrides: str) -> str:
    with pytest.raises(ValueError, match=rf"^resume={run_dir}: ") as error:
        resumed(run_dir, *overrides)
    (line,) = str(error.value).removeprefix(f"resume={run_dir}: ").splitlines()
    return line


@pytest.fixture
def run_dir(tmp_path):
    return begun(tmp_path / "run", *BEGAN)


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=4"],
        ["data.batch_size=64"],  # what the run has already; a command is repeated as a whole
        ["model=resnet32"],
        ["data=cifar10"],
        ["trainer.devices=2", "optimizer.lr=0.2"],
        [*BEGAN, "optimizer.lr=0.2"],
        list(BEGAN[1:]),
    ],
)
def test_what_could_change_the_run_is_refused_by_name(run_dir, overrides):
    message = refusal(run_dir, "data.workers=1", *overrides)
    assert message.startswith(
        f"a run is resumed with its own config; leave out {' '.join(overrides)}. Beside resume= "
    )


def test_a_run_cannot_become_shorter(run_dir):
    assert refusal(run_dir, "trainer.max_epochs=10") == (
        "trainer.max_epochs: 20 -> 10: it can only become longer."
    )


def test_the_very_command_that_began_it_resumes_a_run(run_dir):
    cfg = resumed(run_dir, *BEGAN)
    own = OmegaConf.load(run_dir / "config.yaml")
    for section in ("model", "optimizer", "scheduler", "trainer", "callbacks", "logger"):
        assert cfg[section] == own[section]
    assert cfg.resume == cfg.run_dir == str(run_dir)
    cfg = resumed(run_dir, *BEGAN, "trainer.max_epochs=40", "data.workers=2")
    assert (cfg.trainer.max_epochs, cfg.data.workers, cfg.seed) == (40, 2, 3)


def test_nothing_of_hydras_own_files_is_composed(run_dir):
    """They lie in the run folder, which somebody may have sent."""
    (run_dir / ".hydra" / "hydra.yaml").write_text("hydra: {overrides: {task: [seed=9]}}\n")
    (run_dir / ".hydra" / "overrides.yaml").write_text("- seed=${oc.env:HOME}\n- +evil=1\n")
    cfg = resumed(run_dir, "data.workers=1")
    assert cfg.seed == 3
    assert "evil" not in cfg
    for content in ("just text", "- &a [x]\n- *a\n", "[" * 5000):
        (run_dir / ".hydra" / "overrides.yaml").write_text(content)
        assert resumed(run_dir).seed == 3
        assert "leave out seed=3" in refusal(run_dir, "seed=3")


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
        "logger=[csv]",
    )
    assert cfg.data.workers == 3
    # What follows such a key follows it here as well.
    assert cfg.data.source.cache_dir == cfg.data.cache_dir == f"{tmp_path}/cache"
    assert cfg.callbacks.compile_net.compile is False
    assert (cfg.trainer.log_every_n_steps, cfg.trainer.max_time) == (7, "00:01:00:00")
    assert cfg.callbacks.last.max_time == "00:01:00:00"
    assert cfg.logger.csv.save_dir == str(run_dir)


@pytest.mark.parametrize(
    ("schedule", "longer"),
    [
        (["scheduler=constant"], True),
        pytest.param(["scheduler=constant", "scheduler.warmup=2"], True, marks=pytest.mark.slow),
        pytest.param(
            ["scheduler=constant", "scheduler.warmup=0.1", "scheduler.unit=run"],
            False,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["scheduler=multistep", "scheduler.unit=step", "scheduler.milestones=[9]"],
            True,
            marks=pytest.mark.slow,
        ),
        (["scheduler=multistep"], False),  # unit=run
        pytest.param(["scheduler=cosine"], False, marks=pytest.mark.slow),
        (["scheduler=onecycle"], False),
    ],
)
def test_a_run_becomes_longer_where_its_schedule_permits(tmp_path, schedule, longer):
    run_dir = begun(tmp_path / "run", *schedule)
    if longer:
        assert resumed(run_dir, "trainer.max_epochs=40").trainer.max_epochs == 40
    else:
        said = refusal(run_dir, "trainer.max_epochs=40")
        assert said.startswith("trainer.max_epochs: 20 -> 40: every learning rate of resnet_lab.")
        assert "depends on the length of the run" in said


def test_a_longer_run_cannot_be_made_shorter_again(tmp_path):
    run_dir = begun(tmp_path / "run", "scheduler=constant")
    cfg = OmegaConf.load(run_dir / "config.yaml")
    cfg.trainer.max_epochs = 30  # as an earlier resume has left it
    OmegaConf.save(cfg, run_dir / "config.yaml")
    assert resumed(run_dir).trainer.max_epochs == 30
    assert refusal(run_dir, "trainer.max_epochs=20").startswith("trainer.max_epochs: 30 -> 20")


def test_a_finished_run_says_so_unless_it_becomes_longer(tmp_path, capsys):
    run_dir = begun(tmp_path / "run", "scheduler=constant", status="finished")
    for overrides in ([], ["data.workers=1"], ["trainer.max_epochs=20"]):
        with pytest.raises(SystemExit) as end:
            resumed(run_dir, *overrides)
        assert end.value.code == 0
        assert "this run is finished" in capsys.readouterr().out
    assert resumed(run_dir, "trainer.max_epochs=21").trainer.max_epochs == 21
    assert "leave out seed=1" in refusal(run_dir, "seed=1")


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


def test_the_command_line_needs_no_torch_to_refuse_a_resume(run_dir):
    (run_dir / "result.json").write_text('{"status": "finished"}')
    expected = {
        ("seed=4", "model=resnet20"): (1, "leave out seed=4 model=resnet20."),
        ("data.batchsize=1",): (1, "there is no such key; did you mean data.batch_size=1?"),
        ("data.workers=1",): (0, "this run is finished"),
        BEGAN: (0, "this run is finished"),
    }
    for overrides, (status, said) in expected.items():
        done = without_torch(run_dir.parent, f"resume={run_dir}", *overrides)
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
    command = (f"resume={run_dir}", f"data.root={tmp_path}/other")
    done = train_here(tmp_path, *command)
    assert (done.returncode, done.stderr) == (0, "")
    (run_dir / "result.json").unlink()
    done = train_here(tmp_path, *command)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: data.root={tmp_path}/other: there is no folder")


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


@pytest.mark.slow
def test_a_longer_run_ends_as_one_that_was_planned_so(config, tmp_path, caplog):
    quick = (*SMALL_NET, *CPU, WITHOUT_PICTURES, "scheduler=constant")
    quick += ("data.train_size=128", "data.batch_size=64")
    for name, epochs in (("whole", 3), ("longer", 2)):
        cfg = config(*quick, f"trainer.max_epochs={epochs}", f"run_dir={tmp_path}/{name}")
        training.train(cfg)
    run_dir = tmp_path / "longer"
    cfg = resumed(run_dir, "trainer.max_epochs=3")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        result = training.train(cfg)
    changed = [line for line in caplog.messages if line.startswith("changed")]
    assert changed == ["changed     trainer.max_epochs: 2 -> 3"]
    assert (result["status"], result["epochs"]) == ("finished", 3)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "longer"))
    saved = OmegaConf.load(run_dir / "config.yaml")
    assert (saved.trainer.max_epochs, saved.resume) == (3, None)

"""What happens to a run from outside: terminals go away, disks fill up, somebody tidies up."""

import errno
import json
import logging
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import (
    QUICK,
    assert_same,
    board,
    composed,
    read_csv,
    read_result,
    resumed,
    slow_except,
    train_here,
    weights,
)

from resnet_lab.callbacks.epoch_log import EpochLog
from resnet_lab.config.compose import pasted
from resnet_lab.config.errors import UserError
from resnet_lab.config.messages import sentence
from resnet_lab.run import training


@pytest.fixture
def harmed(config, monkeypatch) -> Callable[..., Path]:
    """`harmed(harm, "key=value")`: a run in whose second epoch, at step 6, `harm(run_dir)` is done.

    Returns the folder; an error of the run is raised.
    """

    def train(harm: Callable[[Path], None], *overrides: str) -> Path:
        cfg = config(*QUICK, *overrides)
        count = EpochLog.on_train_batch_end

        def batch_end(self, trainer, *arguments):
            count(self, trainer, *arguments)
            if trainer.global_step == 6:
                harm(Path(cfg.run_dir))

        with monkeypatch.context() as patch:
            patch.setattr(EpochLog, "on_train_batch_end", batch_end)
            training.train(cfg)
        return Path(cfg.run_dir)

    return train


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared_cache) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    csv = "logger=[tensorboard,csv]"
    training.train(composed(*QUICK, csv, f"run_dir={folder}", f"data.cache_dir={shared_cache}"))
    return folder


@pytest.fixture
def stopped(whole, harmed, tmp_path) -> Path:
    """The same run, killed in its second epoch."""

    class Killed(BaseException):
        pass

    def kill(run_dir: Path) -> None:
        raise Killed

    with pytest.raises(Killed):
        harmed(kill, "logger=[tensorboard,csv]", "callbacks.last.minutes=0")
    return tmp_path / "run"


def warnings_of(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    records = [r for r in caplog.records if r.levelno >= logging.WARNING]
    return [r.getMessage() for r in records if words in r.getMessage()]


def same_rows(one: Path, other: Path, *but: str) -> bool:
    drop = {"images_per_second", "train_seconds", *but}
    kept = [
        [{k: v for k, v in row.items() if k not in drop} for row in read_csv(p)]
        for p in (one, other)
    ]
    return kept[0] == kept[1]


# ---------------------------------------------------------------- terminals


class Gone:
    """A terminal that hangs up after so many lines."""

    def __init__(self, lines: int, file) -> None:
        self.left, self.file = lines, file

    def write(self, text: str) -> int:
        self.left -= text.count("\n")
        if self.left < 0:
            raise OSError(errno.EIO, "Input/output error")
        return len(text)

    def flush(self) -> None:
        if self.left < 0:
            raise OSError(errno.EIO, "Input/output error")

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.file.fileno()


@pytest.mark.parametrize("lines", slow_except((3,), (0, 3, 8)))
def test_a_run_goes_on_where_its_terminal_does_not(config, monkeypatch, tmp_path, lines):
    with (tmp_path / "terminal").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Gone(lines, file))
        monkeypatch.setattr(sys, "stderr", Gone(lines, file))
        result = training.train(config(*QUICK, "callbacks=[default,live_bar]"))
    assert result["status"] == "finished"
    assert len(read_csv(tmp_path / "run" / "metrics.csv")) == 2


@pytest.mark.slow
def test_the_reader_of_a_pipe_may_leave(tmp_path, shared_cache):
    command = [sys.executable, "train.py", *QUICK, f"data.cache_dir={shared_cache}"]
    command.append(f"hydra.run.dir={tmp_path}/run")
    root = Path(__file__).parents[1]
    shell = f"{shlex.join(command)} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / "run")["status"] == "finished"
    assert "epoch   2/2" in (tmp_path / "run" / "run.log").read_text()


# ---------------------------------------------------------------- disks


@pytest.mark.slow
def test_a_full_disk_costs_the_board_or_ends_in_a_sentence(small_disk, config, tmp_path):
    """Whatever is written when it is full: nothing half written stays, and what was stays whole."""
    ends = list[str]()
    for kib in (24, 200, 400):
        disk = small_disk(kib)
        end = None
        try:
            training.train(config(*QUICK, f"run_dir={disk}/run"))
        except (UserError, OSError) as error:
            end = sentence(error) or repr(error)
        ends.append(end or "finished")
        left = [path.name for path in disk.rglob("*") if path.name.endswith(".part")]
        assert left == []
        for path in disk.rglob("*.json"):
            json.loads(path.read_text())
        for path in disk.rglob("*.ckpt"):
            assert weights(path.parents[1], path.stem)
    said = [end for end in ends if end != "finished"]
    assert said
    for end in said:
        assert end.startswith("cannot ")
        assert "No space left" in end
        assert "\n" not in end


@pytest.mark.faults
def test_a_disk_that_is_full_at_every_step(small_disk, config, figure):
    ends = []
    for kib in range(8, 520, 16):
        disk = small_disk(kib)
        try:
            training.train(config(*QUICK, f"run_dir={disk}/run"))
            end = "finished"
        except (UserError, OSError) as error:
            end = sentence(error) or repr(error)
        assert end == "finished" or (end.startswith("cannot ") and "No space left" in end), end
        assert not list(disk.rglob("*.part"))
        status = read_result(disk / "run")["status"] if (disk / "run/result.json").exists() else ""
        ends.append(f"{'finished' if end == 'finished' else 'one sentence'}, status {status!r}")
    counts = ", ".join(f"{n} {end}" for end, n in Counter(ends).items())
    figure(f"{len(ends)} disks of 8 to 504 KiB", counts)


# ---------------------------------------------------------------- somebody tidies up


def test_without_its_board_a_run_goes_on(harmed, whole, caplog):
    run = harmed(lambda run_dir: shutil.rmtree(run_dir / "tensorboard"))
    assert read_result(run)["status"] == "finished"
    assert_same(weights(run), weights(whole))
    (line,) = warnings_of(caplog, "without it")
    assert "tensorboard" in line


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_without_its_folder_a_run_ends_in_a_sentence(harmed, tmp_path, how):
    def harm(run_dir: Path) -> None:
        if how == "removed":
            shutil.rmtree(run_dir)
        else:
            run_dir.rename(tmp_path / "elsewhere")

    with pytest.raises(UserError, match=r"removed or renamed|No such file") as error:
        harmed(harm)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what a resumed run finds


@pytest.mark.parametrize(
    "harm",
    slow_except(("cut",), ("cut", "doubled", "emptied", "removed", "other figures")),
)
def test_metrics_that_somebody_has_changed_are_written_anew(stopped, whole, caplog, harm):
    metrics = stopped / "metrics.csv"
    text = metrics.read_text()
    changed = {
        "cut": text[: len(text) - 20],
        "doubled": text + text.splitlines()[-1] + "\n",
        "emptied": "",
        "other figures": text.replace("0.", "0.9"),
    }
    if harm == "removed":
        metrics.unlink()
    else:
        metrics.write_text(changed[harm])
    training.train(resumed(stopped))
    assert same_rows(metrics, whole / "metrics.csv")
    (line,) = warnings_of(caplog, "metrics.csv")
    assert "written anew from the checkpoint" in line


def test_an_untouched_run_says_nothing_of_its_metrics(stopped, caplog):
    training.train(resumed(stopped))
    assert warnings_of(caplog, "metrics.csv") == []


def test_what_loggers_have_written_is_there_once_after_a_resume(stopped, whole):
    training.train(resumed(stopped))
    table = "csv/metrics.csv"
    assert same_rows(stopped / table, whole / table, "images_per_second")
    assert len(read_csv(whole / table)) > 5
    for tag in ("train/loss", "val/acc", "by_epoch/val_acc"):
        points = [
            [(event.step, event.value) for event in board(run / "tensorboard").Scalars(tag)]
            for run in (stopped, whole)
        ]
        assert points[0] == points[1]


# ---------------------------------------------------------------- what is printed


def test_a_run_without_checkpoints_says_which_line_was_meant(config, caplog):
    training.train(config(*QUICK, "callbacks=[ema]"))
    (line,) = warnings_of(caplog, "No checkpoint")
    assert "perhaps callbacks=[default,ema] was meant" in line


@pytest.mark.parametrize(
    "name",
    [
        "dollar$HOME",
        "학습 it's",
        *slow_except((), ["plain", "seed=0,lr=0.1", "a b", 'q"t', "학습", "it's"]),
    ],
)
def test_a_printed_command_can_be_pasted_into_a_shell(tmp_path, name):
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pasted('resume', str(tmp_path / name))}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(words) == 1
    done = train_here(tmp_path, *words)
    assert done.stderr == f"error: {tmp_path / name}: there is no run in it (no config.yaml).\n"

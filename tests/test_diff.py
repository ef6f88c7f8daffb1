"""`resnet-lab diff` and `rerun`: what tells runs apart, and how one is made again."""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lab import QUICK, read_result
from PIL import Image
from test_runs import change, make_run, make_sweep

from resnet_lab.cli import main
from resnet_lab.config.errors import UserError
from resnet_lab.data.identity import identity
from resnet_lab.report import sweeps
from resnet_lab.report.catalogue import Catalogue
from resnet_lab.report.differences import compare, difference_interval, letter, newcombe
from resnet_lab.report.reproduction import command, reproduction
from resnet_lab.report.runs import Run
from resnet_lab.run import checkout
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.record import Record
from resnet_lab.run.state import State


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """outputs/, empty; the current folder is the one above."""
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    return Path("outputs")


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What a command prints, by lines."""

    def call(*words: str, status: int = 0) -> list[str]:
        assert main(words) == status
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return call


def read(folder: Path) -> Run:
    return Catalogue([folder]).read()[0]


def told(runs: list[Run]) -> dict[str, dict[str, tuple[str, ...]]]:
    """The lines of `compare` by section and key."""
    return {s.title: {line.key: line.values for line in s.lines} for s in compare(runs)}


# ------------------------------------------------------------------ runs


def test_what_differs_is_told_and_nothing_else(outputs):
    one = make_run(
        outputs / "one",
        "seed=0",
        **{"device_name": "H100", "versions": {"torch": "2.15.0", "lightning": "2.6.6"}},
    )
    two = make_run(
        outputs / "two",
        "seed=1",
        "optimizer.lr=0.05",
        config={"extra": {"a": None}},
        **{"device_name": "A100", "versions": {"torch": "2.14.0", "lightning": "2.6.6"}},
        **{"val/acc": 0.85, "n_train": 900},
    )
    (two / ".hydra" / "hydra.yaml").write_text("hydra:\n    choices:\n      optimizer: adam\n")
    found = told([read(one), read(two)])
    assert list(found["config"])[:2] == ["optimizer", "model"]  # the choices first
    assert found["config"]["optimizer"] == ("sgd", "adam")
    assert found["config"]["optimizer.lr"] == ("0.1", "0.05")
    assert found["config"]["extra.a"] == ("-", "null")
    assert not [key for key in found["config"] if "dir" in key]  # the run's own folder
    assert found["versions"] == {"torch": ("2.15.0", "2.14.0")}
    assert found["machine"] == {"device_name": ("H100", "A100")}
    assert found["data"] == {"n_train": ("-", "900")}
    assert found["figures"]["val/acc"] == ("0.8000", "0.8500 (+0.0500)")
    assert found["figures"]["test/acc"] == ("0.7500", "0.7500")


def test_the_same_run_twice_differs_in_nothing(outputs, lines):
    make_run(outputs / "one")
    make_run(outputs / "two")
    assert "Nothing differs" in " ".join(lines("diff", "one", "two"))


def test_the_interval_of_a_difference(outputs):
    """The first example of Newcombe 1998, table II: 56/70 - 48/80, method 10."""
    low, high = newcombe((48 / 80, 80), (56 / 70, 70))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)
    one, two = (make_run(outputs / name) for name in ("one", "two"))
    change(one, n_test=80)
    assert difference_interval(read(one), read(two), "test") is None  # not the same images
    change(two, n_test=80)
    change(one, **{"test/acc": 1.0})
    change(two, **{"test/acc": 1.0})
    low, high, images = difference_interval(read(one), read(two), "test") or (0.0, 0.0, 0)
    assert images == 80
    assert low == pytest.approx(-high)
    assert 0.02 < high < 0.07  # where the usual formula says that nothing can differ
    change(two, data="cifar10")
    assert difference_interval(read(one), read(two), "test") is None


def test_a_run_in_progress_is_not_told_apart_by_what_is_counted_at_its_end(outputs):
    one = make_run(outputs / "one", n_train=1280, compiled=False)
    two = make_run(outputs / "two", n_train=1294)
    runs = [read(one), read(two)]
    assert told(runs)["data"] == {"n_train": ("1280", "1294")}
    runs[1].state = State.RUNNING
    assert not told(runs).keys() & {"data", "machine"}


def test_code_patches_are_compared_by_file(outputs):
    part = "diff --git a/src/{0} b/src/{0}\n--- a/src/{0}\n+++ b/src/{0}\n@@ -1 +1 @@\n-a\n+{1}\n"
    runs = [make_run(outputs / name, git_commit="a" * 40 + "-dirty") for name in "xyz"]
    (runs[0] / "code.patch").write_text(part.format("m.py", 1) + part.format("same.py", 1))
    (runs[1] / "code.patch").write_text(part.format("m.py", 2) + part.format("same.py", 1))
    change(runs[2], git_commit="b" * 40)
    found = told([read(run) for run in runs])["code"]
    assert found["git commit"] == ("aaaaaaaaaa-dirty", "aaaaaaaaaa-dirty", "bbbbbbbbbb")
    assert found["code.patch"] == ("2 files", "2 files", "-")
    assert found["  src/m.py"] == ("changed, version 1", "changed, version 2", "-")
    assert found["  src/same.py"] == ("changed", "changed", "-")
    (runs[1] / "code.patch").unlink()
    notes = next(s.notes for s in compare([read(run) for run in runs]) if s.title == "code")
    assert "The checkout of B was changed" in notes[-1]


def test_what_cannot_be_compared_is_refused(outputs, lines, tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_lab.commands.diff.MOST_RUNS", 2)
    for n in range(3):
        make_run(outputs / f"r{n}")
    make_sweep(outputs / "sweep")
    Path("there.png").write_text("mine")
    for words, says in (
        (["r0"], "two different"),
        (["r0", "outputs/r0"], "two different"),
        (["r0", "sweep"], "sweeps with sweeps"),
        (["r0", "r1", "r2"], "more than 2"),
        (["r0", "r1", "--png", "there.png"], "there already"),
        (["r0", "nothing"], "no such folder"),
    ):
        with pytest.raises(SystemExit, match=says):
            main(["diff", *words])
    assert [letter(n) for n in (0, 25, 26)] == ["A", "Z", "AA"]


def test_curves_are_overlaid(outputs, lines):
    for name in ("one", "two"):
        make_run(outputs / name)
    lines("diff", "one", "two", "--png", "curves.png")
    with Image.open("curves.png") as picture:
        assert picture.width > 600
    (outputs / "one" / "metrics.csv").unlink()
    (outputs / "two" / "metrics.csv").unlink()
    with pytest.raises(SystemExit, match="no curves yet"):
        main(["diff", "one", "two", "--png", "none.png"])


# ------------------------------------------------------------------ sweeps


def test_sweeps_are_compared_setting_by_setting_over_seeds(outputs, lines):
    first = make_sweep(outputs / "first", "AB", 3)
    second = make_sweep(outputs / "second", "BC", 4)
    for seed, (here, there) in enumerate(((0.80, 0.82), (0.70, 0.73), (0.60, 0.64))):
        change(first / f"shortcut=B,seed={seed}", **{"test/acc": here})
        change(second / f"shortcut=B,seed={seed}", **{"test/acc": there})
    found = sweeps.compare(first, second)
    assert found.keys == ["model.shortcut"]
    assert [row.setting for row in found.matched] == [("B",)]
    assert found.alone == ([("A",)], [("C",)])
    row = found.matched[0]
    assert row.pairs == 3
    assert row.spreads["test"][0].mean == pytest.approx(70)
    change_of = row.change["test"]
    assert change_of.mean == pytest.approx(3)  # over the three seeds that both have
    # 4.30265: the 97.5% point of Student's t for two degrees of freedom.
    assert change_of.high - change_of.mean == pytest.approx(4.30265 * 1 / 3**0.5, rel=1e-4)
    text = "\n".join(lines("diff", "first", "second"))
    assert "+3.00 ± 2.48" in text
    assert "only in A   model.shortcut=A" in text


def test_a_key_that_one_sweep_holds_fixed_is_matched_by_its_value(outputs):
    first = make_sweep(outputs / "first", "AB", 1)
    second = outputs / "second"
    make_run(second / "seed=0", "seed=0", "model.shortcut=B")
    job = {"folder": "seed=0", "overrides": ["seed=0"], "state": "finished"}
    (second / "sweep.json").write_text(json.dumps({"keys": ["seed"], "jobs": [job]}))
    found = sweeps.compare(first, second)
    assert [row.setting for row in found.matched] == [("B",)]
    assert found.alone == ([("A",)], [])


def test_sweeps_without_a_common_seed_are_not_paired(outputs):
    first, second = (make_sweep(outputs / name, "A", 1) for name in ("first", "second"))
    change(second / "shortcut=A,seed=0", seed=7, **{"val/acc": 0.9})
    row = sweeps.compare(first, second).matched[0]
    assert row.pairs == 0
    assert row.change["val"].mean == pytest.approx(10)


# ------------------------------------------------------------------ code.patch


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout that stands for ours, with one commit."""
    top = tmp_path / "checkout"
    (top / "src").mkdir(parents=True)
    (top / "src" / "net.py").write_text("depth = 20\n")
    (top / "src" / "picture.bin").write_bytes(b"\0\1\2")
    (top / ".gitignore").write_text("*.log\n")
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "first")):
        subprocess.run(["git", *words], cwd=top, check=True)
    monkeypatch.setattr(checkout, "APP", top)
    monkeypatch.setattr("resnet_lab.report.reproduction.APP", top)
    return top


def git(top: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=top, check=True, capture_output=True, text=True
    ).stdout


def test_a_patch_brings_the_code_back(repository, tmp_path):
    assert checkout.patch() == ""
    (repository / "src" / "net.py").write_text("depth = 56\n")
    new = repository / "src" / "ein Ordner" / '새 "net".py'
    new.parent.mkdir()
    new.write_text("width = 2\n")
    (repository / "src" / "run.log").write_text("ignored")
    (repository / "notes.txt").write_text("no code")
    (repository / "src" / "picture.bin").write_bytes(b"\0\3")
    (repository / "src" / "large.py").write_text("x" * (checkout.MOST_PATCH + 1))
    for key, value in (
        ("diff.noprefix", "true"),
        ("color.ui", "always"),
        ("diff.external", "false"),
    ):
        git(repository, "config", key, value)
    before = git(repository, "status", "--short")
    patch = checkout.patch()
    assert git(repository, "status", "--short") == before  # the index is as it was
    head = patch.partition("diff --git")[0]
    assert "src/picture.bin (no text)" in head
    assert "src/large.py (new, 1,048,577 bytes)" in head
    assert len(checkout.files_of(patch)) == 2
    again = tmp_path / "again"
    subprocess.run(["git", "clone", "-q", repository, again], check=True)
    (tmp_path / "code.patch").write_text(patch)
    git(again, "apply", str(tmp_path / "code.patch"))
    assert (again / "src" / "net.py").read_text() == "depth = 56\n"
    assert (again / new.relative_to(repository)).read_text() == "width = 2\n"
    assert not (again / "notes.txt").exists()


def test_a_patch_that_is_too_large_is_left_out(repository, monkeypatch):
    monkeypatch.setattr(checkout, "MOST_PATCH", 1000)
    (repository / "src" / "net.py").write_text("depth = 56\n" * 1000)
    patch = checkout.patch()
    assert patch.startswith("# left out: the patch has ")
    assert len(patch) < 200


def test_there_is_no_patch_of_other_checkouts(repository, monkeypatch):
    (repository / "src" / "net.py").write_text("depth = 56\n")
    assert checkout.commit().endswith("-dirty")
    monkeypatch.setattr(checkout, "APP", repository / "src")  # an environment in a checkout
    assert (checkout.commit(), checkout.patch()) == (None, "")
    monkeypatch.setattr(checkout, "APP", repository)
    monkeypatch.setenv("PATH", "")
    assert (checkout.commit(), checkout.patch()) == (None, "")


@pytest.mark.slow
def test_a_run_keeps_the_patch_of_its_code(config, monkeypatch):
    from resnet_lab.run import training

    monkeypatch.setattr(checkout, "patch", lambda: "diff --git a/x b/x\n")
    cfg = config(*QUICK, "trainer.max_epochs=1")
    training.train(cfg)
    assert RunFolder(cfg.run_dir).patch.read_text() == "diff --git a/x b/x\n"


def test_a_resumed_run_keeps_both_patches(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    record: Any = SimpleNamespace(folder=folder)  # of the process that begins or resumes it
    x, y = ("diff --git a/x b/x\n", "diff --git a/y b/y\n")
    for patch, now, earlier in (("", "", ""), (x, x, ""), (x, x, ""), (y, y, x), ("", "", y)):
        monkeypatch.setattr(checkout, "patch", lambda patch=patch: patch)
        Record._write_patch(record)
        for file, text in ((folder.patch, now), (folder.earlier_patch, earlier)):
            assert (file.read_text() if file.exists() else "") == text


# ------------------------------------------------------------------ rerun


def test_the_command_is_quoted_and_is_that_of_the_run_alone(outputs):
    one = make_run(outputs / "one", "seed=1", "data.root=my photos; rm -rf ~")
    words = shlex.split(command(read(one)))
    assert words[0] == "python"
    assert words[1].endswith("train.py")
    assert words[2:] == ["seed=1", "data.root=my photos; rm -rf ~"]
    job = make_sweep(outputs / "first") / "shortcut=A,seed=1"
    change(
        job,
        command="python train.py --config-dir conf model.shortcut=A seed=1 "
        "callbacks.last.pause_after=2 'hydra.run.dir=\"outputs/sweeps/first/shortcut=A,seed=1\"'",
    )
    assert shlex.split(command(read(job)))[2:] == [
        *("--config-dir", "conf", "model.shortcut=A", "seed=1")
    ]
    change(one, command="python mine/go.py seed=1")
    assert command(read(one)).startswith("python mine/go.py seed=1 ")
    (one / ".hydra" / "overrides.yaml").unlink()
    assert command(read(one)) == "python mine/go.py seed=1"
    change(one, command=None)
    (one / "result.json").write_text('{"status": "finished"}')
    with pytest.raises(UserError, match="does not tell how it was begun"):
        command(read(one))


def test_what_has_changed_since_is_told(outputs, repository, lines):
    one = make_run(outputs / "one", versions={"torch": "0.1", "nothing-of-this-name": "1"})
    change(one, git_commit=checkout.commit(), data_identity="1234")
    found = reproduction(read(one))
    assert [c.what for c in found.changes] == ["torch", "nothing-of-this-name"]
    assert found.changes[1].now == "not installed"
    assert found.steps == []
    (repository / "src" / "net.py").write_text("depth = 56\n")
    change(one, git_commit=checkout.commit(), versions={})
    (one / "code.patch").write_text(checkout.patch())
    assert lines("rerun", "one", "--check", status=0)[1].startswith("python")
    git(repository, "checkout", "-q", "src/net.py")
    text = lines("rerun", "one", "--check", status=1)
    short = checkout.commit()[:10]
    assert text[1:3] == [
        f"git -C {repository} checkout {short}",
        f"git -C {repository} apply {one.absolute()}/code.patch",
    ]
    assert "uncommitted changes  1 file  0 files; not the same: src/net.py" in text
    assert "1234" in "\n".join(text)
    assert lines("rerun", "one") == text  # without --check its status is 0


def test_a_folder_from_anybody_is_text_and_nothing_more(outputs, repository, lines, tmp_path):
    evil = f"$(touch {tmp_path}/ran)"
    one = make_run(
        outputs / evil.replace("/", "_"),
        f"data.root={evil}",
        "model=\x1b[2Jx",
        git_commit=f"{evil}\x1b[31m",
        versions={"../../x": evil, "torch\n": [1]},
        command=f"python train.py '{evil}\x1b[0m'",
    )
    (one / "code.patch").symlink_to("/etc/hostname")
    text = "\n".join(lines("rerun", str(one)))
    assert "\x1b" not in text
    assert not (tmp_path / "ran").exists()
    assert shlex.split(text.splitlines()[1])  # whole words for a shell


def test_a_sweep_is_no_run(outputs, lines):
    make_sweep(outputs / "first")
    with pytest.raises(
        SystemExit, match=r"name one of its jobs, as outputs/first/shortcut=A,seed=0"
    ):
        main(["rerun", "first"])


# ------------------------------------------------------------------ data


class Pictures:
    """Forty grey images of ten classes."""

    splits = ("train", "test")
    class_names = tuple("abcdefghij")

    def __init__(self, grey: int = 7, labels: int = 0) -> None:
        self.grey, self.first = grey, labels

    def labels(self, split: str) -> np.ndarray:
        return np.array([self.first, *range(1, 40)]) % 10

    def read(self, split: str, index: int) -> Image.Image:
        if self.grey < 0:
            raise OSError("damaged")
        return Image.new("RGB", (4, 4), (self.grey, index, 0))


def test_equal_data_has_an_equal_identity(finished):
    assert len(read_result(finished)["data_identity"]) == 16
    one: Any = Pictures()
    assert identity(one) == identity(Pictures())
    assert len({identity(p) for p in (one, Pictures(grey=8), Pictures(labels=5))}) == 3
    assert identity(Pictures(grey=-1)) is None

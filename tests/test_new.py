"""The command `new`: a project that is clean, composes, trains, sweeps and passes its own tests."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import CLI, ROOT, read_csv, read_result, train_py, without_torch

TINY = ("experiment=shapes", "data.train_size=320", "trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project in a folder of its own."""
    folder = tmp_path_factory.mktemp("new")
    done = without_torch(folder, "new", "leaves_of_korea", "--title", 'The "leaves"', script=CLI)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["leaves_of_korea"]
    return folder / "leaves_of_korea"


def module(project: Path, *arguments: str | Path) -> str:
    """What `python -m ARGUMENTS` prints in the project; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_files_are_whole_and_clean(project: Path) -> None:
    files = [path for path in project.rglob("*") if path.is_file()]
    assert all(not re.search(r"\{\{|\{%|\.j2|NAME|DOT", path.read_text()) for path in files)
    names = {str(path.relative_to(project)) for path in files}
    assert names >= {".gitignore", "Makefile", "README.md", "train.py", "conf/data/shapes.yaml"}
    content = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert (content["name"], content["description"]) == ("leaves-of-korea", 'The "leaves"')
    assert (project / "README.md").read_text().startswith('# The "leaves"\n')
    module(project, "ruff", "check", "--no-cache", ".")
    module(project, "ruff", "format", "--no-cache", "--check", ".")


def test_train_py_knows_its_configs_and_ours(project: Path) -> None:
    script = str(project / "train.py")
    done = train_py(project, "experiment=shapes", "--cfg", "job", script=script)
    assert "_target_: leaves_of_korea.net.SmallNet" in done.stdout, done.stderr
    assert "_target_: leaves_of_korea.callbacks.WeightNorm" in done.stdout


def test_names_that_no_package_can_have(tmp_path: Path, refused: Callable[..., str]) -> None:
    for name in ("my-nets", "class", "1net", "잎", "Nets", "nets_"):
        assert "a package's name has small letters" in refused("new", name)
    assert "such as my_nets." in refused("new", "my-nets")
    assert "at most 40 letters" in refused("new", "n" * 41)
    assert "every project has something of that name" in refused("new", "conf")
    for name in ("json", "numpy", "resnet_lab"):
        assert f"{name}: there is a module of that name already" in refused("new", f"a/{name}")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "nets").mkdir()
    assert without_torch(tmp_path, "new", "nets", script=CLI).returncode == 0  # it was empty
    (tmp_path / "nets/train.py").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("nets", "file", "link"):
        assert refused("new", name).startswith(f"{name} is there already")
    assert (tmp_path / "nets/train.py").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"nets", "file", "link"}


@pytest.mark.slow
def test_it_trains_sweeps_reports_evaluates_and_tests_as_its_readme_says(project: Path) -> None:
    commands = (project / "README.md").read_text()
    for written in ("python train.py -m", "resnet-lab report", "resnet-lab evaluate", "pytest -q"):
        assert written in commands
    script = str(project / "train.py")

    def train(*words: str) -> None:
        done = train_py(project, *words, *TINY, script=script, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout + done.stderr

    train("hydra.run.dir=run")
    result = read_result(project / "run")
    assert result["status"] == "finished"
    assert result["test/acc"] > 0.5  # a guess has a third
    assert len(read_csv(project / "run/weight_norm.csv")) == 6
    cli = "resnet_lab.cli"
    printed = module(project, cli, "evaluate", "run", "--trust", "leaves_of_korea")
    assert "triangle" in printed

    train("-m", "model.shortcut=true,false", "seed=0,1", "sweep.name=s", "trainer.max_epochs=1")
    sweep = project / "outputs/sweeps/s"
    states = [read_result(path.parent)["status"] for path in sweep.glob("*/result.json")]
    assert states == ["finished"] * 4
    module(project, cli, "report", "outputs/sweeps/s")
    assert len(read_csv(sweep / "report/results.csv")) == 4
    assert "12 passed" in module(project, "pytest", "-q", "-p", "no:cacheprovider")


def test_its_readme_names_what_there_is(project: Path) -> None:
    text = (project / "README.md").read_text()
    for place in re.findall(r"^\| (.+?) \|", text, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", place):
            assert (project / name).exists() or name == "outputs/", name


def test_the_template_is_shipped() -> None:
    """What git ignores is not in a wheel."""
    template = ROOT / "src/resnet_lab/project/template"
    files = [str(path) for path in template.rglob("*.j2")]
    assert files
    ignored = subprocess.run(
        ["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert ignored.returncode in (1, 128), ignored.stdout  # 1: none; 128: no repository

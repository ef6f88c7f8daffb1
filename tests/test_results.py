"""docs/results.md is what the committed files give."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from resnet_lab.report.page import markdown

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", DOCS / "results" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(build):
    return build.page()


def test_the_page_is_what_the_files_give(page):
    assert markdown(page) == (DOCS / "results.md").read_text(), "run `make results`"


def test_its_pictures_are_there(page):
    made = {picture.file for picture in page.pictures}
    assert made == {f"results/{path.name}" for path in (DOCS / "results").glob("*.png")}
    assert made == set(re.findall(r"!\[.+?\]\((.+?)\)", (DOCS / "results.md").read_text()))


def test_a_changed_figure_changes_the_page(build, page, tmp_path, monkeypatch):
    """The page has no figure of its own: another result gives another page."""
    copy = tmp_path / "results"
    shutil.copytree(DOCS / "results", copy)
    result = copy / "shortcuts20" / "shortcut=A,seed=0" / "result.json"
    content = json.loads(result.read_text())
    content["test/acc"] = 0.12345
    result.write_text(json.dumps(content))
    monkeypatch.setattr(build, "HERE", copy)
    changed = markdown(build.page())
    assert "12.35" in changed or "12.34" in changed
    assert changed != markdown(page)


def test_files_are_small_and_tell_nothing_of_the_machine_they_come_from():
    files = [path for path in (DOCS / "results").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".csv", ".png", ".py", ".sh", ".pyc"}
    for path in files:
        assert path.stat().st_size < 500_000, path
        if path.suffix in (".json", ".csv"):
            assert not re.search(r'[" =]/\w+/', path.read_text()), path


@pytest.mark.slow
def test_what_waits_for_a_gpu_runs(build, tmp_path):
    """The command of the page, two batches of each of its nets on digits."""
    words = shlex.split(build.FOR_A_GPU)
    assert words[:2] == ["python", "train.py"]
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "train.py"), *words[2:], "seed=choice(0)"),
            *("data=digits", "trainer.fast_dev_run=2", "sweep.jobs=1", "trainer.accelerator=cpu"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall("^finished ", done.stdout, re.MULTILINE)) == 11

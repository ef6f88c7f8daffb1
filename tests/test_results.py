"""docs/results.md: its tables are what the committed files give."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

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


def test_the_tables_are_what_the_files_give(build):
    page = (DOCS / "results.md").read_text()
    assert build.filled(page) == page, "run `make results`"


def test_its_pictures_are_there():
    shown = re.findall(r"!\[.+?\]\(results/(.+?)\)", (DOCS / "results.md").read_text())
    assert set(shown) == {path.name for path in (DOCS / "results").glob("*.png")}


def test_files_are_small_and_name_no_place_of_a_machine():
    files = [path for path in (DOCS / "results").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".csv", ".png", ".py", ".sh", ".pyc"}
    for path in files:
        assert path.stat().st_size < 500_000, path
        if path.suffix in (".json", ".csv"):
            assert not re.search(r'[" =]/\w+/', path.read_text()), path


@pytest.mark.slow
def test_what_waits_for_a_gpu_runs(tmp_path):
    """The command of the page, two batches of each of its nets on digits."""
    page = (DOCS / "results.md").read_text()
    (command,) = re.findall(r"^python train.py .*he2015/resnet110,.*$", page, re.MULTILINE)
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "train.py"), *shlex.split(command)[2:], "seed=choice(0)"),
            *("data=digits", "trainer.fast_dev_run=2", "sweep.jobs=1", "trainer.accelerator=cpu"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall("^finished ", done.stdout, re.MULTILINE)) == 11

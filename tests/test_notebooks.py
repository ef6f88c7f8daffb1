"""The notebooks run from the first cell to the last, in a folder of their own."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lab import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def text_of(cell: dict[str, Any]) -> str:
    """What a cell has printed."""
    return "".join("".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_is_of_this_project_alone(path):
    """Its outputs were made by running it: no error, and no folder of the machine that ran it."""
    cells = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells[1:])
    shown = json.dumps([cell["outputs"] for cell in cells])
    assert '"output_type": "error"' not in shown
    assert not re.findall(r"(?<![\w:/<.])/(?:home|root|tmp|usr|work|Users)/", shown)


def test_both_languages_do_the_same():
    kinds = [[cell["id"] for cell in json.loads(p.read_text("utf-8"))["cells"]] for p in NOTEBOOKS]
    assert kinds[0] == kinds[1]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the clients, not of the notebook
def test_a_notebook_runs(path: Path, tmp_path: Path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, 4)
    place = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    cells = {cell["id"]: cell for cell in notebook.cells if cell["cell_type"] == "code"}
    with_skip, without = (
        float(number) for number in re.findall(r"([\d.]+) %", text_of(cells["result-c"]))
    )
    assert with_skip > without + 10
    assert text_of(cells["save-c"]).strip() == "True"
    assert len(list((tmp_path / "outputs" / "runs").glob("*/*/result.json"))) == 2

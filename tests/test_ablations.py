"""Experiments that are sweeps: `-m experiment=ablation/...` alone runs the whole grid."""

import functools
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
import pytest
from lab import CONF, QUICK, read_result, slow_except, train_here, train_py
from omegaconf import OmegaConf

from resnet_lab.config.compose import VERSION_BASE
from resnet_lab.config.messages import composition_errors
from resnet_lab.sweep import sweep
from resnet_lab.sweep.job import Job

ABLATIONS = sorted(path.stem for path in (CONF / "experiment" / "ablation").glob("*.yaml"))


class Planned:
    """What the command line's sweep would run: its folder, keys and jobs by their names."""

    def __init__(self, folder: Path, keys: list[str], jobs: list[Job]) -> None:
        self.folder = folder
        self.keys = keys
        self.jobs = {job.name: job for job in jobs}


@functools.cache
def planned(*overrides: str) -> Planned:
    """The sweep of `train.py -m OVERRIDES` as composed and checked, once; none of it is run."""
    found = []

    def compose(master: Any, loader: Any, overrides: Any, make_executor: Any) -> None:
        grid = sweep.Grid(master, loader, overrides)
        jobs = [record.job for record in grid.records]
        found.append(Planned(Path(master.hydra.sweep.dir), grid.keys, jobs))

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as empty:
        patch.chdir(empty)
        patch.setattr(sweep, "run_grid", compose)
        patch.setattr(sys, "argv", ["train.py", "-m", *overrides])
        with composition_errors():
            hydra.main(str(CONF), "train", **VERSION_BASE)(lambda cfg: None)()
    return found.pop()


def names(**values: str) -> list[str]:
    """The folders of the whole grid, one seed: names(a="1,2") is a=1,seed=0 and a=2,seed=0."""
    found = [""]
    for key, listed in values.items():
        found = [f"{name}{key}={value}," for name in found for value in listed.split(",")]
    return [name + "seed=0" for name in found]


GRIDS = {
    "depth": names(model="resnet20,resnet32,resnet44,resnet56", shortcut="A,none"),
    "batchnorm": names(norm="batch,none", lr="0.003,0.01,0.03,0.1,0.3"),
    "shortcuts": names(shortcut="A,B,C,none"),
    "stem": names(stem="cifar,imagenet"),
    "batch_size": names(batch_size="32,128,512,2048", lr_rule="fixed,scaled"),
}


@pytest.mark.parametrize("name", slow_except(("depth",), ABLATIONS))
def test_an_ablation_alone_is_the_whole_grid(name):
    sweep = planned(f"experiment=ablation/{name}")
    assert list(sweep.jobs) == GRIDS[name]
    assert sweep.folder == Path("outputs", "sweeps", name)
    for job in sweep.jobs.values():
        assert f"experiment=ablation/{name}" in job.overrides


def test_each_job_is_what_its_name_says():
    jobs = planned("experiment=ablation/depth").jobs
    plain = jobs["model=resnet56,shortcut=none,seed=0"].config
    assert (plain["model"]["depth"], plain["model"]["shortcut"]) == (56, "none")
    jobs = planned("experiment=ablation/batchnorm").jobs
    without = jobs["norm=none,lr=0.03,seed=0"].config
    assert (without["model"]["norm"], without["optimizer"]["lr"]) == ("none", 0.03)


def test_the_command_line_replaces_what_an_ablation_sweeps():
    sweep = planned("experiment=ablation/depth", "model=resnet20", "seed=0,1,2")
    assert sweep.keys == ["model.shortcut", "seed"]
    assert list(sweep.jobs) == [f"shortcut={s},seed={n}" for s in ("A", "none") for n in range(3)]
    assert all(job.config["model"]["depth"] == 20 for job in sweep.jobs.values())
    sweep = planned(
        "experiment=ablation/shortcuts", "model.shortcut=B,C", "model=resnet56,resnet32"
    )
    assert list(sweep.jobs) == [
        f"shortcut={s},seed=0,model={m}" for s in "BC" for m in ("resnet56", "resnet32")
    ]


def test_the_learning_rate_follows_the_batch_only_where_it_is_scaled():
    jobs = planned("experiment=ablation/batch_size").jobs.values()
    assert {(job.swept["lr_rule"], job.swept["data.batch_size"]) for job in jobs} == set(
        itertools.product(("fixed", "scaled"), ("32", "128", "512", "2048"))
    )
    for job in jobs:
        config = OmegaConf.create(job.config)
        rule, batch_size = config.lr_rule, config.data.batch_size
        expected = 0.1 if rule == "fixed" else 0.1 * batch_size / 128
        assert config.optimizer.lr == pytest.approx(expected)
        config.data.batch_size = 96  # one that is in no list
        assert config.optimizer.lr == pytest.approx({"fixed": 0.1, "scaled": 0.075}[rule])


@pytest.mark.parametrize(
    ("overrides", "left"),
    [
        (["experiment=ablation/depth", "model=resnet32"], "model.shortcut, seed"),
        pytest.param(
            ["-m", "experiment=ablation/stem,ablation/depth", "seed=0"],
            "model.stem",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_sweep_that_is_run_as_something_else_says_so(tmp_path, overrides, left):
    done = train_here(tmp_path, *overrides)
    assert done.returncode == 1
    assert f"This experiment is a sweep over {left}: run it by itself with -m" in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_an_ablation_really_runs_and_goes_on_with_more_seeds(tmp_path, shared_cache):
    tiny = (*QUICK, "data=digits", "trainer.max_epochs=1", f"data.cache_dir={shared_cache}")
    command = ("-m", "experiment=ablation/shortcuts", *tiny)
    done = train_py(tmp_path, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    done = train_py(tmp_path, *command, "seed=0,1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 jobs, 4 finished before, 4 to run" in done.stdout
    folder = tmp_path / "outputs" / "sweeps" / "shortcuts"
    record = json.loads((folder / "sweep.json").read_text())
    assert record["keys"] == ["model.shortcut", "seed"]
    assert {job["state"] for job in record["jobs"]} == {"finished"}
    parameters = {
        shortcut: read_result(folder / f"shortcut={shortcut},seed=1")["params"]
        for shortcut in ("A", "B", "C", "none")
    }
    assert parameters["none"] == parameters["A"] < parameters["B"] < parameters["C"]

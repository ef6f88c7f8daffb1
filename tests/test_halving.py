"""`sweep.halving`: which settings go on, and that those which do end as they would have anyway."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import without_torch
from omegaconf import DictConfig, OmegaConf

from resnet_lab.report.write import report
from resnet_lab.run import checkpoint_io, training
from resnet_lab.run.state import State
from resnet_lab.run.stop import Paused
from resnet_lab.sweep import grid, halving, ledger, plan
from resnet_lab.sweep.halving import Halving, kept, ranking, rungs
from resnet_lab.sweep.job import Job, JobRecord

ROOT = Path(__file__).resolve().parents[1]

# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("max_epochs", "factor", "n_settings", "expected"),
    [
        (9, 3, 9, [1, 3, 9]),
        (10, 3, 9, [2, 4, 10]),
        (9, 3, 10, [1, 3, 9]),  # a third of an epoch is a whole one, too
        (100, 3, 10, [4, 12, 34, 100]),
        (625, 5, 125, [5, 25, 125, 625]),
        (20, 2.5, 6, [4, 8, 20]),
        (2, 3, 18, [1, 2]),
        (9, 3, 1, [9]),
        (1, 3, 9, [1]),
    ],
)
def test_rungs(max_epochs, factor, n_settings, expected):
    assert rungs(max_epochs, factor, n_settings) == expected


@pytest.mark.parametrize(
    ("n", "factor", "expected"), [(9, 3, 3), (10, 3, 4), (2, 3, 1), (1, 3, 1), (6, 2.5, 3)]
)
def test_how_many_go_on(n, factor, expected):
    assert kept(n, factor) == expected


def test_settings_are_ranked_by_the_mean_over_their_seeds():
    assert ranking([[0.5, 0.7], [0.9, 0.1], [0.8, 0.6]]) == [2, 0, 1]


def test_of_equals_the_first_of_the_grid_comes_first():
    assert ranking([[0.7, 0.6], [0.8, 0.8], [0.6, 0.7], [0.8, 0.8]]) == [1, 3, 0, 2]


def test_a_failed_job_puts_its_setting_behind_all_that_have_none():
    assert ranking([[None, 0.9], [None, None], [0.1, 0.1], [0.8, None]]) == [2, 0, 3, 1]


# ---------------------------------------------------------------- states, from folders


class Grid:
    """Jobs whose training only writes what halving reads: `figures` are those of every epoch."""

    def __init__(self, folder: Path, epochs: int, **figures: list[list[float]]) -> None:
        self.folder, self.epochs = folder, epochs
        self.figures = {
            f"{name},seed={seed}": of_a_seed
            for name, seeds in figures.items()
            for seed, of_a_seed in enumerate(seeds)
        }
        self.trained: Counter[str] = Counter()  # epochs
        self.failing: set[str] = set()

    def jobs(self) -> list[JobRecord]:
        """As a new command finds them."""
        found = []
        for name in self.figures:
            setting, seed = name.split(",seed=")
            swept = {"k": setting, "seed": seed}
            job = Job(self.folder / name, (), swept, {}, 1, True, self.epochs)
            found.append(JobRecord(job))
        ledger.refresh(found, ["k", "seed"], [], force=False)
        return found

    def train(self, job: JobRecord) -> None:
        ledger.prepare(job)
        ledger.begin(job)
        path = job.folder / "metrics.csv"
        lines = path.read_text().splitlines() if path.exists() else ["epoch,val/acc"]
        done = len(lines) - 1
        until = job.rung or self.epochs
        for epoch in range(done + 1, until + 1):
            if job.name in self.failing:
                break
            lines.append(f"{epoch},{self.figures[job.name][epoch - 1]}")
            self.trained[job.name] += 1
        path.write_text("\n".join(lines) + "\n")
        (job.folder / "config.yaml").touch()
        (job.folder / "checkpoints").mkdir(exist_ok=True)
        (job.folder / "checkpoints" / "last.ckpt").touch()
        status = "failed" if job.name in self.failing else "paused" if job.rung else "finished"
        (job.folder / "result.json").write_text(json.dumps({"status": status}))
        ledger.end(job, 1 if status == "failed" else 0, 1.0, stopping=False)

    def run(self, factor: float, most: int | None = None) -> dict[str, str]:
        """Run the jobs, or `most` of them before the sweep is killed; the state of each."""
        jobs = self.jobs()
        source = Halving(jobs, factor)
        waiting = [job for job in jobs if job.state == "waiting"]
        while waiting or (waiting := source.more()):
            if most == 0:
                break
            most = None if most is None else most - 1
            self.train(waiting.pop(0))
        return {job.name: job.state for job in jobs}


def steady(*levels: float, epochs: int = 9) -> list[list[float]]:
    return [[level] * epochs for level in levels]


@pytest.fixture
def nine(tmp_path) -> Grid:
    """Nine settings; e is best in the end, but h after the first epoch."""
    figures = {name: steady(0.1 * n) for n, name in enumerate("abcdefgi", 1)}
    figures["e"] = [[0.85, 0.85, *[0.9] * 7]]
    figures["h"] = [[0.95, *[0.5] * 8]]
    return Grid(tmp_path, 9, **figures)


def test_the_best_third_goes_on_from_rung_to_rung(nine):
    states = nine.run(3)
    assert [name for name, state in states.items() if state == "finished"] == ["e,seed=0"]
    assert Counter(states.values()) == {"pruned": 8, "finished": 1}
    epochs = {name.partition(",")[0]: n for name, n in nine.trained.items()}
    assert epochs == dict.fromkeys("abcdfg", 1) | {"h": 3, "i": 3, "e": 9}


@pytest.mark.parametrize("most", range(13))
def test_killed_anywhere_it_goes_on_and_decides_the_same(nine, most):
    nine.run(3, most)
    states = nine.run(3)
    assert [name for name, state in states.items() if state == "finished"] == ["e,seed=0"]
    assert sum(nine.trained.values()) == 6 * 1 + 2 * 3 + 9


def test_a_job_that_waits_for_others_is_paused(nine):
    states = nine.run(3, 4)
    assert Counter(states.values()) == {"paused": 4, "waiting": 5}


def test_all_seeds_of_a_setting_go_on_or_none(tmp_path):
    one = Grid(tmp_path, 4, a=steady(0.9, 0.1), b=steady(0.6, 0.6), c=steady(0.2, 0.3))
    states = one.run(3)
    assert [name for name, state in states.items() if state == "finished"] == [
        "b,seed=0",
        "b,seed=1",
    ]
    assert [one.trained[f"{name},seed={n}"] for name in "abc" for n in (0, 1)] == [2, 2, 4, 4, 2, 2]


def test_a_failure_ranks_last_and_the_same_command_tries_it_again(tmp_path):
    one = Grid(tmp_path, 4, a=steady(0.9, 0.9), b=steady(0.6, 0.6), c=steady(0.2, 0.3))
    one.failing.add("a,seed=1")
    assert list(one.run(3).values()) == ["pruned", "failed", *["finished"] * 2, *["pruned"] * 2]
    one.failing.clear()
    assert list(one.run(3).values()) == [*["finished"] * 4, *["pruned"] * 2]
    assert one.trained["a,seed=0"] == one.trained["a,seed=1"] == 4


def test_a_failure_of_a_later_rung_changes_no_earlier_decision(nine):
    jobs = nine.jobs()
    source = Halving(jobs, 3)
    for job in jobs:
        nine.train(job)
    second = source.more()
    nine.failing.add("e,seed=0")
    for job in second:
        nine.train(job)
    (last,) = source.more()
    assert last.name == "i,seed=0"  # of the three, by what they had after three epochs
    nine.train(last)
    assert source.more() == []
    assert [job.name for job in jobs if job.state == "failed"] == ["e,seed=0"]
    assert sum(job.state == "pruned" for job in jobs) == 7


def test_where_all_fail_nothing_goes_on(tmp_path):
    one = Grid(tmp_path, 4, a=steady(0.9), b=steady(0.6))
    one.failing |= set(one.figures)
    assert set(one.run(2).values()) == {"failed"}


def test_another_factor_counts_what_is_there(nine):
    nine.run(3)
    nine.trained.clear()
    states = nine.run(2)  # rungs of 1, 2, 3, 5 and 9 epochs
    assert Counter(states.values()) == {"pruned": 8, "finished": 1}
    epochs = {name.partition(",")[0]: n for name, n in nine.trained.items()}
    assert epochs == {"f": 1, "g": 2, "i": 2}  # from where each of them was


def test_a_new_setting_joins_by_the_same_rule(nine):
    nine.run(3)
    nine.trained.clear()
    nine.figures |= {"x,seed=0": [0.99] * 9, "y,seed=0": [0.0] * 9}
    states = nine.run(3)
    assert states["x,seed=0"] == states["e,seed=0"] == "finished"
    assert states["y,seed=0"] == "pruned"
    assert nine.trained["x,seed=0"] == 9
    assert nine.trained["y,seed=0"] == 1


def test_without_halving_the_cut_jobs_go_on(nine):
    nine.run(3)
    jobs = nine.jobs()
    assert Counter((job.state, job.resume) for job in jobs) == {
        ("waiting", True): 8,
        ("finished", False): 1,
    }
    assert not any("pause_after" in argument for argument in ledger.prepare(jobs[0]))
    jobs[1].rung = 9
    assert "callbacks.last.pause_after=9" in ledger.prepare(jobs[1])


def test_what_begins_anew_has_no_figures_yet(nine):
    nine.run(3)
    jobs = nine.jobs()
    for job in jobs:  # as sweep.force=true leaves jobs whose settings have changed
        job.state, job.resume = State.WAITING, False
    assert Halving(jobs, 3).ahead == [(1, 9), (3, 3), (9, 1)]
    assert {(job.state, job.rung) for job in jobs} == {("waiting", 1)}


def test_a_run_that_ended_by_itself_counts_with_its_last_figure(tmp_path):
    one = Grid(tmp_path, 9, a=steady(0.9), b=steady(0.5), c=steady(0.4))
    (early, *_) = one.jobs()
    early.rung = 2
    one.train(early)
    (early.folder / "result.json").write_text('{"status": "finished"}')  # by early stopping
    assert list(one.run(3).values()) == ["finished", "pruned", "pruned"]
    assert one.trained["b,seed=0"] == 3


def test_why_a_job_was_cut_is_told(nine, capsys):
    jobs = nine.jobs()
    source = Halving(jobs, 3)
    for job in jobs:
        nine.train(job)
    source.more()
    assert jobs[0].error == (
        "cut at the rung of 1 epoch: place 9 of 9 settings by validation accuracy"
    )
    assert "the rung of 1 epoch: 3 of 9 settings continue" in capsys.readouterr().out


def test_the_share_of_a_plan_is_what_training_takes(nine):
    jobs = nine.jobs()
    source = Halving(jobs, 3)
    # 9 train for an epoch, 3 for two more, 1 for six more.
    assert 9 * sum(map(source.share, jobs)) == pytest.approx(9 + 6 + 6)
    nine.run(3, 11)  # the first rung, and two of the three jobs of the second
    jobs = nine.jobs()
    source = Halving(jobs, 3)
    assert source.ahead == [(3, 3), (9, 1)]
    assert 9 * sum(map(source.share, jobs)) == pytest.approx(2 + 6)


# ---------------------------------------------------------------- what is refused

TINY = (
    *("model=cifar_resnet", "model.depth=8", "model.width=0.25", "trainer.accelerator=cpu"),
    *("trainer.precision=32", "compile=false", "data.train_size=256", "data.batch_size=64"),
)


def described(config: Any, *overrides: str, folder: str = "j") -> Job:
    cfg: DictConfig = config(*TINY, *overrides)
    kept_part = {k: v for k, v in cfg.items_ex(resolve=False) if k not in grid.NOT_IDENTITY}
    content: Any = OmegaConf.to_container(OmegaConf.create(kept_part))
    epochs = cfg.trainer.max_epochs if (cfg.trainer.max_epochs or -1) > 0 else None
    return Job(Path(folder), (), {"seed": "0"}, content, 1, True, epochs)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["trainer.max_epochs=-1", "trainer.max_steps=9"], "length must be counted in epochs"),
        (["trainer.max_steps=9"], "length must be counted in epochs"),
        (["trainer.fast_dev_run=true"], "length must be counted in epochs"),
        (["data.val_size=0"], "there is no validation"),
        (["trainer.limit_val_batches=0"], "there is no validation"),
        (["trainer.check_val_every_n_epoch=2"], "a validation at the end of each epoch"),
        (["callbacks=[epoch_log]"], "needs callbacks.last"),
    ],
)
def test_jobs_that_cannot_be_compared_are_refused(config, overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        halving.check([described(config), described(config, *overrides)])
    assert "\n" not in str(refusal.value)


def test_jobs_of_different_lengths_are_refused(config):
    jobs = [described(config, f"trainer.max_epochs={n}") for n in (3, 4, 3)]
    with pytest.raises(ValueError, match="one value, not 3, 4"):
        halving.check(jobs)
    halving.check(jobs[:1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sweep.halving=1"], "sweep.halving=1: must be a number of 2 or more, or null"),
        pytest.param(
            ["sweep.halving=three"],
            "sweep.halving=three: must be a number of 2 or more",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["sweep.halving=2,3"],
            "sweep.halving: belongs to the sweep as a whole",
            marks=pytest.mark.slow,
        ),
        (["sweep.halving=3", "data.val_size=0"], "sweep.halving: chooses by validation"),
        pytest.param(
            ["sweep.halving=3", "hydra/sweeper=optuna"],
            "sweep.halving: is for grids",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_mistaken_wish_gets_one_sentence_and_leaves_nothing(tmp_path, arguments, sentence):
    if "hydra/sweeper=optuna" in arguments:
        pytest.importorskip("optuna", reason="the extra [optuna] is not installed")
    done = without_torch(tmp_path, "-m", "seed=0,1", *TINY, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- real runs


def outcome(run_dir: Path) -> dict[str, Any]:
    last = checkpoint_io.load(run_dir / "checkpoints" / "last.ckpt")
    best = checkpoint_io.load(run_dir / "checkpoints" / "best.ckpt")
    with (run_dir / "metrics.csv").open(newline="") as file:
        names = ("epoch", "step", "lr", "train/loss", "train/acc", "val/loss", "val/acc")
        rows = [[row[name] for name in names] for row in csv.DictReader(file)]
    result = json.loads((run_dir / "result.json").read_text())
    figures = ("status", "epochs", "steps", "best_epoch", "val/acc", "test/loss", "test/acc")
    return {
        "rows": rows,
        "result": [result[name] for name in figures],
        "weights": {
            **last["state_dict"],
            **{f"best {k}": v for k, v in best["state_dict"].items()},
        },
        "momentum": last["optimizer_states"][0]["state"],
    }


def same(one: Any, two: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else bool(one == two)


@pytest.mark.slow
def test_a_run_that_pauses_at_its_rungs_ends_as_it_would_have(config, tmp_path):
    wishes = (*TINY, "trainer.max_epochs=4", "callbacks=[default,ema]")
    training.train(config(*wishes, f"run_dir={tmp_path}/whole"))
    halved = tmp_path / "halved"
    cfg = config(*wishes, f"run_dir={halved}")
    for rung in (1, 2):
        cfg.callbacks.last.pause_after = rung
        with pytest.raises(Paused) as end:
            training.train(cfg)
        assert end.value.code == 0
        result = json.loads((halved / "result.json").read_text())
        assert (result["status"], result["epochs"], result["steps"]) == ("paused", rung, 4 * rung)
        assert "test/acc" not in result
        cfg = OmegaConf.load(halved / "config.yaml")
        cfg.resume = str(halved)
    # By hand it goes on to the end: it is past its rung.
    training.train(cfg)
    assert same(outcome(halved), outcome(tmp_path / "whole"))


GRID = (*TINY, "trainer.max_epochs=4", "optimizer.lr=0.3,0.1,1e-4")


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # sums round alike, however many jobs are left


def sweep_command(cache: Path, *overrides: str) -> list[str]:
    command = [sys.executable, str(ROOT / "train.py"), "-m", "sweep.name=s", *GRID]
    return [*command, f"data.cache_dir={cache}", *overrides]


def sweep(folder: Path, cache: Path, *overrides: str) -> str:
    done = subprocess.run(
        sweep_command(cache, *overrides),
        cwd=folder,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    jobs = json.loads((folder / "outputs" / "sweeps" / "s" / "sweep.json").read_text())["jobs"]
    return {job["folder"]: job for job in jobs}


@pytest.mark.slow
def test_a_halved_sweep_of_real_runs(tmp_path, shared_cache):
    said = sweep(tmp_path, shared_cache, "sweep.halving=3")
    jobs = listed(tmp_path)
    folder = tmp_path / "outputs" / "sweeps" / "s"
    reached = {}
    for name in jobs:
        with (folder / name / "metrics.csv").open(newline="") as file:
            reached[name] = [float(row["val/acc"]) for row in csv.DictReader(file)][1]
    best = max(reached, key=reached.__getitem__)
    assert {name: job["state"] for name, job in jobs.items()} == {
        name: "finished" if name == best else "pruned" for name in ("lr=0.3", "lr=0.1", "lr=0.0001")
    }
    assert said.count("started ") == 3 + 1
    assert "the rung of 2 epochs: 1 of 3 settings continue" in said
    for name, job in jobs.items():
        result = json.loads((folder / name / "result.json").read_text())
        cut = job["state"] == "pruned"
        assert ("test/acc" not in result) == cut
        assert result["epochs"] == (2 if cut else 4)
    page = (report([folder], tmp_path / "report") / "report.html").read_text()
    assert "cut at the rung of 2 epochs: place 3 of 3 settings by validation accuracy" in page
    again = sweep(tmp_path, shared_cache, "sweep.halving=3")
    assert "0 to run" in again


def test_a_plan_counts_the_rungs(nine, monkeypatch, capsys):
    nine.run(3)  # e is finished; the others are cut, and would train on without halving
    records = nine.jobs()
    for record in records:
        record.job = replace(record.job, config={"optimizer": {"_target_": "torch.optim.SGD"}})
    (finished,) = (record for record in records if record.state is State.FINISHED)
    (finished.folder / "result.json").write_text('{"status": "finished", "seconds": 900}')
    cost = {"params": 1, "macs": 1.0, "batch": 1, "steps": 900, "eval_images": 0}
    monkeypatch.setattr(plan, "_measure", lambda records: [cost] * 9)
    plan.plan(records)
    assert "8 of 9 jobs to run: about 2:00:00" in capsys.readouterr().out
    finished.state = State.WAITING
    for record in records:
        record.resume = False
    source = Halving(records, 3)
    finished.state = State.FINISHED
    plan.plan(records, source)
    said = capsys.readouterr().out
    # 21 of 81 epochs, of which one in nine has been trained.
    assert "8 of 9 jobs to run: about 31:07" in said
    assert "9 to epoch 1, 3 to epoch 3, 1 to epoch 9" in said


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_and_continued_survivors_are_those_of_the_whole_sweep(
    tmp_path, shared_cache, figure, devices
):
    wishes = ("seed=0,1", f"trainer.devices={devices}", f"sweep.jobs={3 - devices}")
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    whole.mkdir()
    halved.mkdir()
    sweep(whole, shared_cache, *wishes)
    command = sweep_command(shared_cache, *wishes, "sweep.halving=2")
    jobs = halved / "outputs" / "sweeps" / "s"
    kills = 0
    # In the first rung, in the second, and in the last.
    for attempts in (2, 7, 11):
        process = subprocess.Popen(
            command,
            cwd=halved,
            env=ONE_THREAD,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + 900
        while process.poll() is None:
            told = [json.loads(path.read_text()) for path in jobs.glob("*/sweep_job.json")]
            if sum(len(one["attempts"]) for one in told) >= attempts:
                break
            assert time.monotonic() < until
            time.sleep(0.1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    sweep(halved, shared_cache, *wishes, "sweep.halving=2")
    states = Counter(job["state"] for job in listed(halved).values())
    assert states == {"pruned": 4, "finished": 2}
    epochs = {
        name: len((jobs / name / "metrics.csv").read_text().splitlines()) - 1
        for name in listed(halved)
    }
    assert sorted(epochs.values()) == [1, 1, 2, 2, 4, 4]
    survivors = [name for name, n in epochs.items() if n == 4]
    for name in survivors:
        assert same(outcome(jobs / name), outcome(whole / "outputs" / "sweeps" / "s" / name)), name
    # Without halving those that were cut go on, and end as if it had never been.
    sweep(halved, shared_cache, *wishes)
    for name in epochs:
        assert same(outcome(jobs / name), outcome(whole / "outputs" / "sweeps" / "s" / name)), name
    figure(
        f"a halved sweep on {devices} device(s): kills, survivors bit for bit those of the whole",
        f"{kills}, {len(survivors)} of {len(survivors)}",
    )
    figure("its cut jobs, gone on with without halving, bit for bit", f"{len(epochs) - 2}")

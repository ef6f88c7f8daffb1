"""A search with Optuna: what is searched, trials that survive a kill, pruning, the report of it."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from sandbox import ROOT, Sandbox, wait_until

from resnet_lab.report.runs import read
from resnet_lab.report.search import Objective, importance
from resnet_lab.report.write import report
from resnet_lab.run import training
from resnet_lab.study import STORAGE
from resnet_lab.sweep import search

optuna = pytest.importorskip("optuna", reason="the extra [optuna] is not installed")
from optuna.distributions import (  # noqa: E402
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState  # noqa: E402

LR = "optimizer.lr=tag(log,interval(1e-3,1))"
SPACE = (LR, "model.shortcut=A,none", "seed=0")
# The last four are chosen by those before them, not at random.
EIGHT = (
    "sweep.jobs=1",
    "hydra.sweeper.n_trials=8",
    "hydra.sweeper.sampler_options={n_startup_trials: 4}",
)


class SearchSandbox(Sandbox):
    """A sandbox of searches."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "hydra/sweeper=optuna")

    def trials(self) -> list:
        url = f"sqlite:///{self.sweep}/study.db"
        return optuna.load_study(study_name="s", storage=url).get_trials()

    def trial_starts(self) -> Counter[str]:
        """How often each trial was started, or resumed."""
        counts: Counter[str] = Counter()
        for line, n in self.starts().items():
            trial = line.partition(",")[0].partition(" ")[0]
            counts[trial + (" resumed" if line.endswith(" resumed") else "")] += n
        return counts


def space(*overrides: str) -> dict:
    parser = OverridesParser.create()
    return search.spaces(parser.parse_overrides(list(overrides)))


# ---------------------------------------------------------------- what is searched


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lr=interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("lr=tag(log,interval(1e-3,1))", FloatDistribution(1e-3, 1.0, log=True)),
        ("n=int(interval(1,5))", IntDistribution(1, 5)),
        ("n=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("n=range(1,10,2)", IntDistribution(1, 9, step=2)),
        ("n=range(5,1,-1)", IntDistribution(2, 5)),
        ("x=range(0.5,2,0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("x=choice(0.5,1.0)", CategoricalDistribution(["0.5", "1.0"])),
        ("model=resnet20,resnet32", CategoricalDistribution(["resnet20", "resnet32"])),
        ("x=shuffle(choice(b,a))", CategoricalDistribution(["b", "a"])),
        ("d=choice([1,2],[3])", CategoricalDistribution(["[1,2]", "[3]"])),
    ],
)
def test_hydras_syntax_becomes_a_space(override, expected):
    (found,) = space(override).values()
    assert found == expected


def test_a_space_that_cannot_be_is_one_sentence():
    with pytest.raises(ValueError, match=r"^lr=tag\(log,interval\(0,1\)\): .*low.*"):
        space("lr=tag(log,interval(0,1))")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["seed=0"], "The search is empty"),
        ([LR, "hydra.sweeper.sampler=best"], "must be one of tpe, random, gp, nsgaii"),
        ([LR, "hydra.sweeper.sampler_options={luck: 7}"], "see optuna's TPESampler"),
        pytest.param(
            [LR, "hydra.sweeper.n_trials=0"], "a whole number of 1 or more", marks=pytest.mark.slow
        ),
        ([LR, "hydra.sweeper.objectives=[test/acc]"], "the test set is no judge"),
        pytest.param(
            [LR, "hydra.sweeper.objectives=[val/acc,train_seconds]"],
            "for each of",
            marks=pytest.mark.slow,
        ),
        (
            [LR, "hydra.sweeper.objectives=[train_seconds]", "hydra.sweeper.pruner=median"],
            "needs one objective that every validation measures",
        ),
        pytest.param([LR, "sweep.plan=true"], "is for grids", marks=pytest.mark.slow),
        pytest.param([LR, "sweep.jobs=1,2"], "takes one value in a search", marks=pytest.mark.slow),
        pytest.param(
            [LR, "model=resnet20,resnet2"],
            "model=resnet2: there is no such choice",
            marks=pytest.mark.slow,
        ),
        ([LR, "optimizer.momentum=choice(0.9,1.5)"], "optimizer.momentum=1.5: must be"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_runs(tmp_path, overrides, sentence):
    bench = SearchSandbox(tmp_path)
    assert sentence in bench.mistake(*overrides)
    assert not (tmp_path / "outputs").exists()


# ---------------------------------------------------------------- trials


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> SearchSandbox:
    bench = SearchSandbox(tmp_path_factory.mktemp("undisturbed"))
    done = bench.run(*SPACE, *EIGHT)
    assert done.returncode == 0, done.stderr
    return bench


def test_a_trial_that_fails_ends_nothing(undisturbed):
    trials = undisturbed.trials()
    assert len(trials) == 8
    failed = [trial.params["optimizer.lr"] > 0.5 for trial in trials]
    assert any(failed)
    assert [trial.state == TrialState.FAIL for trial in trials] == failed
    assert [state == "failed" for state in undisturbed.states().values()] == failed
    for trial in trials:
        if trial.value is not None:
            assert trial.value == pytest.approx(0.5 - abs(trial.params["optimizer.lr"] - 0.1))


def test_a_trials_folder_has_its_number_and_values(undisturbed):
    for trial in undisturbed.trials():
        rate = trial.params["optimizer.lr"]
        name = f"trial={trial.number:04d},lr={rate:.4g},shortcut={trial.params['model.shortcut']}"
        told = json.loads((undisturbed.sweep / name / "sweep_job.json").read_text())
        assert float(told["swept"]["optimizer.lr"]) == rate
        assert told["config"]["optimizer"]["lr"] == rate


@pytest.mark.slow
@pytest.mark.parametrize("at_the_end", ["finish", "save"])
def test_killed_and_continued_it_is_the_undisturbed_search(undisturbed, tmp_path, at_the_end):
    bench = SearchSandbox(tmp_path)
    wishes = (*SPACE, *EIGHT)
    (tmp_path / "hold").write_text(at_the_end)
    first = subprocess.Popen(
        bench.command(*wishes), cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True
    )
    wait_until(lambda: any(bench.sweep.glob("trial=0003,*/ready")), 30)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = bench.run(*wishes)
    assert done.returncode == 0, done.stderr
    same = [(t.number, t.params, t.state, t.values) for t in undisturbed.trials()]
    assert [(t.number, t.params, t.state, t.values) for t in bench.trials()] == same
    once = {f"trial={n:04d}": 1 for n in range(8)}
    again = {"trial=0003 resumed": 1} if at_the_end == "save" else {}
    assert bench.trial_starts() == once | again
    # Once more it does nothing, and with more trials it does those.
    if at_the_end == "finish":
        return
    assert bench.run(*wishes).returncode == 0
    assert bench.trial_starts() == once | again
    assert bench.run(*wishes, "hydra.sweeper.n_trials=9").returncode == 0
    assert bench.trial_starts() == once | again | {"trial=0008": 1}


@pytest.mark.slow
def test_a_trial_that_was_asked_for_and_not_begun_is_begun(tmp_path):
    bench = SearchSandbox(tmp_path)
    assert bench.run(LR, "hydra.sweeper.n_trials=1").returncode == 0
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{bench.sweep}/study.db")
    study.ask(space(LR))
    assert bench.run(LR, "hydra.sweeper.n_trials=3", "sweep.jobs=2").returncode == 0
    assert bench.trial_starts() == {f"trial={n:04d}": 1 for n in range(3)}
    assert all(trial.state.is_finished() for trial in bench.trials())


@pytest.mark.slow
def test_a_figure_that_is_no_number_fails_the_trial(tmp_path):
    bench = SearchSandbox(tmp_path)
    done = bench.run("optimizer.lr=range(0.1,0.4,0.1)", "+how=silent", "hydra.sweeper.n_trials=2")
    assert done.returncode == 1  # no trial has come to its end
    assert [trial.state for trial in bench.trials()] == [TrialState.FAIL] * 2
    assert "result.json has no figure for val/acc" in done.stdout


@pytest.mark.slow
def test_several_objectives_end_in_a_frontier(tmp_path):
    bench = SearchSandbox(tmp_path)
    done = bench.run(
        *("optimizer.lr=interval(0.01,0.2)", "hydra.sweeper.n_trials=6"),
        "hydra.sweeper.objectives=[val/acc,train_seconds]",
        "hydra.sweeper.directions=[maximize,minimize]",
    )
    assert done.returncode == 0, done.stderr
    points = {t.number: t.values for t in bench.trials()}
    best = {
        number
        for number, (accuracy, seconds) in points.items()
        if not any(a > accuracy and s < seconds for a, s in points.values())
    }
    said = [line for line in done.stdout.splitlines() if line.startswith("frontier: ")]
    assert {int(line.split("trial=")[1][:4]) for line in said} == best


@pytest.mark.slow
def test_another_search_in_the_same_folder_is_refused(undisturbed):
    changed = undisturbed.mistake("optimizer.lr=tag(log,interval(1e-4,1))", *SPACE[1:])
    assert "optimizer.lr.attributes.low: 0.001 -> 0.0001" in changed
    assert "optimizer.weight_decay" in undisturbed.mistake(*SPACE, "optimizer.weight_decay=0.01")
    grid = undisturbed.mistake("hydra/sweeper=lab", "seed=0,1")
    assert "is a search" in grid


# ---------------------------------------------------------------- the report


@pytest.mark.slow
def test_the_report_shows_history_importance_and_slices(undisturbed, tmp_path):
    folder = report([undisturbed.sweep], tmp_path / "report", png=True)
    for name in ("history", "importance-val-acc", "slices-val-acc"):
        assert (folder / f"search-{name}.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "report.html").read_text()
    assert "8 of 8 trials, sampled by tpe. Objective: maximize val/acc." in text
    assert "<td>optimizer.lr</td><td>0.001 to 1, on a logarithmic scale</td>" in text
    assert "Pairs of factors" not in text
    (study,) = read([undisturbed.sweep])
    shares = importance(study, Objective("val/acc", up=True))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["optimizer.lr"] > shares["model.shortcut"]  # which the stand-in does not heed


@pytest.mark.slow
def test_without_optuna_the_report_says_so(undisturbed, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "optuna" else found(name)
    )
    folder = report([undisturbed.sweep], tmp_path / "report", png=True)
    assert "the package optuna is missing" in (folder / "report.html").read_text()
    assert (folder / "search-slices-val-acc.png").exists()
    assert not (folder / "search-importance-val-acc.png").exists()


# ---------------------------------------------------------------- pruning


TINY = (
    *("model=cifar_resnet", "model.depth=8", "model.width=0.25", "trainer.accelerator=cpu"),
    *("trainer.precision=32", "compile=false"),
)


@pytest.mark.parametrize(
    ("pruner", "hopeless"),
    [
        ("median", True),
        pytest.param("median", False, marks=pytest.mark.slow),
    ],
)
def test_a_hopeless_trial_is_pruned_after_a_validation(
    config, tmp_path, monkeypatch, pruner, hopeless
):
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=url, study_name="s", direction="maximize")
    reached = 1.0 if hopeless else 0.0
    for _ in range(5):
        study.add_trial(
            optuna.trial.create_trial(value=reached, intermediate_values={1: reached, 2: reached})
        )
    trial = study.ask()
    monkeypatch.setenv(STORAGE, url)
    result = training.train(
        config(
            *(*TINY, "trainer.max_epochs=2", "data.batch_size=256"),
            "+callbacks.prune._target_=resnet_lab.callbacks.prune.Prune",
            *("+callbacks.prune.study=s", f"+callbacks.prune.trial={trial.number}"),
            *("+callbacks.prune.objective=val/acc", f"+callbacks.prune.pruner={pruner}"),
            *("+callbacks.prune.options={}", "+callbacks.prune.epochs=3"),
        )
    )
    values = study.get_trials()[trial.number].intermediate_values
    if hopeless:
        assert (result["status"], result["epochs"], list(values)) == ("pruned", 1, [1])
        assert "test/acc" not in result
    else:
        assert (result["status"], result["epochs"], list(values)) == ("finished", 2, [1, 2])
    assert values[1] == pytest.approx(
        float((tmp_path / "run" / "metrics.csv").read_text().splitlines()[1].split(",")[6])
    )


# ---------------------------------------------------------------- real runs


@pytest.mark.slow
def test_twenty_real_trials_killed_and_continued(tmp_path, shared_cache, figure):
    command = [
        *(sys.executable, str(ROOT / "train.py"), "-m", "hydra/sweeper=optuna", "sweep.name=s"),
        *(*TINY, "trainer.max_epochs=3", f"data.cache_dir={shared_cache}", "sweep.jobs=2"),
        *(LR, "model.shortcut=A,none", "hydra.sweeper.n_trials=20"),
        *("hydra.sweeper.pruner=median", "data.batch_size=64"),
    ]
    folder = tmp_path / "outputs" / "sweeps" / "s"
    began = time.monotonic()
    first = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True
    )
    while not list(folder.glob("trial=0009,*/metrics.csv")):
        assert time.monotonic() < began + 300
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {path.parent.name: path.stat().st_mtime for path in folder.glob("*/result.json")}
    done_before = {
        name
        for name in before
        if json.loads((folder / name / "result.json").read_text())["status"] != "running"
    }
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/study.db")
    states = Counter(trial.state.name for trial in study.get_trials())
    assert sum(states.values()) == 20
    assert states["RUNNING"] == 0
    assert len(list(folder.glob("trial=*"))) == 20
    for name in done_before:
        assert (folder / name / "result.json").stat().st_mtime == before[name]
    figure("a search of 20 trials, killed with -9 and continued", f"{dict(states)}")
    figure("its trials done before the kill, none of them run again", f"{len(done_before)}")
    figure("its best validation accuracy", f"{study.best_value:.4f}")
    figure("seconds in all", f"{time.monotonic() - began:.0f}")

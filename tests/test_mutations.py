"""Files of runs and sweeps that somebody, or a crash, has changed: a right result or a sentence."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import QUICK, composed, read_csv, read_result, train_here
from lightning.pytorch import Callback
from sandbox import Sandbox, copied
from test_report import make_sweep

from resnet_lab.cli import main
from resnet_lab.run import training

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e999, float("nan"), 10**400, "", "1,2,3", "a\nb", "\x1b[31m", "é" * 300),
    *([], [1, "a"], {}, {"a": [None]}, "${oc.env:HOME}", "../../x", "finished", "1e999"),
)


def mutate(path: Path, rng: random.Random) -> str:
    """Change one file in one of many ways; says how."""
    data = path.read_bytes()
    ways: list[Callable[[], str]] = []

    def way(change: Callable[[], str]) -> None:
        ways.append(change)

    @way
    def cut() -> str:
        at = rng.randrange(len(data) + 1)
        path.write_bytes(data[:at])
        return f"cut at {at}"

    @way
    def byte() -> str:
        at = rng.randrange(max(1, len(data)))
        path.write_bytes(data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :])
        return f"byte {at}"

    @way
    def gone() -> str:
        path.unlink()
        return "removed"

    @way
    def doubled() -> str:
        path.write_bytes(data + data)
        return "doubled"

    @way
    def folder() -> str:
        path.unlink()
        path.mkdir()
        return "a folder"

    if path.suffix in (".json", ".yaml"):
        form = json if path.suffix == ".json" else yaml

        def value() -> str:
            content = form.loads(data) if form is json else yaml.safe_load(data)
            places: list[tuple[Any, Any]] = []

            def walk(node: Any) -> None:
                for key in list(node if isinstance(node, dict) else range(len(node))):
                    places.append((node, key))
                    if isinstance(node[key], dict | list):
                        walk(node[key])

            walk(content)
            node, key = rng.choice(places)
            odd = rng.choice(ODD)
            node[key] = odd
            text = json.dumps(content) if form is json else yaml.safe_dump(content)
            path.write_text(text)
            return f"{key}: {str(odd)[:40]!r}"

        ways += [value] * 8
    if path.suffix == ".csv":

        def cell() -> str:
            rows = [line.split(",") for line in data.decode().splitlines()]
            row = rng.choice(rows)
            at = rng.randrange(len(row))
            row[at] = str(rng.choice(ODD))
            path.write_text("\n".join(",".join(row) for row in rows) + "\n")
            return f"cell {row[at][:40]!r}"

        ways += [cell] * 8
    return rng.choice(ways)()


def said(command: Callable[[], Any]) -> str:
    """What a command comes to: "right", or "said" where it ends in one message."""
    try:
        command()
    except SystemExit as end:
        message = str(end.code or "")
    else:
        return "right"
    assert message.startswith("error: ") or not message
    return "said" if message else "right"


def counted(outcomes: list[str]) -> str:
    return ", ".join(f"{n} {what}" for what, n in Counter(outcomes).most_common())


def changed(folder: Path, seed: int, *more: Path) -> str:
    """Mutate one file of text below a folder, or one of `more`; says which, and how."""
    rng = random.Random(seed)
    path = rng.choice([*told(folder), *more])
    return f"seed {seed}: {path.relative_to(folder)}: {mutate(path, rng)}"


def told(folder: Path) -> list[Path]:
    """The files of runs and sweeps that hold text."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and "report" not in p.parts)
    return [p for p in files if p.suffix in (".json", ".yaml", ".csv", ".log", ".txt")]


# ---------------------------------------------------------------- the report


def reported(whole: Path, folder: Path, seed: int) -> str:
    shutil.copytree(whole, folder)
    how = changed(folder, seed)
    try:
        outcome = said(lambda: main(["report", str(folder)]))
    except Exception as error:
        raise AssertionError(how) from error
    shutil.rmtree(folder)
    return outcome


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("sweep") / "s", seeds=1, shortcuts="A", n_epochs=3)


def test_a_report_on_a_changed_file_is_a_report_or_a_sentence(sweep, tmp_path):
    reported(sweep, tmp_path / "s", seed=20)  # a number among the texts of sweep.json


@pytest.mark.faults
def test_reports_on_changed_files(sweep, tmp_path, figure):
    outcomes = [reported(sweep, tmp_path / f"s{seed}", seed) for seed in range(150)]
    figure("150 reports on a changed file of a sweep", counted(outcomes))


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, shared_cache) -> Path:
    """A run that was killed in its second epoch."""

    class Killed(BaseException):
        pass

    def kill(self, trainer, *_):
        if trainer.global_step == 6:
            raise Killed

    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Callback, "on_train_batch_start", kill)
        with pytest.raises(Killed):
            training.train(composed(*QUICK, f"run_dir={folder}", f"data.cache_dir={shared_cache}"))
    return folder


def resumed(whole: Path, folder: Path, seed: int) -> str:
    shutil.copytree(whole, folder / "run")
    how = changed(folder, seed)
    done = train_here(folder, "resume=run")
    assert "Traceback" not in done.stderr, f"{how}\n{done.stderr}"
    if done.returncode:
        assert done.stderr.count("\n") == 1, f"{how}\n{done.stderr}"
        outcome = "said"
    else:
        outcome = "right"
        if "config.yaml" not in how:
            assert [row["epoch"] for row in read_csv(folder / "run" / "metrics.csv")] == ["1", "2"]
    shutil.rmtree(folder)
    return outcome


@pytest.mark.faults
def test_resuming_with_changed_files(stopped, tmp_path, figure):
    outcomes = [resumed(stopped, tmp_path / str(seed), seed) for seed in range(60)]
    figure("60 resumes with a changed file of the run", counted(outcomes))


def evaluated(whole: Path, folder: Path, seed: int) -> str:
    shutil.copytree(whole, folder)
    how = changed(folder, seed, folder / "checkpoints" / "best.ckpt")
    try:
        outcome = said(lambda: main(["evaluate", str(folder), "trainer.accelerator=cpu"]))
    except Exception as error:
        raise AssertionError(how) from error
    if outcome == "right" and "config.yaml" not in how:
        (made,) = folder.glob("evaluation/*/evaluation.json")
        assert json.loads(made.read_text())["acc"] == read_result(whole)["test/acc"], how
    shutil.rmtree(folder)
    return outcome


@pytest.mark.faults
def test_evaluating_changed_runs(finished, tmp_path, figure):
    outcomes = [evaluated(finished, tmp_path / str(seed), seed) for seed in range(60)]
    figure("60 evaluations of a changed run", counted(outcomes))


# ---------------------------------------------------------------- a sweep that is run again


@pytest.mark.faults
def test_sweeps_over_changed_files(tmp_path, figure):
    whole = Sandbox(tmp_path / "whole")
    wish = ("seed=0,1", "optimizer.lr=0.1")
    assert whole.run(*wish).returncode == 0
    outcomes = []
    for seed in range(40):
        bench = copied(whole, tmp_path / str(seed))
        how = changed(bench.sweep, seed)
        done = bench.run(*wish)
        assert "Traceback" not in done.stdout + done.stderr, f"{how}\n{done.stderr}"
        if done.returncode:
            assert done.stderr.startswith("error: "), how
            outcomes.append("said")
        else:
            assert set(bench.states().values()) == {"finished"}, how
            outcomes.append("right")
        shutil.rmtree(bench.folder)
    figure("40 sweeps run again over a changed file", counted(outcomes))

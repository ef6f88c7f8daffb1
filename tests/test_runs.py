"""`resnet-lab runs`: every run listed, chosen by conditions, labelled, and removed with care."""

import csv
import fcntl
import io
import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import CLI, without_torch

from resnet_lab.cli import main
from resnet_lab.config.errors import UserError
from resnet_lab.report import listing
from resnet_lab.report.catalogue import Catalogue
from resnet_lab.report.removal import Extent, plan, remove
from resnet_lab.report.row import columns_of_config, of_config, row
from resnet_lab.report.runs import Run
from resnet_lab.report.where import parse, select
from resnet_lab.run.folder import RunFolder, in_progress


def dumped(content: Any) -> str:
    """As YAML, by libyaml where it is there."""
    return yaml.dump(content, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def make_run(folder: Path, *overrides: str, config: dict[str, Any] | None = None, **result: Any):
    """A run folder as training leaves it; `result` adds to result.json."""
    typed = dict(o.split("=", 1) for o in overrides)
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(dumped(list(overrides)))
    (folder / ".hydra" / "hydra.yaml").write_text(
        "hydra:\n  runtime:\n    choices:\n      optimizer: sgd\n      model: resnet20\n"
    )
    seed = int(typed.get("seed", 0))
    content = {
        "seed": seed,
        "run_dir": str(folder),
        "data": {"mean": [0.5, 0.5, 0.5]},
        "model": {"shortcut": typed.get("model.shortcut", "A"), "blur": False},
        "optimizer": {"lr": float(typed.get("optimizer.lr", 0.1))},
        "trainer": {"max_epochs": 3, "accelerator": "cpu"},
        "callbacks": {"best": {"dirpath": f"{folder}/checkpoints"}},
    }
    (folder / "config.yaml").write_text(dumped(content | (config or {})))
    found = {
        **{"status": "finished", "model": "resnet20", "data": "digits", "seed": seed},
        **{"started": "2026-11-26T10:00:00+00:00", "epochs": 3, "seconds": 75.0, "n_val": 100},
        **{
            "n_test": 100,
            "val/acc": 0.8,
            "test/acc": 0.75,
            "best_checkpoint": "checkpoints/b.ckpt",
        },
        **{"command": shlex.join(["python", "train.py", *overrides])},
        **result,
    }
    (folder / "result.json").write_text(json.dumps(found))
    rows = "".join(f"{n},{1 / n},0.5,{1 / n},0.6\n" for n in (1, 2, 3))
    (folder / "metrics.csv").write_text(f"epoch,train/loss,train/acc,val/loss,val/acc\n{rows}")
    (folder / "checkpoints").mkdir()
    for name in ("b.ckpt", "last.ckpt"):
        (folder / "checkpoints" / name).write_bytes(bytes(1000))
    return folder


def make_sweep(folder: Path, shortcuts: str = "AB", seeds: int = 2, **result: Any) -> Path:
    """A sweep over model.shortcut and seed, of which every job has finished."""
    jobs = []
    for shortcut in shortcuts:
        for seed in range(seeds):
            overrides = [f"model.shortcut={shortcut}", f"seed={seed}"]
            name = f"shortcut={shortcut},seed={seed}"
            make_run(folder / name, *overrides, **result)
            (folder / name / "sweep_job.json").write_text(json.dumps({"overrides": overrides}))
            jobs.append({"folder": name, "overrides": overrides, "state": "finished"})
    record = {"name": folder.name, "keys": ["model.shortcut", "seed"], "jobs": jobs}
    (folder / "sweep.json").write_text(json.dumps(record | {"started": "2026-11-26T09:00:00"}))
    return folder


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a folder or file, as a process that works on it."""
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def change(folder: Path, **result: Any) -> None:
    content = json.loads((folder / "result.json").read_text()) | result
    (folder / "result.json").write_text(json.dumps(content))


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """outputs/ of two runs and a sweep of four jobs; the current folder is the one above."""
    monkeypatch.chdir(tmp_path)
    day = tmp_path / "outputs" / "runs" / "2026-11-26"
    make_run(day / "one", "model=resnet20", "optimizer.lr=0.05", **{"val/acc": 0.9})
    make_run(day / "two", "model=resnet20", status="failed", error="RuntimeError: full")
    make_sweep(tmp_path / "outputs" / "sweeps" / "first")
    return Path("outputs")


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What a command prints, by lines."""

    def call(*words: str) -> list[str]:
        assert main(words) == 0
        return capsys.readouterr().out.splitlines()

    return call


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which a command ends with status 1."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert str(end.value).startswith("error: ")
    return str(end.value)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that no test changes."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    make_run(folder, "model=resnet20", "optimizer.lr=0.05", **{"val/acc": 0.9})
    RunFolder(folder).write_labels(["good"], "")
    return Catalogue([folder]).read()[0]


def names(where: str, outputs: Path) -> list[str]:
    return sorted(run.name for run in select(Catalogue([outputs]).read(), where))


# ------------------------------------------------------------------ catalogue


def test_runs_and_jobs_are_found_below_and_no_link_is_followed(outputs, tmp_path):
    elsewhere = make_run(tmp_path / "elsewhere" / "sent")
    (outputs / "runs" / "link").symlink_to(elsewhere)
    deep = make_run(outputs / "a" / "b" / "c" / "d" / "deep")
    catalogue = Catalogue([outputs, outputs / "runs"])
    runs = catalogue.read()
    jobs = [f"shortcut={s},seed={n}" for s in "AB" for n in (0, 1)]
    assert [run.name for run in runs if run.sweep] == jobs  # in the order of the sweep
    assert sorted(run.name for run in runs if not run.sweep) == ["deep", "one", "two"]
    assert list(catalogue.sweeps) == [outputs / "sweeps" / "first"]
    (deep / "metrics.csv").unlink()
    (deep / "metrics.csv").symlink_to(elsewhere / "metrics.csv")
    found = {run.name: run for run in Catalogue([outputs]).read()}["deep"]
    assert (found.state, found.reason[:21]) == ("unreadable", "metrics.csv is a link")


def test_only_what_has_changed_is_read_again(outputs, monkeypatch):
    catalogue = Catalogue([outputs])
    before = {run.name: run for run in catalogue.read()}
    change(outputs / "runs" / "2026-11-26" / "one", **{"val/acc": 0.95})
    RunFolder(outputs / "runs" / "2026-11-26" / "two").write_labels(["bad"], "")
    after = {run.name: run for run in catalogue.read()}
    assert {name for name in after if after[name] is not before[name]} == {"one", "two"}
    assert after["one"].result["val/acc"] == 0.95
    assert after["two"].labels == (["bad"], "")


def test_damage_of_any_kind_is_listed(outputs, lines):
    day = outputs / "runs" / "2026-11-26"
    (day / "one" / "result.json").write_text('{"status": "finished", "val/acc": ')
    (day / "two" / "config.yaml").write_text("a: *b\n")
    (day / "two" / "labels.json").write_text('{"tags": [1, "x", null], "note": 3}')
    (day / "two" / ".hydra" / "hydra.yaml").write_text("hydra:\n    choices:\n      - x\n")
    (outputs / "sweeps" / "first" / "sweep.json").write_text('{"jobs": [{"folder": "../.."}]}')
    make_sweep(outputs / "sweeps" / "other")
    listed = json.loads((outputs / "sweeps" / "other" / "sweep.json").read_text())
    listed["jobs"].append({"folder": "..", "overrides": [], "state": ["odd"]})
    (outputs / "sweeps" / "other" / "sweep.json").write_text(json.dumps(listed))
    text = lines("runs")
    assert len([line for line in text if line.startswith(("one", "two", "first/", "other/"))]) == 10
    assert [line.split()[1] for line in text if line.startswith("one ")] == ["unreadable"]
    lines("runs", "--where", "optimizer.lr==0.1 or tags==x", "--columns", "name,tags,optimizer.lr")


def test_a_run_that_nobody_holds_has_died(outputs):
    one, first = outputs / "runs" / "2026-11-26" / "one", outputs / "sweeps" / "first"
    catalogue = Catalogue([outputs])
    change(one, status="running")

    def state() -> str:
        return next(run.state for run in catalogue.read() if run.name == "one")

    assert state() == "died"
    with held(one):
        assert in_progress(RunFolder(one))
        assert state() == "running"
    assert not in_progress(RunFolder(one))
    (one / "slurm_job").write_text("17")  # perhaps on another machine
    assert in_progress(RunFolder(one))
    job = first / "shortcut=A,seed=0"
    change(job, status="running")
    listed = json.loads((first / "sweep.json").read_text())
    listed["jobs"][0]["state"] = "running"
    (first / "sweep.json").write_text(json.dumps(listed))
    (first / ".lock").touch()
    states = {run.name: run.state for run in catalogue.read()}
    assert states[job.name] == "died"
    with held(first / ".lock"):  # the sweep goes on, and its job is perhaps just starting
        assert {run.name: run.state for run in catalogue.read()}[job.name] == "running"


def test_asking_does_not_keep_a_run_from_its_lock(outputs, monkeypatch):
    one = outputs / "runs" / "2026-11-26" / "one"
    asking = os.open(one, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda _: os.close(asking))  # it lets go meanwhile
    with RunFolder(one).lock():
        assert in_progress(RunFolder(one))


def test_a_row_tells_what_the_files_tell(outputs):
    runs = {run.name: run for run in Catalogue([outputs]).read()}
    one = row(runs["one"], Path.cwd(), size=True)
    assert one["path"] == "outputs/runs/2026-11-26/one"
    assert (one["settings"], one["sweep"], one["max_epochs"]) == ("optimizer.lr=0.05", "", 3)
    assert (one["val/acc"], one["test/loss"], one["tags"]) == (0.9, None, [])
    assert one["size"] == sum(p.stat().st_size for p in Path(one["path"]).rglob("*") if p.is_file())
    job = row(runs["shortcut=B,seed=1"], Path.cwd())
    assert (job["sweep"], job["settings"]) == ("first", "model.shortcut=B seed=1")
    config = columns_of_config(runs["one"])
    assert (config["optimizer"], config["optimizer.lr"]) == ("sgd", 0.05)
    assert config["data.mean"] == "[0.5,0.5,0.5]"
    fresh = {run.name: run for run in Catalogue([outputs]).read()}["one"]
    for key, value in config.items():  # by its line alone, or by all of the file
        assert of_config(fresh, key) == value


# ------------------------------------------------------------------ where


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("val/acc>0.8", True),
        ("val/acc > 0.9", False),
        ("val/acc>=.9 and model==resnet20", True),
        ("val/acc>0.95 or not state==failed", True),
        ("not (val/acc>0.5 and seed==0)", False),
        ("model in [resnet32, 'resnet20']", True),
        ("model in resnet32,resnet56", False),
        ("name ~ ON", True),
        ('name == "one"', True),
        ("started>=2026-11-01", True),
        ("optimizer.lr=0.05", True),
        ("optimizer==sgd and model.blur==false", True),
        ("tags==good", True),
        ("tags~goo", True),
        ("tags in [bad]", False),
        ("test/loss>0", False),  # it has none
        ("test/loss<=0 or test/loss>0", False),
        ("test/loss==null", True),
        ("val/acc!=null", True),
        ("name>1", True),  # as texts
        ("val/acc>x", False),
    ],
)
def test_conditions(one, condition, holds):
    assert (select([one], condition) == [one]) is holds


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("", "empty"),
        ("val/acc", "behind val/acc"),
        ("val/acc>", "a value is missing"),
        ("(val/acc>1", "a ) is missing"),
        ("model in [a, b", "a ] is missing"),
        ("val/acc>1 2", "too much"),
        ("val/acc>1 $$ 'x", "'x"),
        ("== 3", "a column is missing"),
        ("(" * 200 + "a==1", "deeply"),
        ("not " * 5000 + "a==1", "deeply"),
        ("__import__('os')", "behind __import__"),
    ],
)
def test_a_condition_that_cannot_be_read_is_refused(condition, says):
    with pytest.raises(UserError) as error:
        parse(condition)
    assert says in str(error.value)
    assert "such as" in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"), [("val/ac", "val/acc"), ("lr", "optimizer.lr"), ("modle", "model")]
)
def test_a_typo_in_a_column_names_the_nearest(outputs, capsys, name, meant):
    for words in (("--where", f"{name}>0.1"), ("--sort", name), ("--columns", f"name,{name}")):
        assert f"Did you mean {meant}" in refusal(capsys, "runs", *words)


# ------------------------------------------------------------------ the list


def test_the_list_is_whole_and_plain_where_it_is_piped(outputs, lines):
    text = lines("runs")
    assert not [line for line in text if "\x1b" in line or "…" in line]
    head, *rows = text[:7]
    assert head.split()[:2] == ["name", "state"]
    assert [line.split()[0] for line in rows[:4]] == [
        f"first/shortcut={s},seed={n}" for s in "AB" for n in (0, 1)
    ]
    assert "failed 3/3" in rows[5]
    assert "6 runs: 5 finished, 1 failed" in text


def test_sorting_columns_and_csv(outputs, lines):
    columns = ("--columns", "path,val/acc,optimizer.lr")
    text = "\n".join(lines("runs", "--sort=-val/acc", *columns, "--csv"))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["val/acc"] for row in rows] == ["0.9", *["0.8"] * 5]
    assert list(rows[0].values()) == ["outputs/runs/2026-11-26/one", "0.9", "0.05"]
    up = lines("runs", "--sort", "val/acc", "--columns", "name", "--csv")
    assert up[-1] == "one"
    assert lines("runs", "--sort", "val/acc", "--reverse", "--columns", "name", "--csv")[1] == "one"
    assert lines("runs", "--where", "val/acc>2") == ["None of 6 runs meets val/acc>2."]
    assert len(lines("runs", "outputs/sweeps/first", "--csv")) == 5


@pytest.mark.parametrize("width", [40, 80, 120])
def test_on_a_terminal_a_run_is_one_line(outputs, capsys, monkeypatch, width):
    monkeypatch.setattr(listing.console, "_force_terminal", True)
    monkeypatch.setattr(listing.console, "width", width)
    make_run(outputs / "runs" / "이름이-아주-긴-실행", *(f"optimizer.a{n}=1" for n in range(30)))
    assert main(["runs"]) == 0
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert len(table) == 8
    plain = [listing.Text.from_ansi(line).cell_len for line in table]
    assert max(plain) <= max(width, 60)


def test_the_list_needs_no_torch(outputs, tmp_path):
    for words in (["runs"], ["diff", "one", "two"], ["rerun", "one"]):
        done = without_torch(tmp_path, *words, script=CLI)
        assert done.returncode == 0, done.stderr


def test_what_belongs_to_another_action_is_refused(outputs, capsys):
    assert "runs tag" in refusal(capsys, "runs", "--add", "x")
    assert "runs rm" in refusal(capsys, "runs", "tag", "one", "--add", "x", "--yes")
    assert "no such folder" in refusal(capsys, "runs", "nowhere")
    (outputs / "empty").mkdir()
    assert "There is no run in outputs/empty" in refusal(capsys, "runs", "outputs/empty")


# ------------------------------------------------------------------ tag, note


def test_tags_and_notes_stay_with_the_run(outputs, lines, capsys):
    lines("runs", "tag", "one", "--add", "good", "--add", "paper")
    lines("runs", "tag", "--remove", "paper", "one")
    lines("runs", "note", "one", "too  high\x1b[31m\nrate")
    folder = RunFolder(outputs / "runs" / "2026-11-26" / "one")
    assert folder.read_labels() == (["good"], "too high\\x1b[31m rate")
    lines("runs", "tag", "first", "--add", "grid")  # all jobs of the sweep
    assert len(names("tags==grid", outputs)) == 4
    assert "one word" in refusal(capsys, "runs", "tag", "one", "--add", "two words")
    assert "there is no such folder" in refusal(capsys, "runs", "tag", "three", "--add", "x")
    assert "no run and no sweep" in refusal(capsys, "runs", "tag", "outputs", "--add", "x")
    make_run(outputs / "runs" / "2026-11-27" / "one")
    assert "may mean" in refusal(capsys, "runs", "tag", "one", "--add", "x")
    lines("runs", "tag", "2026-11-27/one", "--add", "x")


def test_labels_are_not_written_through_a_link(outputs, lines, tmp_path):
    victim = tmp_path / "victim.json"
    victim.write_text("mine")
    folder = RunFolder(outputs / "runs" / "2026-11-26" / "one")
    folder.labels.symlink_to(victim)
    lines("runs", "note", "one", "hello")
    assert victim.read_text() == "mine"


# ------------------------------------------------------------------ rm


def test_removing_asks_and_says_what_goes(outputs, capsys, monkeypatch):
    assert "--yes" in refusal(capsys, "runs", "rm", "one")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert main(["runs", "rm", "one", "first/shortcut=A,seed=0"]) == 0
    said = capsys.readouterr().out
    assert "outputs/runs/2026-11-26/one" in said
    assert "sweep first will train these jobs again" in said
    assert "Nothing was removed" in said
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert main(["runs", "rm", "one", "first/shortcut=A,seed=0"]) == 0
    left = [run.name for run in Catalogue([outputs]).read() if run.folder.exists()]
    assert sorted(left) == [f"shortcut={j}" for j in ("A,seed=1", "B,seed=0", "B,seed=1")] + ["two"]


def test_a_part_of_a_run_can_be_removed(outputs, lines):
    one = outputs / "runs" / "2026-11-26" / "one"
    (one / "tensorboard").mkdir()
    (one / "tensorboard" / "events").write_bytes(bytes(500))
    text = lines("runs", "rm", "one", "--keep-best", "--yes")
    assert "cannot be resumed" in " ".join(text)
    left = {str(p.relative_to(one)) for p in one.rglob("*") if p.is_file()}
    assert left == {
        *("config.yaml", "result.json", "metrics.csv", "checkpoints/b.ckpt"),
        *(".hydra/overrides.yaml", ".hydra/hydra.yaml"),
    }
    lines("runs", "rm", "--where", "state==finished", "--checkpoints-only", "--yes")
    assert [p.parent.parent.name for p in outputs.rglob("*.ckpt")] == ["two", "two"]
    assert len(Catalogue([outputs]).read()) == 6


def test_nothing_in_progress_is_removed(outputs, lines):
    one, first = outputs / "runs" / "2026-11-26" / "one", outputs / "sweeps" / "first"
    change(one, status="running")
    (first / ".lock").touch()
    begun = outputs / "runs" / "begun"  # and torch is being imported
    (begun / ".hydra").mkdir(parents=True)
    with held(one), held(first / ".lock"):
        text = " ".join(lines("runs", "rm", "one", "first", "two", "begun", "--yes"))
    assert one.exists()
    assert begun.exists()
    assert len([*first.glob("shortcut=*")]) == 4
    assert text.count("in progress") == 3
    assert not (outputs / "runs" / "2026-11-26" / "two").exists()


def test_a_run_that_begins_after_the_question_stays(outputs):
    one = outputs / "runs" / "2026-11-26" / "one"
    planned = plan([one], Extent.EVERYTHING)
    with held(one):
        said = list(remove(planned))
    assert one.exists()
    assert "another process is training" in said[0]


def test_only_runs_are_removed_and_no_link_is_followed(outputs, tmp_path, monkeypatch, capsys):
    one = outputs / "runs" / "2026-11-26" / "one"
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    (one / "checkpoints" / "link").symlink_to(precious)
    (one / "link").symlink_to(precious)
    (outputs / "linked").symlink_to(one)
    (outputs / "result.json").write_text('{"status": "finished"}')  # hydra.run.dir=outputs
    project = make_run(tmp_path / "project")
    (project / ".git").mkdir()
    for path, says in (
        (precious, "no run and no sweep"),
        (outputs / "linked", "is a link"),
        (outputs, "holds other runs"),
        (project, "git checkout"),
    ):
        with pytest.raises(UserError, match=says):
            plan([path], Extent.EVERYTHING)
    monkeypatch.chdir(one)
    with pytest.raises(UserError, match="where you stand"):
        plan([Path("../one")], Extent.EVERYTHING)
    monkeypatch.chdir(tmp_path)
    list(remove(plan([one], Extent.CHECKPOINTS)))
    assert not (one / "checkpoints" / "link").exists()
    list(remove(plan([one], Extent.EVERYTHING)))
    assert not one.exists()
    assert (precious / "thesis.txt").read_text() == "mine"


def test_a_best_checkpoint_elsewhere_is_not_looked_for(outputs, tmp_path):
    one = outputs / "runs" / "2026-11-26" / "one"
    outside = tmp_path / "outside.ckpt"
    outside.write_bytes(b"x")
    change(one, best_checkpoint="../../../../outside.ckpt")
    list(remove(plan([one], Extent.ALL_BUT_BEST)))
    assert outside.exists()
    assert not [*one.rglob("*.ckpt")]


def test_a_report_takes_the_same_selection(outputs, lines, capsys, monkeypatch):
    asked: list[list[Path]] = []
    monkeypatch.setattr("resnet_lab.commands.report.report", lambda paths, *_: asked.append(paths))
    lines("report", "outputs", "--where", "sweep==first and seed==1")
    assert [path.name for path in asked[0]] == ["shortcut=A,seed=1", "shortcut=B,seed=1"]
    assert "meets val/acc>2" in refusal(capsys, "report", "outputs", "--where", "val/acc>2")

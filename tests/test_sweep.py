"""Sweeps: isolated jobs, states read from their folders, and a program that always ends."""

import csv
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from resnet_lab.sweep import grid, ledger, plan, show, slots
from resnet_lab.sweep.grid import Job, differences, folder_names
from resnet_lab.sweep.slots import Slots

ROOT = Path(__file__).resolve().parents[1]

# Stands for train.py: the sweep is the real one, a job only does what its key `how` says.
STAND_IN = f"""
import json, os, signal, subprocess, sys, time
from pathlib import Path

def sweep():
    import hydra
    from resnet_lab.config.compose import VERSION_BASE
    from resnet_lab.config.messages import composition_errors
    with composition_errors():
        hydra.main({str(ROOT / "conf")!r}, "train", **VERSION_BASE)(lambda cfg: None)()

def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))

def save(*_):
    write(folder / "checkpoints" / "last.ckpt", {{}})
    write(folder / "result.json", {{"status": "interrupted"}})
    sys.exit(143)

def job():
    global folder
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    folder = Path((given.get("resume") or given["hydra.run.dir"]).strip('"'))
    resumed = "resume" in given
    with open("starts.txt", "a") as starts:
        starts.write(folder.name + (" resumed" if resumed else "") + "\\n")
    told = json.loads((folder / "config.yaml").read_text()) if resumed else given
    how, seed = told.get("+how", "finish"), int(told.get("seed", 0))
    here = sys.modules["__main__"]
    peer = subprocess.Popen(["sleep", "100"]) if how in ("sleep", "deaf", "kill") else None
    write(folder / "job.json", {{
        "arguments": sys.argv[1:], "pid": os.getpid(), "parent": os.getppid(),
        "peer": peer and peer.pid, "env": dict(os.environ), "script": sys.argv[0],
        "spec": here.__spec__ is not None, "file": here.__file__,
        "loaded": "wave" in sys.modules, "terminal": sys.stdout.isatty(),
    }})
    write(folder / "config.yaml", told)
    write(folder / "result.json", {{"status": "running"}})
    print("hello from", folder.name)
    if how == "raise" or (how == "flaky" and not (folder / "attempt-1").exists()):
        raise RuntimeError("no luck today")
    if how == "exit":
        sys.exit(0)
    if how == "kill":
        if seed and not resumed:
            write(folder / "checkpoints" / "last.ckpt", {{}})
        if not resumed:
            os.kill(os.getpid(), signal.SIGKILL)
    if how == "orphan":
        os.kill(os.getppid(), signal.SIGKILL)
    if how in ("sleep", "orphan", "deaf") and not resumed:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "deaf" else save)
        write(folder / "ready", {{}})
        time.sleep(60)
        sys.exit("nobody stopped me")
    (folder / "metrics.csv").write_text("epoch,val/acc\\n1,0.5\\n")
    write(folder / "result.json", {{
        "status": "finished", "val/acc": 0.5 + seed / 10, "test/acc": 0.9 - seed / 10}})

if "-m" in sys.argv:
    sweep()
else:
    job()
"""


class Bench:
    """A folder with the stand-in, where sweeps are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "stand_in.py").write_text(STAND_IN)
        self.sweep = folder / "outputs" / "sweeps" / "s"

    def command(self, *overrides: str) -> list[str]:
        quick = ("hydra.launcher.preload=[wave]", "hydra.launcher.grace_seconds=1")
        return [sys.executable, "stand_in.py", "-m", "sweep.name=s", *quick, *overrides]

    def run(self, *overrides: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*overrides),
            cwd=self.folder,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def mistake(self, *overrides: str) -> str:
        """The message that a sweep ends with; in this process, which saves starting another."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", self.command(*overrides)[1:])
            with pytest.raises(SystemExit) as end:
                runpy.run_path("stand_in.py", run_name="__main__")
        return str(end.value)

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*overrides),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell that runs the tests in the background has SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def starts(self) -> Counter[str]:
        """How often each job was started."""
        path = self.folder / "starts.txt"
        return Counter(path.read_text().splitlines() if path.exists() else [])

    def states(self) -> dict[str, str]:
        jobs = json.loads((self.sweep / "sweep.json").read_text())["jobs"]
        return {job["folder"]: job["state"] for job in jobs}

    def told(self, job: str) -> dict:
        return json.loads((self.sweep / job / "job.json").read_text())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("finished"))
    done = bench.run("seed=0,1", "optimizer.lr=0.1")
    assert done.returncode == 0, done.stderr
    return bench


@pytest.fixture
def finished(finished_once: Bench, tmp_path: Path) -> Bench:
    """A sweep of two finished jobs, to do with as one likes."""
    shutil.copytree(finished_once.folder, tmp_path, dirs_exist_ok=True)
    return Bench(tmp_path)


def alive(process: int) -> bool:
    """Whether a process runs (one that is dead and not yet reaped does not)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- the grid


def test_folders_are_named_by_the_swept_keys_alone():
    jobs = [["model=resnet20", "model.shortcut=A", "optimizer.lr=0.1", "+seed=0"]]
    assert folder_names(jobs, ["model", "model.shortcut", "seed"]) == [
        "model=resnet20,shortcut=A,seed=0"
    ]


def test_keys_with_the_same_last_component_are_written_out():
    jobs = [["a.depth=1", "b.depth=2"]]
    assert folder_names(jobs, ["a.depth", "b.depth"]) == ["a.depth=1,b.depth=2"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [("[0.5,0.75]", "0.5,0.75"), ("/data/x y", "-data-x-y"), ("'a:b'", "a-b"), ("-1", "-1")],
)
def test_a_value_becomes_fit_for_a_folder_name(value, shown):
    assert folder_names([[f"k={value}"]], ["k"]) == [f"k={shown}"]


def test_two_jobs_with_one_folder_are_refused():
    with pytest.raises(ValueError, match="2 jobs would share the folder root=a-b"):
        folder_names([["data.root=a/b"], ["data.root=a:b"]], ["data.root"])


def test_differences_show_what_changed_and_leave_out_what_is_asked():
    old = {"data": {"root": "x", "cache_dir": "a"}, "optimizer": {"lr": 0.1}, "model": {"depth": 8}}
    new = {"data": {"root": "./x", "cache_dir": "b"}, "optimizer": {"lr": 1}, "model": {"width": 2}}
    new["data"]["root"] = str(Path("x").absolute())
    assert differences(old, new, ["model"]) == ["optimizer.lr: 0.1 -> 1"]
    assert differences(old, new, []) == [
        "model.depth: 8 -> absent",
        "model.width: absent -> 2",
        "optimizer.lr: 0.1 -> 1",
    ]


def test_a_folder_reaches_the_job_whole_through_hydras_grammar():
    path = Path('out puts/a"b/model=resnet20,shortcut=A,seed=0')
    (override,) = OverridesParser.create().parse_overrides([f"resume={ledger.quoted(path)}"])
    assert not override.is_sweep_override()
    assert override.value() == str(path)


# ---------------------------------------------------------------- devices


def job(name: str = "j", devices: int | None = 1, on_cpu: bool = False, **kwargs) -> Job:
    folder = kwargs.pop("folder", Path(name))
    return Job(folder, [], {}, {}, devices=devices, on_cpu=on_cpu, max_epochs=4, **kwargs)


def test_gpus_are_handed_out_one_job_each_and_come_back():
    held = Slots(None, ["0", "1", "2"])
    assert held.take(job("a")) == ["0"]
    assert held.take(job("b", devices=2)) == ["1", "2"]
    assert held.take(job("c")) is None
    held.give(job("a"))
    assert held.take(job("d", devices=2)) is None
    assert held.take(job("c")) == ["0"]


def test_a_number_of_jobs_shares_the_gpus_evenly():
    held = Slots(4, ["0", "1"])
    assert [held.take(job(n))[0] for n in "abcd"] == ["0", "1", "0", "1"]
    assert held.take(job("e")) is None


def test_on_the_cpu_jobs_run_one_by_one_unless_told(monkeypatch):
    monkeypatch.setattr(slots, "cpus", lambda: 8)
    alone, four = Slots(None, []), Slots(4, ["0"])
    assert alone.take(job("a")) == []
    assert alone.take(job("b")) is None
    assert alone.threads(job(), 10) is None
    assert four.take(job("a", on_cpu=True)) == []
    assert four.threads(job(on_cpu=True), 10) == 2
    assert four.threads(job(on_cpu=True, devices=2), 10) == 1
    assert four.threads(job(on_cpu=True), 2) == 4


def test_more_gpus_than_there_are_is_one_sentence():
    with pytest.raises(ValueError, match=r"trainer\.devices=4: 2 GPUs"):
        Slots(None, ["0", "1"]).wanted(job(devices=4))
    assert Slots(None, ["0", "1"]).wanted(job(devices=None)) == 2


@pytest.mark.parametrize(
    ("mask", "seen"),
    [(None, ["0", "1"]), ("1", ["1"]), ("1,0", ["1", "0"]), ("", []), ("0,-1,1", ["0"])],
)
def test_the_gpus_are_those_that_cuda_may_see(mask, seen, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: A (UUID: y)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert slots.visible_gpus() == seen


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("epoch,val/acc\n1,0.25\n2,0.5\n", (2, 0.5)),
        ("epoch,val/acc\n1,\n", (1, None)),
        ("epoch,val/acc\n", (0, None)),
        ("epoch\n3\n", (3, None)),
        ("", (0, None)),
    ],
)
def test_progress_is_read_from_the_metrics(text, seen, tmp_path):
    (tmp_path / "metrics.csv").write_text(text)
    assert show.progress(tmp_path) == seen


def test_on_a_terminal_there_is_one_table_with_the_time_left(tmp_path, monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, height=12)
    monkeypatch.setattr(show, "console", screen)
    jobs = [job(f"seed={n}", folder=tmp_path / f"seed={n}") for n in range(30)]
    clock = [100.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: clock[0])
    jobs[29].folder.mkdir()
    jobs[29].state = "running"
    with show.Display(jobs) as display:
        display.started(jobs[29])
        (jobs[29].folder / "metrics.csv").write_text("epoch,val/acc\n1,0.625\n")
        clock[0] += 60
        display.update()
        shown = screen.file.getvalue()
        display.update()  # within the same second: not drawn again
        assert screen.file.getvalue() == shown
    assert "seed=29" in shown
    assert "1/4" in shown
    assert "0.6250" in shown
    assert "3:00" in shown  # three more epochs of a minute
    assert "1 running, 29 waiting" in shown
    assert shown.count("seed=") <= 12 - 6  # what fits


def test_the_closing_table_tells_whole_names_in_a_file(tmp_path, capsys):
    one = job(folder=tmp_path / f"optimizer.lr=0.1,{'long,' * 30}seed=0")
    show.close([one], tmp_path)
    assert one.name in capsys.readouterr().out


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("result", "status", "told", "state", "resumes"),
    [
        ("finished", 0, False, "finished", False),
        ("finished", 1, True, "finished", False),
        ("running", 0, False, "failed", False),
        ("running", 1, False, "failed", False),
        ("running", -9, False, "failed", True),
        ("interrupted", 143, True, "interrupted", True),
        ("interrupted", 143, False, "failed", True),
        (None, 1, False, "failed", False),
    ],
)
def test_an_attempt_is_judged_by_its_folder(tmp_path, result, status, told, state, resumes):
    one = job(folder=tmp_path / "seed=0")
    ledger.begin(one)
    (one.folder / "config.yaml").touch()
    (one.folder / "checkpoints").mkdir()
    (one.folder / "checkpoints" / "last.ckpt").touch()
    (one.folder / "console.log").write_text("".join(f"line {n}\n" for n in range(100)))
    if result:
        content = {"status": result, "error": "OSError: lost"}
        (one.folder / "result.json").write_text(json.dumps(content))
    ledger.end(one, status, 2.0, told)
    assert (one.state, one.resume and state != "finished") == (state, resumes)
    again = job(folder=one.folder)
    ledger.look([again], ["seed"], [], force=False)
    assert again.state == ("finished" if state == "finished" else "waiting")
    assert (again.resume, again.attempts, again.seconds) == (resumes, 1, 2.0)
    error = one.folder / "error.txt"
    assert error.exists() == (state == "failed")
    if state == "failed":
        assert "line 99" in error.read_text()
        assert "line 59\n" not in error.read_text()  # 40 lines
        first = error.read_text().splitlines()[0]
        assert ("OSError: lost" in first) == (result is not None and status > 0)


def test_what_a_failed_attempt_left_is_kept(tmp_path):
    one = job(folder=tmp_path / "seed=0")
    for n in range(3):
        arguments = ledger.begin(one)
        assert arguments == [f'hydra.run.dir="{one.folder}"']
        (one.folder / "console.log").write_text(f"attempt {n}")
        ledger.end(one, 1, 1.0, False)
    assert [(one.folder / f"attempt-{n}" / "console.log").read_text() for n in (1, 2)] == [
        "attempt 0",
        "attempt 1",
    ]
    assert (one.folder / "console.log").read_text() == "attempt 2"
    assert one.attempts == 3


# ---------------------------------------------------------------- sweeps from the command line


def test_bad_jobs_are_named_the_others_go_on_and_the_next_run_does_what_is_left(bench):
    # An interpolation reaches the jobs as it was typed.
    grid_of_12 = ("+how=finish,raise,exit,kill", "seed=range(0,3)", "+note=${run_dir}/x")
    done = bench.run(*grid_of_12)
    assert done.returncode == 1
    assert bench.states() == {
        f"how={how},seed={seed}": "finished" if how == "finish" else "failed"
        for how in ("finish", "raise", "exit", "kill")
        for seed in range(3)
    }
    for how, told in {
        "raise": "exit status 1 before it had finished: RuntimeError: no luck today",
        "exit": "exit status 0 before it had finished",
        "kill": "killed by SIGKILL",
    }.items():
        error = (bench.sweep / f"how={how},seed=1" / "error.txt").read_text()
        assert told in error
        assert f"hello from how={how},seed=1" in error
        assert told in done.stdout
    assert "Traceback" in (bench.sweep / "how=raise,seed=0" / "error.txt").read_text()
    # Chosen by validation, where seed 2 is best; by test it would be seed 0.
    assert "best by validation: how=finish,seed=2   val 0.7000, test 0.7000" in done.stdout
    assert "started     how=raise,seed=0" in done.stdout
    record = json.loads((bench.sweep / "sweep.json").read_text())
    assert (record["name"], record["keys"]) == ("s", ["how", "seed"])
    assert "+how=finish,raise,exit,kill" in record["command"]
    assert not alive(bench.told("how=kill,seed=0")["peer"])  # nor what it had started
    assert (bench.sweep / "multirun.yaml").exists()

    done = bench.run(*grid_of_12)
    assert done.returncode == 1
    starts = bench.starts()
    assert all(starts[f"how=finish,seed={n}"] == 1 for n in range(3))
    assert all(starts[f"how={how},seed=0"] == 2 for how in ("raise", "exit", "kill"))
    # Killed with a checkpoint at hand: resumed, by the command that began it.
    assert starts["how=kill,seed=2"] == 1
    assert starts["how=kill,seed=2 resumed"] == 1
    assert bench.states()["how=kill,seed=2"] == "finished"
    *began, resume = bench.told("how=kill,seed=2")["arguments"]
    assert {"+how=kill", "seed=2"} <= set(began)
    assert resume == 'resume="outputs/sweeps/s/how=kill,seed=2"'
    assert not (bench.sweep / "how=kill,seed=2" / "error.txt").exists()
    assert (bench.sweep / "how=raise,seed=0" / "attempt-1" / "error.txt").exists()


def test_a_job_is_started_as_the_single_run_would_be(bench):
    # As where the sweep itself was started by something that starts ranks.
    done = bench.run("seed=0,1", "sweep.jobs=2", "+x=1", LOCAL_RANK="1", WORLD_SIZE="2")
    assert done.returncode == 0, done.stderr
    told = bench.told("seed=1")
    assert told["arguments"] == ["seed=1", "+x=1", 'hydra.run.dir="outputs/sweeps/s/seed=1"']
    assert told["script"] == told["file"] == str(bench.folder / "stand_in.py")
    assert not told["spec"]  # else whoever replays the command line would say "-m"
    assert not {"LOCAL_RANK", "WORLD_SIZE", "HYDRA_FULL_ERROR"} & set(told["env"])
    assert told["loaded"]
    assert not told["terminal"]
    assert told["pid"] != bench.told("seed=0")["pid"]
    assert told["parent"] == bench.told("seed=0")["parent"]


def test_without_warmth_each_job_is_a_new_python(bench):
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = bench.command("seed=0,1", "sweep.jobs=2", "sweep.warm=false")
    subprocess.run(command, cwd=bench.folder, env=env, check=True, capture_output=True, timeout=60)
    told = bench.told("seed=1")
    assert told["env"]["OMP_NUM_THREADS"] == str(max(1, slots.cpus() // 2))
    assert told["script"] == str(bench.folder / "stand_in.py")
    assert not told["loaded"]


def test_every_mistake_is_named_before_anything_runs(bench):
    done = bench.run("model.depth=20,21,23", "optimizer.lr=0.1,-1", "model.shortcut=A,D")
    assert done.returncode == 1
    first, *others = done.stderr.removeprefix("error: ").splitlines()
    assert first == (
        "depth=20,lr=0.1,shortcut=D and 2 more: model.shortcut=D: must be one of A, B, C or none."
    )
    assert [line.split(":")[0] for line in others] == [
        "depth=20,lr=-1,shortcut=A and 5 more",
        "depth=21,lr=0.1,shortcut=A",
        "depth=23,lr=0.1,shortcut=A",
    ]
    assert not (bench.folder / "outputs").exists()


def test_every_choice_that_does_not_exist_is_named(bench):
    first, second = bench.mistake("model=resnet20,resnet21,resnet23").splitlines()
    assert "model=resnet21: there is no such choice" in first
    assert "model=resnet23: there is no such choice" in second


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["seed=0"], "The sweep is empty"),
        (["seed=range(0,0)"], "The sweep is empty"),
        (["modle=resnet20,resnet32"], "modle: there is no such key; did you mean model?"),
        (["seed=0,0"], "2 jobs would share the folder seed=0"),
        (["seed=0,1", "sweep.jobs=0"], "sweep.jobs=0: must be 1 or more, or auto"),
        (["seed=0,1", "sweep.name=a/b"], "sweep.name=a/b: must be a name for a folder"),
        (["sweep.jobs=1,2"], "sweep.jobs: belongs to the sweep as a whole"),
        (["seed=0,1", "trainer.devices=[0,1]"], "trainer.devices=[0, 1]: a sweep hands out"),
    ],
)
def test_a_mistaken_sweep_gets_one_sentence_and_leaves_nothing(bench, overrides, sentence):
    message = bench.mistake(*overrides)
    assert message.startswith(f"error: {sentence}")
    assert "\n" not in message
    assert not (bench.folder / "outputs").exists()


def test_a_folder_that_is_no_sweep_is_left_alone(bench):
    bench.sweep.mkdir(parents=True)
    (bench.sweep / "thesis.txt").write_text("precious")
    assert "is there already and is no sweep" in bench.mistake("seed=0,1")
    assert snapshot(bench.sweep) == {bench.sweep / "thesis.txt": b"precious"}


def test_a_truncated_result_is_one_sentence_and_overwrites_nothing(finished):
    result = finished.sweep / "seed=1" / "result.json"
    result.write_text(result.read_text()[:20])
    before = snapshot(finished.sweep)
    message = finished.mistake("seed=0,1", "optimizer.lr=0.1")
    assert "seed=1/result.json: cannot be read" in message
    assert "\n" not in message
    assert snapshot(finished.sweep) == before


def test_the_same_command_again_runs_nothing(finished):
    done = finished.run("seed=0,1", "optimizer.lr=0.1", "data.cache_dir=elsewhere")
    assert done.returncode == 0
    assert "2 finished before, 0 to run" in done.stdout
    assert set(finished.starts().values()) == {1}


def test_new_points_are_added_and_one_value_is_enough(finished):
    done = finished.run("seed=2,3", "optimizer.lr=0.1")
    assert done.returncode == 0, done.stderr
    assert set(finished.states()) == {f"seed={n}" for n in range(4)}
    done = finished.run("seed=choice(4)", "optimizer.lr=0.1")
    assert done.returncode == 0, done.stderr
    assert finished.starts() == Counter({f"seed={n}": 1 for n in range(5)})


@pytest.mark.parametrize("seeds", ["0,1", "7,8"])
def test_a_changed_setting_is_refused_with_the_difference(finished, seeds):
    before = snapshot(finished.sweep)
    message = finished.mistake(f"seed={seeds}", "optimizer.lr=0.2")
    assert "\n  optimizer.lr: 0.1 -> 0.2\n" in message
    assert "sweep.force=true" in message
    assert message.count(" -> ") == 2  # the heading says what the arrow means
    assert snapshot(finished.sweep) == before
    assert set(finished.starts()) == {"seed=0", "seed=1"}


def test_force_begins_changed_jobs_anew_and_keeps_the_old(finished):
    done = finished.run("seed=0,1", "optimizer.lr=0.2", "sweep.force=true")
    assert done.returncode == 0, done.stderr
    assert finished.starts() == Counter({"seed=0": 2, "seed=1": 2})
    assert (finished.sweep / "seed=0" / "attempt-1" / "result.json").exists()
    # And from now on the new settings are those of the sweep.
    assert finished.run("seed=0,1", "optimizer.lr=0.2").returncode == 0
    assert finished.starts()["seed=0"] == 2


def test_another_swept_key_is_another_sweep(finished):
    message = finished.mistake("seed=0,1", "optimizer.lr=0.1,0.2")
    assert "optimizer.lr: fixed in this sweep so far, which varies seed" in message


def test_retries_try_again_anew(bench):
    done = bench.run("+how=flaky,raise", "sweep.retries=2")
    assert done.returncode == 1
    assert bench.states() == {"how=flaky": "finished", "how=raise": "failed"}
    assert bench.starts() == Counter({"how=flaky": 2, "how=raise": 3})
    assert "how=flaky (attempt 2)" in done.stdout


def test_on_error_stop_stops_what_runs_and_starts_no_more(bench):
    done = bench.run("+how=sleep,raise,finish", "sweep.jobs=2", "sweep.on_error=stop")
    assert done.returncode == 1
    assert bench.states() == {
        "how=sleep": "interrupted",
        "how=raise": "failed",
        "how=finish": "waiting",
    }


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_jobs(bench, number, status):
    sweep = bench.start("+how=sleep,deaf,finish", "sweep.jobs=2")
    running = [bench.sweep / f"how={how}" for how in ("sleep", "deaf")]
    wait_until(lambda: all((folder / "ready").exists() for folder in running))
    processes = [bench.told(folder.name)[who] for folder in running for who in ("pid", "peer")]
    processes.append(bench.told("how=deaf")["parent"])
    assert all(map(alive, processes))
    sweep.send_signal(number)
    output, _ = sweep.communicate(timeout=30)
    assert sweep.returncode == status, output
    assert not any(map(alive, processes))
    assert bench.states() == {
        "how=sleep": "interrupted",
        "how=deaf": "interrupted",
        "how=finish": "waiting",
    }
    assert not (bench.sweep / "how=sleep" / "error.txt").exists()
    assert "the same command goes on" in output


def test_a_killed_sweep_leaves_no_process_and_the_next_goes_on(bench):
    jobs = ("+how=finish,sleep,deaf",)
    sweep = bench.start(*jobs, "sweep.jobs=3")
    running = [bench.sweep / f"how={how}" for how in ("sleep", "deaf")]
    wait_until(lambda: all((folder / "ready").exists() for folder in running))
    wait_until(lambda: bench.states()["how=finish"] == "finished")
    processes = [bench.told(folder.name)[who] for folder in running for who in ("pid", "peer")]
    sweep.kill()
    sweep.communicate(timeout=10)
    # At once: it waits until the jobs of the first have saved and gone.
    again = bench.start(*jobs, "sweep.jobs=3")
    wait_until(lambda: bench.starts()["how=sleep resumed"] == 1)
    assert not any(map(alive, processes))
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=30)
    assert bench.starts()["how=finish"] == 1
    assert bench.starts()["how=deaf"] == 2  # it had left no checkpoint
    assert bench.states() == {
        "how=finish": "finished",
        "how=sleep": "finished",
        "how=deaf": "interrupted",
    }


def test_without_its_server_a_sweep_ends_and_so_do_the_jobs(bench):
    done = bench.run("+how=orphan,finish")
    assert done.returncode != 0
    assert "the process that jobs are forked from has ended" in done.stderr
    wait_until(lambda: not alive(bench.told("how=orphan")["pid"]))
    assert bench.states() == {"how=orphan": "failed", "how=finish": "waiting"}


# ---------------------------------------------------------------- the real thing

TINY = (
    "model=cifar_resnet",
    "model.depth=8",
    "model.width=0.25",
    "data.train_size=256",
    "data.batch_size=64",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "trainer.precision=32",
)


def train_py(folder: Path, cache: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), "-m", "sweep.name=s", *TINY]
    return subprocess.run(
        [*command, f"data.cache_dir={cache}", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_plan_runs_nothing_and_says_what_it_would_take(config, tmp_path, monkeypatch, capsys):
    from omegaconf import OmegaConf

    from resnet_lab.sweep import measure

    monkeypatch.setattr(
        plan,
        "_measure",
        lambda jobs: measure.measure([job.config for job in jobs], str(tmp_path / "run")),
    )
    jobs = []
    for width, devices in ((0.25, 1), (0.5, 2)):
        cfg = config(*TINY, f"model.width={width}", f"trainer.devices={devices}")
        one = job(f"width={width}", devices=devices, folder=tmp_path / f"width={width}")
        settings = OmegaConf.to_container(cfg).items()
        one.config = {k: v for k, v in settings if k not in grid.NOT_IDENTITY}
        jobs.append(one)
    costs = measure.measure([one.config for one in jobs], str(tmp_path / "run"))
    assert [cost["steps"] for cost in costs["jobs"]] == [4, 4]
    assert [cost["batch"] for cost in costs["jobs"]] == [64, 32]
    small, large = costs["jobs"]
    assert large["params"] > small["params"]
    assert costs["step"] > 0
    plan.plan(jobs, Slots(None, []))
    said = capsys.readouterr().out
    assert f"{large['params']:,}" in said
    assert f"{large['macs'] / 1e6:,.2f} M" in said
    assert "2 of 2 jobs to run: about 0:0" in said
    assert not any(one.folder.exists() for one in jobs)
    assert not (tmp_path / "run").exists()


def test_a_sweep_of_real_runs(tmp_path, shared_cache):
    done = train_py(tmp_path, shared_cache, "model.shortcut=A,none", "sweep.jobs=2")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "outputs" / "sweeps" / "s"
    for shortcut in ("A", "none"):
        run = folder / f"shortcut={shortcut}"
        result = json.loads((run / "result.json").read_text())
        assert result["status"] == "finished"
        assert f"model.shortcut={shortcut}" in result["command"]
        assert "-m" not in result["command"].split()
        for name in ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "run.log"):
            assert (run / name).exists()
        with (run / "metrics.csv").open(newline="") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "shortcut=A",
        "shortcut=none",
    }


@pytest.mark.slow
def test_jobs_of_two_devices_have_one_folder_each(tmp_path, shared_cache):
    done = train_py(tmp_path, shared_cache, "seed=0,1", "trainer.devices=2")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "outputs" / "sweeps" / "s"
    for seed in (0, 1):
        result = json.loads((folder / f"seed={seed}" / "result.json").read_text())
        assert (result["status"], result["devices"]) == ("finished", 2)
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"seed=0", "seed=1"}
    assert not (tmp_path / "outputs" / "runs").exists()

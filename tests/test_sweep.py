"""Sweeps: isolated jobs, states read from their folders, and a program that always ends."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from lab import WITHOUT_PICTURES, slow_except, train_here
from omegaconf import OmegaConf
from rich.console import Console
from sandbox import ROOT, Sandbox, alive, copied, wait_until

from resnet_lab.run import gpu
from resnet_lab.run.state import State
from resnet_lab.sweep import devices, grid, ledger, measure, plan, show
from resnet_lab.sweep.devices import Devices
from resnet_lab.sweep.grid import differences, folder_names
from resnet_lab.sweep.job import Job, JobRecord


@pytest.fixture
def bench(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    bench = Sandbox(tmp_path_factory.mktemp("finished"))
    done = bench.run("seed=0,1", "optimizer.lr=0.1")
    assert done.returncode == 0, done.stderr
    return bench


@pytest.fixture
def finished(finished_once: Sandbox, tmp_path: Path) -> Sandbox:
    """A sweep of two finished jobs, to do with as one likes."""
    return copied(finished_once, tmp_path)


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


def job(name: str = "j", n_devices: int | None = 1, on_cpu: bool = False, **kwargs) -> Job:
    folder, config = kwargs.pop("folder", Path(name)), kwargs.pop("config", {})
    return Job(folder, (), {}, config, devices=n_devices, on_cpu=on_cpu, max_epochs=4)


def test_gpus_are_handed_out_one_job_each_and_come_back():
    held = Devices(None, None, ["0", "1", "2"])
    assert held.take(job("a")) == ["0"]
    assert held.take(job("b", 2)) == ["1", "2"]
    assert held.take(job("c")) is None
    held.give("a")
    assert held.take(job("d", 2)) is None
    assert held.take(job("c")) == ["0"]


def test_a_number_of_jobs_shares_the_gpus_evenly():
    held = Devices(4, None, ["0", "1"])
    assert [held.take(job(n))[0] for n in "abcd"] == ["0", "1", "0", "1"]
    assert held.take(job("e")) is None


def test_half_a_job_on_a_gpu_is_a_job_on_two():
    held = Devices(None, 0.5, ["0", "1", "2", "3"])
    assert [held.take(job(n, None)) for n in "abc"] == [["0", "1"], ["2", "3"], None]


@pytest.mark.parametrize(("used", "fit"), [(9_000, 4), (30_000, 3), (90_000, 1)])
def test_jobs_share_a_gpu_once_the_first_has_shown_its_memory(used, fit, monkeypatch, capsys):
    monkeypatch.setattr(devices, "gpu_memory", lambda gpu: (used, 100_000))
    held = Devices(None, 4, ["0"])
    assert held.take(job("a")) == ["0"]
    held.measure()
    assert held.take(job("b")) is None
    held.trained("a")
    held.measure()
    taken = [held.take(job(name)) for name in "bcde"]
    assert sum(gpus is not None for gpus in taken) == fit - 1
    said = capsys.readouterr().out
    assert ("so" in said) == (fit < 4)
    if fit < 4:
        assert f"a job takes {used:,} of 100,000 MiB, so {fit} of them share a GPU" in said


def test_on_the_cpu_small_jobs_run_side_by_side(monkeypatch):
    monkeypatch.setattr(devices, "cpus", lambda: 4)
    monkeypatch.setattr(devices, "free_memory", lambda: 64 * devices.GIB)
    held, small = Devices(None, None, []), {"data": {"image_size": 32}}
    held.n_jobs = 10
    assert [held.take(job(n, config=small)) for n in "abcde"] == [[], [], [], [], None]
    assert held.threads(job(config=small)) == 1
    monkeypatch.setattr(devices, "cpus", lambda: 16)
    assert (held.side_by_side(job()), held.threads(job())) == (8, 2)
    assert (held.side_by_side(job("d", 2)), held.threads(job("d", 2))) == (4, 2)
    held.n_jobs = 2
    assert (held.side_by_side(job()), held.threads(job())) == (2, 8)
    held.n_jobs = 1
    assert held.threads(job()) is None


def test_on_the_cpu_memory_decides_how_many(monkeypatch):
    now, free = [100.0], 3.5 * devices.GIB
    monkeypatch.setattr(devices, "cpus", lambda: 4)
    monkeypatch.setattr(devices, "free_memory", lambda: free)
    monkeypatch.setattr(devices.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(devices, "resident", lambda process: (devices.GIB, 2 * devices.GIB))
    held = Devices(None, None, [])
    held.n_jobs = 9
    large = {"data": {"image_size": 224}}
    assert held.take(job("a", config=large)) == []
    held.started("a", 1)
    held.measure()
    assert held.take(job("b", config=large)) is None  # nobody knows yet what it takes
    now[0] += devices.SETTLED_SECONDS + 1
    held.measure()
    assert held.take(job("b", config=large)) == []  # 2 GiB, and 1 that the first may still grow
    held.started("b", 2)
    assert held.take(job("c", config=large)) is None


def test_a_number_of_jobs_is_obeyed(monkeypatch):
    monkeypatch.setattr(devices, "cpus", lambda: 8)
    four = Devices(4, None, ["0"])
    four.n_jobs = 10
    assert four.take(job("a", on_cpu=True)) == []
    assert four.threads(job(on_cpu=True)) == 2
    assert four.threads(job("j", 2, on_cpu=True)) == 1
    four.n_jobs = 2
    assert four.threads(job(on_cpu=True)) == 4


def test_more_gpus_than_there_are_is_one_sentence():
    with pytest.raises(ValueError, match=r"trainer\.devices=4: 2 GPUs"):
        Devices(None, None, ["0", "1"]).wanted(job("j", 4))
    assert Devices(None, None, ["0", "1"]).wanted(job("j", None)) == 2


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
    screen = Console(file=io.StringIO(), force_terminal=True, width=120, height=13)
    monkeypatch.setattr(show, "console", screen)
    records = [JobRecord(job(folder=tmp_path / f"seed={n}")) for n in range(31)]
    clock = [1e9]
    monkeypatch.setattr(show.time, "time", lambda: clock[0])
    one = records[30]
    one.folder.mkdir()

    def shown() -> str:
        clock[0] += 1
        screen.file.truncate(0)
        display.update()
        return screen.file.getvalue()

    with show.Display(records, lambda: 31) as display:
        one.state, one.attempts = State.RUNNING, 1
        display.started(one)
        clock[0] += 29
        assert "0/4" in shown()  # an elapsed time, and no guess, before the first epoch has ended
        assert "0:30 elapsed" in screen.file.getvalue()
        assert "ends at" not in screen.file.getvalue()
        clock[0] += 30
        (one.folder / "metrics.csv").write_text("epoch,val/acc\n1,0.625\n")
        os.utime(one.folder / "metrics.csv", (clock[0], clock[0]))
        text = shown()
        assert "seed=30" in text
        assert "1/4" in text
        assert "0.6250" in text
        assert "2:59" in text  # three more epochs of a minute, of which a second is over
        assert "ends at about" in text
        assert "1 running, 30 waiting" in text
        assert text.count("seed=") <= 13 - 7  # what fits
        clock[0] += 9
        assert "2:49" in shown()  # it falls in the middle of an epoch
        (one.folder / "metrics.csv").write_text("epoch,val/acc\n4,0.625\n")
        assert "test" in shown()
        before = screen.file.getvalue()
        display.update()  # within the same second: not drawn again
        assert screen.file.getvalue() == before


def test_the_closing_table_shows_whole_names_in_a_file(tmp_path, capsys):
    one = JobRecord(job(folder=tmp_path / f"optimizer.lr=0.1,{'long,' * 30}seed=0"))
    show.close([one], tmp_path, 1)
    assert one.name in capsys.readouterr().out


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("result", "status", "stopping", "state", "resumes"),
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
def test_an_attempt_is_judged_by_its_folder(tmp_path, result, status, stopping, state, resumes):
    one = JobRecord(job(folder=tmp_path / "seed=0"))
    ledger.prepare(one)
    ledger.begin(one)
    (one.folder / "config.yaml").touch()
    (one.folder / "checkpoints").mkdir()
    (one.folder / "checkpoints" / "last.ckpt").touch()
    (one.folder / "console.log").write_text("".join(f"line {n}\n" for n in range(100)))
    if result:
        content = {"status": result, "error": "OSError: lost"}
        (one.folder / "result.json").write_text(json.dumps(content))
    ledger.end(one, status, 2.0, stopping)
    assert (one.state, one.resume and state != "finished") == (state, resumes)
    again = JobRecord(job(folder=one.folder))
    ledger.refresh([again], ["seed"], [], force=False)
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
    one = JobRecord(job(folder=tmp_path / "seed=0"))
    for n in range(3):
        arguments = ledger.prepare(one)
        ledger.begin(one)
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


@pytest.mark.slow
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
    # Seconds apart, whatever the machine: what the next run finds, it keeps.
    long_ago = "2026-01-01T00:00:00+00:00"
    (bench.sweep / "sweep.json").write_text(json.dumps(record | {"started": long_ago}))
    assert (record["name"], record["keys"]) == ("s", ["how", "seed"])
    assert "+how=finish,raise,exit,kill" in record["command"]
    assert not alive(bench.seen("how=kill,seed=0")["peer"])  # nor what it had started
    assert (bench.sweep / "multirun.yaml").exists()

    done = bench.run(*grid_of_12)
    assert done.returncode == 1
    assert json.loads((bench.sweep / "sweep.json").read_text())["started"] == long_ago
    starts = bench.starts()
    assert all(starts[f"how=finish,seed={n}"] == 1 for n in range(3))
    assert all(starts[f"how={how},seed=0"] == 2 for how in ("raise", "exit", "kill"))
    # Killed with a checkpoint at hand: resumed, by the command that began it.
    assert starts["how=kill,seed=2"] == 1
    assert starts["how=kill,seed=2 resumed"] == 1
    assert bench.states()["how=kill,seed=2"] == "finished"
    *began, resume = bench.seen("how=kill,seed=2")["arguments"]
    assert {"+how=kill", "seed=2"} <= set(began)
    assert resume == 'resume="outputs/sweeps/s/how=kill,seed=2"'
    assert not (bench.sweep / "how=kill,seed=2" / "error.txt").exists()
    assert (bench.sweep / "how=raise,seed=0" / "attempt-1" / "error.txt").exists()


def test_a_job_is_started_as_the_single_run_would_be(bench):
    # As where the sweep itself was started by something that starts ranks.
    done = bench.run("seed=0,1", "sweep.jobs=2", "+x=1", LOCAL_RANK="1", WORLD_SIZE="2")
    assert done.returncode == 0, done.stderr
    told = bench.seen("seed=1")
    assert told["arguments"] == ["seed=1", "+x=1", 'hydra.run.dir="outputs/sweeps/s/seed=1"']
    assert told["script"] == told["file"] == str(bench.folder / "stand_in.py")
    assert not told["spec"]  # else whoever replays the command line would say "-m"
    assert not {"LOCAL_RANK", "WORLD_SIZE", "HYDRA_FULL_ERROR"} & set(told["env"])
    assert told["loaded"]
    assert not told["terminal"]
    assert told["pid"] != bench.seen("seed=0")["pid"]
    assert told["parent"] == bench.seen("seed=0")["parent"]


def test_without_warmth_each_job_is_a_new_python(bench):
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = bench.command("seed=0,1", "sweep.jobs=2", "sweep.warm=false")
    subprocess.run(command, cwd=bench.folder, env=env, check=True, capture_output=True, timeout=60)
    told = bench.seen("seed=1")
    assert told["env"]["OMP_NUM_THREADS"] == str(max(1, devices.cpus() // 2))
    assert told["script"] == str(bench.folder / "stand_in.py")
    assert not told["loaded"]


def test_a_job_sees_the_gpus_that_are_its_own(bench, fake_cuda):
    done = bench.run("seed=0,1", **fake_cuda, FAKE_GPUS="2")
    assert done.returncode == 0, done.stderr
    seen = [bench.seen(f"seed={n}")["env"] for n in (0, 1)]
    names = {f"GPU-0000000{n}-0000-0000-0000-000000000000" for n in (1, 2)}
    assert {env["CUDA_VISIBLE_DEVICES"] for env in seen} == names
    assert all(env[gpu.GIVEN] == env["CUDA_VISIBLE_DEVICES"] for env in seen)


def test_every_mistake_is_named_before_anything_runs(bench):
    done = bench.run("model.depth=20,21,23", "optimizer.lr=0.1,-1", "model.shortcut=A,E")
    assert done.returncode == 1
    first, *others = done.stderr.removeprefix("error: ").splitlines()
    assert first == (
        "depth=20,lr=0.1,shortcut=E and 2 more: model.shortcut=E: must be one of A, B, C, D, "
        "scale, gate, shortcut_gate, conv, dropout, learned or none."
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
        pytest.param(["seed=range(0,0)"], "The sweep is empty", marks=pytest.mark.slow),
        (["modle=resnet20,resnet32"], "modle=resnet20,resnet32: there is no such key; did you"),
        (["seed=0,0"], "2 jobs would share the folder seed=0"),
        pytest.param(
            ["seed=0,1", "sweep.jobs=0"],
            "sweep.jobs=0: must be 1 or more, or auto",
            marks=pytest.mark.slow,
        ),
        (["seed=0,1", "sweep.name=a/b"], "sweep.name=a/b: must be a name for a folder"),
        pytest.param(
            ["sweep.jobs=1,2"],
            "sweep.jobs: belongs to the sweep as a whole",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["seed=0,1", "trainer.devices=[0,1]"],
            "trainer.devices=[0, 1]: a sweep hands out",
            marks=pytest.mark.slow,
        ),
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_retries_try_again_anew(bench):
    done = bench.run("+how=flaky,raise", "sweep.retries=2")
    assert done.returncode == 1
    assert bench.states() == {"how=flaky": "finished", "how=raise": "failed"}
    assert bench.starts() == Counter({"how=flaky": 2, "how=raise": 3})
    assert "how=flaky (attempt 2)" in done.stdout


@pytest.mark.slow
def test_on_error_stop_stops_what_runs_and_starts_no_more(bench):
    done = bench.run("+how=sleep,raise,finish", "sweep.jobs=2", "sweep.on_error=stop")
    assert done.returncode == 1
    assert bench.states() == {
        "how=sleep": "interrupted",
        "how=raise": "failed",
        "how=finish": "waiting",
    }


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_stops_all_jobs(bench, number, status):
    sweep = bench.start("+how=sleep,deaf,finish", "sweep.jobs=2")
    running = [bench.sweep / f"how={how}" for how in ("sleep", "deaf")]
    wait_until(lambda: all((folder / "ready").exists() for folder in running))
    processes = [bench.seen(folder.name)[who] for folder in running for who in ("pid", "peer")]
    processes.append(bench.seen("how=deaf")["parent"])
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
    assert "run the same command to continue" in output


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_and_the_next_goes_on(bench):
    jobs = ("+how=finish,sleep,deaf",)
    sweep = bench.start(*jobs, "sweep.jobs=3")
    running = [bench.sweep / f"how={how}" for how in ("sleep", "deaf")]
    wait_until(lambda: all((folder / "ready").exists() for folder in running))
    wait_until(lambda: bench.states()["how=finish"] == "finished")
    processes = [bench.seen(folder.name)[who] for folder in running for who in ("pid", "peer")]
    sweep.kill()
    sweep.communicate(timeout=10)
    # At once: it waits until the jobs of the first have saved and gone.
    again = bench.start(*jobs, "sweep.jobs=3")
    wait_until(lambda: bench.starts()["how=sleep resumed"] == 1)
    wait_until(lambda: bench.starts()["how=deaf"] == 2)  # beside it, a moment later
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


@pytest.mark.slow
def test_without_its_server_a_sweep_ends_and_so_do_the_jobs(bench):
    done = bench.run("+how=orphan,finish", "sweep.jobs=1")
    assert done.returncode != 0
    assert done.stderr.startswith("error: the process that jobs are forked from has ended")
    assert "Traceback" not in done.stderr
    wait_until(lambda: not alive(bench.seen("how=orphan")["pid"]))
    assert bench.states() == {"how=orphan": "failed", "how=finish": "waiting"}


@pytest.mark.slow
@pytest.mark.parametrize("harm", slow_except(("torn",), ("sweep_job.json", "torn", "metrics")))
def test_what_somebody_removes_from_a_job_costs_nothing(bench, harm):
    process = bench.start("+how=sleep,finish", "sweep.jobs=2")
    folder = bench.sweep / "how=sleep"
    wait_until(lambda: (folder / "ready").exists() and "finished" in bench.states().values())
    if harm == "sweep_job.json":
        (folder / "sweep_job.json").unlink()
    elif harm == "torn":
        (folder / "sweep_job.json").write_text('{"attempts": [')
    else:
        (folder / "metrics.csv").write_text("epoch,val/acc\n1,0.")
    time.sleep(0.5)  # in which the sweep shows it
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[0]
    assert "Traceback" not in said
    assert process.returncode == 143
    assert bench.states()["how=sleep"] == "interrupted"
    told = json.loads((folder / "sweep_job.json").read_text())
    assert told["attempts"][-1]["state"] == "interrupted"


def test_a_job_without_its_folder_fails_and_the_others_go_on(bench):
    process = bench.start("+how=sleep,finish,exit", "sweep.jobs=1")
    folder = bench.sweep / "how=sleep"
    wait_until((folder / "ready").exists)
    job = bench.seen("how=sleep")["pid"]
    shutil.rmtree(folder)
    os.kill(job, signal.SIGKILL)
    said = process.communicate(timeout=30)[0]
    assert "Traceback" not in said
    assert process.returncode == 1
    error = bench.jobs()["how=sleep"]["error"]
    assert error == "its folder was removed or renamed while it ran"
    assert bench.states()["how=finish"] == "finished"


@pytest.mark.slow
def test_a_frozen_server_does_not_keep_a_sweep_from_ending(bench):
    process = bench.start("+how=sleep", "seed=0,1", "sweep.jobs=2")
    wait_until(lambda: len(list(bench.sweep.glob("*/ready"))) == 2)
    jobs = [bench.seen(path.parent.name) for path in bench.sweep.glob("*/ready")]
    os.kill(jobs[0]["parent"], signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=15)[0]
    assert "Traceback" not in said
    assert process.returncode == 130
    wait_until(lambda: not any(alive(job["pid"]) for job in jobs))
    assert not alive(jobs[0]["parent"])


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
    WITHOUT_PICTURES,
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


def planned(config, tmp_path, monkeypatch, *widths: float) -> list[JobRecord]:
    """Jobs whose costs are measured in this process."""
    monkeypatch.setattr(
        plan,
        "_measure",
        lambda records: measure.measure([r.job.config for r in records], str(tmp_path / "run")),
    )
    records = []
    for width in widths:
        cfg = config(*TINY, f"model.width={width}")
        settings = OmegaConf.to_container(cfg).items()
        own = {k: v for k, v in settings if k not in grid.NOT_IDENTITY}
        records.append(JobRecord(job(folder=tmp_path / f"width={width}", config=own)))
    return records


def test_a_plan_runs_nothing_and_shows_the_cost_of_each_job(config, tmp_path, monkeypatch, capsys):
    records = planned(config, tmp_path, monkeypatch, 0.25, 0.5)
    small, large = plan._measure(records)
    assert [cost["steps"] for cost in (small, large)] == [4, 4]
    assert large["params"] > small["params"]
    plan.plan(records)
    said = capsys.readouterr().out
    assert f"{large['params']:,}" in said
    assert f"{large['macs'] / 1e6:,.2f} M" in said
    assert "2 of 2 jobs to run: the time can be estimated once a job has finished" in said
    assert not any(record.folder.exists() for record in records)
    assert not (tmp_path / "run").exists()
    # From a finished job, by multiply-adds.
    records[0].state = State.FINISHED
    records[0].folder.mkdir()
    (records[0].folder / "result.json").write_text('{"seconds": 600}')
    plan.plan(records)
    said = capsys.readouterr().out
    expected = show.duration(600 * large["macs"] / small["macs"])
    assert f"1 of 2 jobs to run: about {expected} one after the other, by 1 finished jobs" in said


@pytest.mark.slow
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


def test_a_job_runs_with_what_its_sweep_composed(config, tmp_path, shared_cache):
    """Whatever has become of the config files since."""
    overrides = [*TINY, f"data.cache_dir={shared_cache}", "trainer.max_epochs=2"]
    planned = OmegaConf.to_container(config(*overrides, "optimizer.lr=0.2"))
    own = {key: value for key, value in planned.items() if key not in grid.NOT_IDENTITY}
    (tmp_path / "job").mkdir()
    told = {"overrides": overrides, "swept": {}, "config": own, "attempts": []}
    (tmp_path / "job" / "sweep_job.json").write_text(json.dumps(told))
    done = train_here(tmp_path, *overrides, "callbacks.last.pause_after=1", "hydra.run.dir=job")
    assert done.returncode == 0, done.stderr
    assert "(optimizer.lr: 0.2 -> 0.1); this job runs as planned" in done.stdout
    saved = OmegaConf.load(tmp_path / "job" / "config.yaml")
    assert (saved.optimizer.lr, saved.callbacks.last.pause_after) == (0.2, 1)
    assert json.loads((tmp_path / "job" / "result.json").read_text())["status"] == "paused"

    # Another command in such a folder is none of the sweep's.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sweep_job.json").write_text(json.dumps(told))
    done = train_here(tmp_path, *overrides[:-1], "hydra.run.dir=other", "trainer.max_epochs=1")
    assert "runs as planned" not in done.stdout
    assert OmegaConf.load(tmp_path / "other" / "config.yaml").optimizer.lr == 0.1


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

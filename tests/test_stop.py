"""Runs as processes: what signals, a time limit and failing devices do to them."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lab import CPU, ROOT, SMALL_NET, read_result
from sandbox import wait_until

from resnet_lab.run import checkpoint_io
from resnet_lab.run.folder import RunFolder

# Long enough that nothing ends by itself, with an epoch every few hundred milliseconds.
LONG = (
    *(*SMALL_NET, *CPU, "model.norm=group", "data.train_size=256", "data.batch_size=32"),
    *("scheduler=constant", "trainer.max_epochs=100000", "compile=false"),
)
BOUND = 60  # seconds until a run must be gone, on a machine where other work runs


class Run:
    """`python train.py` in a folder of its own, watched from outside."""

    def __init__(self, folder: Path, overrides: tuple[str, ...], script: str) -> None:
        self.run_dir = folder / "run"
        self.log = folder / "console.log"
        environment = {k: v for k, v in os.environ.items() if k != "LOCAL_RANK"}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / script), *overrides],
                cwd=folder,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def ready(self, epochs: int = 1) -> "Run":
        """Wait until so many epochs are in metrics.csv."""

        def there() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return len(rows(self)) >= epochs

        wait_until(there, 240)
        return self

    def processes(self) -> list[int]:
        """This run's processes that live: first the first, then those of the other devices."""
        here = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(path.name)) == self.process.pid:
                    state = (path / "stat").read_text().rpartition(")")[2].split()[0]
                    if state != "Z":
                        here.append(int(path.name))
            except (ProcessLookupError, FileNotFoundError):
                continue
        return sorted(here, key=lambda pid: (pid != self.process.pid, pid))

    def end(self, bound: float = BOUND) -> tuple[int, float]:
        """The exit status and how long it took; fails where the run or a child of it stays."""
        since = time.monotonic()
        try:
            status = self.process.wait(bound)
            while self.processes() and time.monotonic() < since + bound:
                time.sleep(0.05)
            left = self.processes()
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {bound} s: {self.log.read_text()}") from None
        finally:
            self.kill()
        assert not left, f"left behind: {left}"
        return status, time.monotonic() - since

    def kill(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def result(self) -> dict:
        return read_result(self.run_dir)


@pytest.fixture
def start(tmp_path, shared_cache):
    """`start("trainer.devices=2")`: a run, killed with its children when the test ends."""
    runs = []
    # What is started in the background of a script ignores SIGINT, and so would its children.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def launch(*overrides: str, script: str = "train.py") -> Run:
        fixed = (f"hydra.run.dir={tmp_path}/run", f"data.cache_dir={shared_cache}")
        resumes = any(override.startswith("resume=") for override in overrides)
        given = overrides if resumes else (*LONG, *fixed, *overrides)
        runs.append(Run(tmp_path, given, script))
        return runs[-1]

    yield launch
    signal.signal(signal.SIGINT, handler)
    for run in runs:
        run.kill()


def to_first(run: Run, number: int) -> None:
    os.kill(run.processes()[0], number)


def to_last(run: Run, number: int) -> None:
    os.kill(run.processes()[-1], number)


def to_all(run: Run, number: int) -> None:
    os.killpg(run.process.pid, number)


STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}


def stopped(run: Run, status: int) -> float:
    """Check that the run ended so, resumable, and saying it; returns the seconds it took."""
    ended, seconds = run.end()
    assert ended == status, run.log.read_text()
    assert run.result["status"] == "interrupted"
    checkpoint_io.newest(RunFolder(run.run_dir))
    assert f"resume it with: python train.py resume={run.run_dir.name}" in run.log.read_text()
    return seconds


@pytest.mark.slow
def test_a_signal_saves_and_the_run_can_be_resumed(start):
    run = start().ready()
    to_first(run, signal.SIGTERM)
    stopped(run, 143)
    assert "stopped by SIGTERM at step" in run.result["error"]


@pytest.mark.slow
def test_a_resumed_process_is_stopped_again(start):
    run = start().ready()
    to_first(run, signal.SIGTERM)
    stopped(run, 143)
    at = checkpoint_io.newest(RunFolder(run.run_dir))[1]["global_step"]

    again = start(f"resume={run.run_dir}").ready(len(rows(run)) + 1)
    to_first(again, signal.SIGINT)
    stopped(again, 130)
    assert checkpoint_io.newest(RunFolder(run.run_dir))[1]["global_step"] > at
    epochs = [int(row.split(",")[0]) for row in rows(run)]
    assert epochs == list(range(1, len(epochs) + 1))


def rows(run: Run) -> list[str]:
    path = run.run_dir / "metrics.csv"
    return path.read_text().splitlines()[1:] if path.exists() else []


# ---------------------------------------------------------------------- long: make test-faults


@pytest.mark.faults
@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("target", [to_first, to_last, to_all])
def test_a_signal_stops_two_devices(start, number, target, figure):
    run = start("trainer.devices=2").ready()
    assert len(run.processes()) == 2
    target(run, number)
    seconds = stopped(run, STATUS[number])
    figure(f"two devices, {number.name} {target.__name__}", f"saved, {seconds:.1f} s")


@pytest.mark.faults
def test_a_stopped_pair_goes_on(start):
    run = start("trainer.devices=2").ready()
    to_last(run, signal.SIGTERM)
    stopped(run, 143)
    again = start(f"resume={run.run_dir}").ready(len(rows(run)) + 1)
    to_first(again, signal.SIGTERM)
    stopped(again, 143)


@pytest.mark.faults
def test_the_second_signal_ends_at_once(start, figure):
    run = start("trainer.devices=2", "data.batch_size=256").ready()
    to_last(run, signal.SIGSTOP)  # so that the first one cannot be heeded
    to_first(run, signal.SIGTERM)
    time.sleep(1)
    to_first(run, signal.SIGTERM)
    status, seconds = run.end()
    assert status == 143
    figure("the second signal, while the other device is frozen", f"gone after {seconds:.1f} s")


@pytest.mark.faults
def test_a_run_stopped_by_its_time_limit_can_be_resumed(start):
    run = start("trainer.max_time=00:00:00:04")
    stopped(run, 124)
    assert "trainer.max_time is over" in run.result["error"]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("fault", "target"),  # a frozen first process stays, with nobody who could end it
    [
        *(("killed", to_first), ("killed", to_last), ("frozen", to_last)),
        *(("raising", to_first), ("raising", to_last)),
    ],
)
def test_one_device_fails_and_the_run_ends(start, target, fault, figure, monkeypatch):
    rank = 0 if target is to_first else 1
    if fault == "raising":
        monkeypatch.setenv("FAULT_RANK", str(rank))  # see faulty_train.py
        run = start("trainer.devices=2", script="tests/faulty_train.py")
    else:
        run = start("trainer.devices=2", "rank_timeout=40").ready()  # a start takes some of it
        target(run, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    status, seconds = run.end(120)
    assert status != 0
    if fault == "raising":
        assert "on purpose" in run.log.read_text()
        figure(f"two devices, device {rank} raises", f"status {status}, nobody left")
    else:
        figure(f"two devices, device {rank} {fault}", f"status {status}, {seconds:.1f} s")


@pytest.mark.faults
def test_killed_twenty_times(start, figure):
    """SIGKILL at random moments, a checkpoint every step; in the end the weights are as if none."""
    kills, rng, options = 20, random.Random(0), ("trainer.max_epochs=80", "seed=1")
    run = start(*options, "callbacks.last.minutes=0")
    survived = set()
    for _ in range(kills):
        run.ready(len(rows(run)) + 1)
        time.sleep(rng.random())
        to_first(run, signal.SIGKILL)
        run.process.wait()
        survived.add(checkpoint_io.newest(RunFolder(run.run_dir))[1]["global_step"])
        run = start(f"resume={run.run_dir}")
    assert run.process.wait(600) == 0, run.log.read_text()
    assert run.result["status"] == "finished"
    weights = checkpoint_io.load(run.run_dir / "checkpoints" / "last.ckpt")

    run.run_dir.rename(run.run_dir.with_name("killed"))
    alone = start(*options)
    assert alone.process.wait(600) == 0
    expected = checkpoint_io.load(alone.run_dir / "checkpoints" / "last.ckpt")
    same = all(
        torch.equal(value, weights["state_dict"][key])
        for key, value in expected["state_dict"].items()
    )
    figure(
        "SIGKILLs in a chain, the weights at the end bit-identical", f"{kills * same} of {kills}"
    )
    figure("  at so many different steps", str(len(survived)))
    assert same
    assert expected["global_step"] == weights["global_step"]

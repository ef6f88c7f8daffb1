"""On a real SLURM of one node: sweeps, a cancelled job, a time limit, requeue and preemption."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resnet_lab.sweep import ledger
from resnet_lab.sweep.slurm import REQUEUE_WHEN_STOPPED

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
NET = (
    *("model=cifar_resnet", "model.depth=8", "model.width=0.25", "model.norm=group"),
    *("data.train_size=256", "data.batch_size=32", "scheduler=constant", "compile=false"),
    *("trainer.accelerator=cpu", "trainer.precision=32"),
)
SLURM = ("hydra/launcher=slurm", "hydra.launcher.poll_seconds=1", "hydra.launcher.partition=low")
SWEEP = (sys.executable, str(ROOT / "train.py"), "-m", *SLURM, *NET, "sweep.name=s")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands reach the node that is started here."""
    folder = tmp_path_factory.mktemp("slurm")
    start = [ROOT / "tests" / "cluster" / "start.sh", folder]
    told = subprocess.run(start, capture_output=True, text=True, timeout=300)
    if told.returncode != 0:
        pytest.skip(f"no SLURM here: {(told.stdout + told.stderr).strip()}")
    if not shutil.which("srun"):
        pytest.skip("no SLURM here: srun is not on the path")
    strangers = ("SLURM_", "LOCAL_RANK", "TORCH")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(strangers)}
    yield kept | {"SLURM_CONF": f"{folder}/slurm.conf", "OMP_NUM_THREADS": "1"}
    subprocess.run([*start, "stop"], check=True)


@pytest.fixture
def slurm(cluster, tmp_path) -> Iterator[Callable[..., str]]:
    """`slurm("squeue", "--noheader")`: what a command of SLURM's prints."""

    def ask(*command: str, script: str | None = None) -> str:
        return subprocess.run(
            command, input=script, cwd=tmp_path, env=cluster, capture_output=True, text=True
        ).stdout

    yield ask
    ask("scancel", "--me", "--full", "--signal=KILL")
    ask("scancel", "--me")


def wait_until(holds: Callable[[], bool], seconds: float = 150.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def attempts(job: Path) -> list[dict]:
    return json.loads((job / "sweep_job.json").read_text())["attempts"]


def test_a_sweep_is_killed_taken_up_and_a_cancelled_job_resumed(
    cluster, slurm, tmp_path, shared_cache, figure
):
    cache = f"data.cache_dir={shared_cache}"
    command = [*SWEEP, "seed=0,1,2,3", "trainer.max_epochs=60", cache]
    sweep = tmp_path / "outputs" / "sweeps" / "s"
    jobs = [sweep / f"seed={seed}" for seed in range(4)]
    with (tmp_path / "sweep.log").open("a") as log:

        def start() -> subprocess.Popen:
            return subprocess.Popen(command, cwd=tmp_path, env=cluster, stdout=log, stderr=log)

        killed = start()
        wait_until(lambda: ledger.can_resume(jobs[0]))
        killed.kill()
        killed.wait()
        numbers = {job: (job / "slurm_job").read_text() for job in jobs}
        left = slurm("squeue", "--me", "--noheader", "--format=%i").split()
        assert numbers[jobs[3]] in left  # it runs, or waits, without the command

        second = start()
        wait_until(lambda: ledger.can_resume(jobs[3]))
        slurm("scancel", numbers[jobs[3]])
        assert second.wait(150) == 1
        states = [attempts(job)[-1]["state"] for job in jobs]
        assert states == ["finished", "finished", "finished", "failed"]
        assert [len(attempts(job)) for job in jobs] == [1, 1, 1, 1]  # taken up, not begun again
        told = json.loads((jobs[3] / "result.json").read_text())
        assert told["status"] == "interrupted"
        assert "stopped by SIGTERM" in told["error"]

        assert start().wait(150) == 0
    assert [len(attempts(job)) for job in jobs] == [1, 1, 1, 2]
    for job in jobs:
        result = json.loads((job / "result.json").read_text())
        assert (result["status"], result["epochs"]) == ("finished", 60)
    assert ", resumed" in (jobs[3] / "console.log").read_text()
    record = json.loads((sweep / "sweep.json").read_text())
    assert [job["state"] for job in record["jobs"]] == ["finished"] * 4
    figure("SLURM: jobs of a sweep done, cancelled, resumed", "4, 1, 1")
    print((tmp_path / "sweep.log").read_text())


def test_what_a_time_limit_cuts_off_can_be_resumed(cluster, slurm, tmp_path, shared_cache, figure):
    """SLURM's shortest is a minute, which it looks at every thirty seconds."""
    done = subprocess.run(
        [
            *(*SWEEP, "seed=choice(0)", "trainer.max_epochs=100000", "hydra.launcher.time=1"),
            f"data.cache_dir={shared_cache}",
        ],
        cwd=tmp_path,
        env=cluster,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    job = tmp_path / "outputs" / "sweeps" / "s" / "seed=0"
    assert "DUE TO TIME LIMIT" in (job / "console.log").read_text()
    (attempt,) = attempts(job)
    assert (attempt["state"], attempt["killed"]) == ("failed", True)
    assert "stopped by SIGTERM" in attempt["error"]
    assert ledger.can_resume(job)
    figure("SLURM: what is told of a job that met its time limit", attempt["error"])


def test_a_run_of_two_tasks_goes_on_by_itself_when_requeued_and_when_preempted(
    cluster, slurm, tmp_path, shared_cache, figure
):
    train = " ".join([sys.executable, str(ROOT / "train.py"), *NET, "trainer.devices=2"])
    script = (
        f"#!/bin/sh\nsrun {train} trainer.max_epochs=400 data.cache_dir={shared_cache}\n"
        f"{REQUEUE_WHEN_STOPPED}"
    )
    number = slurm(
        *("sbatch", "--parsable", "--partition=low", "--nodes=1", "--ntasks-per-node=2"),
        *("--requeue", "--open-mode=append", "--output=job.log"),
        script=script,
    ).strip()
    run_dir = tmp_path / "outputs" / "runs" / "slurm" / f"{number}.0-cifar_resnet-digits"

    def goes(since: int = 0) -> Callable[[], bool]:
        metrics = run_dir / "metrics.csv"
        return lambda: metrics.exists() and metrics.read_text().count("\n") > since + 2

    def epochs() -> int:
        return len((run_dir / "metrics.csv").read_text().splitlines()) - 1

    wait_until(goes())
    slurm("scontrol", "requeue", number)
    wait_until(lambda: json.loads((run_dir / "result.json").read_text())["status"] != "running")
    first = epochs()
    wait_until(goes(first))
    urgent = ("--partition=urgent", f"--ntasks={os.cpu_count()}", "--wrap=sleep 1")
    slurm("sbatch", "--output=/dev/null", *urgent)
    wait_until(lambda: json.loads((run_dir / "result.json").read_text())["status"] != "running")
    second = epochs()
    wait_until(
        lambda: json.loads((run_dir / "result.json").read_text())["status"] == "finished", 240
    )
    log = (tmp_path / "job.log").read_text()
    assert "DUE TO JOB REQUEUE" in log
    assert log.count("stopped by SIGTERM") >= 2
    assert log.count(", resumed") == 2
    assert [path.name for path in run_dir.parent.iterdir()] == [run_dir.name]
    result = json.loads((run_dir / "result.json").read_text())
    assert (result["epochs"], result["devices"], result["steps"]) == (400, 2, 3200)
    rows = (run_dir / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, 401))
    figure("SLURM: epochs done when requeued, and when preempted, of 400", f"{first}, {second}")
    print(log)


def test_a_cluster_that_refuses_says_so_in_one_line(cluster, tmp_path):
    done = subprocess.run(
        [*SWEEP, "seed=0,1", "hydra.launcher.partition=none"],
        cwd=tmp_path,
        env=cluster,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: hydra/launcher=slurm: sbatch: error:")
    assert done.stderr.count("\n") == 1

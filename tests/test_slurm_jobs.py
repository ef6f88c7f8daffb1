"""Sweeps on a cluster; see tests/cluster for the same on a real SLURM."""

import signal
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from sandbox import ROOT, FakeSlurm, Sandbox, wait_until

from resnet_lab.sweep import slurm
from resnet_lab.sweep.job import Job

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the stand-ins need Linux")


@pytest.fixture
def cluster(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm")


@pytest.fixture
def sandbox(tmp_path: Path, cluster: FakeSlurm) -> Sandbox:
    made = Sandbox(tmp_path / "work", "hydra/launcher=slurm", "hydra.launcher.poll_seconds=0.1")
    made.env = cluster.env
    return made


def kill_with_two_pending(sandbox: Sandbox, cluster: FakeSlurm) -> None:
    """Start a sweep of two jobs, and kill it while SLURM holds both."""
    cluster.set("hold")
    sweep = sandbox.start("seed=0,1")
    wait_until(lambda: list(sandbox.states().values()) == ["pending"] * 2)
    sweep.kill()
    sweep.communicate(timeout=10)


@pytest.mark.parametrize(
    ("devices", "on_cpu", "resources", "options"),
    [
        (2, False, {}, ["--nodes=3", "--ntasks-per-node=2", "--gpus-per-node=2"]),
        (2, True, {}, ["--nodes=3", "--ntasks-per-node=2"]),
        (None, False, {"gpus": 4}, ["--nodes=3", "--ntasks-per-node=4", "--gpus-per-node=4"]),
        (
            *(1, False),
            {"gpus": 0, "cpus": 8, "memory": "32G", "options": ["--qos=long"]},
            ["--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=8", "--mem=32G", "--qos=long"],
        ),
    ],
)
def test_a_job_asks_for_its_devices(devices, on_cpu, resources, options):
    config = {"trainer": {"num_nodes": 3}}
    job = Job(Path("j"), (), {}, config, devices=devices, on_cpu=on_cpu, max_epochs=1)
    path = ROOT / "conf" / "hydra" / "launcher" / "slurm.yaml"
    default = OmegaConf.to_container(OmegaConf.load(path))
    del default["_target_"], default["grace_seconds"]
    assert slurm.sbatch_options(job, slurm.SlurmResources(**default | resources)) == options


def test_a_missing_sbatch_is_one_sentence_and_leaves_nothing(sandbox):
    sandbox.env = {"PATH": ""}
    assert "there is no sbatch here" in sandbox.mistake("seed=0,1")
    assert not (sandbox.folder / "outputs").exists()


def test_jobs_are_submitted_judged_and_not_run_again(sandbox, cluster):
    done = sandbox.run("+how=finish,raise", "seed=0,1", "hydra.launcher.partition=gpu")
    assert done.returncode == 1, done.stderr
    assert sandbox.states() == {
        f"how={how},seed={seed}": "finished" if how == "finish" else "failed"
        for how in ("finish", "raise")
        for seed in (0, 1)
    }
    assert "exit status 1 before it had finished: RuntimeError: no luck today" in done.stdout
    assert all("--partition=gpu" in arguments for arguments in cluster.arguments())
    assert sandbox.run("+how=finish", "seed=0,1").returncode == 0
    assert len(cluster.arguments()) == 4


@pytest.mark.slow
def test_at_the_submit_limit_the_rest_waits(sandbox, cluster):
    cluster.set("limit", "2")
    cluster.set("hold")
    sweep = sandbox.start("seed=range(0,5)")
    wait_until(lambda: list(sandbox.states().values()) == ["pending"] * 2 + ["waiting"] * 3)
    assert [job["attempts"] for job in sandbox.jobs().values()] == [1, 1, 0, 0, 0]
    cluster.clear("hold")
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 0, output
    assert output.count("waiting to submit more jobs") >= 1
    assert "job submit limit" in output
    assert sandbox.starts() == {f"seed={n}": 1 for n in range(5)}
    assert {job["attempts"] for job in sandbox.jobs().values()} == {1}
    assert not (cluster.folder / "scancel.log").exists()


def test_a_job_that_the_cluster_refuses_is_one_sentence(sandbox, cluster):
    cluster.set("refuse", "invalid partition specified: gpu")
    done = sandbox.run("seed=0,1")
    assert done.returncode == 1
    message = "error: hydra/launcher=slurm: sbatch: error: invalid partition specified: gpu\n"
    assert done.stderr == message
    assert [job["attempts"] for job in sandbox.jobs().values()] == [0, 0]


@pytest.mark.slow
def test_a_killed_sweep_leaves_its_jobs_and_the_next_adopts_them(sandbox, cluster):
    kill_with_two_pending(sandbox, cluster)
    cluster.set("down")
    asked = (cluster.folder / "squeue.log").read_text()
    again = sandbox.start("seed=0,1", "hydra.launcher.poll_seconds=1")
    # No answer is no reason to submit a job a second time.
    wait_until(lambda: (cluster.folder / "squeue.log").read_text() != asked)
    cluster.clear("down")
    cluster.clear("hold")
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert len(cluster.arguments()) == 2
    assert sandbox.starts() == {"seed=0": 1, "seed=1": 1}
    assert {job["attempts"] for job in sandbox.jobs().values()} == {1}


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_at_restart_gets_no_second_copy(sandbox, cluster):
    kill_with_two_pending(sandbox, cluster)
    cluster.set("down")
    done = sandbox.run("seed=0,1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: hydra/launcher=slurm: squeue does not answer")
    assert len(cluster.arguments()) == 2
    assert cluster.states() == {"PENDING": 2}
    assert not (cluster.folder / "scancel.log").exists()
    cluster.clear("hold")
    wait_until(lambda: cluster.states() == {"COMPLETED": 2})


def test_a_signal_cancels_the_jobs_and_the_same_command_resumes_them(sandbox, cluster):
    sweep = sandbox.start("+how=sleep", "seed=0,1")
    wait_until(lambda: all((sandbox.sweep / f"seed={n}/ready").exists() for n in (0, 1)))
    wait_until(lambda: list(sandbox.states().values()) == ["running"] * 2)
    sweep.send_signal(signal.SIGTERM)
    output, _ = sweep.communicate(timeout=30)
    assert sweep.returncode == 143, output
    assert set(sandbox.states().values()) == {"interrupted"}
    assert (cluster.folder / "scancel.log").exists()
    done = sandbox.run("+how=sleep", "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert sandbox.starts()["seed=0 resumed"] == 1


@pytest.mark.slow
def test_a_search_submits_its_trials(sandbox, cluster):
    pytest.importorskip("optuna", reason="the extra [optuna] is not installed")
    done = sandbox.run(
        *("hydra/sweeper=optuna", "hydra.launcher.partition=gpu", "hydra.sweeper.n_trials=3"),
        "optimizer.lr=tag(log,interval(1e-3,0.2))",
    )
    assert done.returncode == 0, done.stderr
    assert list(sandbox.states().values()) == ["finished"] * 3
    assert len(cluster.arguments()) == 3
    assert all("--job-name=trial=" in arguments for arguments in cluster.arguments())

"""Runs whose processes torchrun or SLURM's srun has started, on one machine or several."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from lab import CONF, EXACT, QUICK, ROOT, read_result, train_here, weights
from omegaconf import DictConfig, OmegaConf
from sandbox import wait_until

from resnet_lab.config.compose import VERSION_BASE
from resnet_lab.run import distributed
from resnet_lab.run.claim import CheckAndClaim

SAME = (*QUICK, *EXACT, "data.crop_padding=2", "trainer.max_epochs=5")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def clean_environment() -> dict[str, str]:
    starters = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_", "TORCH")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(starters)}
    return kept | {"OMP_NUM_THREADS": "1"}


class Nodes:
    """Two torchruns on loopback, each as a machine of its own with one process."""

    def __init__(self, folder: Path, *overrides: str, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        logs = [(folder / f"node{rank}.log").open("a") for rank in (0, 1)]
        address = ("--master_addr=127.0.0.1", f"--master_port={free_port()}")
        self.processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
                    *("--nproc_per_node=1", f"--node_rank={rank}", *address, *options),
                    *(str(ROOT / "train.py"), *overrides),
                ],
                cwd=folder,
                env=clean_environment(),
                stdout=log,
                stderr=log,
            )
            for rank, log in enumerate(logs)
        ]
        for log in logs:
            log.close()
        NODES.append(self)

    def end(self) -> list[int]:
        try:
            return [process.wait(120) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()  # its worker dies with it
            process.wait()

    def log(self, rank: int = 0) -> str:
        return (self.folder / f"node{rank}.log").read_text()


NODES: list[Nodes] = []


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """A test that fails leaves no torchrun behind."""
    yield
    while NODES:
        NODES.pop().kill()


def only_run(folder: Path) -> Path:
    (run_dir,) = (folder / "outputs" / "runs").glob("*/*")
    return run_dir


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.fixture
def environment(monkeypatch):
    """`environment(RANK="1")`: what a starter leaves there, and nothing of another one."""
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    return lambda **variables: [monkeypatch.setenv(*pair) for pair in variables.items()]


@pytest.mark.parametrize(
    ("variables", "first", "from_outside", "count"),
    [
        ({}, True, False, 1),
        ({"LOCAL_RANK": "1"}, False, False, 1),  # started by Lightning
        (TORCHRUN | {"RANK": "0"}, True, True, 2),
        (TORCHRUN | {"RANK": "1"}, False, True, 2),  # the first of its machine, not of the run
        (SRUN | {"SLURM_PROCID": "0"}, True, True, 2),
        (SRUN | {"SLURM_PROCID": "1"}, False, True, 2),
        (SRUN | TORCHRUN | {"RANK": "1", "SLURM_PROCID": "0"}, False, True, 2),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, True, False, 1),  # sbatch
        (SRUN | {"SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, True, False, 1),  # typed there
    ],
)
def test_which_process_of_a_run_this_is(environment, variables, first, from_outside, count):
    environment(**variables)
    found = (distributed.is_first(), distributed.from_outside(), distributed.count())
    assert found == (first, from_outside, count)


def begun(*overrides: str) -> DictConfig:
    """The config as the run gets it, behind the callback that gives it a folder."""
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
        CheckAndClaim().on_run_start(cfg)
    return cfg


def test_all_tasks_of_srun_get_one_folder_and_the_first_logs_there(
    environment, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    environment(**SRUN, SLURM_PROCID="1")
    second = begun("model=resnet32")
    environment(SLURM_PROCID="0")
    first = begun("model=resnet32")
    assert first.hydra.run.dir == second.hydra.run.dir == "outputs/runs/slurm/7.0-resnet32-digits"
    assert Path(first.hydra.run.dir).is_dir()
    assert (first.hydra.output_subdir, second.hydra.output_subdir) == (".hydra", None)
    assert list(first.hydra.job_logging.root.handlers) == ["screen", "file"]
    assert list(second.hydra.job_logging.root.handlers) == ["screen"]
    assert "file" not in second.hydra.job_logging.handlers


def test_a_requeued_job_resumes_by_itself_once_there_is_a_checkpoint(
    environment, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = ("model=resnet32", "optimizer.lr=0.2", "+note=x")
    environment(**SRUN, SLURM_PROCID="0")
    cfg = begun(*command)
    folder = Path(cfg.hydra.run.dir)
    own = OmegaConf.to_container(cfg)
    del own["hydra"]
    (folder / ".hydra").mkdir()
    OmegaConf.save(list(command), folder / ".hydra" / "overrides.yaml")
    own = OmegaConf.create({**own, "run_dir": str(folder)})
    OmegaConf.save(own, folder / "config.yaml", resolve=True)
    with pytest.raises(SystemExit, match="holds a run already"):
        begun(*command)  # the same step of the same job, not begun again by SLURM
    environment(SLURM_RESTART_COUNT="1")
    cfg = begun(*command)
    assert (cfg.resume, cfg.hydra.run.dir) == (None, str(folder))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "previous.ckpt").touch()
    for rank in ("0", "1"):
        environment(SLURM_PROCID=rank)
        cfg = begun(*command)
        assert cfg.resume == str(folder.absolute())
        assert cfg.optimizer.lr == 0.2
        assert cfg.hydra.run.dir == str(folder)


def test_torchrun_without_a_store_needs_a_named_folder(environment):
    environment(**TORCHRUN, RANK="1")
    with pytest.raises(SystemExit, match=r"cannot agree.*hydra\.run\.dir="):
        begun()


@pytest.mark.parametrize(("starter", "status"), [("TORCHELASTIC_RUN_ID", 0), ("NONE", 143)])
def test_a_signal_that_comes_twice_by_way_of_a_starter_is_one(starter, status):
    program = (
        "import signal, time; from resnet_lab.run.stop import Signals; signals = Signals();"
        "signals.catch(); print('ready', flush=True); time.sleep(0.5); time.sleep(0.5);"
        "raise SystemExit(0 if signals.received == signal.SIGTERM else 1)"
    )
    environment = clean_environment() | {starter: "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE
    )
    with process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == status


@pytest.mark.slow
def test_two_nodes_train_as_one_process(tmp_path, shared_cache, figure):
    cache = f"data.cache_dir={shared_cache}"
    nodes = Nodes(tmp_path, *SAME, cache, "trainer.num_nodes=2")
    alone = train_here(tmp_path, *SAME, cache, "hydra.run.dir=one")
    assert alone.returncode == 0, alone.stderr
    assert nodes.end() == [0, 0], nodes.log(0) + nodes.log(1)
    run_dir = only_run(tmp_path)
    one, two = (read_result(folder) for folder in (tmp_path / "one", run_dir))
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["steps"] == two["steps"] == 20
    for key in ("val/loss", "test/loss"):
        assert one[key] == pytest.approx(two[key], rel=1e-4)
    assert one["test/acc"] == two["test/acc"]  # of 359 images: padded ones would count
    expected, found = weights(tmp_path / "one"), weights(run_dir)
    apart = max((a - found[key]).abs().max().item() for key, a in expected.items())
    figure("two torchrun nodes: largest difference of a weight from one process", f"{apart:.1e}")
    figure(
        "two torchrun nodes: test loss, one process and two nodes",
        f"{one['test/loss']:.6f} {two['test/loss']:.6f}",
    )
    assert apart < 1e-4
    # The first process alone speaks, and leaves files.
    assert nodes.log(0).count("run folder") == 1
    assert "run folder" not in nodes.log(1)
    text = (run_dir / "run.log").read_text()
    assert text.count("epoch   1/5") == 1
    overrides = OmegaConf.load(run_dir / ".hydra" / "overrides.yaml")
    assert "trainer.num_nodes=2" in overrides


@pytest.mark.slow
def test_two_nodes_are_restarted_stop_together_and_resume(tmp_path, shared_cache):
    """A process dies: torchrun restarts both, which resume; at a signal both save and end."""
    long = (*SAME, "compile=false", f"data.cache_dir={shared_cache}")
    nodes = Nodes(
        *(tmp_path, *long, "trainer.num_nodes=2"),
        *("trainer.max_epochs=100", "scheduler=constant"),
        options=("--max-restarts=2",),
    )

    def rows() -> int:
        files = (tmp_path / "outputs" / "runs").glob("*/*/metrics.csv")
        return sum(path.read_text().count("\n") - 1 for path in files)

    wait_until(lambda: rows() >= 2, 120)
    agent = str(nodes.processes[1].pid)
    worker = subprocess.run(["pgrep", "-P", agent], capture_output=True, text=True).stdout
    os.kill(int(worker.split()[0]), signal.SIGKILL)
    seen = rows()
    wait_until(lambda: rows() >= seen + 3, 120)
    assert nodes.log(0).count(", resumed") == 1
    for process in nodes.processes:
        process.send_signal(signal.SIGTERM)
    assert all(nodes.end()), "a run that was stopped is not finished"
    run_dir = only_run(tmp_path)
    result = read_result(run_dir)
    assert result["status"] == "interrupted"
    assert "stopped by SIGTERM" in result["error"]
    assert 2 < rows() < 100

    assert Nodes(tmp_path, f"resume={run_dir}").end() == [0, 0], nodes.log(0) + nodes.log(1)
    result = read_result(only_run(tmp_path))
    assert (result["status"], result["epochs"], result["steps"]) == ("finished", 100, 400)
    assert rows() == 100

"""The package as it is installed from a wheel, and `resnet-lab train` beside `python train.py`."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import QUICK, ROOT, read_csv, read_result, without_torch

TINY = (*QUICK, "data.train_size=128", "trainer.max_epochs=1")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
Lab = Callable[..., str]


def run(*command: str | Path, cwd: Path) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own git repository, with the wheel installed into its `.venv`.

    Nothing is downloaded: all but this package is imported from the environment of the tests.
    """
    project = tmp_path_factory.mktemp("project")
    run("git", "init", "-q", cwd=project)
    author = ("-c", "user.name=u", "-c", "user.email=u@localhost")
    run("git", *author, "commit", "-q", "--allow-empty", "-m", "Begin", cwd=project)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", project / "dist", cwd=ROOT)
    (wheel,) = (project / "dist").glob("*.whl")
    venv.create(project / ".venv", with_pip=True)
    python = project / ".venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel, cwd=project)
    installed = run(
        python, "-c", "import sysconfig as s; print(s.get_path('purelib'))", cwd=project
    )
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(installed.strip(), "others.pth").write_text("\n".join(others))
    return project


@pytest.fixture
def lab(project: Path, tmp_path: Path) -> Lab:
    """`lab("train", "seed=1")`: the installed command, in an empty folder of the user's."""
    return lambda *arguments: run(project / ".venv/bin/resnet-lab", *arguments, cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_brings_its_own_code_and_all_of_conf(project: Path):
    program = (
        "import resnet_lab, hydra_plugins.resnet_lab_sweep as plugin; "
        "from resnet_lab.config.compose import CONF; "
        "print(resnet_lab.__file__, plugin.__file__, CONF, sep='\\n')"
    )
    package, plugin, conf = run(project / ".venv/bin/python", "-c", program, cwd=project).split()
    for path in (package, plugin, conf):
        assert Path(path).is_relative_to(project / ".venv"), path

    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*.yaml")}

    assert files(Path(conf)) == files(ROOT / "conf")
    # What train.py puts on sys.path is nothing that could be imported by accident.
    beside = {path.name for path in Path(conf).parent.iterdir()}
    assert beside - {"__pycache__"} == {"conf", "train.py"}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_an_installed_package_trains_and_evaluates(lab: Lab, tmp_path: Path, devices: int):
    lab("train", *TINY, f"trainer.devices={devices}", "hydra.run.dir=run")
    result = read_result(tmp_path / "run")
    assert (result["status"], result["steps"], result["devices"]) == ("finished", 2, devices)
    assert result["git_commit"] is None  # the repository around .venv is not this project's
    lab("evaluate", "run")
    (report,) = (tmp_path / "run/evaluation").glob("*/*.json")
    assert json.loads(report.read_text())["acc"] == pytest.approx(result["test/acc"])


@pytest.mark.slow
def test_an_installed_package_sweeps_and_reports(lab: Lab, tmp_path: Path):
    lab("train", "-m", "seed=0,1", "sweep.name=s", *TINY)
    folder = tmp_path / "outputs/sweeps/s"
    for seed in (0, 1):
        result = read_result(folder / f"seed={seed}")
        assert (result["seed"], result["status"]) == (seed, "finished")
    lab("report", "outputs/sweeps/s")
    assert sorted(row["seed"] for row in read_csv(folder / "report/results.csv")) == ["0", "1"]


@pytest.mark.slow
def test_a_config_of_the_users_own_comes_from_a_folder(lab: Lab, tmp_path: Path):
    own = tmp_path / "configs" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nseed: 17\n")
    lab("train", "--config-dir", "configs", "experiment=mine", "hydra.run.dir=run", *TINY)
    assert read_result(tmp_path / "run")["seed"] == 17


def test_resnet_lab_train_is_train_py(tmp_path: Path):
    """Both in a process that cannot import torch."""
    commands = [["--help"], ["--cfg", "job", "seed=3"], ["modle=resnet20"]]
    commands.append(["-m", "seed=[", "--info", "x"])
    (tmp_path / "installed.py").write_text(
        "import sys; from resnet_lab.cli import main; main(['train', *sys.argv[1:]])"
    )
    script = str(tmp_path / "installed.py")
    installed = [without_torch(tmp_path, *command, script=script) for command in commands]
    assert [done.returncode for done in installed] == [0, 0, 1, 2]
    for command, done in zip(commands, installed, strict=True):
        assert vars(done) == vars(without_torch(tmp_path, *command))

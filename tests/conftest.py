"""Fixtures shared by all rooms."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import CLI, QUICK, ROOT, composed, train_here, without_torch
from omegaconf import DictConfig

from resnet_lab.config import options


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of decoded images for the whole session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def fresh_options(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`config.options` without what other tests of this process have had it read."""
    monkeypatch.setattr(options, "_added", [])
    cached = (options.files, options.read, options.groups)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


FIGURES = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`figure("flips caught", "400 of 400")`: a line for the table at the end of the session."""
    lines = request.config.stash.setdefault(FIGURES, [])
    return lambda name, value: lines.append((name, value))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash.get(FIGURES, [])
    if lines:
        terminalreporter.section("figures")
        for name, value in lines:
            terminalreporter.write_line(f"{name:<70} {value}")


@pytest.fixture
def config(tmp_path: Path, shared_cache: Path) -> Callable[..., DictConfig]:
    """`config("model=resnet32", ...)`: the composed config, with folders below tmp_path."""
    folders = (f"run_dir={tmp_path}/run", f"data.cache_dir={shared_cache}")
    return lambda *overrides: composed(*folders, *overrides)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with what every run leaves; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    done = train_here(folder, *QUICK, "callbacks=[default]", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a command that meets a CUDA driver without hardware; see its source."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc, to build a CUDA driver that is not one")
    source, folder = ROOT / "tests" / "fake_cuda", tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    subprocess.run(
        ["gcc", "-w", "-shared", "-fPIC", "-o", library, source / "driver.c"], check=True
    )
    shutil.copy(library, folder / "libnvidia-ml.so.1")
    return {"LD_LIBRARY_PATH": str(folder), "PATH": f"{source}:{os.environ['PATH']}"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(300)`: an empty folder with room for so many KiB; needs root."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk can be mounted by root alone")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def cifar10_jpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cifar10-jpeg/, CIFAR-10 as JPEG files; skips where the archive is missing."""
    archive = ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.gz"
    if not archive.is_file():
        pytest.skip("needs shared/data/cifar10-jpeg.tar.gz beside the checkout")
    folder = tmp_path_factory.mktemp("cifar10-jpeg")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """`refused("summary", "model=resnet2")`: what resnet-lab says of a mistake, without torch."""

    def message(*arguments: str) -> str:
        done = without_torch(tmp_path, *arguments, script=CLI)
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("error: ")
        return done.stderr.removeprefix("error: ")

    return message

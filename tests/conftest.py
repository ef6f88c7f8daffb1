"""Fixtures shared by all rooms."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from resnet_lab.config.compose import VERSION_BASE

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of decoded images for the whole session."""
    return tmp_path_factory.mktemp("cache")


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

    def composed(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONF), **VERSION_BASE):
            return compose(
                "train",
                overrides=[f"run_dir={tmp_path}/run", f"data.cache_dir={shared_cache}", *overrides],
            )

    return composed


@pytest.fixture
def refused() -> Callable[..., str]:
    """`refused("summary", "model=resnet2")`: what resnet-lab says of a mistake, without torch."""
    program = "import sys; sys.modules['torch'] = None; from resnet_lab.cli import main; main()"

    def message(*arguments: str) -> str:
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("error: ")
        return done.stderr.removeprefix("error: ")

    return message

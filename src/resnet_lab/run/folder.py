"""A run folder: what lies in it, who holds it, how it is written; imports no torch."""

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from resnet_lab.config.errors import UserError
from resnet_lab.run import distributed
from resnet_lab.run.stop import die_with_parent, locks

log = logging.getLogger(__name__)


def run_config(run_dir: Path) -> DictConfig:
    """The config that the run in `run_dir` has left there; ValueError where there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir}: there is no run in it (no config.yaml).")
    try:
        cfg = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    parts = ("model", "data", "classifier", "optimizer", "scheduler", "trainer")
    if not isinstance(cfg, DictConfig) or any(part not in cfg for part in parts):
        raise UserError(f"{path} is not the config of a run (it needs {', '.join(parts)}).")
    return cfg


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def _alone_in(run_dir: Path) -> Iterator[None]:
    """Nobody else trains in this folder; ValueError where somebody does.

    The processes of one run share it: the first holds it for all.
    """
    if fcntl is None or not distributed.is_first():
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    folder = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{run_dir}: another process is training in it; wait for it, or stop it."
        ) from error
    except OSError:
        log.debug("this file system has no locks")
    locks.add(folder)
    try:
        yield
    finally:
        locks.discard(folder)
        os.close(folder)


@contextmanager
def _parent_and_child() -> Iterator[None]:
    """In a process that another one of the run has started: neither outlives the other (Linux).

    The parent of a process that fails hears of it, unless it is frozen.
    """
    started = os.environ.get("LOCAL_RANK", "0") != "0" and not distributed.from_outside()
    if started or distributed.by_torchrun():
        die_with_parent()
    if sys.platform != "linux" or not started:
        yield
        return
    parent = os.getppid()
    try:
        yield
    except Exception:
        state = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            traceback.print_exc()  # this process goes with it
            os.kill(parent, signal.SIGKILL)
        raise


def _told(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where it cannot be read."""
    try:
        told: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return told


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as `write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader finds the old file or the new one, whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)

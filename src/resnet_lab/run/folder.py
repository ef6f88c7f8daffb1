"""A run folder: what its files are called, who holds it, how it is read; imports no torch."""

import itertools
import logging
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from resnet_lab.config.compose import APP, PACKAGE
from resnet_lab.config.errors import UserError
from resnet_lab.config.untrusted import check_names, read_yaml
from resnet_lab.files import is_cache_folder, printable, read_json, read_rows, write_json
from resnet_lab.run import distributed
from resnet_lab.run.state import State
from resnet_lab.run.stop import die_with_parent, locks

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

TRIES = 3  # to get the lock of a run
SECTIONS = ("model", "data", "classifier", "optimizer", "scheduler", "trainer")
# Loggers that write into the run's folder and send nothing to any host.
LOCAL_LOGGERS = (
    "resnet_lab.board.Board",
    "resnet_lab.loggers.CSV",
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.loggers.TensorBoardLogger",
)


class RunFolder:
    """The folder of one run, of which nothing needs to be there yet.

    Whatever is read from it is data that anybody may have written; see `config.untrusted`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.result = self.path / "result.json"
        self.metrics = self.path / "metrics.csv"
        self.log = self.path / "run.log"
        self.gradients = self.path / "grad_norm.csv"
        self.overrides = self.path / ".hydra" / "overrides.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / "previous.ckpt"  # the last.ckpt before
        self.board = self.path / "tensorboard"
        self.curves = self.path / "curves.png"
        self.confusion = self.path / "confusion_matrix.png"
        self.loggers = self.path / "loggers.json"  # the run's ids at servers
        self.labels = self.path / "labels.json"  # tags and a note, given by people
        self.patch = self.path / "code.patch"  # what the checkout had changed since its commit
        self.earlier_patch = self.path / "code-earlier.patch"  # of the process before a resume
        # Of a job of a sweep:
        self.job = self.path / "sweep_job.json"
        self.console = self.path / "console.log"
        self.error = self.path / "error.txt"
        self.slurm_job = self.path / "slurm_job"  # its number at SLURM

    def __str__(self) -> str:
        return str(self.path)

    # ------------------------------------------------------------------ reading

    def read_config(self) -> dict[str, Any]:
        """The config that the run has left, as plain data; UserError where there is none."""
        try:
            config = read_yaml(self.config)
        except FileNotFoundError:
            raise UserError(f"{self}: there is no run in it (no config.yaml).") from None
        if not isinstance(config, dict) or any(
            not isinstance(config.get(section), dict) for section in SECTIONS
        ):
            raise UserError(
                f"{self.config} is not the config of a run (it needs {', '.join(SECTIONS)})."
            )
        config["classifier"].pop("num_classes", None)  # of earlier versions
        config.pop("trust", None)
        return config

    def read_overrides(self) -> list[str] | None:
        """The overrides of the command that began the run, as text; None where unknown."""
        try:
            overrides = read_yaml(self.overrides)
        except (FileNotFoundError, UserError):
            return None
        return [str(override) for override in overrides] if isinstance(overrides, list) else None

    def read_result(self) -> dict[str, Any]:
        """What result.json holds; nothing where it cannot be read."""
        return _mapping(self.result)

    def read_job(self) -> dict[str, Any]:
        """What sweep_job.json holds; nothing in a run of no sweep."""
        return _mapping(self.job)

    def read_labels(self) -> tuple[list[str], str]:
        """The tags and the note of labels.json."""
        content = _mapping(self.labels)
        tags, note = content.get("tags"), content.get("note")
        texts = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
        return texts, note if isinstance(note, str) else ""

    def write_labels(self, tags: Collection[str], note: str) -> None:
        write_json(self.labels, {"tags": list(tags), "note": note})

    def validation(self, epoch: int) -> dict[str, float]:
        """The validation figures of one epoch (from 1 on) in metrics.csv, if they can be read."""
        with suppress(OSError, ValueError, KeyError):
            for row in read_rows(self.metrics):
                if row["epoch"] == str(epoch):
                    return {k: float(row[k]) for k in ("val/loss", "val/acc") if row.get(k)}
        return {}

    @property
    def best(self) -> Path:
        """The checkpoint that training chose, as result.json names it; perhaps somewhere else."""
        return self.path / str(self.read_result().get("best_checkpoint", "checkpoints/best.ckpt"))

    def own_best(self) -> Path:
        """`best`; UserError where it lies outside of this folder."""
        best = self.best
        if not best.resolve().is_relative_to(self.path.resolve()):
            raise UserError(
                f"{self}: its best checkpoint lies outside of it, in {printable(str(best))}; "
                "name it yourself if it is yours."
            )
        return best

    def has_checkpoint(self) -> bool:
        """Whether there is something to resume from."""
        return self.last.exists() or self.previous.exists()

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(self.result, result)

    # ------------------------------------------------------------------ holding

    def refuse_links(self) -> None:
        """Raise UserError where a link leads out of the folder: what is written stays inside. Also
        where a folder lies in the place of a file."""
        inside = os.path.realpath(self.path) + os.sep
        for file in (self.config, self.result, self.metrics, self.log, self.job, self.loggers):
            if file.is_dir():
                raise UserError(f"{file} is a folder where a file should be; move it away.")
        for parent, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                path = os.path.join(parent, name)
                if os.path.islink(path) and not os.path.realpath(path).startswith(inside):
                    raise UserError(
                        f"{printable(path)} is a link out of this folder, and nothing is written "
                        "through it; put the file itself in its place, or remove the link."
                    )

    def claim(self, named: bool = False) -> "RunFolder":
        """Make the folder (or NAME-2, NAME-3, ... where it exists) and return it.

        Args:
            named: the user chose it, so it is taken as it is.

        Raises:
            UserError: it holds a run, or a link.
        """
        if named:
            if self.config.exists():
                raise UserError(f"hydra.run.dir={self}: holds a run already; name another folder.")
            self.path.mkdir(parents=True, exist_ok=True)
            self.refuse_links()
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for n in itertools.count(1):
            path = self.path if n == 1 else self.path.with_name(f"{self.path.name}-{n}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return RunFolder(path)
        raise AssertionError

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else trains in this folder; UserError where somebody does.

        The processes of one run share it: the first holds it for all, and none of those that it
        has started outlives it (Linux).
        """
        started = os.environ.get("LOCAL_RANK", "0") != "0" and not distributed.from_outside()
        if started or distributed.by_torchrun():
            die_with_parent()
        if fcntl is None or not distributed.is_first():
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for attempt in range(TRIES):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == TRIES - 1:
                        raise
                    time.sleep(0.05)  # `is_held` is perhaps just asking
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(
                f"{self}: another process is training in it; wait for it, or stop it."
            ) from error
        except OSError:
            log.debug("this file system has no locks")
        locks.add(descriptor)
        try:
            yield
        finally:
            locks.discard(descriptor)
            os.close(descriptor)


def check_trusted(own: dict[str, Any], path: Path, trust: Sequence[str]) -> None:
    """Raise UserError where the config at `path` names code that may not run.

    Args:
        own: what is used of it.
        trust: packages that it may name besides `untrusted.NAMES`.
    """
    packages = [f"{package}." for package in trust]
    check_names(own, path, packages, "If it is your own code, say so: --trust PACKAGE")


def keep_at_home(own: dict[str, Any], typed: Collection[str], cache_dir: str) -> None:
    """What a run folder says of other places on this machine holds for reading alone.

    A cache is written to, so the one it names must be one already; nothing is downloaded into a
    folder that it names; and no logger is made that could send something to a host that it names.

    Args:
        own: the config of a run, which is changed.
        typed: keys that the user has given herself.
        cache_dir: what to use in place of a folder that is no cache.
    """
    data = own["data"]
    source = data.get("source") or {}
    if "data.cache_dir" not in typed and not is_cache_folder(Path(str(data.get("cache_dir")))):
        data["cache_dir"] = cache_dir
        if "cache_dir" in source:
            source["cache_dir"] = cache_dir
    if "data.root" not in typed and "CIFAR" in str(source.get("_target_")):
        source["download"] = False
    own["logger"] = {
        name: logger
        for name, logger in (own.get("logger") or {}).items()
        if isinstance(logger, dict) and logger.get("_target_") in LOCAL_LOGGERS
    }


class SweepFolder:
    """The folder of a sweep: its jobs are run folders below it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record = self.path / "sweep.json"
        self.config = self.path / "multirun.yaml"
        self.lock = self.path / ".lock"
        self.server_log = self.path / ".server.log"


def in_progress(folder: RunFolder) -> bool:
    """Whether a process trains in this folder.

    Its lock says so. A job of SLURM may run on another machine, whose locks are not seen, and some
    file systems have none: there result.json is believed, also where it was killed.
    """
    held = is_held(folder.path)
    if held is None or (not held and folder.slurm_job.exists()):
        return bool(folder.read_result().get("status") == State.RUNNING)
    return held


def sweep_in_progress(folder: SweepFolder) -> bool:
    """Whether a process leads this sweep, on this machine."""
    return bool(is_held(folder.lock))


def is_held(path: Path) -> bool | None:
    """Whether a process holds the lock of a folder or file; None: it cannot be told here."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None if path.exists() else False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(descriptor)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def program() -> list[str]:
    """How this process was started, as it can be typed again."""
    if APP.is_relative_to(PACKAGE):  # of an installed package
        return ["resnet-lab", "train"]
    return ["python", shown(Path(sys.argv[0]))]


def shown(path: Path) -> str:
    """`path` from the current folder where it lies below it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

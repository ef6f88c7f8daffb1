"""The command with which a stopped sweep goes on, made of what its sweep.json says.

That is data from anybody, and a command line can name code. So a word is taken over only where it
is a plain setting listed here; all else the user has to type.
"""

import re
import shlex
import sys
from pathlib import Path

from resnet_lab.config.compose import APP, pasted, quoted
from resnet_lab.config.errors import UserError
from resnet_lab.config.untrusted import PLACES
from resnet_lab.files import is_cache_folder

SECTIONS = (
    *("model", "data", "augment", "classifier", "optimizer", "scheduler", "trainer", "callbacks"),
    *("seed", "experiment", "compile", "cuda_graph", "rank_timeout"),
)
OF_THE_SWEEP = ("name", "jobs", "jobs_per_device", "warm", "on_error", "retries", "halving")
# Hydra's own keys: what each may be, None for any plain value.
OF_HYDRA: dict[str, tuple[str, ...] | None] = {
    "hydra/launcher": ("lab", "slurm"),
    "hydra/sweeper": ("lab", "optuna"),
    "hydra.launcher.grace_seconds": None,
    **{f"hydra.launcher.{name}": None for name in ("partition", "time", "gpus", "cpus", "memory")},
    "hydra.launcher.poll_seconds": None,
    **{f"hydra.sweeper.{name}": None for name in ("n_trials", "objectives", "directions", "seed")},
    "hydra.sweeper.sampler": ("tpe", "random", "gp", "nsgaii"),
    "hydra.sweeper.pruner": ("none", "median", "hyperband"),
}
LOGGERS = {"tensorboard", "csv", ""}  # these send nothing to any host
# Neither interpolations ($), mappings ({), packages (@), escapes (\) nor a second "=".
_VALUE = re.compile(r"[\w.,+\-\[\]()/:'\"* ]*", re.ASCII)
_KEY = re.compile(r"\+{0,2}[A-Za-z]\w*([./][A-Za-z]\w*)*", re.ASCII)
_OUTSIDE = re.compile(r"(^|[\[(,'\" ])/|\.\.")  # a path from the root, or upwards


def resume_run(folder: Path) -> list[str]:
    """The command that goes on with a run, whose own config `run.resume` checks."""
    return [sys.executable, str(APP / "train.py"), f"resume={quoted(folder.absolute())}"]


def resume_sweep(folder: Path, command: object) -> list[str]:
    """The command that goes on with the sweep in `folder`.

    Args:
        command: as sweep.json has it.

    Raises:
        UserError: it holds more than plain settings, or would run another sweep; with the command
            to paste.
    """
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        words = []
    if not words:
        raise UserError("Its sweep.json does not say how it was started.")
    reason = _not_ours(words)
    arguments = words[2:]
    if not {"-m", "--multirun"} & set(arguments):
        reason = reason or "it starts no sweep"
    for word in arguments:
        reason = reason or _refused(word)
    names = [word.partition("=")[2] for word in arguments if word.startswith("sweep.name=")]
    if not names:
        arguments.append(pasted("sweep.name", folder.name))
    elif any(name.strip("'\"") != folder.name for name in names):
        reason = reason or f"it is of a sweep called {names[-1]}, and this one is {folder.name}"
    if not reason and (Path("outputs", "sweeps", folder.name)).resolve() != folder.resolve():
        reason = (
            f"run here, in {Path.cwd()}, it would go to outputs/sweeps/{folder.name} and not to "
            f"{folder}; start resnet-lab ui where the sweep was begun"
        )
    if reason:
        raise UserError(
            f"It is not started from here, since {reason}. If you know the command, type it "
            f"yourself: {shlex.join(words)}"
        )
    return [sys.executable, str(APP / "train.py"), *arguments]


def _not_ours(words: list[str]) -> str:
    """Why the first two words do not start a training of this project; "" where they do."""
    if words[:2] == ["resnet-lab", "train"]:
        return ""
    script = Path(words[1]) if len(words) > 1 else Path()
    if words[0] == "python" and (
        script == Path("train.py") or script.resolve() == APP / script.name
    ):
        return ""
    return "it was started by another program than this project's train.py"


def _refused(word: str) -> str:
    """Why a word of the command is not taken over; "" where it is a plain setting."""
    if word in ("-m", "--multirun"):
        return ""
    key, equals, value = word.partition("=")
    if not (equals and _KEY.fullmatch(key)):
        return f"{word} is no plain setting"
    key = key.lstrip("+")
    if key in OF_HYDRA:
        allowed = OF_HYDRA[key]
        good = bool(_VALUE.fullmatch(value)) and (allowed is None or value in allowed)
        return "" if good else f"{word} may name code"
    section, *rest = re.split(r"[./]", key)
    if section == "sweep":
        return "" if rest[0:1] and rest[0] in OF_THE_SWEEP and _plain(value) else _no(word)
    if key == "logger":
        return (
            "" if {name.strip() for name in value.strip("[]").split(",")} <= LOGGERS else _no(word)
        )
    if section not in SECTIONS or (rest and rest[-1] in PLACES):
        return _no(word)
    if key in ("data.root", "data.cache_dir"):
        return "" if _known_folder(key, value) else f"{word} is a place to write to"
    return "" if _plain(value) else _no(word)


def _no(word: str) -> str:
    return f"{word} may name code, or a place outside of this folder"


def _plain(value: str) -> bool:
    return bool(_VALUE.fullmatch(value)) and not _OUTSIDE.search(value)


def _known_folder(key: str, value: str) -> bool:
    """Data that is there already, or a cache: nothing is downloaded to where a file says."""
    path = Path(value.strip("'\""))
    if not _VALUE.fullmatch(value):
        return False
    return is_cache_folder(path) if key == "data.cache_dir" else path.is_dir()

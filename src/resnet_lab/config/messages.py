"""What a mistake looks like: one message for the user, a traceback for our own bugs."""

import difflib
import errno
import itertools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.config.compose import CONF, VERSION_BASE, at_home
from resnet_lab.config.errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
NOT_A_FILE = (errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM)

_ours = False  # True while HYDRA_FULL_ERROR is set by composition_errors, not by the user


def full_errors() -> bool:
    """Whether the user asked for tracebacks (HYDRA_FULL_ERROR=1)."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1" and not _ours


@contextmanager
def composition_errors() -> Iterator[None]:
    """Around Hydra: what it refuses to compose is said in one message, with exit status 1.

    With the environment variable HYDRA_FULL_ERROR=1 the traceback comes instead.
    """
    global _ours
    sys.argv[1:] = at_home(sys.argv[1:])
    if full_errors():
        yield
        return
    # Without it Hydra prints and exits by itself; we want the exception.
    os.environ["HYDRA_FULL_ERROR"], _ours = "1", True
    try:
        with _one_message():
            yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
        _ours = False


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Around a run: a user's mistake becomes one message on stderr and exit status 1.

    A mistake is a `UserError` (also inside a `_target_`), or what Hydra refuses. Everything else
    keeps its traceback; with the environment variable HYDRA_FULL_ERROR=1 everything does.
    """
    if full_errors():
        yield
        return
    os.environ.pop("HYDRA_FULL_ERROR", None)  # processes that the run starts shall not see ours
    with _one_message():
        yield


@contextmanager
def _one_message() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = sentence(error)
        if message is None:
            raise
        # SystemExit passes through Hydra, which would print an introduction to an exception.
        sys.exit(f"error: {message}")


def sentence(error: BaseException) -> str | None:
    if isinstance(error, MissingConfigException | ConfigCompositionException):
        return _composition_sentence(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; write key=value, with quotes around blanks."
    if isinstance(error, InstantiationException):
        if not_found := re.match(r"Error locating target '([^']+)'", str(error)):
            return _not_found(not_found[1], error)
        while isinstance(error, InstantiationException) and error.__cause__ is not None:
            error = error.__cause__
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _first_lines(error)
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, *NOT_A_FILE):
        return cannot_write(error.filename or "a file", error)
    return None


def cannot_write(path: object, error: OSError) -> str:
    return (
        f"cannot read or write {path} ({error.strerror or error}); what was written before is as "
        "it was, and a run goes on with resume= from its last checkpoint."
    )


def _not_found(name: str, error: BaseException) -> str:
    """The sentence for a `_target_` that names nothing."""
    key = re.search(r"full_key: (\S+)", str(error))
    reason: BaseException = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    return (
        f"{key[1] + '.' if key else ''}_target_={name}: there is no such thing to import "
        f"({str(reason).splitlines()[0]}); is its folder on PYTHONPATH?"
    )


def _first_lines(error: BaseException) -> str:
    # OmegaConf adds lines on its inner types from the second paragraph on.
    lines = [line for line in str(error).splitlines() if "object_type=" not in line]
    return "\n".join(line.strip() for line in lines if line.strip())


def _composition_sentence(error: BaseException) -> str:
    text = str(error)
    # A choice may lie in a folder of its group, as experiment=he2015/resnet20 does.
    if match := re.search(r"Could not (?:find|load) '((?:hydra/)?[^/']+)/([^']+)'", text):
        group, wanted = match.groups()
        return f"{group}={wanted}: there is no such choice; {offer(wanted, choices_of(group))}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1])
    return _first_lines(error)


def choices_of(group: str) -> list[str]:
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def offer(wanted: str, choices: list[str]) -> str:
    def likeness(choice: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, wanted, choice).ratio()
        alike = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(wanted, choice, strict=False)
        )
        return ratio, len(list(alike))

    close = max(choices, key=likeness)
    hint = f"did you mean {close}? " if likeness(close)[0] >= 0.6 else ""
    return f"{hint}Possible: {', '.join(choices)}."


def _unknown_key(key: str) -> str:
    """The sentence for an override of a key that is not there, with the keys that are."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    parser = OverridesParser.create()
    others = []
    for override in sys.argv[1:]:
        if "=" in override and not override.startswith("-"):
            parsed = parser.parse_overrides([override])[0]
            if parsed.key_or_group != key and not parsed.is_sweep_override():
                others.append(override)
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        try:
            cfg = compose("train", overrides=others)
        except (HydraException, OmegaConfBaseException):
            cfg = compose("train")  # more than one is wrong: this one first
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not isinstance(node, DictConfig):
        return _unknown_key(parent) if parent else f"{key}: there is no such key."
    keys = sorted(str(k) for k in node if not str(k).startswith("_"))
    return f"{key}: there is no such key; {offer(last, keys)}"

"""What a mistake looks like: one message for the user, a traceback for our own bugs."""

import errno
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser  # private: it alone tells options from words
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.config.arguments import mistaken_options, unreadable
from resnet_lab.config.compose import HYDRA_1_3, at_home
from resnet_lab.config.errors import UserError
from resnet_lab.config.options import add_folder, groups
from resnet_lab.config.suggest import shown, unknown_choice, unknown_key

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
NOT_A_FILE = (errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM)


def _usage(_root_: DictConfig) -> str:
    """`${usage:}` in conf/hydra/default.yaml: the text of --help for the config around it."""
    from resnet_lab.config.usage import usage

    content: Any = OmegaConf.to_container(_root_)
    choices = content.pop("hydra")["runtime"]["choices"]
    return usage(content, choices).replace("$", "$$")  # Hydra takes it for a template


_register: Any = OmegaConf.register_new_resolver if HYDRA_1_3 else OmegaConf.register_resolver
_register("usage", _usage, replace=True)

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
    sys.argv[1:] = _in_order(at_home(sys.argv[1:]))
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
        return _cannot_be_read(str(error.override))
    if isinstance(error, InstantiationException):
        if not_found := re.match(r"Error locating target '([^']+)'", str(error)):
            return _not_found(not_found[1], error)
        while isinstance(error, InstantiationException) and error.__cause__ is not None:
            error = error.__cause__
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _first_lines(error)
    if isinstance(error, ValueError) and str(error).startswith("Only one of --"):
        return f"{error}."
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return f"{_without_choice(sys.argv[1:])}: a group needs a choice; leave it out."
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


def _without_choice(words: Sequence[str]) -> str:
    typed = (w for w in words if re.fullmatch(r"[\w/]+=(null|\d.*|true|false)", w, re.IGNORECASE))
    return next((shown(w) for w in typed if w.partition("=")[0] in groups()), "a group")


def _cannot_be_read(word: str) -> str:
    if meant := unreadable(word, sys.argv[1:]):
        return f"{shown(word)}: cannot be read; did you mean {meant}?"
    return f"{shown(word)}: cannot be read; write key=value, with quotes around blanks."


def _first_lines(error: BaseException) -> str:
    # OmegaConf adds lines on its inner types from the second paragraph on.
    lines = [line for line in str(error).splitlines() if "object_type=" not in line]
    return "\n".join(line.strip() for line in lines if line.strip())


def _composition_sentence(error: BaseException) -> str:
    text, words = str(error), sys.argv[1:]
    # A choice may lie in a folder of its group, as experiment=he2015/resnet20 does.
    if match := re.search(r"Could not (?:find|load) '((?:hydra/)?[^/']+)/([^']*)'", text):
        return unknown_choice(match[1], match[2], words)
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match[1], words)
    if match := re.match(r"Ambiguous value for argument '(.+)'\n", text):
        return (
            f"{shown(match[1])}: several values make a sweep, so add -m; a list of them is "
            "key=[first,second]."
        )
    return _first_lines(error)


def _in_order(words: list[str]) -> list[str]:
    """A command line with its overrides first: argparse takes them in one place alone.

    Raises:
        SystemExit: with a sentence on options that mean a key=value, such as "--lr 0.1".
    """
    try:
        with redirect_stderr(io.StringIO()):
            parsed, rest = get_args_parser().parse_known_args(words)
    except SystemExit:
        return words  # Hydra's parser says what is wrong, or has said --help
    if parsed.config_dir is not None:
        add_folder(Path(parsed.config_dir).absolute())
    if meant := mistaken_options(words, rest):
        sys.exit(f"error: {meant}")
    if not rest or any(word.startswith("-") for word in rest):
        return words
    overrides = [*parsed.overrides, *rest]
    options = [*words]
    for word in overrides:
        options.remove(word)
    return [*overrides, *options]

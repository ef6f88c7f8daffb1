"""What a config may make and read, said before anything of it is made; imports no torch.

Hydra imports and calls whatever a `_target_` names, and a config may come from anybody: an
experiment file, a run folder. Three doors stand before that: `check_targets` looks at the names
alone, `check_definitions` at the objects behind them, and `check_hydra` at what Hydra itself makes
(callbacks, logging) before a run begins. What is trusted besides `TRUSTED` is said on the command
line, `trust=[my_package]`, never in a file.
"""

import os
import re
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

from hydra._internal.utils import _locate  # what Hydra's instantiate finds a target with
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

# Parts of a run, none of which runs a command or loads code. Each entry ends in a dot, so that
# torch.nn. is not torch.nnx. Of torchmetrics only what counts: others load models from elsewhere.
TRUSTED = (
    "resnet_lab.bench.noise.",
    "resnet_lab.bench.training.",
    "resnet_lab.board.",
    "resnet_lab.callbacks.",
    "resnet_lab.classifier.",
    "resnet_lab.data.datamodule.",
    "resnet_lab.data.sources.",
    "resnet_lab.models.",
    "resnet_lab.schedule.",
    "resnet_lab.sharding.Sharded.",
    "torch.nn.",
    "torch.optim.",
    "lightning.pytorch.Trainer.",
    "lightning.pytorch.trainer.trainer.Trainer.",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.profilers.",
    "torchmetrics.classification.",
    "torchvision.models.",
)
# Elsewhere only classes: a function may do anything as soon as it is called.
FUNCTIONS = ("resnet_lab.models.", "resnet_lab.schedule.", "torchvision.models.")

# What a config of Hydra's own part may name.
HYDRAS_TARGETS = (
    "hydra_plugins.",
    "hydra._internal.core_plugins.",
    "hydra.experimental.callbacks.",
    "resnet_lab.run.claim.CheckAndClaim.",
)
LOGGING_CLASSES = (
    "colorlog.ColoredFormatter",
    "logging.FileHandler",
    "logging.Formatter",
    "logging.NullHandler",
    "logging.StreamHandler",
    "logging.handlers.RotatingFileHandler",
    "resnet_lab.screen.ConsoleHandler",
)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
LOG_FILE = re.compile(r"\$\{hydra\.runtime\.output_dir\}/([\w-]|\$\{hydra\.job\.name\})+\.log")
OVERRIDE_DIRNAME = "hydra.job.override_dirname"  # written by Hydra, from what was typed
PRELOADED = ("resnet_lab.", "torch.", "sklearn.")

NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
# ${a.b} refers to another key of the same config; ${oc.env:X} and the like ask something else.
REFERENCE = re.compile(r"\$\{\.*\w+(\.\w+)*\}")
# In Hydra's own part also the time, and an environment variable, which is text.
PLAIN_RESOLVER = re.compile(r"\$\{(now|oc\.env|python_version|hydra):[^${}]*\}")

HOW_TO_TRUST = (
    "if it is your own code, say so on the command line: trust=[PACKAGE] (with a command over a "
    "run, --trust PACKAGE)"
)


def given_trust(overrides: Sequence[str]) -> Any:
    """What the last `trust=[...]` on this command line says."""
    said = [o for o in overrides if o.lstrip("+~").partition("=")[0] == "trust"]
    given = [override.value() for override in OverridesParser.create().parse_overrides(said)]
    return given[-1] if given else []


def check_trust(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """ValueError where `trust` of a composed config is not what the command line says."""
    said = cfg.get("trust")
    said = OmegaConf.to_container(said, resolve=True) if isinstance(said, ListConfig) else said
    if (said or []) != (given_trust(overrides) or []):
        raise ValueError(
            f"trust={said}: a file says so, but what is trusted besides resnet_lab is said on the "
            "command line alone, as a list such as trust=[my_package]."
        )


def check_targets(cfg: Any, also: Sequence[str] = (), foreign: bool = False) -> None:
    """ValueError where a `_target_` in this config, at any depth, names what is not trusted.

    Names are compared as text: nothing is imported and nothing is resolved. A name that an
    interpolation would write is refused; what else interpolations may bring is left to
    `check_definitions`.

    also: packages or modules that whoever sits at the keyboard trusts, besides `TRUSTED`.
    foreign: the config comes from a run folder, which somebody else may have written: nothing in
        it may ask for an environment variable, or anything else but its own keys.
    """
    content = OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else cfg
    for key, value in _strings(content):
        if foreign and "${" in REFERENCE.sub("", value):
            raise ValueError(
                f"{key}: {value} asks for something outside this config, such as an environment "
                f"variable, and a run folder may not; give it on the command line: {key}=..."
            )
        if key.rpartition(".")[2] == "_target_" and not _may_be_named(value, also):
            raise ValueError(
                f"{key}: {value} is not among the things that a config may ask for "
                f"({', '.join(sorted({name.split('.')[0] for name in _prefixes(also)}))}); "
                f"nothing was run; {HOW_TO_TRUST}."
            )


def check_definitions(cfg: DictConfig, also: Sequence[str] = ()) -> None:
    """`check_targets` once everything is resolved, and of the objects behind the names.

    Other modules can be reached through ours (`resnet_lab.data.sources.os.remove`), so the place
    where an object was defined must be trusted, too. Imports what is named, so it comes after
    `check_targets`. ValueError as there, or where there is nothing of that name.
    """
    content = OmegaConf.to_container(cfg, resolve=True)
    check_targets(content, also)
    for key, value in _strings(content):
        if key.rpartition(".")[2] == "_target_":
            try:
                found = _locate(value)
            except Exception as error:
                reason = str(error.__cause__ or error).splitlines()[0]
                raise ValueError(f"{key}: there is no {value} ({reason}).") from error
            defined = f"{getattr(found, '__module__', '?')}.{getattr(found, '__qualname__', '?')}"
            if not _may_be_called(found, defined, also):
                raise ValueError(
                    f"{key}: {value} is {defined}, which is not among the things that a config may "
                    f"ask for; nothing was run; {HOW_TO_TRUST}."
                )


def _prefixes(also: Sequence[str]) -> tuple[str, ...]:
    return (*TRUSTED, *(f"{name}." for name in also))


def _may_be_named(target: str, also: Sequence[str]) -> bool:
    own = f"{target}.".startswith(tuple(f"{name}." for name in also))
    # An underscore in front: what a package keeps to itself, and Python's own doors.
    inner = any(part.startswith("_") for part in target.split("."))
    return NAME.fullmatch(target) is not None and (
        own or (f"{target}.".startswith(TRUSTED) and not inner)
    )


def _may_be_called(found: Any, defined: str, also: Sequence[str]) -> bool:
    if f"{defined}.".startswith(tuple(f"{name}." for name in also)):
        return True
    if isinstance(found, type):
        return f"{defined}.".startswith(TRUSTED)
    # A function of a module, and of none that its package keeps to itself.
    plain = isinstance(found, FunctionType) and "." not in found.__qualname__
    inner = any(part.startswith("_") for part in defined.split("."))
    return plain and not inner and f"{defined}.".startswith(FUNCTIONS)


def _strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of everything that is no number; a `_target_` always counts as text."""
    if isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            if name == "_target_":
                yield f"{key}.{name}".lstrip("."), str(child)
            else:
                yield from _strings(child, f"{key}.{name}".lstrip("."))
    elif isinstance(node, str):
        yield key, node


def check_hydra(cfg: DictConfig) -> None:
    """ValueError where Hydra itself would make, import or set what it should not.

    Hydra's part of a composed config (`hydra.*`), which any file can write to, names callbacks,
    plug-ins, the classes of its logging, modules to be imported and environment variables, all of
    which act before a run begins.
    """
    for key, value in _strings({"hydra": OmegaConf.to_container(cfg.hydra)}):
        if key.startswith(("hydra.overrides.", "hydra.sweeper.params.", OVERRIDE_DIRNAME)):
            continue  # overrides: what they compose to is looked at
        last = key.rpartition(".")[2]
        named = NAME.fullmatch(value) and f"{value}.".startswith(HYDRAS_TARGETS)
        if (
            (last == "_target_" and not named)
            or (last in ("()", "class", "factory") and value not in LOGGING_CLASSES)
            or ("ext://" in value and value not in STREAMS)
            # What a log's format writes could be a script elsewhere.
            or (last == "filename" and not LOG_FILE.fullmatch(value))
            or (key == "hydra.job.name" and not re.fullmatch(r"[\w-]+", value))
        ):
            raise ValueError(f"{key}: {value} is not among the things that Hydra may be told.")
        _check_interpolations(cfg, key, value)
    typed = [override.lstrip("+") for override in cfg.hydra.overrides.hydra]
    for name in cfg.hydra.job.env_set:
        if not any(override.startswith(f"hydra.job.env_set.{name}=") for override in typed):
            raise ValueError(
                f"hydra.job.env_set.{name}: a file sets an environment variable; that is said on "
                f"the command line alone: +hydra.job.env_set.{name}=..."
            )
    trusted = given_trust(OmegaConf.to_container(cfg.hydra.overrides.task))  # type: ignore[arg-type]
    named = any(override.startswith("hydra.launcher.preload=") for override in typed)
    for name in () if named else cfg.hydra.launcher.get("preload") or ():
        if not f"{name}.".startswith((*PRELOADED, *(f"{package}." for package in trusted))):
            raise ValueError(f"hydra.launcher.preload: {name} is not trusted; {HOW_TO_TRUST}.")


def _check_interpolations(cfg: DictConfig, key: str, value: str) -> None:
    """What an interpolation puts into Hydra's part must be text: a mapping could hide a target."""
    if "${" not in value:
        return
    plain = "${" not in PLAIN_RESOLVER.sub("", REFERENCE.sub("", value))
    if key.startswith(("hydra.job_logging.", "hydra.hydra_logging.")):
        # dictConfig imports what "ext://..." names, so not even a text may be put together.
        plain = plain and value.startswith("${hydra.runtime.output_dir}/")
    for match in REFERENCE.finditer(value):
        name = match[0][2:-1]
        if not name.startswith("hydra."):  # those are looked at where they stand
            text = isinstance(resolved_at(cfg, name), str | int)
            plain = plain and text and not name.startswith(".")
    if not plain:
        raise ValueError(f"{key}: {value} could hide something; write out what is meant.")


def from_environment(cfg: DictConfig) -> dict[str, str]:
    """What in `cfg` holds the value of an environment variable: key -> interpolation, as written.

    Also where it is a part of a longer text, or comes by way of other keys. Found by resolving
    everything once more with other values in the environment's place.
    """
    written = {key: text for key, text in _strings(OmegaConf.to_container(cfg)) if "${" in text}
    values = {key: resolved_at(cfg, key) for key in written}

    def masked(name: str, *default: Any) -> Any:
        value = oc.env(name, *default)
        return f"{value} masked" if name in os.environ else value

    OmegaConf.register_new_resolver("oc.env", masked, replace=True)
    try:
        others = {key: resolved_at(cfg, key) for key in written}
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    return {key: text for key, text in written.items() if values[key] != others[key]}


def resolved_at(cfg: DictConfig, key: str, otherwise: Any = None) -> Any:
    """What stands at a dotted key, resolved; `otherwise` where it cannot be."""
    try:
        value = OmegaConf.select(cfg, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        return otherwise

"""From overrides to a config, and from a config to its dotted keys; imports no torch."""

import os
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from resnet_lab.config.errors import UserError
from resnet_lab.config.options import APP as APP
from resnet_lab.config.options import CONF as CONF
from resnet_lab.config.options import PACKAGE as PACKAGE

# Hydra 1.3 asks for `version_base`, and 1.4 warns of it. 1.4 also warns where nothing lists what
# may be instantiated: Hydra's block-list holds then, as in 1.3, and `untrusted` has the rest.
HYDRA_1_3 = hydra.__version__.startswith("1.3.")
VERSION_BASE = {"version_base": "1.3"} if HYDRA_1_3 else {}
warnings.filterwarnings("ignore", "(?s).*execution.whitelist", UserWarning)

# Keys of one command, not of the run that it starts.
OF_THE_COMMAND = ("hydra", "resume", "run_dir", "sweep")


def _scaled(rate: float | int, batch_size: int, base: int = 128) -> float:
    """`${scaled:RATE,BATCH,BASE}`: a rate in proportion to the batch (arXiv 1706.02677, 2.1)."""
    return rate * batch_size / base


_register: Any = OmegaConf.register_new_resolver if HYDRA_1_3 else OmegaConf.register_resolver
_register("scaled", _scaled, replace=True)


def compose(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """What `python train.py` with these overrides would run, unchecked.

    Returns:
        The config, `run_dir` left to be set, and the choice of every group.

    Raises:
        UserError: an override gives several values.
        HydraException, OmegaConfBaseException: it does not compose.
    """
    from hydra.core.global_hydra import GlobalHydra

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: give one value alone.")
    # Within train.py Hydra is there already, and knows of --config-dir.
    here: AbstractContextManager[Any] = (
        nullcontext()
        if GlobalHydra.instance().is_initialized()
        else hydra.initialize_config_dir(str(CONF), **VERSION_BASE)
    )
    with here:
        cfg = hydra.compose("train", overrides=list(overrides), return_hydra_config=True)
    choices = {str(group): str(choice) for group, choice in cfg.hydra.runtime.choices.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def typed(config: DictConfig, kind: str) -> list[str]:
    """The overrides of the command line, as they were typed: "task" ours, "hydra" Hydra's own."""
    overrides: list[str] = OmegaConf.to_container(config.hydra.overrides[kind])  # type: ignore[assignment]
    return overrides


def absolute(path: str) -> str:
    """A path as the user means it: "~" is her home, and it begins where she stands, wherever the
    run works (hydra.job.chdir)."""
    from hydra.core.hydra_config import HydraConfig

    base = HydraConfig.get().runtime.cwd if HydraConfig.initialized() else ""
    return os.path.abspath(os.path.join(base, os.path.expanduser(path)))


def at_home(words: Sequence[str]) -> list[str]:
    """Words of a command line with key=~/folder as the user means it: a shell leaves the "~" to
    Hydra, whose grammar has none."""
    return [
        re.sub(r"=~(?=/|$)", lambda _: f"={os.path.expanduser('~')}", word, count=1)
        for word in words
    ]


def quoted(text: object) -> str:
    """A text as a value on Hydra's command line, where "=" and "," have meanings."""
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def pasted(key: str, value: str) -> str:
    """key=value as it can be pasted into a shell, for Hydra to read."""
    plain = re.fullmatch(r"[\w./@%+-]+", value, re.ASCII)
    return f"{key}={value}" if plain else shlex.quote(f"{key}={quoted(value)}")


def key_of(override: str) -> str:
    """The dotted key (or group) that an override sets: "+a.b=1" -> "a.b"."""
    return override.lstrip("+~").partition("=")[0].replace("/", ".").partition("@")[0]


def within(key: str, others: Iterable[str]) -> bool:
    """Whether `key` is one of `others` or lies below one."""
    return any(key == other or key.startswith(f"{other}.") for other in others)


class _Absent:
    pass


ABSENT = _Absent()  # in place of the value of a key that is not there


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of a config by its dotted key; folders of data as absolute paths."""
    return dict(_flat(config, ""))


def _flat(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            yield from _flat(child, f"{key}.{name}" if key else str(name))
    elif key in ("data.root", "data.cache_dir") and isinstance(node, str) and "${" not in node:
        yield key, absolute(node)
    else:
        yield key, node


def moved(node: Any, old: str, new: str) -> Any:
    """The same with every path below the folder `old` below `new` instead."""
    if isinstance(node, Mapping):
        return {moved(key, old, new): moved(child, old, new) for key, child in node.items()}
    if isinstance(node, list):
        return [moved(child, old, new) for child in node]
    if isinstance(node, str) and (node == old or node.startswith(f"{old}/")):
        return new + node.removeprefix(old)
    return node


def texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of every string in a plain config; `_target_` counts as text."""
    if isinstance(node, Mapping | list):
        for name, child in node.items() if isinstance(node, Mapping) else enumerate(node):
            below = f"{key}.{name}" if key else str(name)
            yield from ((below, str(child)),) if name == "_target_" else texts(child, below)
    elif isinstance(node, str):
        yield key, node


def from_environment(config: Mapping[str, Any]) -> dict[str, str]:
    """What in an unresolved config holds the value of an environment variable: key -> as written.

    Also where it comes by way of other keys. Told by the text alone, and rather too often than
    too rarely: any name in an interpolation that could mean such a key counts.
    """
    written = {key: text for key, text in texts(config) if "${" in text}
    found = {key for key, text in written.items() if _asks_environment(text)}
    while True:
        more = {
            key
            for key, text in written.items()
            if key not in found and any(_may_mean(name, found) for name in _names(text))
        }
        if not more:
            return {key: written[key] for key in found}
        found |= more


def _asks_environment(text: str) -> bool:
    asked = re.findall(r"oc\.env:([^,}]*)", text)
    # A variable that is not set leaves its default; a name may be put together from others.
    return any("$" in name or name.strip(" '\"") in os.environ for name in asked)


def _names(text: str) -> list[str]:
    inside = text[text.index("${") :]
    return [name.strip(".") for name in re.findall(r"[\w.]+", inside) if name.strip(".")]


def _may_mean(name: str, keys: Iterable[str]) -> bool:
    return any(f".{key}.".find(f".{name}.") >= 0 or name.startswith(f"{key}.") for key in keys)

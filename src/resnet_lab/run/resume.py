"""A run that is resumed: its own config, and the few keys that may change; imports no torch."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from resnet_lab.config import untrusted
from resnet_lab.config.check import check
from resnet_lab.config.compose import (
    ABSENT,
    OF_THE_COMMAND,
    flat,
    key_of,
    moved,
    texts,
    typed,
    within,
)
from resnet_lab.config.errors import UserError
from resnet_lab.run.folder import RunFolder, keep_at_home

# Where, how long and how fast a run goes on, and what watches it.
FREE = (
    "callbacks.last",
    "compile",
    "cuda_graph",
    "data.cache_dir",
    "data.memory_limit",
    "data.root",
    "data.worker_timeout",
    "data.workers",
    "logger",
    "rank_timeout",
    "trainer.log_every_n_steps",
    "trainer.max_time",
)
LENGTH = "trainer.max_epochs"
SAME_AT_ANY_LENGTH = ("resnet_lab.schedule.constant", "resnet_lab.schedule.multistep")
# In the config of a run nothing refers to anything else, so these change with what they follow.
FOLLOWERS = {
    "data.root": "data.source.root",
    "data.cache_dir": "data.source.cache_dir",
    "trainer.max_time": "callbacks.last.max_time",
    "compile": "callbacks.compile_net.compile",
    "rank_timeout": "callbacks.last.rank_timeout",
    "cuda_graph": "callbacks.cuda_graph.cuda_graph",
}


def resumed(asked: DictConfig, folder: RunFolder) -> DictConfig:
    """The config of the run in `folder`, to be resumed there.

    Beside `resume=RUN_DIR` a command may hold keys of `FREE`, a larger trainer.max_epochs where
    the schedule allows it, and all that the command that began the run held. It is what the user
    types, so names in it may be named by the run's config as well; see `config.untrusted`.

    Args:
        asked: what the command composes to, with Hydra's own part.

    Raises:
        UserError: there is no run or no checkpoint, something else is asked for, or the config
            that lies there asks for what it may not.
        SystemExit: with status 0, where the run is finished.
    """
    own, mine = folder.read_config(), _plain(asked)
    overrides = [o for o in typed(asked, "task") if not within(key_of(o), OF_THE_COMMAND)]
    began = folder.read_overrides()
    same_command = began is not None and _others(overrides) == _others(began)
    if not same_command and _others(overrides):
        raise UserError(
            f"resume={folder}: a run is resumed with its own config; leave out "
            f"{' '.join(_others(overrides))}. Beside resume= may stand {', '.join(FREE)}, a larger "
            f"{LENGTH}, or the very command that began the run."
        )
    keys = _changed_keys(own, mine, overrides, began if same_command else None)
    longer = _is_longer(folder, own, asked) if LENGTH in keys else False
    if folder.read_result().get("status") == "finished" and not longer:
        print(f"{folder}: this run is finished; its result is in {folder.result}")
        raise SystemExit(0)
    if not folder.has_checkpoint():
        raise UserError(f"resume={folder}: it has no checkpoint to resume from; start it anew.")
    folder.refuse_links()

    path = str(folder.path.absolute())
    if isinstance(own.get("run_dir"), str):  # the folder may have been moved
        own = moved(own, own["run_dir"], path)
    own["resume"] = own["run_dir"] = path
    keep_at_home(own, keys, mine["data"]["cache_dir"])
    names = [name for key, name in texts(mine) if key.endswith("_target_")]
    untrusted.check_names(
        own, folder.config, names, "Resume it with the very command that began it, and resume=..."
    )
    known = dict(texts(mine))
    for section in ("callbacks", "logger", "trainer"):
        untrusted.check_places({section: own.get(section)}, folder.config, path, known)
    anew = keys | {FOLLOWERS[key] for key in keys & FOLLOWERS.keys()}
    untrusted.check_values({k: v for k, v in flat(own).items() if k not in anew}, folder.config)
    # From here on what is added is the user's own, and may refer to the environment.
    for key in keys:
        _set(own, key, _get(mine, key))
        if (follower := FOLLOWERS.get(key)) and _get(own, follower) is not ABSENT:
            _set(own, follower, _get(mine, key))
    if any(within(key_of(override), ("logger",)) for override in overrides):
        own["logger"] = mine["logger"]
    for there, now in (
        (own, mine),
        (own["trainer"], mine["trainer"]),
        (own["data"], mine["data"]),
    ):  # settings that the program did not have yet when the run began
        there |= {name: value for name, value in now.items() if name not in there}
    cfg = OmegaConf.create(own)
    check(cfg)
    return cfg


def _others(overrides: list[str]) -> list[str]:
    """Overrides that a resumed run could not take as changes."""
    keep = (*FREE, LENGTH, *OF_THE_COMMAND)
    return [override for override in overrides if not within(key_of(override), keep)]


def _plain(cfg: DictConfig) -> dict[str, Any]:
    content: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    content.pop("hydra", None)
    return content


def _changed_keys(
    own: Mapping[str, Any], mine: Mapping[str, Any], overrides: list[str], began: list[str] | None
) -> set[str]:
    """What the command sets anew in the run's config.

    Args:
        own, mine: the config of the run, and what the command composes to.
        began: the overrides of the command that began the run, where this is the same one.
    """
    keys = {key_of(o) for o in overrides if began is None or o not in began}
    if began is not None:  # what an environment variable said, a run's config leaves to the command
        left_open = {key for key, text in texts(own) if "${" in text}
        keys |= {key for key in left_open if "${" in str(_get(mine, key))}
    return {key for key in keys if not within(key, ("logger",))}


def _is_longer(folder: RunFolder, own: dict[str, Any], asked: DictConfig) -> bool:
    before, epochs = _get(own, LENGTH), OmegaConf.select(asked, LENGTH)
    if epochs == before:
        return False
    if why_not := not_longer(flat(own), epochs):
        raise UserError(
            f"resume={folder}: {LENGTH}: {as_text(before)} -> {as_text(epochs)}: {why_not}"
        )
    return True


def _get(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for name in key.split("."):
        node = node.get(name, ABSENT) if isinstance(node, Mapping) else ABSENT
    return node


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = config
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = value


def not_longer(own: Mapping[str, Any], epochs: Any) -> str:
    """Why a run with this (flat) config cannot be `epochs` long; "" where it can."""
    planned = own[LENGTH]
    if not isinstance(planned, int) or planned < 1 or not isinstance(epochs, int):
        return "the length of this run is not counted in epochs."
    if epochs < planned:
        return "it can only become longer."
    schedule = str(own["scheduler._target_"])
    in_fractions = own.get("scheduler.unit") == "run" and (
        schedule.endswith("multistep") or own.get("scheduler.warmup")
    )
    if schedule not in SAME_AT_ANY_LENGTH or in_fractions:
        unit = " with unit=run" if in_fractions else ""
        return (
            f"every learning rate of {schedule}{unit} depends on the length of the run, and so far "
            f"they were those of {planned} epochs; begin a new run (scheduler=constant, or "
            "multistep with scheduler.unit=epoch, could have gone on)."
        )
    return ""


def as_text(value: Any) -> str:
    """A value as a line says it."""
    return "absent" if value is ABSENT else "null" if value is None else str(value)

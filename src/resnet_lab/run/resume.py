"""What may be changed of a run that goes on: nothing that it computes; imports no torch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import (
    HydraException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.config.check import check
from resnet_lab.config.compose import (
    ABSENT,
    GROUPS,
    OF_THE_COMMAND,
    composed,
    flat,
    key_of,
    moved,
    typed,
    within,
)
from resnet_lab.config.errors import UserError
from resnet_lab.run.folder import run_config
from resnet_lab.trust import (
    check_targets,
    given_trust,
    resolved_at,
)


def go_on(config: DictConfig, run_dir: Path) -> None:
    """Turn `config` into that of the run in `run_dir`, to be continued there.

    What else is typed must be what the run has already, or among the things that do not change
    what it computes (see `resume`). `config` itself says what is new since the run was begun.

    Ends the process, with status 0, where that run is finished. ValueError where there is no
    run or no checkpoint, where its config asks for what is not trusted, or where a change is
    asked for that is not allowed; the change is shown.
    """
    others = [o for o in typed(config, "task") if not within(key_of(o), OF_THE_COMMAND)]
    trust = given_trust(typed(config, "task"))
    kept = run_dir / ".hydra" / "hydra.yaml"
    # As text: what is written there must not be resolved here.
    then: Any = OmegaConf.to_container(OmegaConf.load(kept)) if kept.exists() else None
    own = run_config(run_dir)
    if then is not None and others == _typed_then(then):
        others = []  # the command that has begun the run, once more
    new = _changes(run_dir, own, then, others) if others else {}
    longer = new.get(LENGTH, -1)
    try:
        status = json.loads((run_dir / "result.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        status = "unknown"
    if status == "finished" and longer == -1:
        print(f"{run_dir}: this run is finished; its result is in {run_dir / 'result.json'}")
        raise SystemExit(0)
    if not _has_checkpoint(run_dir):
        raise UserError(f"resume={run_dir}: it has no checkpoint to go on from; start it anew.")

    folder = str(run_dir.absolute())
    for key, value in new.items():
        OmegaConf.update(own, key, value, force_add=True)
    before = own.get("run_dir")
    if isinstance(before, str):  # the folder may have been moved
        own = OmegaConf.create(moved(OmegaConf.to_container(own), before, folder))
    for today, saved in (  # settings that are newer than the run
        (config, own),
        (config.get("trainer"), own.trainer),
        (config.get("data"), own.data),
    ):
        settings: Any = OmegaConf.to_container(today) if today else {}
        for name, value in settings.items():
            if name != "hydra" and name not in saved:
                saved[name] = value
    own.resume = own.run_dir = folder
    own.trust = trust
    check_targets(own, trust, foreign=True)
    assert isinstance(own, DictConfig)
    check(own)

    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    for part in [part for part in config if part != "hydra"]:
        del config[part]
    config.update(own)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.run.dir = str(run_dir)
    config.hydra.output_subdir = None  # .hydra keeps what the run was started with
    if then is not None:  # what was chosen then, for result.json and the board
        config.hydra.overrides.task = [*then["hydra"]["overrides"]["task"], *others]
        config.hydra.runtime.choices = {
            group: choice
            for group, choice in then["hydra"]["runtime"]["choices"].items()
            if "${" not in str(choice)
        }


def _has_checkpoint(run_dir: Path) -> bool:
    """Whether there is something to go on from."""
    saved = (run_dir / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    return any(path.exists() for path in saved)


def _typed_then(then: Any) -> list[str]:
    """The overrides that a run was begun with, by its .hydra/hydra.yaml."""
    task = then["hydra"]["overrides"]["task"] if then else []
    return [override for override in task if not within(key_of(override), OF_THE_COMMAND)]


def _changes(run_dir: Path, own: DictConfig, then: Any, others: Sequence[str]) -> dict[str, Any]:
    """What the overrides `others` change in a run; ValueError where they may not."""
    began = _typed_then(then)
    keys = [key_of(override) for override in others]
    known = then is not None
    try:
        composed(began)
    except (HydraException, OmegaConfBaseException):  # of configs that are not here any more
        began, known = [], False
    if not known and not GROUPS.isdisjoint(keys):
        raise UserError(
            f"resume={run_dir}: what it was begun with is not known here (.hydra/hydra.yaml), so "
            f"whole groups cannot be compared; leave out {' '.join(others)}."
        )
    configs = []
    for overrides in (began, [*began, *others]):
        cfg, _ = composed(overrides)
        cfg.run_dir = str(run_dir)
        written = flat(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
        resolved = {
            key: resolved_at(cfg, key, text) if "${" in str(text) else text
            for key, text in written.items()
        }
        configs.append((written, resolved))
    try:
        sure = [key for key in keys if not known or within(key, (*FREE, LENGTH))]
        return changes(OmegaConf.to_container(own), *configs, sure)  # type: ignore
    except UserError as error:
        raise UserError(
            f"resume={run_dir}: the run goes on with its own config, and this would change it (run "
            f"-> asked for):\n  {error}\nLeave that out, or begin a new run."
        ) from None


# Where, how long and how fast a run goes on; and what is of one command, not of the run.
FREE = (
    "callbacks.last",
    "compile",
    "data.cache_dir",
    "data.memory_limit",
    "data.root",
    "data.worker_timeout",
    "data.workers",
    "rank_timeout",
    "trainer.log_every_n_steps",
    "trainer.max_time",
)


LENGTH = "trainer.max_epochs"


SAME_AT_ANY_LENGTH = ("resnet_lab.schedule.constant", "resnet_lab.schedule.multistep")


def changes(
    own: Mapping[str, Any],
    began: tuple[Mapping[str, Any], Mapping[str, Any]],
    asked: tuple[Mapping[str, Any], Mapping[str, Any]],
    sure: Iterable[str] = (),
) -> dict[str, Any]:
    """What `asked` would change in the run whose config is `own`: dotted key -> new value.

    began, asked: what composes from the command line that began the run, and from the same with
        the new overrides behind; each as written and resolved, by dotted keys.
    sure: keys that are compared with the run's own even where they compose to the same, since an
        earlier resume may have changed them.

    ValueError, a line for each change that is not allowed. Keys that only follow others (an
    interpolation, `data.source.root: ${data.root}`) are changed with them.
    """
    mine = flat(own)
    (before_written, before), (after_written, after) = began, asked
    new: dict[str, Any] = {}
    refused: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        value = after.get(key, ABSENT)
        rewritten = before_written.get(key, ABSENT) != after_written.get(key, ABSENT)
        if "${" in str(mine.get(key)):  # nothing to compare with: it is what the user says
            if rewritten:
                new[key] = value
            continue
        said = rewritten or key in sure
        if within(key, OF_THE_COMMAND) or mine.get(key, ABSENT) == value:
            continue
        if not said and before.get(key, ABSENT) == value:
            continue
        if not said and key not in mine:
            continue  # of a newer version than the run
        if value is not ABSENT and (within(key, FREE) or not said):
            new[key] = value
        elif key == LENGTH:
            if why_not := not_longer(mine, value):
                refused.append(f"{change(key, mine, value)}: {why_not}")
            else:
                new[key] = value
        else:
            refused.append(change(key, mine, value))
    if refused:
        raise UserError("\n  ".join(refused))
    return new


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


def change(key: str, old: Mapping[str, Any], value: Any) -> str:
    """As a line: "key: old -> new"."""
    return f"{key}: {shown(old.get(key, ABSENT))} -> {shown(value)}"


def shown(value: Any) -> str:
    return "absent" if value is ABSENT else "null" if value is None else str(value)

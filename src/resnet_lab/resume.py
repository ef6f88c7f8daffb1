"""What may be changed of a run that goes on: nothing that it computes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
OF_THE_COMMAND = ("hydra", "resume", "run_dir", "sweep", "trust")
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
        raise ValueError("\n  ".join(refused))
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


def within(key: str, others: Iterable[str]) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in others)


class _Absent:
    pass


ABSENT = _Absent()


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of a config by its dotted key; folders of data as absolute paths."""
    return dict(_flat(config, ""))


def _flat(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            yield from _flat(child, f"{key}.{name}" if key else str(name))
    elif key in ("data.root", "data.cache_dir") and isinstance(node, str) and "${" not in node:
        yield key, str(Path(node).absolute())
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


def of_the_command(overrides: Sequence[str]) -> list[str]:
    """Of a command line with `resume=`, what is not meant for the run's config."""
    return [o for o in overrides if within(key_of(o), OF_THE_COMMAND)]


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].replace("/", ".").partition("@")[0]

"""A run as a row of a table, and its config as columns; imports neither torch nor pandas."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from math import isnan
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml

from resnet_lab.config.rules import spelled
from resnet_lab.config.untrusted import parse_yaml
from resnet_lab.files import printable, read_text
from resnet_lab.report.runs import Run
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.state import State

# The columns of a row, in their order.
COLUMNS = (
    *("path", "name", "sweep", "state", "reason", "model", "data", "settings", "seed"),
    *("batch_size", "epochs", "max_epochs", "best_epoch"),
    *("val/acc", "val/loss", "test/acc", "test/loss"),
    *("params", "macs", "images_per_second", "train_seconds", "seconds", "started"),
    *("device_name", "precision", "commit", "tags", "note", "size"),
)
_OF_RESULT = (  # columns that stand in result.json under the same name
    *("seed", "batch_size", "best_epoch", "val/acc", "val/loss", "test/acc", "test/loss"),
    *("params", "macs", "images_per_second", "train_seconds", "seconds", "started"),
    *("device_name", "precision"),
)

_ABSENT: Any = object()  # in place of a value that is not there


def row(run: Run, root: Path, size: bool = False) -> dict[str, Any]:
    """The `COLUMNS` of a run; what it does not tell is None.

    Accuracies are from 0 to 1; of a run that has no final ones, those of its last epoch. `started`
    is UTC in ISO 8601.

    Args:
        root: `path` begins here where the run lies below it.
        size: count the bytes on disk, for which the folder is walked.
    """
    result = run.result
    found: dict[str, Any] = dict.fromkeys(COLUMNS)
    found |= {name: _finite(result[name]) for name in _OF_RESULT if name in result}
    last = max(run.rows, default=0) if run.state != State.FINISHED else 0
    if last and "val/acc" not in result:
        found |= {name: run.rows[last].get(name) for name in ("val/loss", "val/acc")}
    tags, note = run.labels
    settings = run.settings
    return found | {
        "path": _below(run.folder, root),
        "name": run.name,
        "sweep": printable(run.sweep.resolve().name) if run.sweep else "",
        "state": str(run.state),
        "reason": run.reason or None,
        "model": result.get("model") or settings.get("model"),
        "data": result.get("data") or settings.get("data"),
        "settings": settings_text(run),
        "seed": found["seed"] if found["seed"] is not None else typed_value(settings.get("seed")),
        "epochs": result.get("epochs") or last or None,
        "max_epochs": _max_epochs(run),
        "commit": result.get("git_commit"),
        "tags": tags,
        "note": note or None,
        "size": size_of(run.folder) if size else None,
    }


def settings_text(run: Run) -> str:
    """What tells the run from others: what its sweep varies, else what was typed besides the net
    and the data."""
    keys = run.swept or [key for key in run.settings if key not in ("model", "data")]
    return " ".join(f"{key}={run.settings[key]}" for key in keys if key in run.settings)


def columns_of_config(run: Run) -> dict[str, Any]:
    """The choice of every config group, and every value of config.yaml by its dotted key.

    Lists are texts, as one types them. A job that has not begun has what was typed.
    """
    return {**_choices(run), **_values(run)}


def of_config(run: Run, name: str) -> Any:
    """One of `columns_of_config`, None where there is none; a single line is parsed if it can."""
    lines: dict[str, Any] = run.memo.setdefault("lines", {})
    if name not in lines:
        found = _ABSENT if "values" in run.memo else _of_line(run, name)
        lines[name] = columns_of_config(run).get(name) if found is _ABSENT else found
    return lines[name]


def _of_line(run: Run, key: str) -> Any:
    """The value of a dotted key of config.yaml, `_ABSENT` where it does not stand on one line: to
    parse all of a file takes milliseconds, and there may be a thousand."""
    if "text" not in run.memo:
        run.memo["text"] = ""
        with suppress(OSError, ValueError):
            run.memo["text"] = read_text(RunFolder(run.folder).config)
    *sections, last = key.split(".")
    pattern, indent = "^", ""
    for section in sections:
        pattern += rf"{indent}{re.escape(section)}:\n(?:{indent} .*\n)*?"
        indent += "  "
    pattern += rf"{indent}{re.escape(last)}: ([\w/.-][^#&*!\n]*)\n(?!{indent} )"
    match = re.search(pattern, run.memo["text"], re.MULTILINE)
    try:
        return _plain(parse_yaml(match[1])) if match else _ABSENT
    except yaml.YAMLError:
        return _ABSENT


def _choices(run: Run) -> dict[str, Any]:
    return {str(group): _plain(choice) for group, choice in run.choices.items()}


def _values(run: Run) -> dict[str, Any]:
    if "values" not in run.memo:
        typed = {key: typed_value(value) for key, value in run.settings.items()}
        run.memo["values"] = dict(_flat(run.config)) or typed
    values: dict[str, Any] = run.memo["values"]
    return values


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder, as they are counted by their length; links count none."""
    total, folders = 0, [str(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    with suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        total += status.st_size if S_ISREG(status.st_mode) else 0
    return total


def _max_epochs(run: Run) -> int | None:
    epochs = _of_line(run, "trainer.max_epochs")
    if epochs is _ABSENT:
        epochs = typed_value(run.settings.get("trainer.max_epochs"))
    return epochs if isinstance(epochs, int) else None


def _below(folder: Path, root: Path) -> str:
    path, root = Path(os.path.abspath(folder)), Path(os.path.abspath(root))
    return printable(str(path.relative_to(root) if path.is_relative_to(root) else path))


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from _flat(child, f"{key}.{name}" if key else str(name))
    elif key:
        yield key, _plain(node)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else spelled(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and isnan(value) else value


def typed_value(text: Any) -> Any:
    """As YAML would read a typed value: 1, 0.1, true, null, or the text."""
    words = {"null": None, "true": True, "false": False}
    if not isinstance(text, str) or text in words:
        return words.get(text) if isinstance(text, str) else text
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text

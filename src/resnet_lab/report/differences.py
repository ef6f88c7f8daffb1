"""What tells runs apart: config, code, versions, machine, data and figures; needs neither torch nor
pandas."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from resnet_lab.files import read_text
from resnet_lab.report.listing import text
from resnet_lab.report.row import columns_of_config
from resnet_lab.report.runs import PLACES, Run
from resnet_lab.run.checkout import MOST_PATCH, files_of
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.state import State

ABSENT = "-"  # in place of what a run does not have
NORMAL = 1.959964  # the 97.5% point
FIGURES = (
    *("val/acc", "val/loss", "test/acc", "test/loss", "epochs", "best_epoch"),
    *("params", "macs", "train_seconds", "images_per_second"),
)
_DATA = ("data", "n_train", "n_val", "n_test", "data_identity")
_MACHINE = ("device_name", "devices", "precision", "compiled")
# Of a run in progress: the images that there are, not those that were counted, and nothing yet.
_AT_THE_END = ("n_train", "n_val", "n_test", "compiled")
_IDENTITY_NOTE = (
    "data_identity is made of the classes, all labels and the pixels of a few images of each "
    "split: runs of the same one have, as far as it can be told, the same images."
)


@dataclass(frozen=True)
class Line:
    """One thing in which runs differ, and what each of them has."""

    key: str
    values: tuple[str, ...]


@dataclass
class Section:
    """Differences of one kind.

    Attributes:
        notes: sentences below them.
    """

    title: str
    lines: list[Line]
    notes: list[str] = field(default_factory=list)


def compare(runs: Sequence[Run]) -> list[Section]:
    """What differs between two or more runs, and their figures; sections without any are left out.

    In the figures every value after the first has its difference from the first beside it.
    """
    sections = [
        Section("config", config(runs)),
        code(runs),
        Section("versions", _of_mapping(runs, "versions")),
        Section("machine", _of_result(runs, _MACHINE)),
        data(runs),
        figures(runs),
    ]
    return [section for section in sections if section.lines or section.notes]


def config(runs: Sequence[Run]) -> list[Line]:
    """Group choices first, then keys that somebody typed, then the rest; not where a run lies."""
    found = [_without_places(run) for run in runs]
    keys = list(dict.fromkeys(key for columns in found for key in columns))
    choices = [key for key in keys if any(key in run.choices for run in runs)]
    typed = [key for key in keys if any(key in run.settings for run in runs)]
    ordered = dict.fromkeys([*choices, *typed, *keys])
    return _lines(runs, list(ordered), lambda n, key: found[n].get(key, _NOTHING))


def _without_places(run: Run) -> dict[str, Any]:
    place = str(run.config.get("run_dir", run.folder))
    return {
        key: "(the run's folder)" + value.removeprefix(place)
        if isinstance(value, str) and (value == place or value.startswith(f"{place}/"))
        else value
        for key, value in columns_of_config(run).items()
        if key.split(".")[0] not in PLACES
    }


def code(runs: Sequence[Run]) -> Section:
    """The git commits, and which files the runs' code.patch change in other ways."""
    lines = _lines(runs, ["git_commit"], lambda n, key: runs[n].result.get(key) or _NOTHING)
    lines = [Line("git commit", line.values) for line in lines]
    patches = [patch(run) for run in runs]
    parts = [files_of(one or "") for one in patches]
    names = list(dict.fromkeys(name for files in parts for name in files))
    changed = [name for name in names if len({files.get(name) for files in parts}) > 1]
    if len(set(patches)) > 1:
        told = [ABSENT if one is None else _count(len(parts[n])) for n, one in enumerate(patches)]
        lines.append(Line("code.patch", tuple(told)))
    for name in changed:
        several = list(dict.fromkeys(files.get(name) for files in parts if name in files))
        words = [
            ABSENT
            if name not in files
            else "changed"
            if len(several) == 1
            else f"changed, version {several.index(files[name]) + 1}"
            for files in parts
        ]
        lines.append(Line(f"  {name}", tuple(words)))
    section = Section("code", lines)
    commits = [str(run.result.get("git_commit") or "").removesuffix("-dirty") for run in runs]
    if len(set(commits)) > 1 and all(commits[:2]):
        section.notes.append(f"git diff {commits[0][:10]} {commits[1][:10]} shows what changed")
    unknown = [
        letter(n)
        for n, (run, one) in enumerate(zip(runs, patches, strict=True))
        if one is None and str(run.result.get("git_commit")).endswith("-dirty")
    ]
    if unknown:
        section.notes.append(
            f"The checkout of {', '.join(unknown)} was changed, but no code.patch tells how."
        )
    return section


def patch(run: Run) -> str | None:
    """The text of code.patch; None where there is none that can be read."""
    try:
        return read_text(RunFolder(run.folder).patch, 2 * MOST_PATCH, "replace")
    except (OSError, ValueError):
        return None


def data(runs: Sequence[Run]) -> Section:
    """Names, sizes, classes and identity of the data."""
    lines = _of_result(runs, _DATA)
    names = [run.result.get("class_names") for run in runs]
    if any(one != names[0] for one in names):
        told = [", ".join(map(str, one)) if isinstance(one, list) else ABSENT for one in names]
        lines.append(Line("classes", tuple(told)))
    section = Section("data", lines)
    if any(line.key == "data_identity" for line in lines):
        section.notes.append(_IDENTITY_NOTE)
    return section


def figures(runs: Sequence[Run]) -> Section:
    """Figures with their differences from the first run, and what chance alone can do."""
    lines = []
    for name in FIGURES:
        told = [run.result.get(name) for run in runs]
        if any(value is not None for value in told):
            first = told[0]
            texts = [
                _figure(name, value, None if n == 0 else first) for n, value in enumerate(told)
            ]
            lines.append(Line(name, tuple(texts)))
    section = Section("figures", lines)
    for n, run in enumerate(runs[1:], 1):
        for split in ("val", "test"):
            interval = difference_interval(runs[0], run, split)
            if interval:
                low, high, images = interval
                section.notes.append(
                    f"{split}/acc, {letter(n)} - {letter(0)}: 95% interval {low:+.4f} to "
                    f"{high:+.4f} (binomial, {images:,} images)"
                )
    if section.notes:
        section.notes.append(
            "The interval says how far the choice of images alone can move a difference, as if the "
            "runs had been tested on different ones; how far the seed can, one run each does not "
            "tell."
        )
    return section


def _figure(name: str, value: Any, first: Any) -> str:
    if value is None:
        return ABSENT
    shown = f"{value:,}" if isinstance(value, int) else text(name, value)
    if not isinstance(first, int | float) or not isinstance(value, int | float) or value == first:
        return shown
    if name.endswith(("/acc", "/loss")):
        return f"{shown} ({value - first:+.4f})"
    return f"{shown} ({value / first - 1:+.1%})" if first and "epoch" not in name else shown


def difference_interval(one: Run, other: Run, split: str) -> tuple[float, float, int] | None:
    """The 95% interval of the difference (other - one) of two accuracies that were counted over the
    same number of images, and that number; None where they were not.
    """
    name, images = f"{split}/acc", one.result.get(f"n_{split}")
    a, b = one.result.get(name), other.result.get(name)
    same = images == other.result.get(f"n_{split}") and one.result.get("data") == other.result.get(
        "data"
    )
    if not (isinstance(images, int) and images > 0 and same and a is not None and b is not None):
        return None
    return (*newcombe((a, images), (b, images)), images)


def newcombe(one: tuple[float, int], other: tuple[float, int]) -> tuple[float, float]:
    """The 95% interval of the difference (other - one) of two shares of so many.

    R. G. Newcombe, "Interval estimation for the difference between independent proportions",
    Statistics in Medicine 17, 1998, method 10.
    """
    (a, _), (b, _) = one, other
    (low_a, high_a), (low_b, high_b) = _wilson(*one), _wilson(*other)
    low = b - a - sqrt((b - low_b) ** 2 + (high_a - a) ** 2)
    high = b - a + sqrt((high_b - b) ** 2 + (a - low_a) ** 2)
    return low, high


def _wilson(share: float, n: int) -> tuple[float, float]:
    squared = NORMAL**2
    middle = (share + squared / (2 * n)) / (1 + squared / n)
    half = NORMAL * sqrt(share * (1 - share) / n + squared / (4 * n * n)) / (1 + squared / n)
    return middle - half, middle + half


# ------------------------------------------------------------------ lines


class _Nothing:
    pass


_NOTHING = _Nothing()


def _lines(runs: Sequence[Run], keys: Sequence[str], get: Callable[[int, str], Any]) -> list[Line]:
    """Those keys whose values are not the same in all runs."""
    lines = []
    for key in keys:
        told = [get(n, key) for n in range(len(runs))]
        if any(value != told[0] or type(value) is not type(told[0]) for value in told):
            shown = (ABSENT if value is _NOTHING else _spelled(key, value) for value in told)
            lines.append(Line(key, tuple(shown)))
    return lines


def _spelled(key: str, value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return str(value)
    if isinstance(value, str) and value.startswith("["):  # means have sixteen digits
        return re.sub(r"\d+\.\d{5,}", lambda match: f"{float(match[0]):.4g}", value)
    return text(key.replace("git_", ""), value)


def _of_result(runs: Sequence[Run], keys: Sequence[str]) -> list[Line]:
    if any(run.state == State.RUNNING for run in runs):
        keys = [key for key in keys if key not in _AT_THE_END]
    return _lines(runs, keys, lambda n, key: runs[n].result.get(key, _NOTHING))


def _of_mapping(runs: Sequence[Run], name: str) -> list[Line]:
    found = [run.result.get(name) for run in runs]
    known = [one if isinstance(one, dict) else {} for one in found]
    keys = list(dict.fromkeys(str(key) for one in known for key in one))
    return _lines(runs, keys, lambda n, key: known[n].get(key, _NOTHING))


def _count(n: int) -> str:
    return f"{n} file{'' if n == 1 else 's'}"


def letter(n: int) -> str:
    """A short name for the run of this number: A, B, ..., Z, AA."""
    return (letter(n // 26 - 1) if n >= 26 else "") + chr(ord("A") + n % 26)

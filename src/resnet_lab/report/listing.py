"""Runs as a table of text: as wide as the terminal, or in full where it goes to a file; as CSV."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from resnet_lab.config.rules import spelled
from resnet_lab.files import printable
from resnet_lab.report.catalogue import DIED
from resnet_lab.report.row import COLUMNS
from resnet_lab.report.runs import Run
from resnet_lab.report.where import Get, getter
from resnet_lab.run.state import State
from resnet_lab.screen import console, duration

SHOWN = ("name", "state", "model", "data", "settings", "val/acc", "test/acc", "time", "size")
DROPPED = ("size", "data", "model", "time", "settings")  # in this order where there is no room
SHRUNK = {"settings": 20, "name": 24}  # columns that may be cut, and to what width
RIGHT = frozenset(["time", "size"])
GAP = 2  # blanks between columns
STYLES = {
    **{State.FINISHED: "green", State.RUNNING: "bold", State.FAILED: "red", DIED: "red"},
    **{State.INTERRUPTED: "yellow", "unreadable": "red"},
}
_ABOVE = r"^[\w.]*\.(?=\w+=)"  # what stands before the last part of a key
_PLACES = {"acc": 4, "loss": 4}


def as_csv(runs: Sequence[Run], columns: Sequence[str] | None = None) -> str:
    """A line for each run, with exact numbers; what is missing is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns or COLUMNS)
    for run in runs:
        get = getter(run)
        cells = [get(name) for name in columns or COLUMNS]
        writer.writerow([" ".join(c) if isinstance(c, list) else c for c in cells])
    return out.getvalue()


def show(runs: Sequence[Run], columns: Sequence[str] | None = None) -> None:
    """Print a table of the runs, and a line that counts them.

    On a terminal columns are left out or cut until a run has one line, which is then said.
    """
    width = console.width if console.is_terminal else None
    gets = [getter(run) for run in runs]
    rows = [_cells(get, columns or SHOWN) for get in gets]
    same: dict[str, str] = {}
    if columns is None:
        same = _same(runs, gets)
        for get, cells in zip(gets, rows, strict=True):
            _shorten(get, cells, same)
    names = [name for name in columns or SHOWN if columns or name not in same]
    names, widths, left_out = _fitted(rows, names, width, fixed=columns is not None)
    console.print(Text(_line(dict(zip(names, names, strict=True)), widths), "dim"), soft_wrap=True)
    lines = []
    for run, cells in zip(runs, rows, strict=True):
        line = Text(_line(cells, widths))
        if (style := STYLES.get(run.state, "")) and "state" in widths:
            at = sum(widths[name] + GAP for name in names[: names.index("state")])
            line.stylize(style, at, at + len(cells["state"]))
        lines.append(line)
    console.print(Text("\n").join(lines), soft_wrap=True)
    console.print(Text(_summary(runs, same, left_out)), soft_wrap=True)


def _cells(get: Get, columns: Sequence[str]) -> dict[str, str]:
    """The texts of a row; a job's name begins with its sweep's."""
    cells = {
        name: text("seconds", get("seconds")) if name == "time" else text(name, get(name))
        for name in columns
    }
    if "name" in cells and get("sweep"):
        cells["name"] = f"{get('sweep')}/{cells['name']}"
    return cells


def _same(runs: Sequence[Run], gets: Sequence[Get]) -> dict[str, str]:
    """Net, data and typed settings that all of several runs share."""
    if len(runs) < 2:
        return {}
    told = [
        {**run.settings, "model": str(get("model") or ""), "data": str(get("data") or "")}
        for run, get in zip(runs, gets, strict=True)
    ]
    common = set(told[0].items()).intersection(*(one.items() for one in told[1:]))
    return {key: value for key, value in told[0].items() if (key, value) in common and value}


def _shorten(get: Get, cells: dict[str, str], same: Mapping[str, str]) -> None:
    """Of the settings leave what no other place says; add to the state how far a run came."""
    # The name of a job says what its sweep varies, mostly with the last parts of the keys.
    said = {*re.split("[/,]", cells["name"]), *(f"{k}={v}" for k, v in same.items())}
    words = cells["settings"].split(" ")
    cells["settings"] = " ".join(w for w in words if not {w, re.sub(_ABOVE, "", w)} & said)
    if get("state") != State.FINISHED and get("epochs"):
        cells["state"] += f" {get('epochs')}/{get('max_epochs') or '?'}"


def text(name: str, value: Any) -> str:
    """A value as people read it: accuracies to four places, bytes and large numbers in units."""
    if value is None:
        return ""
    if isinstance(value, list):
        return printable(" ".join(map(str, value)))
    if name == "size":
        return in_bytes(value)
    if name in ("seconds", "train_seconds") and isinstance(value, int | float):
        return duration(value)
    if name == "commit":
        return str(value)[:10] + ("-dirty" if str(value).endswith("-dirty") else "")
    if isinstance(value, float):
        places = _PLACES.get(name.rpartition("/")[2])
        return f"{value:.6g}" if places is None else f"{value:.{places}f}"
    return printable(spelled(value))


def in_bytes(n: int) -> str:
    """`1234567` -> "1.2 MB"; units of 1,000."""
    size, units = float(n), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 10 or units[0] == "B" else f"{size:.1f} {units[0]}"


def _fitted(
    rows: Sequence[Mapping[str, str]], names: Sequence[str], width: int | None, fixed: bool
) -> tuple[list[str], dict[str, int], list[str]]:
    """The columns that are shown, the width of each, and those left out for want of room.

    Args:
        width: of the terminal; None: there is room for all.
        fixed: the columns were asked for, and none is left out.
    """
    shown = [name for name in names if fixed or any(cells[name] for cells in rows)]
    widths = {
        name: max(cell_len(name), *(cell_len(cells[name]) for cells in rows)) for name in shown
    }

    def missing() -> int:
        return sum(widths.values()) + GAP * (len(widths) - 1) - (width or 0)

    left_out: list[str] = []
    if width is None:
        return shown, widths, left_out
    for name in () if fixed else DROPPED:
        could_shrink = sum(
            max(0, widths[column] - least) for column, least in SHRUNK.items() if column in widths
        )
        if name in widths and missing() > could_shrink:
            left_out.append(name)
            del widths[name]
    for name, least in SHRUNK.items():
        if name in widths and missing() > 0:
            widths[name] = max(min(widths[name], least), widths[name] - missing())
    return [name for name in shown if name in widths], widths, left_out


def _line(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    parts = []
    for name, width in widths.items():
        cell = cells[name]
        if cell_len(cell) > width:
            cell = set_cell_size(cell, width - 1) + "\N{HORIZONTAL ELLIPSIS}"
        blanks = " " * (width - cell_len(cell))
        parts.append(blanks + cell if name in RIGHT else cell + blanks)
    return (" " * GAP).join(parts).rstrip()


def _summary(runs: Sequence[Run], same: Mapping[str, str], left_out: Sequence[str]) -> str:
    states = Counter(str(run.state) for run in runs)
    counts = ", ".join(f"{n:,} {state}" for state, n in states.most_common())
    lines = [f"{len(runs):,} run{'' if len(runs) == 1 else 's'}: {counts}"]
    lines += ["the same in all: " + " ".join(f"{k}={v}" for k, v in same.items())] if same else []
    if left_out:
        lines.append(f"no room for {', '.join(left_out)}; --columns chooses")
    return "\n" + "\n".join(lines)

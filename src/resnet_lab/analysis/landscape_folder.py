"""The folder of a landscape: what was asked, and the points that are measured so far."""

import csv
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_lab.config.errors import UserError
from resnet_lab.files import read_json, read_rows, replacing, write_json

if TYPE_CHECKING:  # which import torch
    from resnet_lab.analysis.landscape import Value
    from resnet_lab.analysis.landscape_places import Place

SECONDS = 2.0  # of measuring that may be lost where the process is killed
AXES = ("x", "y")
FINGERPRINTS = "fingerprints"  # in settings.json


class LandscapeFolder:
    """A folder of results that the same command completes; nothing of it needs to be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.figures = path / "figures.csv"

    def __str__(self) -> str:
        return str(self.path)

    def points(self, number: int) -> Path:
        """The points of one section, from 1 on."""
        return self.path / f"points-{number}.csv"

    def picture(self, language: str, name: str = "landscape") -> Path:
        return self.path / (f"{name}.png" if language == "en" else f"{name}-{language}.png")

    # ------------------------------------------------------------------ what was asked

    def refuse_others(self, asked: Mapping[str, Any]) -> None:
        """Raise UserError where something else lies here, or a landscape of other settings."""
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            raise UserError(f"--out {self}: there is a file already; name a new folder.")
        if not any(self.path.iterdir()):
            return
        there = self._read()
        if there is None:
            raise UserError(f"--out {self}: there is something else already; name a new folder.")
        for key, value in asked.items():
            if there.get(key) != value:
                raise UserError(
                    f"--out {self}: its points are of {key}={there.get(key)}, not {value}; give "
                    "the command that began it, or name a new folder."
                )

    def begin(self, asked: Mapping[str, Any], fingerprints: Sequence[str], runs: list[str]) -> None:
        """Make the folder, or go on with it.

        Args:
            asked: what a point depends on; names and numbers.
            fingerprints: of each section's weights and images.
            runs: for people.

        Raises:
            UserError: as `refuse_others` does, or its points are of other weights or images.
        """
        self.refuse_others(asked)
        there = self._read()
        if there is None:
            self.path.mkdir(parents=True, exist_ok=True)
            own = {"command": "landscape", **asked, "runs": runs, FINGERPRINTS: list(fingerprints)}
            write_json(self.settings, own)
        elif there.get(FINGERPRINTS) != list(fingerprints):
            raise UserError(
                f"--out {self}: its points are of other weights or images than these runs have "
                "now; name a new folder."
            )

    def _read(self) -> dict[str, Any] | None:
        try:
            there = read_json(self.settings)
        except (OSError, ValueError):
            return None
        is_own = isinstance(there, dict) and there.get("command") == "landscape"
        return there if is_own else None

    # ------------------------------------------------------------------ points

    def read_points(self, number: int, places: Sequence["Place"]) -> dict[int, "Value"]:
        """The values of the places that are measured, by the number of the place, from 0 on.

        What cannot be read, or is of another place, counts as not measured.
        """
        from resnet_lab.analysis.landscape import Value

        try:
            rows = read_rows(self.points(number))
        except (OSError, ValueError):
            return {}
        found = {}
        for row in rows:
            try:
                place = int(row["point"])
                at = tuple(float(row[axis]) for axis in AXES[: len(places[0].position)])
                value = Value(float(row["loss"]), float(row["accuracy"]))
            except (KeyError, ValueError):
                continue
            if 0 <= place < len(places) and at == places[place].position:
                found[place] = value
        return found

    def write_points(
        self, number: int, places: Sequence["Place"], values: Mapping[int, "Value"]
    ) -> None:
        with replacing(self.points(number), newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["point", *AXES[: len(places[0].position)], "loss", "accuracy"])
            for place, value in sorted(values.items()):
                writer.writerow([place, *places[place].position, *value])

    def keep(
        self,
        number: int,
        places: Sequence["Place"],
        values: dict[int, "Value"],
        measured: Iterable[tuple[int, "Value"]],
    ) -> None:
        """Add what is measured to `values` and to the file, also when it ends in between."""
        written = time.monotonic()
        try:
            for place, value in measured:
                values[place] = value
                if time.monotonic() > written + SECONDS:
                    self.write_points(number, places, values)
                    written = time.monotonic()
        finally:
            if values:
                self.write_points(number, places, values)

    def write_figures(self, rows: Sequence[Mapping[str, object]]) -> None:
        """One row for each run; a figure that does not exist is left empty."""
        with replacing(self.figures, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)


def _short(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def default_folder(runs: Sequence[Path], asked: Mapping[str, Any]) -> Path:
    """outputs/analysis/landscape-RUN-...: the same for the same runs and settings."""
    known = json.dumps([[os.path.abspath(run) for run in runs], asked], sort_keys=True)
    short = hashlib.sha256(known.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    names = (re.sub(r"[^\w.=,-]+", "_", os.path.basename(os.path.abspath(run))) for run in runs)
    return Path("outputs/analysis", f"landscape-{'-'.join(names)[:80]}-{short}")


def missing(places: Sequence["Place"], values: Mapping[int, "Value"]) -> dict[int, "Place"]:
    """The places that have no value."""
    return {number: place for number, place in enumerate(places) if number not in values}


def in_order(places: Sequence["Place"], values: Mapping[int, "Value"]) -> Iterator["Value"]:
    """The values of all places."""
    return (values[number] for number in range(len(places)))

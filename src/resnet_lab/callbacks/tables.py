"""CSV files of a run folder."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_lab.config.errors import UserError
from resnet_lab.files import read_rows, replacing


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file with a header, whole or not at all."""
    with replacing(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


class EpochTable:
    """A CSV file with one or more rows for each epoch, rewritten whole when some are added.

    Its first column is `epoch`, the number of epochs done.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = columns
        self.rows: list[Mapping[str, Any]] = []

    def resume(self, epochs: int) -> None:
        """Take over the rows of the epochs that are done from the file of the run.

        Those of later epochs, which the checkpoint does not know, are trained again.

        Raises:
            UserError: the file cannot be read.
        """
        self.rows = []
        if epochs == 0 or not self.path.exists():
            return
        try:
            self.rows += (row for row in read_rows(self.path) if int(row["epoch"]) <= epochs)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.path} cannot be read ({error}), and the resumed run continues it; put it "
                "back as it was, or remove it."
            ) from error

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows += rows
        lines = ([row.get(column, "") for column in self.columns] for row in self.rows)
        write_rows(self.path, self.columns, lines)

"""CSV files of a run folder."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_lab.config.errors import UserError
from resnet_lab.files import read_rows, write_rows

log = logging.getLogger(__name__)


class EpochTable:
    """A CSV file with one or more rows for each epoch, rewritten whole when some are added.

    Its first column is `epoch`, the number of epochs done.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = columns
        self.rows: list[Mapping[str, Any]] = []

    def resume(self, epochs: int, known: Sequence[Mapping[str, Any]] = ()) -> None:
        """Take over the rows of the epochs that are done from the file of the run.

        Those of later epochs, which the checkpoint does not know, are trained again. Where the
        file is not as the checkpoint knows it, it is written anew; what else it lacks is said.

        Args:
            known: the rows that the checkpoint holds, if it holds any.

        Raises:
            UserError: the file cannot be read, and the checkpoint does not hold its rows.
        """
        self.rows = []
        if epochs == 0:
            return
        try:
            rows: list[dict[str, Any]] = list(read_rows(self.path))
            there = [row for row in rows if int(row["epoch"]) <= epochs]
            fault = "it is not as the run left it"
        except FileNotFoundError:
            there, fault = [], "it is not there"
        except (OSError, ValueError, KeyError) as error:
            if not known:
                raise UserError(
                    f"{self.path} cannot be read ({error}), and the resumed run continues it; put "
                    "it back as it was, or remove it."
                ) from error
            there, fault = [], f"it cannot be read ({error})"
        if known:
            self.rows += (row for row in known if int(row["epoch"]) <= epochs)
            if list(self._lines(self.rows)) != list(self._lines(there)):
                log.warning(f"{self.path}: {fault}; it is written anew from the checkpoint")
                self.add([])
            return
        self.rows += there
        told = {int(row["epoch"]) for row in there}
        if lacking := [str(epoch) for epoch in range(1, epochs + 1) if epoch not in told]:
            log.warning(f"{self.path}: {fault}; it lacks epochs {', '.join(lacking)}")

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows += rows
        write_rows(self.path, self.columns, self._lines(self.rows))

    def _lines(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[list[str]]:
        for row in rows:
            yield [str(row.get(column, "")) for column in self.columns]

"""A sweep from its check to its exit status, for a grid as for a search."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from resnet_lab.config.compose import typed
from resnet_lab.config.errors import UserError
from resnet_lab.config.messages import one_sentence_errors
from resnet_lab.files import write_text
from resnet_lab.run.folder import SweepFolder
from resnet_lab.run.state import State
from resnet_lab.screen import console, tolerant
from resnet_lab.sweep import grid, halving, ledger, show
from resnet_lab.sweep.executor import Executor
from resnet_lab.sweep.halving import Halving
from resnet_lab.sweep.job import JobRecord
from resnet_lab.sweep.loop import RunOptions, Source, run

LOCK_PATIENCE = 5.0  # seconds for a stopped sweep to end, besides its grace


class Sweep:
    """Runs what is left of a source's jobs; see `run`.

    Args:
        master: the config as composed without the swept keys.
        source: checked; nothing is written before `run`.
    """

    def __init__(self, master: DictConfig, source: Source, executor: Executor) -> None:
        self.master, self.source, self.executor = master, source, executor
        self.folder = Path(master.hydra.sweep.dir)
        self._began = ledger.now()

    def run(self) -> None:
        """Lock the folder, run the jobs, and print the closing table.

        Raises:
            SystemExit: with status 1 where the source says that it failed, with 128 and the
                signal's number where a signal ended the sweep.
        """
        patience = self.executor.grace_seconds + LOCK_PATIENCE
        with tolerant(), ledger.locked(self.folder, patience) as lock:
            self.executor.find_running(self.folder)
            self.source.refresh()
            self._save()
            write_text(SweepFolder(self.folder).config, OmegaConf.to_yaml(self.master))
            self.source.open()
            number = self._run_jobs(lock)
        show.close(self.source.records, self.folder, self.source.left)
        self.source.close()
        if number:
            sys.exit(128 + number)
        if self.source.failed:
            sys.exit(1)

    def _save(self) -> None:
        source = self.source
        jobs = source.previous, source.keys, source.records, source.description
        ledger.write_sweep(self.folder, *jobs, began=self._began)

    def _run_jobs(self, lock: int) -> int:
        source, options = self.source, self.master.sweep
        self._save()
        console.print(f"{source.heading()}, {source.left} to run", soft_wrap=True)
        if not source.left:
            return 0
        display = show.Display(source.records, lambda: source.total)
        with self.executor.open(self.folder, lock, source.total) as executor, display:
            try:
                failures = RunOptions(options.on_error, options.retries)
                return run(source, executor, failures, display, self._save)
            finally:
                self._save()


class Grid:
    """All combinations of the swept values; a `Source`.

    Making it composes and checks every job and writes nothing.

    Args:
        master: the config as composed without the swept keys.
        overrides: of each job, concrete.

    Raises:
        UserError: what is wrong, and the jobs that have it.
    """

    description: dict[str, Any] | None = None

    def __init__(
        self, master: DictConfig, loader: ConfigLoader, overrides: Sequence[Sequence[str]]
    ) -> None:
        self._folder = Path(master.hydra.sweep.dir)
        self._force, self._factor = master.sweep.force, master.sweep.halving
        params = master.hydra.sweeper.get("params") or {}
        own = [f"{key}={values}" for key, values in params.items()]
        swept = grid.swept_keys([*own, *typed(master, "task")])
        if wrong := [key for key in swept if key.split(".")[0] in ("sweep", "hydra")]:
            raise UserError(f"{wrong[0]}: belongs to the sweep as a whole and takes one value.")
        if not swept or not overrides:
            raise UserError("The sweep is empty: give a key several values, such as seed=0,1,2.")
        self.previous = self._known()
        self.keys = ledger.merge_keys(self.previous, swept, self._force)
        names = grid.folder_names(overrides, self.keys)
        jobs = grid.compose(master, loader, overrides, self.keys, names, self._folder)
        self.records = [JobRecord(job) for job in jobs]
        if self._factor is not None:
            halving.check(jobs)
        self.halving: Halving | None = None
        self._given = False

    def _known(self) -> dict[str, Any] | None:
        record = ledger.known(self._folder)
        if record is not None and "search" in record:
            raise UserError(
                f"{self._folder}: is a search, which continues with hydra/sweeper=optuna; name "
                "another sweep with sweep.name=..."
            )
        return record

    def refresh(self) -> None:
        self.previous = self._known()
        earlier = self.previous["jobs"] if self.previous else []
        folders = [self._folder / job["folder"] for job in earlier]
        ledger.refresh(self.records, self.keys, folders, self._force)

    def open(self) -> None:
        if self._factor is not None:
            self.halving = Halving(self.records, self._factor)

    @property
    def total(self) -> int:
        return len(self.records)

    @property
    def left(self) -> int:
        return sum(not record.state.done for record in self.records)

    @property
    def failed(self) -> bool:
        return self.left > 0

    def heading(self) -> str:
        before = Counter(record.state for record in self.records if record.state.done)
        done = "".join(f", {n} {state} before" for state, n in before.items())
        return f"sweep {self._folder}: {len(self.records)} jobs{done}"

    def more(self) -> list[JobRecord]:
        if self.halving is not None:
            return self.halving.more()
        given, self._given = self._given, True
        if given:
            return []
        return [record for record in self.records if record.state is State.WAITING]

    def ended(self, record: JobRecord) -> None:
        """Its folder says all."""

    def close(self) -> None:
        """The closing table says all."""


def run_grid(
    master: DictConfig,
    loader: ConfigLoader,
    overrides: Sequence[Sequence[str]],
    make_executor: Callable[[DictConfig], Executor],
) -> None:
    """Run what is left of a grid, or with `sweep.plan=true` print what it would take.

    Args:
        make_executor: called with `master` once the jobs are known to be right.

    Raises:
        SystemExit: see `Sweep.run`.
    """
    with one_sentence_errors():
        source = Grid(master, loader, overrides)
        executor = make_executor(master)
        for record in source.records:
            executor.check(record.job)
        if master.sweep.plan:
            from resnet_lab.sweep.plan import plan

            source.refresh()
            source.open()
            plan(source.records, source.halving)
        else:
            Sweep(master, source, executor).run()

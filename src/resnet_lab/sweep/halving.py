"""`sweep.halving=3`: after a part of the epochs only the best third of a grid's settings continues.

Jamieson and Talwalkar 2016, arXiv 1502.07943, Section 3 (successive halving); here survivors are
resumed from their checkpoints, so they end as they would have ended without. All jobs pause at the
same epochs, the rungs, as in one bracket of Li et al. 2018, arXiv 1603.06560, Section 3.1.

Decisions are not stored: they follow from the figures in the job folders, each time.
"""

import math
from collections.abc import Sequence
from statistics import fmean

from omegaconf import OmegaConf

from resnet_lab.config.errors import UserError
from resnet_lab.run.state import State
from resnet_lab.screen import console
from resnet_lab.sweep import show
from resnet_lab.sweep.job import Job, JobRecord

OVER = (State.FINISHED, State.FAILED)  # no figure is to come from such a job


def rungs(max_epochs: int, factor: float, n_settings: int) -> list[int]:
    """The epochs after which settings are cut, rising, and last of all `max_epochs`.

    They lie a `factor` apart, rounded up; there are as many as leave one of `n_settings`, or fewer
    where the first ones would be the same.
    """
    cuts = 0
    while factor**cuts < n_settings:
        cuts += 1
    return sorted({math.ceil(max_epochs / factor**cut) for cut in range(cuts + 1)})


def kept(n_settings: int, factor: float) -> int:
    """How many of the settings go on to the next rung."""
    return math.ceil(n_settings / factor)


def ranking(figures: Sequence[Sequence[float | None]]) -> list[int]:
    """Settings as positions in `figures`, from the best to the worst.

    figures: for each setting what its seeds have reached, None for a job that failed. Settings
        without such a job come first; among either the mean decides, and then the order given.
    """

    def place(n: int) -> tuple[bool, float]:
        known = [figure for figure in figures[n] if figure is not None]
        return len(known) < len(figures[n]), -fmean(known) if known else math.inf

    return sorted(range(len(figures)), key=place)


def check(jobs: Sequence[Job]) -> None:
    """Raise UserError where these jobs cannot be compared after equal numbers of epochs."""
    lengths = set()
    for job in jobs:
        cfg = OmegaConf.create(dict(job.config))
        trainer = cfg.trainer
        if job.max_epochs is None or trainer.max_steps > 0 or trainer.fast_dev_run:
            raise UserError(
                "sweep.halving: compares jobs after as many epochs, so their length must be "
                "counted in epochs; give trainer.max_epochs alone, without trainer.max_steps and "
                "trainer.fast_dev_run."
            )
        if cfg.data.val_size == 0 or trainer.limit_val_batches == 0:
            raise UserError(
                "sweep.halving: chooses by validation accuracy, and there is no validation; set "
                "data.val_size, and leave out trainer.limit_val_batches=0."
            )
        if trainer.check_val_every_n_epoch != 1:
            raise UserError(
                "sweep.halving: needs a validation at the end of each epoch; leave out "
                f"trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch}."
            )
        if missing := {"last", "epoch_log"} - set(cfg.get("callbacks") or ()):
            raise UserError(
                f"sweep.halving: needs callbacks.{min(missing)}, which saves what it goes by; add "
                "default to callbacks."
            )
        lengths.add(job.max_epochs)
    if len(lengths) > 1:
        raise UserError(
            "sweep.halving: compares jobs of one length; give trainer.max_epochs one value, not "
            f"{', '.join(map(str, sorted(lengths)))}."
        )


class Halving:
    """The jobs of a grid, rung by rung.

    Making it sets the state of each job: waiting where it has to train now, paused where it has
    reached the rung and others have not, pruned where its setting has been cut.

    Args:
        records: in the order of the grid, as `ledger.refresh` leaves them; checked by `check`.
        factor: one setting in so many continues.
    """

    def __init__(self, records: list[JobRecord], factor: float) -> None:
        self._records = records
        self._factor = factor
        by_setting: dict[tuple[tuple[str, str], ...], list[JobRecord]] = {}
        for record in records:
            swept = record.job.swept.items()
            setting = tuple((key, value) for key, value in swept if key != "seed")
            by_setting.setdefault(setting, []).append(record)
        self._settings = list(by_setting.values())
        max_epochs = records[0].job.max_epochs
        assert max_epochs is not None
        self._rungs = rungs(max_epochs, factor, len(self._settings))
        self._decided: list[str] = []  # a sentence for each rung
        self._settle()
        self._n_announced = len(self._decided)

    def more(self) -> list[JobRecord]:
        """The jobs of the next rung once all of this one have ended; see `loop.Source`."""
        if any(r.state in (State.RUNNING, State.PENDING) for r in self._records):
            return []
        due = self._settle()
        for sentence in self._decided[self._n_announced :]:
            console.print(sentence, soft_wrap=True)
        self._n_announced = len(self._decided)
        return due

    @property
    def ahead(self) -> list[tuple[int, int]]:
        """The rungs that are not decided: to which epoch how many settings train."""
        found, n = [], self._contenders
        for epochs in self._rungs[len(self._decided) :]:
            found.append((epochs, n))
            n = kept(n, self._factor)
        return found

    def share(self, record: JobRecord) -> float:
        """The part of its epochs that a job has ahead where chance alone chose the settings."""
        if record.state.done:
            return 0.0
        before = self._rungs[len(self._decided) - 1] if self._decided else 0
        epochs = 0.0
        for rung, n in self.ahead:
            if record.state is not State.PAUSED or rung > self.ahead[0][0]:
                epochs += (rung - before) * n / self._contenders
            before = rung
        return epochs / self._rungs[-1]

    def _settle(self) -> list[JobRecord]:
        """Decide what can be decided, and set the states; returns the jobs that have to train."""
        settings, self._decided = self._settings, []
        for epochs in self._rungs[:-1]:
            figures = [[_figure(record, epochs) for record in seeds] for seeds in settings]
            if any(
                figure is None and record.state not in OVER
                for seeds, row in zip(settings, figures, strict=True)
                for record, figure in zip(seeds, row, strict=True)
            ):
                return self._train_to(settings, epochs)
            rung = f"the rung of {epochs} epoch{'s' if epochs > 1 else ''}"
            order = ranking(figures)
            n = kept(len(settings), self._factor)
            for place, number in enumerate(order[n:], n + 1):
                failed = ", a job of it failed" if None in figures[number] else ""
                for record in settings[number]:
                    if record.state not in OVER:
                        record.state = State.PRUNED
                        record.error = (
                            f"cut at {rung}: place {place} of {len(settings)} settings by "
                            f"validation accuracy{failed}"
                        )
            self._decided.append(f"{rung}: {n} of {len(settings)} settings continue")
            settings = [settings[number] for number in sorted(order[:n])]
        return self._train_to(settings, None)

    def _train_to(self, settings: list[list[JobRecord]], epochs: int | None) -> list[JobRecord]:
        """The jobs of `settings` that have to train to the rung of `epochs`; None: to the end."""
        self._contenders = len(settings)
        due = []
        for record in (record for seeds in settings for record in seeds):
            if record.state in OVER:
                continue
            if epochs is None or _figure(record, epochs) is None:
                record.state, record.rung = State.WAITING, epochs
                due.append(record)
            else:
                record.state = State.PAUSED
        return due


def _figure(record: JobRecord, epochs: int) -> float | None:
    """The validation accuracy after so many epochs, or the last one of a run that ended before.

    None where there is none, or where the folder's figures do not count: the job begins anew.
    """
    if record.state is State.WAITING and not record.resume:
        return None
    by_epoch = show.accuracies(record.folder)
    if record.state is State.FINISHED and by_epoch:
        epochs = min(epochs, max(by_epoch))
    return by_epoch.get(epochs)

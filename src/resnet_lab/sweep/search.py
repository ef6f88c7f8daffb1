"""`hydra/sweeper=optuna`: a sweep that grows, each trial chosen by those before it.

Trials are jobs like any other, with folders, resume and the ledger; Optuna's study, in the sweep
folder, holds their values and results. Both survive a kill at any moment: a trial that the study
takes to be running is looked up in its folder, and reported, resumed or begun.
"""

import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from resnet_lab import study
from resnet_lab.config.compose import quoted
from resnet_lab.config.errors import UserError
from resnet_lab.config.messages import one_sentence_errors, sentence
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.state import State
from resnet_lab.screen import console
from resnet_lab.sweep import grid, ledger, show
from resnet_lab.sweep.executor import Executor
from resnet_lab.sweep.job import Job, JobRecord
from resnet_lab.sweep.sweep import Sweep

PRUNE = "callbacks.prune"
MEASURED_BY_EPOCH = ("val/acc", "val/loss")


def search(
    master: DictConfig,
    loader: ConfigLoader,
    arguments: Sequence[str],
    options: Mapping[str, Any],
    make_executor: Callable[[DictConfig], Executor] | None,
) -> None:
    """Run trials until there are `n_trials`; earlier ones of the same search count.

    A trial that fails does not end the search.

    Args:
        master: the config as composed without the searched keys.
        arguments: the overrides of the command line.
        options: those of conf/hydra/sweeper/optuna.yaml.
        make_executor: called with `master`; None: the launcher is not one of this project.

    Raises:
        SystemExit: see `Sweep.run`; status 1 where no trial has finished.
    """
    with one_sentence_errors():
        checked = check_options(options)
        if importlib.util.find_spec("optuna") is None:
            raise UserError(
                "hydra/sweeper=optuna: the package optuna is missing; pip install -e '.[optuna]'."
            )
        if make_executor is None:
            raise UserError(
                "hydra/sweeper=optuna: a search runs with hydra/launcher=lab or slurm alone."
            )
        for key in ("plan", "force"):
            if master.sweep[key]:
                raise UserError(
                    f"sweep.{key}=true: is for grids; a search chooses its trials as it goes."
                )
        if master.sweep.halving is not None:
            raise UserError(
                "sweep.halving: is for grids; a search stops hopeless trials by its own pruner "
                "(hydra.sweeper.pruner=hyperband)."
            )
        own = [f"{key}={value}" for key, value in (checked["params"] or {}).items()]
        executor = make_executor(master)
        source = Search(master, loader, [*own, *arguments], checked, executor)
        Sweep(master, source, executor).run()


def check_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options as plain values.

    Raises:
        UserError: the first that cannot be used.
    """
    options: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(dict(given)), resolve=True)  # type: ignore[assignment]
    objectives, directions = options["objectives"], options["directions"]
    for key in ("sampler_options", "pruner_options"):
        options[key] = options[key] or {}

    def refuse(key: str, what: str) -> None:
        raise UserError(f"hydra.sweeper.{key}={options[key]}: {what}.")

    if not isinstance(options["n_trials"], int) or options["n_trials"] < 1:
        refuse("n_trials", "must be a whole number of 1 or more")
    if not isinstance(options["seed"], int) or options["seed"] < 0:
        refuse("seed", "must be a whole number of 0 or more")
    for key, known in (("sampler", study.SAMPLERS), ("pruner", study.PRUNERS)):
        if options[key] not in known:
            refuse(key, f"must be one of {', '.join(known)}")
    if not objectives or not isinstance(objectives, list):
        refuse("objectives", "must be a list of figures of result.json, such as [val/acc]")
    if any(str(key).startswith("test/") for key in objectives):
        refuse("objectives", "the test set is no judge; choose by val/acc or val/loss")
    if set(directions) - {"maximize", "minimize"} or len(directions) != len(objectives):
        refuse("directions", "must be maximize or minimize for each of hydra.sweeper.objectives")
    if options["pruner"] != "none" and (
        len(objectives) > 1 or objectives[0] not in MEASURED_BY_EPOCH
    ):
        refuse("pruner", "needs one objective that every validation measures: val/acc or val/loss")
    return options


def spaces(overrides: Sequence[Override]) -> dict[str, Any]:
    """The search space, by key as it is typed (with its "+").

    An interval is a number, or a whole number where it is cast to int, on a logarithmic scale
    where it is tagged log; a range a number in steps; all else are choices in no order.
    UserError where Optuna has no such space.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, Any] = {}
    for override in overrides:
        sweep: Any = override.value()
        space: Any
        log = "log" in getattr(sweep, "tags", ())
        try:
            if isinstance(sweep, IntervalSweep):
                low, high = sweep.start, sweep.end
                whole = isinstance(low, int) and isinstance(high, int)
                kind: Any = IntDistribution if whole else FloatDistribution
                space = kind(low, high, log=log)
            elif isinstance(sweep, RangeSweep):
                values = sorted(float(value) for value in override.sweep_string_iterator())
                low, high, step = values[0], values[-1], abs(float(sweep.step))
                if all(isinstance(v, int) for v in (sweep.start, sweep.stop, sweep.step)):
                    space = IntDistribution(int(low), int(high), log=log, step=int(step))
                else:
                    space = FloatDistribution(low, high, step=step, log=log)
            else:
                sweep.shuffle = False  # the study knows the choices in one order
                space = CategoricalDistribution(list(override.sweep_string_iterator()))
        except (ValueError, IndexError) as error:
            raise UserError(f"{override.input_line}: {error}") from error
        found[override.get_key_element()] = space
    return found


def describe(space: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Objectives and space for `sweep.json`; the report reads them without Optuna."""
    from optuna.distributions import distribution_to_json

    return {
        **{key: options[key] for key in ("objectives", "directions", "sampler", "pruner")},
        "n_trials": options["n_trials"],
        "space": {
            key.lstrip("+"): json.loads(distribution_to_json(one)) for key, one in space.items()
        },
    }


class Search:
    """A search with Optuna; a `Source` of jobs.

    Making it checks everything and writes nothing.

    Raises:
        UserError: what is wrong.
    """

    def __init__(
        self,
        master: DictConfig,
        loader: ConfigLoader,
        arguments: Sequence[str],
        options: dict[str, Any],
        executor: Executor,
    ) -> None:
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
        given = {override.get_key_element(): override for override in parsed}  # the last counts
        swept = [override for override in given.values() if override.is_sweep_override()]
        if not swept:
            raise UserError(
                "The search is empty: give a key a space, such as "
                "'optimizer.lr=tag(log,interval(1e-3,1))'."
            )
        for override in swept:
            if override.key_or_group.split(".")[0] in ("sweep", "hydra"):
                raise UserError(f"{override.key_or_group}: takes one value in a search.")
        self.folder = folder = Path(master.hydra.sweep.dir)
        self.master, self.loader, self.options, self.executor = master, loader, options, executor
        self.fixed = [
            f"{key}={override.get_value_element_as_str()}"
            for key, override in given.items()
            if override not in swept
        ]
        if options["pruner"] != "none":
            self.fixed += [
                f"+{PRUNE}._target_=resnet_lab.callbacks.prune.Prune",
                f"+{PRUNE}.study={quoted(folder.name)}",
                f"+{PRUNE}.objective={options['objectives'][0]}",
                f"+{PRUNE}.pruner={options['pruner']}",
                f"+{PRUNE}.options={_hydra_mapping(options['pruner_options'])}",
            ]
        self.space = spaces(swept)
        self.keys = [key.lstrip("+") for key in self.space]
        self.description: dict[str, Any] | None = describe(self.space, options)
        self.previous = ledger.known(folder)
        self.records: list[JobRecord] = []
        self._numbers: dict[str, int] = {}  # job -> trial
        self._begun: list[JobRecord] = []  # trials that an earlier command has not finished
        self.n_reported = 0  # trials whose result the study has
        study.sampler(options["sampler"], options["sampler_options"], options["seed"])
        self._pruner = study.pruner(options["pruner"], options["pruner_options"], None)
        self._check_previous()
        self._check_corners()

    @property
    def total(self) -> int:
        """Never fewer trials than there are."""
        return max(int(self.options["n_trials"]), len(self.records))

    @property
    def left(self) -> int:
        return self.total - self.n_reported

    @property
    def failed(self) -> bool:
        return self.left > 0 or all(r.state is not State.FINISHED for r in self.records)

    def heading(self) -> str:
        before = f", {self.n_reported} of them done before" if self.n_reported else ""
        return f"search {self.folder}: {self.total} trials{before}"

    # ------------------------------------------------------------------ begun before?

    def refresh(self) -> None:
        self.previous = ledger.known(self.folder)
        self._check_previous()

    def _check_previous(self) -> None:
        """Raise UserError where the folder holds another search, or a grid."""
        if self.previous is None:
            return
        assert self.description is not None
        before = self.previous.get("search")
        if before is None:
            raise UserError(
                f"{self.folder}: is a sweep over a grid; name this search otherwise with "
                "sweep.name=..."
            )
        what = ("space", "objectives", "directions")
        old, new = ({key: one[key] for key in what} for one in (before, self.description))
        if changed := grid.differences(old, new, ()):
            raise UserError(
                "This search was begun otherwise (old -> new):\n  "
                + "\n  ".join(changed)
                + "\nName another one with sweep.name=..."
            )

    def _check_corners(self) -> None:
        """Compose the corners of the space: a mistake is named before anything runs."""
        ends = {
            key: list(map(str, getattr(one, "choices", ()))) or [_typed(one.low), _typed(one.high)]
            for key, one in self.space.items()
        }
        first = {key: values[0] for key, values in ends.items()}
        points = [first] + [
            {**first, key: value} for key, values in ends.items() for value in values[1:]
        ]
        overrides = [[*self.fixed, *(f"{k}={v}" for k, v in point.items())] for point in points]
        names = [",".join(f"{k}={v}" for k, v in point.items()) for point in points]
        jobs = grid.compose(self.master, self.loader, overrides, self.keys, names, self.folder)
        for job in jobs:
            self.executor.check(job)
        searched = [key.replace("/", ".") for key in (*self.keys, PRUNE)]
        for earlier in self.previous["jobs"] if self.previous else ():
            before = ledger.read(RunFolder(self.folder / earlier["folder"]).job)
            if before is None:
                continue
            if changed := grid.differences(before["config"], jobs[0].config, searched):
                raise UserError(
                    "This search was begun with other settings (old -> new):\n  "
                    + "\n  ".join(changed)
                    + "\nName another one with sweep.name=..."
                )
            return

    def open(self) -> None:
        """Open the study, and compare its trials with their folders."""
        import optuna

        storage = self.options["storage"] or f"sqlite:///{self.folder.absolute()}/study.db"
        # For the trials: an address may hold a password, and must not stand in a file or command.
        os.environ[study.STORAGE] = storage
        with study.quiet():
            self.study = optuna.create_study(
                storage=storage,
                study_name=self.folder.name,
                directions=self.options["directions"],
                pruner=self._pruner,
                load_if_exists=True,
            )
            for trial in self.study.get_trials(deepcopy=False):
                if trial.state.is_finished():
                    self._add_reported(trial.number, trial.params)
                else:
                    self._add_begun(trial.number, trial.params)

    def _add_begun(self, number: int, params: Mapping[str, Any]) -> None:
        """A trial whose result the study does not have."""
        record = self._add(number, params)
        if record.state is State.FAILED:
            return
        ledger.refresh_job(record)
        if record.state.done:
            self.ended(record)  # it came to its end after the search was killed
        else:
            self._begun.append(record)

    def _add_reported(self, number: int, params: Mapping[str, Any]) -> None:
        record = JobRecord(self._described(number, params))
        self.records.append(record)
        self.n_reported += 1
        ledger.refresh_job(record)
        if record.state is State.WAITING:
            listed = {j["folder"]: j for j in (self.previous or {"jobs": []})["jobs"]}
            record.state, record.error = State.FAILED, listed.get(record.name, {}).get("error")

    # ------------------------------------------------------------------ trials as jobs

    def more(self) -> list[JobRecord]:
        """First what an earlier command has begun, then a new trial each time."""
        begun, self._begun = self._begun, []
        if begun:
            return begun
        while len(self.records) < self.total:
            number = len(self.records)
            # New for each trial: after a kill the draws continue, and do not start over.
            seed = int(np.random.SeedSequence([self.options["seed"], number]).generate_state(1)[0])
            with study.quiet():
                self.study.sampler = study.sampler(
                    self.options["sampler"], self.options["sampler_options"], seed
                )
                trial = self.study.ask(self.space)
            record = self._add(trial.number, trial.params)
            if record.state is State.WAITING:
                return [record]
        return []

    def ended(self, record: JobRecord) -> None:
        """Report a trial's result to the study; an interrupted one is still running."""
        from optuna.trial import TrialState

        if record.state is State.INTERRUPTED:
            return
        objectives = self.options["objectives"]
        values: list[Any] = [show.scores(record).get(key) for key in objectives]
        number = self._numbers[record.name]
        with study.quiet():
            if record.state is State.PRUNED:
                self.study.tell(number, state=TrialState.PRUNED)
            elif record.state is State.FINISHED and all(map(_finite, values)):
                self.study.tell(number, values)
            else:
                if record.state is State.FINISHED:
                    lacking = objectives[[*map(_finite, values)].index(False)]
                    record.state = State.FAILED
                    record.error = f"result.json has no figure for {lacking}"
                self.study.tell(number, state=TrialState.FAIL)
        self.n_reported += 1

    def _described(self, number: int, params: Mapping[str, Any]) -> Job:
        """The job of a trial before it is composed."""
        swept = {key.lstrip("+"): _typed(params[key]) for key in self.space}
        short = [f"{key.lstrip('+')}={_short(params[key])}" for key in self.space]
        named = [f"trial={number:04d}", *short]
        (name,) = grid.folder_names([named], ["trial", *self.keys])
        overrides = (*self.fixed, *(f"{key}={_typed(params[key])}" for key in self.space))
        self._numbers[name] = number
        return Job(self.folder / name, overrides, swept, {}, None, True, None)

    def _add(self, number: int, params: Mapping[str, Any]) -> JobRecord:
        """The job of a trial, added to the others; failed where its values are no valid config."""
        record = JobRecord(self._described(number, params))
        try:
            (job,) = grid.compose(
                self.master,
                self.loader,
                [record.job.overrides],
                self.keys,
                [record.name],
                self.folder,
            )
            if self.options["pruner"] != "none":
                epochs = "null" if job.max_epochs is None else job.max_epochs
                prune = (f"+{PRUNE}.trial={number}", f"+{PRUNE}.epochs={epochs}")
                job = replace(job, overrides=(*job.overrides, *prune))
            record.job = job
            self.executor.check(job)
        except UserError as error:
            record.state, record.error = State.FAILED, sentence(error) or str(error)
        self.records.append(record)
        if record.state is State.FAILED:
            self.ended(record)
        return record

    def close(self) -> None:
        """Of several objectives print the trials that none other beats, else the best one.

        The closing table already has the best by validation accuracy.
        """
        if self.options["objectives"] == ["val/acc"]:
            return
        found = self.study.best_trials
        names = {number: name for name, number in self._numbers.items()}
        several = len(self.options["objectives"]) > 1
        found = found if several else found[:1]
        for trial in sorted(found, key=lambda trial: trial.number):
            figures = zip(self.options["objectives"], trial.values, strict=True)
            console.print(
                f"{'frontier' if several else 'best trial'}: {names[trial.number]}   "
                + ", ".join(f"{key} {value:.4f}" for key, value in figures),
                soft_wrap=True,
            )


def _hydra_mapping(options: Mapping[str, Any]) -> str:
    """As Hydra's command line reads it: {n_warmup_steps:3}."""
    return "{" + ",".join(f"{key}:{json.dumps(value)}" for key, value in options.items()) + "}"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _typed(value: Any) -> str:
    """A value as it is typed for the job; a choice stays as the user typed it."""
    return value if isinstance(value, str) else repr(value)


def _short(value: Any) -> str:
    """For a folder's name."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

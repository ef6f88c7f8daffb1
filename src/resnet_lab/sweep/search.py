"""`hydra/sweeper=optuna`: a sweep that grows, each trial chosen by those before it.

Trials are jobs like any other, with folders, resume and the ledger; Optuna's study, in the sweep
folder, holds what they were and what they reached. Both survive a kill at any moment: a trial that
the study takes to be running is looked up in its folder, and told, resumed or begun.
"""

import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from resnet_lab import study as ours
from resnet_lab.config.errors import UserError
from resnet_lab.config.messages import one_sentence_errors, sentence
from resnet_lab.files import write_text
from resnet_lab.run.folder import RunFolder, SweepFolder
from resnet_lab.screen import console
from resnet_lab.study import STORAGE
from resnet_lab.sweep import grid, ledger, show
from resnet_lab.sweep.grid import Job
from resnet_lab.sweep.launcher import for_every_job
from resnet_lab.sweep.processes import Processes
from resnet_lab.sweep.run import Wishes, run
from resnet_lab.sweep.slots import Slots, visible_gpus

PRUNE = "callbacks.prune"
MEASURED_BY_EPOCH = ("val/acc", "val/loss")


def search(
    master: DictConfig,
    loader: ConfigLoader,
    arguments: Sequence[str],
    wishes: Mapping[str, Any],
    launcher: Any,
) -> None:
    """Run trials until there are as many as wished for; what was begun before counts.

    Ends the program with status 1 where no trial has come to its end, and with 128 and the
    signal's number where a signal ended the search. A trial that failed ends nothing.

    Args:
        master: the config as composed without the swept keys.
        arguments: our overrides of the command line.
        wishes: what conf/hydra/sweeper/optuna.yaml lists.
        launcher: our own; it says what is preloaded and how long a job may take to stop.
    """
    with one_sentence_errors():
        wished = check_wishes(wishes)
        if importlib.util.find_spec("optuna") is None:
            raise UserError(
                "hydra/sweeper=optuna: the package optuna is missing; pip install -e '.[optuna]'."
            )
        if not hasattr(launcher, "preload"):
            raise UserError("hydra/sweeper=optuna: a search runs with hydra/launcher=lab alone.")
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
        folder = Path(master.hydra.sweep.dir)
        own = [f"{key}={value}" for key, value in (wished["params"] or {}).items()]
        this = Search(master, loader, [*own, *arguments], wished, folder)
        with ledger.locked(folder, patience=launcher.grace_seconds + 5) as lock:
            this.open()
            write_text(SweepFolder(folder).config, OmegaConf.to_yaml(master))
            number = this.run(launcher.preload, launcher.grace_seconds, lock)
        show.close(this.jobs, folder, this.wanted - this.told)
        this.close()
        if number:
            sys.exit(128 + number)
        if this.told < this.wanted or not any(job.state == "finished" for job in this.jobs):
            sys.exit(1)


def check_wishes(wishes: Mapping[str, Any]) -> dict[str, Any]:
    """The wishes as plain values; ValueError with a sentence on the first that cannot be met."""
    wished: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(dict(wishes)), resolve=True)  # type: ignore[assignment]
    objectives, directions = wished["objectives"], wished["directions"]
    for key in ("sampler_options", "pruner_options"):
        wished[key] = wished[key] or {}

    def refuse(key: str, what: str) -> None:
        raise UserError(f"hydra.sweeper.{key}={wished[key]}: {what}.")

    if not isinstance(wished["n_trials"], int) or wished["n_trials"] < 1:
        refuse("n_trials", "must be a whole number of 1 or more")
    if not isinstance(wished["seed"], int) or wished["seed"] < 0:
        refuse("seed", "must be a whole number of 0 or more")
    for key, known in (("sampler", ours.SAMPLERS), ("pruner", ours.PRUNERS)):
        if wished[key] not in known:
            refuse(key, f"must be one of {', '.join(known)}")
    if not objectives or not isinstance(objectives, list):
        refuse("objectives", "must be a list of figures of result.json, such as [val/acc]")
    if any(str(key).startswith("test/") for key in objectives):
        refuse("objectives", "the test set is no judge; choose by val/acc or val/loss")
    if set(directions) - {"maximize", "minimize"} or len(directions) != len(objectives):
        refuse("directions", "must be maximize or minimize for each of hydra.sweeper.objectives")
    if wished["pruner"] != "none" and (
        len(objectives) > 1 or objectives[0] not in MEASURED_BY_EPOCH
    ):
        refuse("pruner", "needs one objective that every validation measures: val/acc or val/loss")
    return wished


def spaces(overrides: Sequence[Override]) -> dict[str, Any]:
    """What is searched, by key as it is typed (with its "+").

    An interval is a number, or a whole number where it is cast to int, on a logarithmic scale
    where it is tagged log; a range a number in steps; all else are choices in no order.
    ValueError where Optuna cannot have it so.
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


def describe(space: Mapping[str, Any], wished: Mapping[str, Any]) -> dict[str, Any]:
    """For `sweep.json`: what is looked for and where; the report reads it without Optuna."""
    from optuna.distributions import distribution_to_json

    return {
        **{key: wished[key] for key in ("objectives", "directions", "sampler", "pruner")},
        "n_trials": wished["n_trials"],
        "space": {
            key.lstrip("+"): json.loads(distribution_to_json(one)) for key, one in space.items()
        },
    }


class Search:
    """A search in `folder`; for `run` the source of its jobs.

    Making it checks everything and writes nothing; ValueError with what is wrong.
    """

    def __init__(
        self,
        master: DictConfig,
        loader: ConfigLoader,
        arguments: Sequence[str],
        wished: dict[str, Any],
        folder: Path,
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
        self.master, self.loader, self.folder, self.wished = master, loader, folder, wished
        self.fixed = [
            f"{key}={override.get_value_element_as_str()}"
            for key, override in given.items()
            if override not in swept
        ]
        if wished["pruner"] != "none":
            self.fixed += [
                f"+{PRUNE}._target_=resnet_lab.callbacks.prune.Prune",
                f"+{PRUNE}.study={ledger.quoted(Path(folder.name))}",
                f"+{PRUNE}.objective={wished['objectives'][0]}",
                f"+{PRUNE}.pruner={wished['pruner']}",
                f"+{PRUNE}.options={_hydra_mapping(wished['pruner_options'])}",
            ]
        self.space = spaces(swept)
        self.keys = [key.lstrip("+") for key in self.space]
        self.description = describe(self.space, wished)
        self.record = ledger.known(folder)
        self.jobs: list[Job] = []
        self._numbers: dict[str, int] = {}  # job -> trial
        self.told = 0
        ours.sampler(wished["sampler"], wished["sampler_options"], wished["seed"])
        self._pruner = ours.pruner(wished["pruner"], wished["pruner_options"], None)
        self._check()
        self.slots = Slots(
            None if master.sweep.jobs == "auto" else master.sweep.jobs, visible_gpus()
        )
        self._try_out()

    @property
    def wanted(self) -> int:
        """How many trials there shall be: never fewer than there are."""
        return max(int(self.wished["n_trials"]), len(self.jobs))

    @property
    def left(self) -> int:
        return self.wanted - len(self.jobs)

    # ------------------------------------------------------------------ begun before?

    def _check(self) -> None:
        """ValueError where the folder holds a search for something else, or another sweep."""
        if self.record is None:
            return
        before = self.record.get("search")
        if before is None:
            raise UserError(
                f"{self.folder}: is a sweep over a grid; name this search otherwise with "
                "sweep.name=..."
            )
        what = ("space", "objectives", "directions")
        old, new = ({key: told[key] for key in what} for told in (before, self.description))
        if changed := grid.differences(old, new, ()):
            raise UserError(
                "This search was begun otherwise (old -> new):\n  "
                + "\n  ".join(changed)
                + "\nName another one with sweep.name=..."
            )

    def _try_out(self) -> None:
        """Compose the corners of the space: a mistake is told before anything runs."""
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
            self.slots.wanted(job)
        for earlier in self.record["jobs"] if self.record else ():
            told = ledger.read(RunFolder(self.folder / earlier["folder"]).job)
            besides = [key.replace("/", ".") for key in (*self.keys, PRUNE)]
            if told and (changed := grid.differences(told["config"], jobs[0].config, besides)):
                raise UserError(
                    "This search was begun with other settings (old -> new):\n  "
                    + "\n  ".join(changed)
                    + "\nName another one with sweep.name=..."
                )
            if told:
                return

    def open(self) -> None:
        """Open the study, and take up its trials; the folder is ours alone from now on."""
        import optuna

        self.record = ledger.known(self.folder)
        self._check()
        self.remember()  # a folder with a study alone would be nobody's
        self.storage = self.wished["storage"] or f"sqlite:///{self.folder.absolute()}/study.db"
        # For the trials: an address may hold a password, and must not stand in a file or command.
        os.environ[STORAGE] = self.storage
        with ours.quiet():
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=self.folder.name,
                directions=self.wished["directions"],
                pruner=self._pruner,
                load_if_exists=True,
            )
            for trial in self.study.get_trials(deepcopy=False):
                self._take_up(trial.number, trial.params, trial.state.is_finished())

    def _take_up(self, number: int, params: Mapping[str, Any], told: bool) -> None:
        if not told:
            job = self._job(number, params)
            if job.state != "failed":
                ledger.look_at(job)
                if job.state in show.DONE:
                    self.ended(job)  # it went on to its end after the search was killed
            return
        job = self._described(number, params)
        self.jobs.append(job)
        self.told += 1
        ledger.look_at(job)
        if job.state == "waiting":
            listed = {j["folder"]: j for j in (self.record or {"jobs": []})["jobs"]}
            job.state, job.error = "failed", listed.get(job.name, {}).get("error")

    # ------------------------------------------------------------------ trials as jobs

    def more(self) -> list[Job]:
        """The next trial, unless all have been asked for; see `run.Source`."""
        while self.left > 0:
            number = len(self.jobs)
            # Anew for each trial: drawing goes on, and does not start over, after a kill.
            seed = int(np.random.SeedSequence([self.wished["seed"], number]).generate_state(1)[0])
            with ours.quiet():
                self.study.sampler = ours.sampler(
                    self.wished["sampler"], self.wished["sampler_options"], seed
                )
                trial = self.study.ask(self.space)
            job = self._job(trial.number, trial.params)
            if job.state == "waiting":
                return [job]
            self.remember()
        return []

    def ended(self, job: Job) -> None:
        """Tell the study what a trial has reached; one that was interrupted is still running."""
        from optuna.trial import TrialState

        if job.state == "interrupted":
            return
        values: list[Any] = [show.scores(job).get(key) for key in self.wished["objectives"]]
        number = self._numbers[job.name]
        with ours.quiet():
            if job.state == "pruned":
                self.study.tell(number, state=TrialState.PRUNED)
            elif job.state == "finished" and all(map(_finite, values)):
                self.study.tell(number, values)
            else:
                if job.state == "finished":
                    lacking = self.wished["objectives"][[*map(_finite, values)].index(False)]
                    job.state, job.error = "failed", f"result.json has no figure for {lacking}"
                self.study.tell(number, state=TrialState.FAIL)
        self.told += 1

    def _described(self, number: int, params: Mapping[str, Any]) -> Job:
        """The job of a trial as far as the trial alone tells it."""
        swept = {key.lstrip("+"): _typed(params[key]) for key in self.space}
        short = [f"{key.lstrip('+')}={_short(params[key])}" for key in self.space]
        named = [f"trial={number:04d}", *short]
        (name,) = grid.folder_names([named], ["trial", *self.keys])
        overrides = [*self.fixed, *(f"{key}={_typed(params[key])}" for key in self.space)]
        self._numbers[name] = number
        return Job(self.folder / name, overrides, swept, {}, None, True, None)

    def _job(self, number: int, params: Mapping[str, Any]) -> Job:
        """The job of a trial, added to the others; failed where its values do not go together."""
        job = self._described(number, params)
        try:
            (job,) = grid.compose(
                self.master, self.loader, [job.overrides], self.keys, [job.name], self.folder
            )
            self.slots.wanted(job)
        except UserError as error:
            job.state, job.error = "failed", sentence(error) or str(error)
        job.overrides = [*for_every_job(self.master), *job.overrides]
        if self.wished["pruner"] != "none":
            epochs = "null" if job.max_epochs is None else job.max_epochs
            job.overrides += [f"+{PRUNE}.trial={number}", f"+{PRUNE}.epochs={epochs}"]
        self.jobs.append(job)
        if job.state == "failed":
            self.ended(job)
        return job

    # ------------------------------------------------------------------ run, remember, close

    def remember(self) -> None:
        ledger.write_sweep(self.folder, self.record, self.keys, self.jobs, self.description)

    def run(self, preload: Sequence[str], grace_seconds: float, lock: int) -> int:
        self.remember()
        wish = self.master.sweep
        done = f", {self.told} of them done before" if self.told else ""
        console.print(f"search {self.folder}: {self.wanted} trials{done}", soft_wrap=True)
        if self.told >= self.wanted:
            return 0
        if self.wished["pruner"] != "none":
            preload = [*preload, "optuna"]
        log = SweepFolder(self.folder).server_log
        with (
            show.Display(self.jobs) as display,
            Processes(
                Path(sys.argv[0]).resolve(), preload, wish.warm, grace_seconds, log, lock
            ) as these,
        ):
            wishes = Wishes(wish.on_error, wish.retries, grace_seconds)
            try:
                return run(self.jobs, these, self.slots, wishes, display, self.remember, self)
            finally:
                self.remember()

    def close(self) -> None:
        """Of several objectives print the trials that none other beats, else the best one.

        The closing table has said already who is best by validation accuracy.
        """
        if self.wished["objectives"] == ["val/acc"]:
            return
        found = self.study.best_trials
        names = {number: name for name, number in self._numbers.items()}
        several = len(self.wished["objectives"]) > 1
        found = found if several else found[:1]
        for trial in sorted(found, key=lambda trial: trial.number):
            figures = zip(self.wished["objectives"], trial.values, strict=True)
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
    """A value as it is typed for the job; a choice is kept as it was typed."""
    return value if isinstance(value, str) else repr(value)


def _short(value: Any) -> str:
    """For a folder's name."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Ends a trial of a search that has no hope; a search puts it among the callbacks by itself."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from resnet_lab import study


class Prune(Callback):
    """Tells the search of every validation, and stops the run where its pruner says so.

    Which trial this is stands in `sweep_job.json` of `run_dir`; without one, as in a run that is
    continued by itself elsewhere, nothing happens. `pruned` says how it has ended.
    """

    def __init__(self, run_dir: str) -> None:
        self.path = Path(run_dir, "sweep_job.json")
        self.pruned = False
        self._trial: Any = None
        self._objective = ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or not self.path.exists():
            return
        told = json.loads(self.path.read_text()).get("trial")
        if told is None:
            return
        import optuna

        with study.quiet():
            found = optuna.load_study(
                study_name=told["study"],
                storage=told["storage"],
                pruner=study.pruner(told["pruner"], told["options"], told["epochs"]),
            )
            trial = next(t for t in found.get_trials(deepcopy=False) if t.number == told["number"])
            # A run that is continued by hand after its trial has ended is nobody's trial.
            if not trial.state.is_finished():
                self._trial = optuna.trial.Trial(found, trial._trial_id)
        self._objective = told["objective"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        stop = False
        if self._trial is not None:
            epoch = trainer.current_epoch + 1
            # One that is trained again, after a resume, has been reported.
            if (
                epoch
                not in self._trial.storage.get_trial(self._trial._trial_id).intermediate_values
            ):
                self._trial.report(float(trainer.callback_metrics[self._objective]), epoch)
            last = epoch == trainer.max_epochs  # then there is nothing to be saved
            stop = not last and self._trial.should_prune()
        self.pruned = trainer.strategy.reduce_boolean_decision(stop, all=False)
        trainer.should_stop = trainer.should_stop or self.pruned

"""Ends a trial of a search that has no hope; a search puts it among the callbacks by itself."""

import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from resnet_lab import study


class Prune(Callback):
    """Tells the search of every validation, and stops the run where its pruner says so.

    The database of the search is named by the environment that it gives its trials; without one,
    as in a run that is resumed by itself elsewhere, nothing happens.

    Args:
        study: the name of the search.
        trial: the number of this run in it.
        objective: the figure that is reported, such as val/acc.
        pruner, options: of Optuna; see `study.pruner`.
        epochs: those of a whole run, where they are known.

    Attributes:
        pruned: whether the run was ended.
    """

    def __init__(
        self,
        study: str,
        trial: int,
        objective: str,
        pruner: str,
        options: Mapping[str, Any],
        epochs: int | None,
    ) -> None:
        self.study, self.trial, self.objective = study, trial, objective
        self.pruner, self.options, self.epochs = pruner, dict(options), epochs
        self.pruned = False
        self._trial: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or study.STORAGE not in os.environ:
            return
        import optuna

        with study.quiet():
            found = optuna.load_study(
                study_name=self.study,
                storage=os.environ[study.STORAGE],
                pruner=study.pruner(self.pruner, self.options, self.epochs),
            )
            trial = next(t for t in found.get_trials(deepcopy=False) if t.number == self.trial)
            # A run that is resumed by hand after its trial has ended is nobody's trial.
            if not trial.state.is_finished():
                # Optuna has no public way to a trial that another process has begun.
                self._trial = optuna.trial.Trial(found, trial._trial_id)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        stop = False
        if self._trial is not None:
            epoch = trainer.current_epoch + 1
            stored = self._trial.storage.get_trial(self._trial._trial_id)
            if epoch not in stored.intermediate_values:  # trained again, after a resume
                self._trial.report(float(trainer.callback_metrics[self.objective]), epoch)
            last = epoch == trainer.max_epochs  # then there is nothing to be saved
            stop = not last and self._trial.should_prune()
        self.pruned = trainer.strategy.reduce_boolean_decision(stop, all=False)
        trainer.should_stop = trainer.should_stop or self.pruned

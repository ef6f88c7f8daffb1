"""The sweepers and launchers of this project; Hydra takes them from this package only.

Hydra imports every module of `hydra_plugins` at every start, so this one stays light and imports
`resnet_lab.sweep` when it is used.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

AUTO_TRIALS = 8  # at once on a cluster


class LabSweeper(BasicSweeper):
    """Hydra's own grid, handed to the launcher as one piece.

    What an experiment sweeps by itself (`hydra.sweeper.params`) comes first, so that the command
    line can give the same keys other values.

    Hydra's makes the sweep folder and composes every job before the launcher sees one, and stops
    at the first mistake; our launchers check first, and name all mistakes.
    """

    def sweep(self, arguments: list[str]) -> Any:
        assert self.hydra_context is not None
        assert self.launcher is not None
        from resnet_lab.sweep.grid import points

        jobs = points([*self._parse_config(), *arguments], self.hydra_context.config_loader)
        return self.launcher.launch(jobs, initial_job_idx=0)


class OptunaSweeper(Sweeper):
    """A search: each trial is chosen by the results before it; see `resnet_lab.sweep.search`.

    Args:
        options: those of conf/hydra/sweeper/optuna.yaml.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from resnet_lab.sweep.search import search

        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        make_executor = getattr(self.launcher, "executor", None)
        return search(self.config, loader, arguments, self.options, make_executor)


class _SweepLauncher(Launcher):
    """Runs a grid on the executor that a subclass makes."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.loader = hydra_context.config_loader
        self.config = config

    def executor(self, master: DictConfig) -> Any:
        """The `resnet_lab.sweep.executor.Executor` for a sweep of this config."""
        raise NotImplementedError

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from resnet_lab.sweep.sweep import run_grid

        run_grid(self.config, self.loader, job_overrides, self.executor)
        return []


class LabLauncher(_SweepLauncher):
    """A fresh process of this machine for every job; see `resnet_lab.sweep.local`.

    Args:
        preload: modules imported once for all jobs.
        grace_seconds: how long jobs that are asked to stop may take before they are killed.
    """

    def __init__(self, preload: Sequence[str], grace_seconds: float) -> None:
        self.preload = list(preload)
        self.grace_seconds = grace_seconds

    def executor(self, master: DictConfig) -> Any:
        from resnet_lab.run import gpu
        from resnet_lab.sweep.devices import Devices
        from resnet_lab.sweep.local import Local

        options = master.sweep
        jobs = None if options.jobs == "auto" else options.jobs
        devices = Devices(jobs, options.jobs_per_device, gpu.slots())
        preload = list(self.preload)
        if master.hydra.sweeper.get("pruner", "none") != "none":
            preload.append("optuna")
        script = Path(sys.argv[0]).resolve()
        return Local(script, preload, options.warm, self.grace_seconds, devices)


class SlurmLauncher(_SweepLauncher):
    """A job of a SLURM cluster for every job; see `resnet_lab.sweep.slurm`.

    Args:
        grace_seconds: how long jobs that are asked to stop may take before they are killed.
        resources: what each job asks SLURM for; see `resnet_lab.sweep.slurm.SlurmResources`.
    """

    def __init__(self, grace_seconds: float, **resources: Any) -> None:
        self.grace_seconds = grace_seconds
        self.resources = resources

    def executor(self, master: DictConfig) -> Any:
        from resnet_lab.sweep.slurm import Slurm, SlurmResources

        # A search learns from its trials, so it must not submit all of them at once.
        auto = AUTO_TRIALS if "n_trials" in master.hydra.sweeper else None
        jobs = auto if master.sweep.jobs == "auto" else master.sweep.jobs
        script = Path(sys.argv[0]).resolve()
        return Slurm(script, SlurmResources(**self.resources), self.grace_seconds, jobs)

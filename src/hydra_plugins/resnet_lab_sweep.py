"""What Hydra must find of ours for `-m`: it takes sweepers and launchers from this package only.

Hydra imports every module of `hydra_plugins` at every start, so this one holds no more than the
doors; the room behind them is `resnet_lab.sweep`.
"""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LabSweeper(BasicSweeper):
    """Hydra's own grid, handed to the launcher as one piece.

    What an experiment sweeps by itself (`hydra.sweeper.params`) comes first, so that the command
    line can give the same keys other values.

    Hydra's makes the sweep folder and composes every job before the launcher sees one, and stops
    at the first mistake; the launcher of ours looks first, and names them all.
    """

    def sweep(self, arguments: list[str]) -> Any:
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (jobs,) = self.split_arguments(overrides, None)
        return self.launcher.launch(jobs, initial_job_idx=0)


class OptunaSweeper(Sweeper):
    """A search: each trial is chosen by what the ones before it have reached; see
    `resnet_lab.sweep.search`, and conf/hydra/sweeper/optuna.yaml for what can be wished.
    """

    def __init__(self, **wishes: Any) -> None:
        self.wishes = wishes

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
        return search(self.config, loader, arguments, self.wishes, self.launcher)


class LabLauncher(Launcher):
    """A fresh process for every job; see `resnet_lab.sweep.launcher`.

    Args:
        preload: modules imported once for all jobs.
        grace_seconds: how long jobs that are told to stop may take before they are killed.
    """

    def __init__(self, preload: Sequence[str], grace_seconds: float) -> None:
        self.preload = list(preload)
        self.grace_seconds = grace_seconds

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.loader = hydra_context.config_loader
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from resnet_lab.sweep.launcher import launch

        return launch(self.config, self.loader, job_overrides, self.preload, self.grace_seconds)


class SlurmLauncher(LabLauncher):
    """A job of a SLURM cluster for every job; see `resnet_lab.sweep.slurm`.

    Args:
        grace_seconds: how long jobs that are told to stop may take before they are killed.
        wanted: what each job asks SLURM for, as `resnet_lab.sweep.slurm.Wanted` says.
    """

    def __init__(self, grace_seconds: float, **wanted: Any) -> None:
        super().__init__([], grace_seconds)
        self.wanted = wanted

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from resnet_lab.sweep.launcher import launch
        from resnet_lab.sweep.slurm import Wanted

        wanted = Wanted(**self.wanted)
        return launch(self.config, self.loader, job_overrides, [], self.grace_seconds, wanted)

"""From Hydra's list of jobs to a sweep folder in which they are done."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from resnet_lab.config.compose import typed
from resnet_lab.config.errors import UserError
from resnet_lab.config.messages import one_sentence_errors
from resnet_lab.files import write_text
from resnet_lab.run.folder import SweepFolder
from resnet_lab.screen import console
from resnet_lab.sweep import grid, halving, ledger, show
from resnet_lab.sweep.grid import Job
from resnet_lab.sweep.halving import Halving
from resnet_lab.sweep.processes import Processes
from resnet_lab.sweep.run import Wishes, run
from resnet_lab.sweep.slots import Slots, visible_gpus
from resnet_lab.sweep.slurm import SlurmJobs, Wanted

# Hydra's own settings that belong to the sweep, not to a job.
OF_THE_SWEEP = ("hydra.mode", "hydra.sweep", "hydra.run", "hydra.launcher", "hydra.sweeper")


def launch(
    master: DictConfig,
    loader: ConfigLoader,
    overrides: Sequence[Sequence[str]],
    preload: Sequence[str],
    grace_seconds: float,
    cluster: Wanted | None = None,
) -> list[JobReturn]:
    """Run what is left of the sweep, or with `sweep.plan=true` say what it would take.

    Ends the program with status 1 where a job has not finished, and with 128 and the signal's
    number where a signal ended the sweep.

    Args:
        master: the config as composed without the swept keys.
        overrides: of each job, concrete.
        preload: modules imported once for all jobs.
        grace_seconds: from being told to stop to being killed.
        cluster: what jobs ask SLURM for; None runs them on this machine.
    """
    with one_sentence_errors():
        folder = Path(master.hydra.sweep.dir)
        wish = master.sweep
        record, keys, jobs = _grid(master, loader, overrides, folder)
        at_once = None if wish.jobs == "auto" else wish.jobs
        if cluster is None:
            slots = Slots(at_once, visible_gpus())
        else:
            slots = Slots(at_once or max(1, len(jobs)), [])  # which devices, SLURM will say
        for job in jobs:
            slots.wanted(job)
        if wish.halving is not None:
            halving.check(jobs)
        if wish.plan:
            from resnet_lab.sweep.plan import plan

            _look(jobs, keys, record, folder, wish.force)
            plan(jobs, slots, Halving(jobs, wish.halving) if wish.halving else None)
            return _returns(jobs)
        with ledger.locked(folder, patience=grace_seconds + 5) as lock:
            record = ledger.known(folder)
            _look(jobs, keys, record, folder, wish.force)
            write_text(SweepFolder(folder).config, OmegaConf.to_yaml(master))
            script = Path(sys.argv[0]).resolve()
            processes: Callable[[], Processes | SlurmJobs]
            if cluster is None:
                server = SweepFolder(folder).server_log
                processes = partial(
                    Processes, script, preload, wish.warm, grace_seconds, server, lock
                )
            else:
                processes = partial(SlurmJobs, script, cluster)
            number = _run(jobs, keys, record, folder, wish, grace_seconds, slots, processes)
        show.close(jobs, folder)
        if number:
            sys.exit(128 + number)
        if any(job.state not in show.DONE for job in jobs):
            sys.exit(1)
        return _returns(jobs)


def _grid(
    master: DictConfig, loader: ConfigLoader, overrides: Sequence[Sequence[str]], folder: Path
) -> tuple[dict[str, Any] | None, list[str], list[Job]]:
    params = master.hydra.sweeper.get("params") or {}
    own = [f"{key}={values}" for key, values in params.items()]
    swept = grid.swept_keys([*own, *typed(master, "task")])
    if own := [key for key in swept if key.split(".")[0] in ("sweep", "hydra")]:
        raise UserError(f"{own[0]}: belongs to the sweep as a whole and takes one value.")
    if not swept or not overrides:
        raise UserError("The sweep is empty: give a key several values, such as seed=0,1,2.")
    record = ledger.known(folder)
    if record is not None and "search" in record:
        raise UserError(
            f"{folder}: is a search, which goes on with hydra/sweeper=optuna; name another sweep "
            "with sweep.name=..."
        )
    keys = ledger.merge_keys(record, swept, master.sweep.force)
    names = grid.folder_names(overrides, keys)
    jobs = grid.compose(master, loader, overrides, keys, names, folder)
    extra = for_every_job(master)
    for job in jobs:
        job.overrides = [*extra, *job.overrides]
    return record, keys, jobs


def _look(
    jobs: list[Job],
    keys: list[str],
    record: dict[str, Any] | None,
    folder: Path,
    force: bool,
) -> None:
    earlier = record["jobs"] if record else []
    ledger.look(jobs, keys, [folder / job["folder"] for job in earlier], force)


def for_every_job(master: DictConfig) -> list[str]:
    """What the command line says to Hydra that holds for each job, too."""
    return [*_flags(), *_hydra_settings(master)]


def _flags() -> list[str]:
    """The options of Hydra's command line that say where configs come from."""
    options = get_args_parser().parse_args(sys.argv[1:])
    given = {
        "--config-path": options.config_path,
        "--config-name": options.config_name,
        "--config-dir": options.config_dir,
    }
    return [f"{flag}={value}" for flag, value in given.items() if value is not None]


def _hydra_settings(master: DictConfig) -> list[str]:
    return [
        override
        for override in typed(master, "hydra")
        if not override.lstrip("+~").replace("/", ".").startswith(OF_THE_SWEEP)
    ]


def _run(
    jobs: list[Job],
    keys: list[str],
    record: dict[str, Any] | None,
    folder: Path,
    wish: DictConfig,
    grace_seconds: float,
    slots: Slots,
    processes: Callable[[], Processes | SlurmJobs],
) -> int:
    def remember() -> None:
        ledger.write_sweep(folder, record, keys, jobs)

    source = Halving(jobs, wish.halving) if wish.halving else None
    remember()
    before = Counter(job.state for job in jobs if job.state in show.DONE)
    left = len(jobs) - before.total()
    done = "".join(f", {n} {state} before" for state, n in before.items())
    console.print(f"sweep {folder}: {len(jobs)} jobs{done}, {left} to run", soft_wrap=True)
    if not left:
        return 0
    wishes = Wishes(wish.on_error, wish.retries, grace_seconds)
    with show.Display(jobs) as display, processes() as these:
        try:
            return run(jobs, these, slots, wishes, display, remember, source)
        finally:
            remember()


def _returns(jobs: list[Job]) -> list[JobReturn]:
    """For Hydra: every job's result, so that a sweeper which optimises can read it."""
    returns = []
    for job in jobs:
        done = JobReturn(overrides=job.overrides, working_dir=str(Path.cwd()))
        done.status = JobStatus.COMPLETED
        done.return_value = show.scores(job).get("val/acc")
        returns.append(done)
    return returns

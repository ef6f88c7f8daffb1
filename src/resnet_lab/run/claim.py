"""Before a single run: its config is checked and its folder made its own; imports no torch."""

import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from resnet_lab.config.check import check
from resnet_lab.config.compose import ABSENT, flat, key_of, typed, within
from resnet_lab.config.messages import full_errors, sentence
from resnet_lab.run import distributed
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.resume import as_text, resumed


class CheckAndClaim(Callback):
    """Before a single run: check the config, then make its folder, which no other run can have.

    The folder's name holds the second; when two runs start in the same one, the later gets -2.
    A folder that the user names must not hold a run already. Where torchrun or SLURM's srun has
    started the processes of a run, on one machine or several, all of them get the same folder,
    and the first of them alone logs into it; begun again by those two, the run is resumed there.

    Hydra offers this hook, and the config it hands over, as the only way to say where a run goes.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        # Hydra turns exceptions of callbacks into warnings, but lets SystemExit pass.
        try:
            if config.get("resume"):
                folder, own = RunFolder(config.resume), resumed(config, RunFolder(config.resume))
            else:
                as_planned(config)
                check(config)
                folder, own = folder_of(config), None
                if distributed.started_again() and folder.has_checkpoint():
                    own = resumed(config, folder)
            _prepare(config, folder, own)
        except Exception as error:
            message = str(error) if isinstance(error, OSError) else sentence(error)
            if message is None or full_errors():
                traceback.print_exc()
            raise SystemExit(f"error: {message or error}") from None


def as_planned(config: DictConfig) -> None:
    """Make `config` what the sweep has composed for this job, where the two differ.

    A job composes its config when it begins, and a config file may have been edited since.
    """
    job = RunFolder(config.hydra.run.dir).read_job()
    planned, overrides = job.get("config"), job.get("overrides")
    if not (isinstance(planned, dict) and isinstance(overrides, list)):
        return
    words = typed(config, "task")
    if not {o for o in overrides if not str(o).startswith(("-", "hydra", "+hydra"))} <= {*words}:
        return  # this is not the job's command
    mine: Any = OmegaConf.to_container(config)
    added = [override for override in words if override not in overrides]
    keys = [key_of(override) for override in added]  # such as where it pauses
    before, now = flat(planned), flat({key: mine.get(key) for key in planned})
    changed = {
        key: (before.get(key, ABSENT), now.get(key, ABSENT))
        for key in before.keys() | now.keys()
        if before.get(key, ABSENT) != now.get(key, ABSENT) and not within(key, keys)
    }
    if not changed:
        return
    listed = ", ".join(
        f"{key}: {as_text(old)} -> {as_text(new)}" for key, (old, new) in sorted(changed.items())
    )
    print(f"config files have changed since the sweep began ({listed}); this job runs as planned")
    with read_write(config), open_dict(config):
        for name, section in planned.items():
            config[name] = section
        for key in keys:
            OmegaConf.update(config, key, OmegaConf.select(OmegaConf.create(mine), key))


def _prepare(config: DictConfig, folder: RunFolder, own: DictConfig | None) -> None:
    """Have Hydra run in `folder`; with `own`, the config of a run that is resumed there."""
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.run.dir = str(folder)
    if own is not None:
        config.hydra.output_subdir = None  # .hydra keeps what the run was begun with
        OmegaConf.set_struct(config, False)
        for key in [key for key in config if key != "hydra"]:
            del config[key]
        config.update(own)
    if not distributed.is_first():
        _log_to_the_screen_alone(config)


def folder_of(config: DictConfig) -> RunFolder:
    """The run's folder, claimed by the first of its processes and the same for all of them.

    Raises:
        UserError: it holds a run already, or the processes cannot agree on one.
    """
    folder = RunFolder(config.hydra.run.dir)
    named = any(o.startswith("hydra.run.dir=") for o in typed(config, "hydra"))
    if not named and distributed.by_torchrun():
        from resnet_lab.run.rendezvous import folder_of_all  # imports torch

        return folder_of_all(folder.claim if distributed.is_first() else None)
    if not named and distributed.by_srun():
        choices = config.hydra.runtime.choices
        name = f"{distributed.job_step()}-{choices.model}-{choices.data}"
        folder = RunFolder(Path("outputs", "runs", "slurm", name))  # found again after a requeue
    if distributed.is_first() and not (distributed.started_again() and folder.path.exists()):
        return folder.claim(named or distributed.count() > 1)
    return folder


def _log_to_the_screen_alone(config: DictConfig) -> None:
    """run.log and .hydra/ are the first process's; who starts the others keeps what they print."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.output_subdir = None
        logging = config.hydra.job_logging
        if logging is not None and "file" in (logging.get("handlers") or {}):
            del logging.handlers.file
            logging.root.handlers = [name for name in logging.root.handlers if name != "file"]

"""Before a single run: its config is checked and its folder made its own; imports no torch."""

import itertools
import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from resnet_lab.config.check import check
from resnet_lab.config.compose import typed
from resnet_lab.config.errors import UserError
from resnet_lab.config.messages import _wanted, sentence
from resnet_lab.run import distributed
from resnet_lab.run.resume import _has_checkpoint, go_on


class CheckAndClaim(Callback):
    """Before a single run: check the config, then make its folder, which no other run can have.

    The folder's name holds the second; when two runs start in the same one, the later gets -2.
    A folder that the user names must not hold a run already. Where torchrun or SLURM's srun has
    started the processes of a run, on one machine or several, all of them get the same folder,
    and the first of them alone logs into it; begun again by those two, the run goes on there.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        # Hydra turns exceptions of callbacks into warnings, but lets SystemExit pass.
        try:
            if config.get("resume"):
                go_on(config, Path(config.resume))
            else:
                check(config)
                folder = folder_of(config)
                if distributed.started_again() and _has_checkpoint(folder):
                    go_on(config, folder)
                else:
                    OmegaConf.set_readonly(config.hydra, False)
                    config.hydra.run.dir = str(folder)
            if not distributed.is_first():
                _log_to_the_screen_alone(config)
        except Exception as error:
            message = str(error) if isinstance(error, OSError) else sentence(error)
            if message is None or _wanted():
                traceback.print_exc()
            raise SystemExit(f"error: {message or error}") from None


def folder_of(config: DictConfig) -> Path:
    """The run's folder, claimed by the first of its processes and the same for all of them.

    ValueError where it holds a run already, or where it cannot be agreed on.
    """
    folder = Path(config.hydra.run.dir)
    named = any(o.startswith("hydra.run.dir=") for o in typed(config, "hydra"))
    if not named and distributed.by_torchrun():
        from resnet_lab.run.rendezvous import folder_of_all  # imports torch

        return folder_of_all((lambda: claim(folder)) if distributed.is_first() else None)
    if not named and distributed.by_srun():
        choices = config.hydra.runtime.choices
        name = f"{distributed.job_step()}-{choices.model}-{choices.data}"
        folder = Path("outputs", "runs", "slurm", name)  # a requeued job finds it again
    if distributed.is_first() and not (distributed.started_again() and folder.exists()):
        return claim(folder, named or distributed.count() > 1)
    return folder


def _log_to_the_screen_alone(config: DictConfig) -> None:
    """run.log and .hydra/ are the first process's; who starts the others keeps what they print."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.output_subdir = None
        logging = config.hydra.job_logging
        if logging is not None and "file" in (logging.get("handlers") or {}):
            del logging.handlers.file
            logging.root.handlers = [name for name in logging.root.handlers if name != "file"]


def claim(folder: Path, named: bool = False) -> Path:
    """Make `folder` (or `folder`-2, -3, ... where it exists) and return it.

    `named`: the user chose it, so it is taken as it is. ValueError where it holds a run.
    """
    if named:
        if (folder / "config.yaml").exists():
            raise UserError(f"hydra.run.dir={folder}: holds a run already; name another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    for n in itertools.count(1):
        candidate = folder if n == 1 else folder.with_name(f"{folder.name}-{n}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise AssertionError

"""What train.py does, from Python: train, sweep, load and compose."""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnet_lab.config import compose as composing
from resnet_lab.config.compose import APP, CONF, VERSION_BASE, at_home, quoted
from resnet_lab.config.errors import UserError
from resnet_lab.config.messages import sentence
from resnet_lab.config.suggest import offer
from resnet_lab.report.runs import is_sweep
from resnet_lab.results import Run, Sweep
from resnet_lab.run.folder import RunFolder

TRAIN = APP / "train.py"
PUBLISHED = APP / "docs" / "models"  # run folders without their training; of a checkout alone
INTERRUPTED = (130, -signal.SIGINT)


def run(*overrides: str, **settings: Any) -> Run:
    """Train as `python train.py OVERRIDES` does, here, or in processes of its own where it takes
    more than one device.

    Args:
        overrides: key=value and group=choice, as on the command line.
        settings: the same as Python values: `seed=0`, `model="resnet20"`,
            `trainer={"max_epochs": 3}`.

    Returns:
        The run, finished; or stopped, where trainer.max_time has ended it.

    Raises:
        UserError: what the command would have refused, in the same words.
        KeyboardInterrupt: the run was interrupted, and has saved where it stands.
    """
    words = command_line(overrides, settings)
    with _as_command(words):
        cfg, _ = composing.compose(words)
        if _devices(cfg) > 1:
            return _run_elsewhere(words)
        return _run_here(words)


def sweep(*overrides: str, **settings: Any) -> Sweep | None:
    """Run a sweep as `python train.py -m OVERRIDES` does, in processes of its own.

    The same call continues a sweep that was stopped, where it has a name (`"sweep.name=first"`).

    Args:
        overrides: as on the command line: `"model.shortcut=A,none"`.
        settings: the same as Python values: `seed=[0, 1]` or `seed=range(5)`, a list for what is
            swept, `sweep={"name": "first"}`.

    Returns:
        The sweep, whether all of its jobs have finished or not; None with sweep.plan=true.

    Raises:
        UserError: what the command would have refused; no job has begun.
        KeyboardInterrupt: it was interrupted; its jobs have saved where they stand.
    """
    words = command_line(overrides, settings, swept=True)
    given = {o.key_or_group: o for o in _parsed(words)}
    if "hydra.sweep.dir" in given:
        folder = Path(str(given["hydra.sweep.dir"].value()))
    else:
        name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        if "sweep.name" in given:
            name = str(given["sweep.name"].value())
        else:
            words.append(f"sweep.name={name}")
        folder = Path("outputs", "sweeps", name)
    _command("-m", words)
    plan = given.get("sweep.plan")
    return None if plan is not None and plan.value() else Sweep(folder)


def load(
    folder: str | Path,
    checkpoint: str | Path | None = None,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> Run:
    """A finished run, its net ready: `load(run_dir).predict("photo.jpg")`.

    The folder is read as data that anybody may have made: it runs no code of its own.

    Args:
        folder: of the run; or the name of a published net, see `models`.
        checkpoint: other weights than those of its best epoch; a run that is not finished needs
            them named.
        overrides: key=value for its config below data and trainer, such as `data.root=...` where
            the images have moved.
        trust: packages of your own that its config may name.

    Raises:
        UserError: the folder is no run, or has no weights that fit.
    """
    if not Path(folder).exists() and Path(folder).name == str(folder):
        folder = _published(str(folder))
    if is_sweep(Path(folder)):
        raise UserError(
            f"{folder} is a sweep: load one of its jobs, or Sweep(...) for all of them."
        )
    loaded = Run(Path(folder), checkpoint, overrides, trust)
    loaded.net.eval()
    return loaded


def models() -> list[str]:
    """The names of the published nets, which `load` takes; none where there is no checkout."""
    return sorted(path.parent.name for path in PUBLISHED.glob("*/config.yaml"))


def _published(name: str) -> Path:
    """The folder of a published net; UserError where there is none of this name."""
    names = models()
    if name in names:
        return PUBLISHED / name
    why = offer(name, names) if names else "the published nets come with the repository."
    raise UserError(f"{name}: there is no such folder, and no published net of this name; {why}")


def compose(*overrides: str, **settings: Any) -> DictConfig:
    """The config that `run` would train, to build from: `build_net(compose("model=resnet20"))`.

    Raises:
        UserError: it does not compose.
    """
    words = command_line(overrides, settings)
    with _as_command(words):
        cfg, _ = composing.compose(words)
    cfg.run_dir = "."  # callbacks of one's own trainer write here; data and nets do not ask
    return cfg


# ------------------------------------------------------------------ words


def command_line(
    overrides: Sequence[str], settings: Mapping[str, Any], swept: bool = False
) -> list[str]:
    """Overrides and Python values as the words of one command line.

    Args:
        swept: a list is a choice of values, one for each job, and no value itself.
    """
    for word in overrides:
        if not isinstance(word, str):
            raise UserError(f"{word!r}: write it as a text, such as 'seed=0', or as seed=0.")
        if word.startswith("-"):
            raise UserError(f"{word}: from Python only key=value and group=choice can be given.")
    words = at_home(list(overrides))
    for key, value in settings.items():
        words += _words(key, value, swept)
    return words


def _words(key: str, value: Any, swept: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _words(f"{key}.{name}", child, swept)
    elif swept and isinstance(value, list | tuple | range):
        if not value:
            raise UserError(f"{key}=[]: give at least one value.")
        yield f"{key}={','.join(_text(one) for one in value)}"
    else:
        yield f"{key}={_text(value)}"


def _text(value: Any) -> str:
    """A Python value in Hydra's grammar."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()  # a number of NumPy or torch
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | range):
        return f"[{','.join(_text(one) for one in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_text(one)}" for name, one in value.items()) + "}"
    text = str(value)
    return text if re.fullmatch(r"[\w./@%+:-]+", text, re.ASCII) else quoted(text)


def _parsed(words: Sequence[str]) -> list[Any]:
    with _plain_errors():
        return OverridesParser.create().parse_overrides(list(words))


# ------------------------------------------------------------------ here


def _run_here(words: list[str]) -> Run:
    """Train within this process, as train.py does in its own."""
    from resnet_lab.run.stop import TIME_IS_OVER, Stopped

    ended: list[BaseException] = []
    place: list[str] = []

    def task(cfg: DictConfig) -> None:
        from resnet_lab.run.training import train  # imports torch: the config is known to be good

        place.append(str(cfg.run_dir))
        try:
            train(cfg)
        except (Exception, Stopped) as error:  # Hydra would print an introduction to it
            ended.append(error)

    with hydra.initialize_config_dir(str(CONF), job_name="train", **VERSION_BASE):
        app = GlobalHydra.instance().hydra
        assert app is not None
        try:
            app.run("train", task, words)
        except SystemExit as end:  # said by CheckAndClaim
            if isinstance(end.code, str):
                raise UserError(end.code.removeprefix("error: ")) from None
            return Run(_value(words, "resume"))  # it is finished already
    folder = Path(place[0])
    for error in ended:
        if not isinstance(error, Stopped):
            raise error
        if error.code != TIME_IS_OVER:
            raise KeyboardInterrupt(f"{error}; resume it with run(resume={str(folder)!r})")
    return Run(folder, trust=_packages(folder))


def _packages(folder: Path) -> list[str]:
    """Whose code the run has used: this process has just run it, so it can be trusted."""
    texts = composing.texts(RunFolder(folder).read_config())
    return sorted({text.partition(".")[0] for key, text in texts if key.endswith("_target_")})


@contextmanager
def _as_command(words: list[str]) -> Iterator[None]:
    """The process looks like the command train.py, and afterwards as before."""
    argv, root, state = sys.argv, logging.getLogger(), GlobalHydra.get_state()
    handlers, level = list(root.handlers), root.level
    sys.argv = [str(TRAIN), *words]
    GlobalHydra.instance().clear()
    try:
        with _plain_errors():
            yield
    finally:
        sys.argv = argv
        GlobalHydra.set_state(state)
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:], root.level = handlers, level


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What Hydra refuses becomes a UserError, in the words of the command line."""
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        if (said := sentence(error)) is None:
            raise
        raise UserError(said) from None


def _devices(cfg: DictConfig) -> int:
    """How many processes the run takes."""
    trainer: Any = cfg.trainer
    if cfg.resume:
        trainer = OmegaConf.create(RunFolder(cfg.resume).read_config()["trainer"])
    if trainer.devices == trainer.num_nodes == 1:
        return 1
    from resnet_lab.run.machine import count_devices  # imports torch

    devices: int = count_devices(trainer.devices, trainer.accelerator) * trainer.num_nodes
    return devices


# ------------------------------------------------------------------ elsewhere


def _run_elsewhere(words: list[str]) -> Run:
    given = {o.key_or_group for o in _parsed(words)}
    if "resume" in given:
        folder = Path(_value(words, "resume"))
    else:
        if "hydra.run.dir" not in given:
            with hydra.initialize_config_dir(str(CONF), job_name="train", **VERSION_BASE):
                cfg = hydra.compose("train", overrides=words, return_hydra_config=True)
            words = [*words, f"hydra.run.dir={quoted(cfg.hydra.run.dir)}"]
        folder = Path(_value(words, "hydra.run.dir"))
    if _command(None, words):
        raise UserError(f"the run failed; {folder}/run.log and the lines above say why.")
    return Run(folder, trust=_packages(folder))


def _value(words: Sequence[str], key: str) -> str:
    return next(str(o.value()) for o in _parsed(words) if o.key_or_group == key)


def _command(option: str | None, words: list[str]) -> int:
    """Run train.py as a process, print what it prints, and return its exit status.

    Raises:
        UserError: it said what is wrong.
        KeyboardInterrupt: this process was interrupted; the other has saved and ended.
    """
    command = [sys.executable, str(TRAIN), *([option] if option else []), *words]
    said: list[str] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # an interrupt reaches it once, from here
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
    ) as process:
        try:
            _print(process, said)
        except KeyboardInterrupt:
            with suppress(ProcessLookupError):
                if os.name == "posix":
                    process.send_signal(signal.SIGINT)
                else:  # where a process cannot be sent it alone
                    process.terminate()
            _print(process, said)
            process.wait()
            raise
    if process.returncode in INTERRUPTED:
        raise KeyboardInterrupt
    if process.returncode and said:
        raise UserError("\n".join(said).removeprefix("error: "))
    return process.returncode


def _print(process: "subprocess.Popen[str]", said: list[str]) -> None:
    """Pass its lines on; those from "error: " on are kept in `said` instead."""
    assert process.stdout is not None
    for line in process.stdout:
        if said or line.startswith("error: "):
            said.append(line.rstrip("\n"))
        else:
            print(line, end="", flush=True)

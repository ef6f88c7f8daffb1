"""What several test files share: configs, small runs, commands, and how outcomes are compared.

Sweeps of stand-in jobs, `alive` and `wait_until` are in sandbox.py. Nothing here imports torch
before it is needed.
"""

import atexit
import contextlib
import csv
import functools
import io
import json
import logging
import os
import re
import runpy
import subprocess
import sys
import traceback
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from resnet_lab.config.compose import VERSION_BASE
from resnet_lab.config.compose import compose as compose_and_choices
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.resume import resumed as own_config

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
CLI = "src/resnet_lab/cli.py"  # the script of `resnet-lab`

SMALL_NET = ("model=cifar_resnet", "model.depth=8", "model.width=0.25")
CPU = ("trainer.accelerator=cpu", "trainer.precision=32")
WITHOUT_PICTURES = "callbacks=[checkpoints,nan_guard,epoch_log,compile_net]"
# Two epochs of four steps on digits: about a second, since no picture is drawn.
QUICK = (
    *(*SMALL_NET, *CPU, "data.train_size=256", "data.batch_size=64"),
    *("trainer.max_epochs=2", "trainer.log_every_n_steps=2"),
    WITHOUT_PICTURES,
)
# With QUICK: two devices compute what one computes, but for rounding. Nothing is normalised over
# a batch, and the rate is small.
EXACT = ("model.norm=none", "model.zero_init_residual=true", "optimizer.lr=0.01")


def slow_except(fast: Container[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters of a test, all but the `fast` ones left to `make test-slow`."""
    return [v if v in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]


# Configs


def choices(group: str) -> list[str]:
    """The names of the files of a config group: "resnet20", "he2015/plain20"."""
    folder = CONF / group
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return compose("train", overrides=list(overrides))


def composed(*overrides: str) -> DictConfig:
    """The config of these overrides, of one's own to change.

    Hydra composes each choice of files once a session, which takes a quarter of a second; values
    such as `optimizer.lr=1` are set in a copy, after the files as Hydra does it.
    """
    values = {o for o in overrides if re.match(r"seed=|run_dir=|(?!hydra)\w+\.[\w.]+=", o)}
    cfg = _composed(tuple(o for o in overrides if o not in values)).copy()
    given = OverridesParser.create().parse_overrides([o for o in overrides if o in values])
    for override in given:
        OmegaConf.update(cfg, override.key_or_group, override.value())
    return cfg


def resumed(run_dir: Path) -> DictConfig:
    """The run's own config with `resume` set, unchecked: enough for `training.train`."""
    cfg = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(cfg, DictConfig)
    cfg.resume = str(run_dir)
    return cfg


def resumed_by_command(run_dir: Path, *overrides: str) -> DictConfig:
    """The config with which `python train.py resume=RUN_DIR OVERRIDES` resumes, or its refusal."""
    cfg, _ = compose_and_choices(overrides)
    OmegaConf.set_struct(cfg, False)
    cfg.hydra = {"overrides": {"task": [f"resume={run_dir}", *overrides]}}
    return own_config(cfg, RunFolder(run_dir))


# Commands


def train_py(
    folder: Path, *overrides: str, script: str = "train.py", **env: str
) -> subprocess.CompletedProcess[str]:
    """`python train.py OVERRIDES` in `folder`, as a process of its own: eight seconds and more."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "LOCAL_RANK"} | env,
        timeout=300,
    )


def train_here(
    folder: Path, *overrides: str, script: str = "train.py", **env: str
) -> subprocess.CompletedProcess[str]:
    """The same command within this process, which saves importing torch once more.

    Args:
        folder: the current folder of the command, and first on `sys.path`.
        script: another one than train.py.
        env: environment variables in addition.
    """
    out, err, status = io.StringIO(), io.StringIO(), 0
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    modules = set(sys.modules)
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr(sys, "argv", [str(ROOT / script), *overrides])
        for name, value in env.items():
            patch.setenv(name, value)
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=err)
        except Exception:
            status = 1
            err.write(traceback.format_exc())
        finally:
            # Hydra sets these for the whole of a process.
            HydraConfig.instance().cfg = None
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers, root.level = handlers, level
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(f"{folder}/"):
                    del sys.modules[name]
    return subprocess.CompletedProcess(overrides, status, out.getvalue(), err.getvalue())


@functools.cache
def _without_torch() -> subprocess.Popen[str]:
    """A process that can import neither torch nor lightning, and answers commands by the line."""
    program = (
        "import json, sys; sys.modules['torch'] = sys.modules['lightning'] = None\n"
        "from pathlib import Path; from lab import train_here\n"
        "for line in sys.stdin:\n"
        "    script, folder, *command = json.loads(line)\n"
        "    done = train_here(Path(folder), *command, script=script)\n"
        "    print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    return server


def without_torch(
    folder: Path, *arguments: str, script: str = "train.py"
) -> subprocess.CompletedProcess[str]:
    """`python train.py ARGUMENTS` in `folder`, where torch and lightning cannot be imported.

    Args:
        script: another one, such as `CLI`.
    """
    server = _without_torch()
    print(json.dumps([script, str(folder), *arguments]), file=server.stdin, flush=True)
    answer = server.stdout.readline()
    assert answer, "the process without torch has died"
    return subprocess.CompletedProcess(arguments, *json.loads(answer))


# What a run leaves


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The sentence with which `resnet-lab ARGUMENTS` ends in this process, having done nothing."""
    from resnet_lab.cli import main

    capsys.readouterr()  # of earlier commands
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    message = end.value.code
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert "\n" not in message
    assert capsys.readouterr().out == ""
    return message


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_result(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


def weights(run_dir: Path, name: str = "last") -> dict[str, Any]:
    """The state dict of a checkpoint: "last", "best" or "previous"."""
    from resnet_lab.run import checkpoint_io

    return checkpoint_io.load(run_dir / "checkpoints" / f"{name}.ckpt")["state_dict"]


def board(folder: Path) -> Any:
    """TensorBoard's event files below `folder`, read: `board(...).Scalars("lr")`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return events


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Equal bit for bit, through dicts, lists and tensors."""
    import torch

    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), (where, one, two)
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, where

"""`resnet-lab tensorboard`: the board on one sweep or run alone."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from resnet_lab.config.errors import UserError
from resnet_lab.report.runs import is_run, is_sweep


def open_board(path: Path, port: int = 6006) -> NoReturn:
    """Become TensorBoard on `path`, seen from this machine alone.

    ValueError where `path` is neither a run nor a sweep, or TensorBoard is not installed.
    """
    if not (is_sweep(path) or is_run(path)):
        raise UserError(
            f"{path} is no run and no sweep: name a folder such as outputs/sweeps/NAME."
        )
    # The one of this environment, whether or not it is activated.
    program = Path(sys.executable).with_name("tensorboard")
    if not program.exists():
        raise UserError(
            f"there is no {program}: install TensorBoard with {sys.executable} -m pip install "
            "tensorboard."
        )
    arguments = ["--logdir", str(path), "--host", "localhost", "--port", str(port)]
    os.execv(program, [str(program), *arguments])

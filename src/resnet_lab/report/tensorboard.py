"""`resnet-lab tensorboard`: the board on one sweep or run alone."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from resnet_lab.config.errors import UserError
from resnet_lab.report.runs import is_run, is_sweep
from resnet_lab.run.folder import RunFolder
from resnet_lab.screen import console

LINK_SECONDS = 5.0  # new runs of a sweep appear on the board after so long


def open_board(path: Path, port: int = 6006, mean: bool = False) -> int:
    """Run TensorBoard on `path`, for this machine alone, until it ends; returns its exit status.

    Args:
        mean: of a sweep, add a run for each setting with the mean over its repeats.

    Raises:
        UserError: `path` is neither a run nor a sweep, TensorBoard is missing, or it fails.
    """
    if not (is_sweep(path) or is_run(path)):
        raise UserError(
            f"{path} is no run and no sweep: name a folder such as outputs/sweeps/NAME."
        )
    if mean and not is_sweep(path):
        raise UserError(f"{path} is one run: --mean is over the repeats of a sweep's settings.")
    # The one of this environment, whether or not it is activated.
    program = Path(sys.executable).with_name("tensorboard")
    if not program.exists():
        raise UserError(
            f"there is no {program}: install TensorBoard with {sys.executable} -m pip install "
            "tensorboard."
        )
    with tempfile.TemporaryDirectory(prefix="resnet-lab-") as folder:
        update = _Runs(path, Path(folder), mean)
        place = ["--logdir", folder, "--host", "localhost", "--port", str(port)]
        console.print(f"http://localhost:{port}   (Ctrl-C ends it)")
        return _serve([str(program), "--load_fast", "false", *place], update)


class _Runs:
    """What is on the board; called again and again, it adds what is new."""

    def __init__(self, path: Path, folder: Path, mean: bool) -> None:
        self.path, self.folder = path, folder
        self.means = None
        if mean:
            from resnet_lab.report.mean_runs import MeanRuns  # imports TensorBoard

            self.means = MeanRuns(path, folder)
        self()

    def __call__(self) -> None:
        _link(self.path, self.folder)
        if self.means is not None:
            self.means.write()


def _link(path: Path, folder: Path) -> None:
    """Give each run on the board its folder's name, without "/tensorboard"."""
    runs = [path] if is_run(path) else [run for run in path.iterdir() if is_run(run)]
    for run in runs:
        link, board = folder / run.resolve().name, RunFolder(run).board
        if board.is_dir() and not link.is_symlink():
            link.symlink_to(board.resolve(), target_is_directory=True)


def _serve(arguments: list[str], update: Callable[[], None]) -> int:
    """Run TensorBoard without its remarks on TensorFlow; `update` is called every few seconds."""
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(arguments, env=quiet, stdout=errors, stderr=errors) as board,
    ):
        try:
            while board.poll() is None:
                try:
                    board.wait(LINK_SECONDS)
                except subprocess.TimeoutExpired:
                    update()
        except KeyboardInterrupt:
            board.terminate()
            return 0
        if board.returncode:
            errors.seek(0)
            lines = [line.strip() for line in errors if line.strip()]
            raise UserError(f"TensorBoard: {lines[-1] if lines else 'it has ended'}")
    return 0

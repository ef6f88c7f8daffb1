"""TensorBoard with figures by epoch, and a chart of training beside validation."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)
P = ParamSpec("P")

EVENTS = "events.out.tfevents.*"
# Under CUSTOM SCALARS: names of charts, and regular expressions of the figures that each shows.
CHARTS = {
    "training and validation": {
        name: ["Multiline", [f"by_epoch/train_{key}$", f"by_epoch/val_{key}$"]]
        for name, key in (("loss", "loss"), ("accuracy", "acc"))
    }
}


def optional(method: Callable[P, None]) -> Callable[P, None]:
    """A method of a local logger whose failure costs what it would have written, not the run."""

    @wraps(method)
    def tried(*arguments: P.args, **options: P.kwargs) -> None:
        logger: Any = arguments[0]
        if getattr(logger, "failed", False):
            return
        try:
            method(*arguments, **options)
        except (OSError, ValueError) as error:
            # Lightning wraps what TensorBoard raises.
            cause = error.__cause__ if isinstance(error, ValueError) else error
            if not isinstance(cause, OSError):
                raise
            logger.failed = True
            log.warning(
                f"{type(logger).__name__}: {cause.strerror or cause}; nothing more is written into "
                f"{logger.save_dir}, and the run goes on without it"
            )

    return tried


class Board(TensorBoardLogger):
    """Lightning's TensorBoardLogger, writing into `save_dir` itself.

    Every epoch figure ("train/loss", "val/acc", ...) is written against the optimizer step, as
    Lightning does, and once more as "by_epoch/..." against the number of epochs done, since
    steps of different batch sizes cannot be compared. There is no hp_metric of -1: HPARAMS is
    written when the run knows its result (`log_result`).

    Args:
        purge_step: TensorBoard no longer shows points written before from this step on.
    """

    def __init__(self, save_dir: str, purge_step: int | None = None) -> None:
        super().__init__(
            save_dir, name="", version="", default_hp_metric=False, purge_step=purge_step
        )

    def resume(self, step: int) -> None:
        """Before anything is written: continue a run from the checkpoint of an optimizer step.

        What was written after that step is no longer shown. Figures of an epoch's end stay where
        the checkpoint is from before it: they show twice, alike, once the epoch has been trained
        again.
        """
        # TensorBoard reads files in the order of their names, which begin with the second.
        seconds = [int(path.name.split(".")[3]) for path in Path(self.save_dir).glob(EVENTS)]
        while time.time() < max(seconds, default=0) + 1:
            time.sleep(0.05)
        Board.__init__(self, self.save_dir, purge_step=step + 1)

    @rank_zero_only
    @optional
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        figures = dict(metrics)
        epoch = figures.pop("epoch", None)
        super().log_metrics(figures, step)
        if epoch is not None:
            by_epoch = {
                f"by_epoch/{key.replace('/', '_')}": value
                for key, value in figures.items()
                if key.startswith(("train/", "val/"))
            }
            super().log_metrics(by_epoch, int(epoch))

    @rank_zero_only
    @optional
    def save(self) -> None:
        """Bring to the disk what was logged. (Lightning's would add hparams.yaml besides.)"""
        self.experiment.flush()

    @rank_zero_only
    @optional
    def finalize(self, status: str) -> None:
        super().finalize(status)

    @rank_zero_only
    @optional
    def log_config(self, text: str) -> None:
        """Show the run's config (YAML) under TEXT, and training beside validation in one chart."""
        self.experiment.add_text("config", "```yaml\n" + text + "\n```")
        self.experiment.add_custom_scalars(CHARTS)

    @rank_zero_only
    @optional
    def log_result(self, config: dict[str, Any], scores: dict[str, float], step: int) -> None:
        """Show the run in HPARAMS: its choices and its final scores."""
        self.log_hyperparams(config, scores, step)

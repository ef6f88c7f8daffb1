"""Pictures of a run: drawn by the first process, into its folder and for its loggers."""

import logging
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Trainer
from matplotlib.figure import Figure

from resnet_lab import charts, loggers

log = logging.getLogger(__name__)


def publish(trainer: Trainer, path: Path, draw: Callable[[], Figure]) -> None:
    """Save what `draw` gives as `path` (PNG), and give it to the loggers under the same name.

    `draw` is called on the first process only. Whatever goes wrong becomes a warning: a picture
    that fails must not cost a run its result.
    """
    if not trainer.is_global_zero:
        return
    try:
        pixels = charts.write_png(path, draw)
        loggers.picture(trainer.loggers, path, pixels, trainer.global_step)
    except Exception as error:
        log.warning(f"{path.name} could not be drawn ({type(error).__name__}: {error})")

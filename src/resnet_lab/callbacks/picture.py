"""Pictures of a run: drawn by the first process, into its folder and for its loggers."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from torch import Tensor

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


def grid(
    images: Tensor,
    captions: Sequence[str],
    title: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Figure:
    """Pictures [n, c, height, width], normalised with `mean` and `std`, each above its caption."""
    shift, scale = (torch.tensor(list(s)).view(-1, 1, 1) for s in (mean, std))
    rgb = (images.float().cpu() * scale + shift).clamp(0, 1).expand(-1, 3, -1, -1)
    pixels = rgb.permute(0, 2, 3, 1).numpy()
    tiles = [charts.Tile(*pair) for pair in zip(pixels, captions, strict=True)]
    return charts.grid(tiles, title)

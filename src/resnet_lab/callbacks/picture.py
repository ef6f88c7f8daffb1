"""Pictures of a run: drawn by the first process, into its folder and onto the board."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from PIL import Image
from torch import Tensor

from resnet_lab.style import INK, STYLE

DPI = 150
# For class names in other scripts: whatever of these the machine has.
FONTS = (
    *("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo"),
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Microsoft YaHei", "Arial Unicode MS"),
)

log = logging.getLogger(__name__)


def publish(trainer: Trainer, path: Path, draw: Callable[[], Figure]) -> None:
    """Save what `draw` gives as `path` (PNG), and show it in TensorBoard under the same name.

    `draw` is called on the first process only. Whatever goes wrong becomes a warning: a picture
    that fails must not cost a run its result.
    """
    if not trainer.is_global_zero:
        return
    try:
        pixels = _render(draw)
        Image.fromarray(pixels).save(path)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                board: Any = logger.experiment
                board.add_image(path.stem, pixels, trainer.global_step, dataformats="HWC")
    except Exception as error:
        log.warning(f"{path.name} could not be drawn ({type(error).__name__}: {error})")


def _render(draw: Callable[[], Figure]) -> np.ndarray:
    """The picture as uint8 [height, width, 3]."""
    there = set(get_font_names())
    fonts = ["DejaVu Sans", *(font for font in FONTS if font in there)]
    with matplotlib.rc_context({**STYLE, "font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        figure = draw()
        figure.set_dpi(DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def shortened(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def grid(
    images: Tensor,
    captions: Sequence[str],
    title: str,
    mean: Sequence[float],
    std: Sequence[float],
    columns: int = 8,
) -> Figure:
    """Pictures [n, 3, height, width], normalised with `mean` and `std`, each above its caption."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    shift, scale = (torch.tensor(list(s)).view(3, 1, 1) for s in (mean, std))
    pixels = (images.float().cpu() * scale + shift).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    lines = max(caption.count("\n") for caption in captions) + 1
    pitch = 1.06 + 0.15 * lines  # of rows, in widths of a picture
    figure = Figure(figsize=(1.1 * columns * 1.06, 1.1 * pitch * rows + 0.35), layout="constrained")
    axes = figure.add_subplot()
    # Small pictures keep their pixels visible; large ones are scaled down smoothly.
    smooth = "nearest" if pixels.shape[2] < DPI else "antialiased"
    for number, (picture, caption) in enumerate(zip(pixels, captions, strict=True)):
        row, column = divmod(number, columns)
        left, top = column * 1.06, row * pitch
        axes.imshow(picture, extent=(left, left + 1, top + 1, top), interpolation=smooth)
        axes.text(
            left + 0.5,
            top + 1.04,
            caption,
            ha="center",
            va="top",
            fontsize=7,
            linespacing=1.1,
            color=INK,
            parse_math=False,  # a class may be called "$"
        )
    axes.set_xlim(0, columns * 1.06 - 0.06)
    axes.set_ylim(rows * pitch, 0)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title)
    return figure

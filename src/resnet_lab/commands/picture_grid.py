"""Pictures side by side, each with a line of text."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

INK, MUTED, PALE = "#1c2128", "#68707b", "#e9ecef"
COLUMNS = 8
SIDE = 1.55  # inches of a tile
# Letters that matplotlib's own font lacks: taken from the first of these that the system has.
OTHER_FONTS = (
    *("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Apple SD Gothic Neo", "Malgun Gothic"),
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Arial Unicode MS"),
)


class Tile(NamedTuple):
    """A picture (None: there is none to show), its file's name and what is said of it."""

    picture: Image.Image | None
    name: str
    text: str


def write_grid(path: Path, tiles: Sequence[Tile], of: int, share: float) -> None:
    """A PNG of the tiles, which are some `of` so many.

    share: of each picture's shorter side, what the net sees; that central square is outlined.

    Letters that no font of this system has appear as boxes.
    """
    columns = min(COLUMNS, math.ceil(math.sqrt(len(tiles) * 1.3)))
    rows = math.ceil(len(tiles) / columns)
    there = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in OTHER_FONTS if name in there)]
    with (
        matplotlib.rc_context({"font.family": fonts, "text.parse_math": False}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        height = rows * (SIDE + 0.5) + 0.45
        figure = Figure(figsize=(columns * (SIDE + 0.15) + 0.2, height), layout="constrained")
        FigureCanvasAgg(figure)
        number = f"{len(tiles):,} of {of:,} images" if len(tiles) < of else f"{of:,} images"
        figure.suptitle(f"{number}; dashed: what the net sees", fontsize=9, color=MUTED)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, tile in zip(axes, tiles, strict=False):
            _draw(ax, tile, share)
        for ax in axes[len(tiles) :]:
            ax.set_axis_off()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def _draw(ax: Axes, tile: Tile, share: float) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title(_short(tile.name), fontsize=7, color=MUTED, pad=3)
    ax.set_xlabel(_short(tile.text), fontsize=9, color=INK, labelpad=3)
    ax.set_box_aspect(1)  # also around a panorama, so that the lines of text are level
    if tile.picture is None:
        ax.set_facecolor(PALE)
        return
    width, height = tile.picture.size
    longer, side = max(width, height), min(width, height) * share
    ax.imshow(tile.picture, extent=(-width / 2, width / 2, -height / 2, height / 2))
    ax.set(xlim=(-longer / 2, longer / 2), ylim=(-longer / 2, longer / 2))
    if side < longer:
        for colour, line in ((INK, "-"), ("white", (0, (3, 3)))):
            corner = (-side / 2, -side / 2)
            ax.add_patch(Rectangle(corner, side, side, fill=False, ec=colour, ls=line, lw=1))


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"

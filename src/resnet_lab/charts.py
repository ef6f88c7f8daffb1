"""Drawers that callbacks, commands and reports share. They import no torch."""

import logging
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from resnet_lab.files import printable, replacing
from resnet_lab.language import Translate
from resnet_lab.style import GRID, INK, MUTED, STYLE, log_limits

log = logging.getLogger(__name__)

DPI = 150
MOST_STAGES = 10  # that are named on an axis
# For class names in Hangul, Chinese and Japanese: whatever of these the machine has.
FONTS = (
    *("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo"),
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Microsoft YaHei", "Arial Unicode MS"),
)
_no_font_for: set[str] = set()  # characters that were searched for, in all fonts of the system


def fonts(text: str = "") -> list[str]:
    """The families for Matplotlib's `font.family`: DejaVu Sans, then those of `FONTS` installed.

    Args:
        text: shall be shown in them. Where they lack a character, all fonts of the system are
            read once, since Matplotlib's own list may be older than a font; a line in the log says
            what to install where that does not help.
    """
    missing = _missing(text)
    if missing - _no_font_for:
        known = {font.fname for font in fontManager.ttflist}
        for path in findSystemFonts():
            if path not in known:
                with suppress(Exception):  # a font that Matplotlib cannot read
                    fontManager.addfont(path)
        missing = _missing(text)
        if missing - _no_font_for:
            log.warning(
                f"no font has {' '.join(sorted(missing)[:5])}, so pictures show boxes instead: "
                "install the package fonts-noto-cjk (Debian, Ubuntu), or the font NanumGothic"
            )
        _no_font_for.update(missing)
    return _installed()


def _installed() -> list[str]:
    names = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(font for font in FONTS if font in names)]


def _missing(text: str) -> set[str]:
    """The characters of `text` that none of these fonts has."""
    characters = {character for character in text if not character.isspace()}
    for family in _installed() if characters else ():
        properties = FontProperties(family=family)
        font = get_font(fontManager.findfont(properties, fallback_to_default=False))
        characters = {c for c in characters if not font.get_char_index(ord(c))}
    return characters


def render(draw: Callable[[], Figure]) -> np.ndarray:
    """The figure that `draw` gives, as uint8 [height, width, 3].

    `draw` is called once more where its text needs fonts that Matplotlib did not know of.
    """
    families = fonts()
    pixels, missing = _render(draw, families)
    if missing and (found := fonts(missing)) != families:
        pixels, _ = _render(draw, found)
    return pixels


def _render(draw: Callable[[], Figure], families: list[str]) -> tuple[np.ndarray, str]:
    """The pixels, and the characters that are boxes in them."""
    with matplotlib.rc_context({**STYLE, "font.family": families}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", "Glyph .* missing from font")
            figure = draw()
            figure.set_dpi(DPI)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
        missing = ""
        for warning in caught:
            if glyph := re.match(r"Glyph (\d+) .* missing from font", str(warning.message)):
                missing += chr(int(glyph[1]))
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        return np.asarray(canvas.buffer_rgba())[..., :3].copy(), missing


def write_png(path: Path, draw: Callable[[], Figure]) -> np.ndarray:
    """Write what `render` gives to `path`, and return it."""
    pixels = render(draw)
    with replacing(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
    return pixels


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def stage_name(stage: str, say: Translate, most: int = 14) -> str:
    """ "stage2" -> "stage 2", in the picture's language; other names at most `most` long."""
    number = stage.removeprefix("stage")
    if number.isdecimal():
        return say("stage {number}", number=number)
    return shortened(printable(say(stage)), most)


# ------------------------------------------------------------------ pictures side by side


class Tile(NamedTuple):
    """A picture [height, width, 3] (None: there is none) between two texts."""

    picture: np.ndarray | None
    below: str
    above: str = ""


def grid(
    tiles: Sequence[Tile], title: str, *, columns: int = 8, side: float = 1.1, seen: float = 1.0
) -> Figure:
    """Pictures side by side, in squares, each with its texts.

    Args:
        side: of a square, in inches.
        seen: the net sees a central square, this share of a picture's shorter side; where that is
            less than the picture, it is outlined.
    """
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    line = 0.165 / side  # a line of text, in sides
    head = line if any(tile.above for tile in tiles) else 0.0
    foot = line * (max(tile.below.count("\n") for tile in tiles) + 1)
    pitch = 1.06, 1.06 + head + foot  # of columns and rows
    width = max(side * 1.06 * columns, 0.12 * len(title))  # of one picture, too, all of its title
    size = width, side * pitch[1] * rows + 0.35
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        x, y = column * pitch[0] + 0.5, row * pitch[1] + head + 0.5  # the middle of the square
        style: dict[str, Any] = {"ha": "center", "fontsize": 7, "linespacing": 1.1}
        style["parse_math"] = False  # a class may be called "$"
        axes.text(x, y - 0.53, tile.above, va="bottom", color=MUTED, **style)
        axes.text(x, y + 0.54, tile.below, va="top", color=INK, **style)
        if tile.picture is None:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=GRID))
        else:
            _place(axes, tile.picture, x, y, seen)
    axes.set_xlim(0, columns * pitch[0] - 0.06)
    axes.set_ylim(rows * pitch[1], 0)
    axes.set_aspect("equal", anchor="W")
    axes.axis("off")
    axes.set_title(title)
    return figure


def is_cut(picture: np.ndarray | None, seen: float) -> bool:
    """Whether the net sees less than all of a picture; see `grid` for `seen`."""
    return picture is not None and seen * min(picture.shape[:2]) < max(picture.shape[:2])


def _place(axes: Axes, picture: np.ndarray, x: float, y: float, seen: float) -> None:
    height, width = picture.shape[:2]
    longer, shorter = max(height, width), min(height, width)
    across, down = width / longer / 2, height / longer / 2
    # Small pictures keep their pixels visible; large ones are scaled down smoothly.
    smooth = "nearest" if width < DPI else "antialiased"
    extent = (x - across, x + across, y + down, y - down)
    axes.imshow(picture, extent=extent, interpolation=smooth)
    half = seen * shorter / longer / 2
    if is_cut(picture, seen):
        for colour, line in ((INK, "-"), ("white", (0, (3, 3)))):
            corner = (x - half, y - half)
            axes.add_patch(
                Rectangle(corner, 2 * half, 2 * half, fill=False, ec=colour, ls=line, lw=1)
            )


# ------------------------------------------------------------------ curves


def by_epoch(axes: Axes, points: Sequence[tuple[int, float]], **style: Any) -> None:
    """A line over epochs, with dots where these do not touch."""
    marker = "o" if len(points) <= 30 else ""
    axes.plot(*zip(*points, strict=True), marker=marker, ms=3, **style)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


# By epoch (0: before training): stage and gradient norm of every block from input to output.
Gradients = Mapping[int, Sequence[tuple[str, float]]]


class GradientLine(NamedTuple):
    """What is drawn in one colour: the mean over some runs."""

    label: str
    colour: str
    runs: Sequence[Gradients]


def gradients(
    lines: Sequence[GradientLine], title: str = "", limits: tuple[float, float] | None = None
) -> Figure:
    """The gradient of every block before and after training, and of three stages by epoch.

    Args:
        limits: of the norm; by default those of `gradient_limits`.
    """
    figure = Figure(figsize=(9.6, 5.8), layout="constrained")
    cells = figure.add_gridspec(2, 6)
    tops = [figure.add_subplot(cells[0, :3]), figure.add_subplot(cells[0, 3:])]
    bottoms = [figure.add_subplot(cells[1, 2 * i : 2 * i + 2]) for i in range(3)]
    for axes in (*tops, *bottoms):
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(*(limits or gradient_limits(lines)))
    for line in lines:
        for axes, end in zip(tops, (min, max), strict=True):
            blocks = zip(*(run[end(run)] for run in line.runs), strict=False)
            means = [fmean(norm for _, norm in block) for block in blocks]
            positions = range(1, len(means) + 1)
            axes.plot(positions, means, color=line.colour, marker="o", ms=3, label=line.label)
        for axes, place in zip(bottoms, ("first", "middle", "last"), strict=True):
            by_epoch(axes, _stage_by_epoch(line.runs, place), color=line.colour)
            axes.set_title(f"{place.capitalize()} stage")
    last = {max(run) for line in lines for run in line.runs}
    tops[0].set_title("Before training")
    tops[1].set_title(f"Epoch {last.pop()}" if len(last) == 1 else "Last epoch")
    for axes in (*tops, *bottoms):
        if axes in (tops[0], bottoms[0]):
            axes.set_ylabel("L2 norm of the gradient")
        else:
            axes.tick_params(axis="y", labelleft=False)
    stages = {tuple(stage for stage, _ in run[min(run)]) for line in lines for run in line.runs}
    for axes in tops:
        _name_blocks(axes, stages)
    if title:
        figure.suptitle(title, fontsize=10)
    if any(line.label for line in lines):
        handles, names = tops[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


def gradient_limits(lines: Sequence[GradientLine]) -> tuple[float, float]:
    """Of a logarithmic axis that shows all blocks and stages of `lines`."""
    # A stage is larger than its blocks, so that one must not set the other's scale.
    return log_limits(
        [
            norm
            for line in lines
            for run in line.runs
            for blocks in run.values()
            for norm in [*(norm for _, norm in blocks), *_stages(blocks).values()]
        ]
    )


def _name_blocks(axes: Axes, stages: set[tuple[str, ...]]) -> None:
    """Positions of blocks: named by their stages where all lines have the same few."""
    axes.set_xlabel("blocks, from input to output")
    if len(stages) != 1 or not 0 < len(set(min(stages))) <= MOST_STAGES:
        axes.set_xlim(left=0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    (of_blocks,) = stages
    edge, centres = 0.5, []
    for stage in dict.fromkeys(of_blocks):
        width = of_blocks.count(stage)
        centres.append(edge + width / 2)
        edge += width
        axes.axvline(edge, color=GRID, lw=1, zorder=0)
    axes.grid(axis="x", visible=False)
    names = [shortened(printable(stage), 12) for stage in dict.fromkeys(of_blocks)]
    axes.set_xticks(centres, names, parse_math=False)
    axes.set_xlim(0.5, edge)


def _stages(blocks: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The norm of each stage; those of one block (stem, head) only where all are of one."""
    norms: dict[str, list[float]] = {}
    for stage, norm in blocks:
        norms.setdefault(stage, []).append(norm)
    large = {stage: math.hypot(*n) for stage, n in norms.items() if len(n) > 1}
    return large or {stage: n[0] for stage, n in norms.items()}


def _stage_by_epoch(runs: Sequence[Gradients], place: str) -> list[tuple[int, float]]:
    """(epoch, norm of the first, middle or last stage), the mean over runs."""
    points = []
    for epoch in sorted(set.intersection(*(set(run) for run in runs))):
        of_runs = [list(_stages(run[epoch]).values()) for run in runs]
        index = {"first": 0, "middle": len(of_runs[0]) // 2, "last": -1}[place]
        points.append((epoch, fmean(norms[index] for norms in of_runs)))
    return points

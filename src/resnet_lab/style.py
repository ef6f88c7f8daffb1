"""The style of all pictures: colours, and settings for `matplotlib.rc_context`."""

from collections.abc import Sequence
from typing import Any

# Okabe and Ito's palette for all kinds of colour vision, without its yellow (too pale on white)
# and black (which the page uses for text).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C6BB1")
INK, MUTED, GRID, PAPER = "#1c2128", "#68707b", "#dfe3e8", "#fefefe"

STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


def log_limits(figures: Sequence[float]) -> tuple[float, float]:
    """For a logarithmic axis: two powers of ten at least, so that small differences look small.

    `figures` that such an axis cannot show (0, infinite, NaN) do not count.
    """
    shown = [figure for figure in figures if 0 < figure < float("inf")] or [1.0]
    low, high = min(shown) / 1.5, max(shown) * 1.5
    stretch = max(1.0, (100 * low / high) ** 0.5)
    return low / stretch, high * stretch

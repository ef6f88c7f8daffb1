"""The drawings of a net as files, SVG and PNG; no torch."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle as Disc
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from resnet_lab import charts
from resnet_lab.analysis import blocks_layout, blocks_steps, blocks_text
from resnet_lab.analysis.blocks_shapes import CIRCLE, FONT, LINE, Box, Circle, Drawing, Label, Line
from resnet_lab.analysis.blocks_steps import Outline
from resnet_lab.files import write_text
from resnet_lab.language import Translate
from resnet_lab.style import INK, MUTED, PALETTE

KOREAN = {**blocks_steps.KOREAN, **blocks_text.KOREAN, **blocks_layout.KOREAN}

SIDE_COLOUR = PALETTE[0]
WHITE = "#ffffff"
FILLS = {
    "conv": "#ddeeff",
    "norm": "#eef2f5",
    "activation": "#fff4d6",
    "pool": "#e2f3ea",
    "block": "#ddeeff",
    "layers": "#eef2f5",
    "other": "#f4e9f3",
    "frame": WHITE,
}
# A browser takes the first that it has; those from Apple SD on have Hangul.
SVG_FONTS = (
    "Helvetica, Arial, 'Apple SD Gothic Neo', 'Malgun Gothic', 'Noto Sans KR', "
    "'Noto Sans CJK KR', NanumGothic, sans-serif"
)
PIXEL = 72 / 96  # points


def write(outlines: Sequence[Outline], folder: Path, say: Translate) -> list[Path]:
    """Every drawing of every net as SVG and PNG in `folder`; returns their paths.

    Of several nets each file's name begins with its net's.
    """
    prefixes = [""] if len(outlines) == 1 else file_names([o.label for o in outlines])
    written = []
    for prefix, outline in zip(prefixes, outlines, strict=True):
        for name, drawing in blocks_layout.drawings(outline, say).items():
            place = folder / f"{prefix}{'-' if prefix else ''}{name}.svg"
            write_text(place, svg(drawing))
            charts.write_png(place.with_suffix(".png"), partial(figure, drawing))
            written += [place, place.with_suffix(".png")]
    return written


def file_names(labels: Sequence[str]) -> list[str]:
    """A name for the files of each label, of letters, digits and "=._-", all different."""
    names: list[str] = []
    for label in labels:
        name = plain = re.sub(r"[^A-Za-z0-9=._]+", "-", label).strip("-.")[:80] or "net"
        number = 2
        while name.lower() in [other.lower() for other in names]:  # as some file systems see it
            name, number = f"{plain}-{number}", number + 1
        names.append(name)
    return names


# ------------------------------------------------------------------ SVG


def svg(drawing: Drawing) -> str:
    """A drawing as SVG; its texts are texts."""
    size = f"{drawing.width:.0f}", f"{drawing.height:.0f}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
        f'width="{size[0]}" height="{size[1]}" font-family="{SVG_FONTS}" role="img" '
        f"aria-label={quoteattr(drawing.title)}>"
    )
    markers = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" '
        f'markerHeight="6" orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="{colour}"/></marker>'
        for name, colour in (("arrow", MUTED), ("side-arrow", SIDE_COLOUR))
    )
    rows = [
        head,
        f"<defs>{markers}</defs>",
        f'<rect width="{size[0]}" height="{size[1]}" fill="{WHITE}"/>',
    ]
    for item in drawing.shown:
        if isinstance(item, Box):
            rows += _svg_box(item)
        elif isinstance(item, Line):
            rows.append(_svg_line(item))
        elif isinstance(item, Circle):
            rows += _svg_circle(item)
        else:
            rows.append(_svg_label(item))
    return "\n".join([*rows, "</svg>", ""])


def _svg_box(box: Box) -> list[str]:
    rows = [
        f'<rect x="{box.x - box.width / 2:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="6" fill="{FILLS[box.role]}" stroke="{MUTED}"/>'
    ]
    return rows + [_svg_label(label) for label in _box_labels(box)]


def _svg_line(line: Line) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in line.points)
    marker = f' marker-end="url(#{"side-" if line.side else ""}arrow)"' if line.head else ""
    colour, width = (SIDE_COLOUR, 2.2) if line.side else (MUTED, 1.6)
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}" '
        f'stroke-width="{width}"{marker}/>'
    )


def _svg_circle(circle: Circle) -> list[str]:
    place = f'cx="{circle.x:.1f}" cy="{circle.y:.1f}"'
    if not circle.sign:
        return [f'<circle {place} r="3" fill="{MUTED}"/>']
    return [
        f'<circle {place} r="{CIRCLE}" fill="{WHITE}" stroke="{SIDE_COLOUR}" stroke-width="2"/>',
        _svg_label(_sign(circle)),
    ]


def _svg_label(label: Label) -> str:
    look = {"bold": ' font-weight="bold"', "italic": ' font-style="italic"'}.get(label.style, "")
    return (
        f'<text x="{label.x:.1f}" y="{label.y + label.size * 0.35:.1f}" '
        f'font-size="{label.size:.0f}" text-anchor="{label.anchor}" fill="{_colour(label)}"'
        f"{look}>{escape(label.text)}</text>"
    )


# ------------------------------------------------------------------ PNG


def figure(drawing: Drawing) -> Figure:
    """A drawing as a figure of Matplotlib, as large as the SVG."""
    figure = Figure(figsize=(drawing.width / 96, drawing.height / 96), facecolor=WHITE)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height, 0)
    axes.axis("off")
    for order, item in enumerate(drawing.shown, start=2):
        if isinstance(item, Box):
            corner = item.x - item.width / 2, item.y
            shape = "round,pad=0,rounding_size=6"
            axes.add_patch(
                FancyBboxPatch(
                    corner,
                    item.width,
                    item.height,
                    shape,
                    fc=FILLS[item.role],
                    ec=MUTED,
                    lw=0.8,
                    zorder=order,
                )
            )
            for label in _box_labels(item):
                _write(axes, label, order)
        elif isinstance(item, Line):
            _arrow(axes, item, order)
        elif isinstance(item, Circle):
            colour = MUTED if not item.sign else WHITE
            radius, edge = (CIRCLE, SIDE_COLOUR) if item.sign else (3, MUTED)
            axes.add_patch(Disc((item.x, item.y), radius, fc=colour, ec=edge, lw=1.5, zorder=order))
            if item.sign:
                _write(axes, _sign(item), order)
        else:
            _write(axes, item, order)
    return figure


def _arrow(axes: Axes, line: Line, order: int) -> None:
    colour, width = (SIDE_COLOUR, 1.7) if line.side else (MUTED, 1.2)
    if len(line.points) > 2 or not line.head:
        across, down = zip(*line.points, strict=True)
        axes.plot(across, down, color=colour, lw=width, zorder=order, solid_capstyle="butt")
    if line.head:
        axes.add_patch(
            FancyArrowPatch(
                *line.points[-2:],
                arrowstyle="-|>,head_length=0.5,head_width=0.25",
                color=colour,
                mutation_scale=9,
                lw=width,
                shrinkA=0,
                shrinkB=0,
                zorder=order,
            )
        )


def _write(axes: Axes, label: Label, order: int) -> None:
    axes.text(
        label.x,
        label.y,
        label.text,
        ha={"start": "left", "middle": "center", "end": "right"}[label.anchor],
        va="center_baseline",
        fontsize=label.size * PIXEL,
        color=_colour(label),
        fontweight="bold" if label.style == "bold" else "normal",
        fontstyle="italic" if label.style == "italic" else "normal",
        parse_math=False,
        zorder=order,
    )


# ------------------------------------------------------------------ both


def _box_labels(box: Box) -> list[Label]:
    first = box.y + box.height / 2 - LINE * (len(box.lines) - 1) / 2
    return [
        Label(box.x, first + LINE * number, text, "middle", FONT, "ink")
        for number, text in enumerate(box.lines)
    ]


def _sign(circle: Circle) -> Label:
    return Label(circle.x, circle.y, circle.sign, "middle", 18, "ink")


def _colour(label: Label) -> str:
    return {"muted": MUTED, "side": SIDE_COLOUR}.get(label.style, INK)

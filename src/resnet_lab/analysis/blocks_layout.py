"""Where the boxes, arrows and texts of a drawing stand; neither torch nor matplotlib.

A piece of a drawing stands around its own x = 0, which data enters at the top and leaves at the
bottom.
"""

from collections.abc import Sequence
from dataclasses import replace

from resnet_lab.analysis.blocks_shapes import (
    CIRCLE,
    FONT,
    LINE,
    SMALL,
    TITLE,
    Box,
    Circle,
    Drawing,
    Label,
    Line,
    Piece,
    moved,
    text_width,
)
from resnet_lab.analysis.blocks_steps import (
    Chain,
    Chunk,
    Fork,
    Outline,
    Run,
    Section,
    Shape,
    Step,
    section_name,
    shape_text,
)
from resnet_lab.analysis.blocks_text import block_name, spaced
from resnet_lab.files import printable
from resnet_lab.language import Translate

GAP = 30.0  # length of an arrow
MARGIN = 18.0
SIDE = 26.0  # from the branch to the shortcut
BOX = 150.0  # least width
TIMES = "\N{MULTIPLICATION SIGN}"
WIDEST = 46  # characters of a line in a box

KOREAN = {
    "{module}, {place}, one of {count} · {params} parameters": (
        "{module}, {place} (모두 {count}개) · 파라미터 {params}개"
    ),
    "{module}, {place} · {params} parameters": "{module}, {place} · 파라미터 {params}개",
    "{net}: {params} parameters": "{net}: 파라미터 {params}개",
    "{params} parameters": "파라미터 {params}개",
}


# ------------------------------------------------------------------ steps


def _box(lines: Sequence[str], role: str, least: float) -> Piece:
    width = max(least, _box_width(lines))
    height = LINE * len(lines) + 13
    piece = Piece(height)
    piece.add(Box(0, 0, width, height, role, tuple(lines)))
    return piece


def _box_width(lines: Sequence[str]) -> float:
    return max([BOX, *(text_width(line, FONT) + 20 for line in lines)])


def _step_lines(step: Step, say: Translate) -> list[str]:
    inside = [f"{'→ ' if i else ''}{s.said(say)}" for i, s in enumerate(step.inside)]
    return [step.said(say), *inside]


def _chain(
    chain: Chain, shape: Shape, say: Translate, named: bool = True, whole: bool = False
) -> Piece:
    """Steps below each other, an arrow ahead of each, the shape beside it.

    Args:
        shape: of what enters.
        named: whether the first arrow has the shape, too.
        whole: it is a whole block, and not a path in it.
    """
    piece = Piece()
    steps = [item for item in chain if isinstance(item, Step)]
    width = max((_box_width(_step_lines(step, say)) for step in steps), default=BOX)
    for number, item in enumerate(chain):
        joined = isinstance(item, Fork)
        if isinstance(item, Step):
            inner = _box(_step_lines(item, say), item.role, width)
        else:
            inner = _fork(item, shape, say, of_input=whole and number == 0)
        piece.add(Line(((0, piece.height), (0, piece.height + GAP)), head=not joined))
        if number or named:
            piece.add(Label(9, piece.height + GAP / 2, shape_text(shape)))
        piece.put(inner, 0, piece.height + GAP)
        piece.height += GAP + inner.height
        shape = item.output
    return piece


SIGNS = {"add": "+", "multiply": TIMES, "concatenate": "‖"}


def _fork(fork: Fork, shape: Shape, say: Translate, of_input: bool = False) -> Piece:
    """The first path straight down, the others at its right side, all into one circle.

    Args:
        of_input: it forks what the block sees, which is called x.
    """
    branch = _chain(fork.paths[0], shape, say, named=False)
    sides = [_chain(path, shape, say, named=False) for path in fork.paths[1:]]
    tallest = max([branch.height, *(side.height for side in sides)])
    piece = Piece(tallest + GAP + 2 * CIRCLE)
    piece.put(branch, 0, 0)
    middle = tallest + GAP + CIRCLE  # of the circle
    piece.add(Line(((0, branch.height), (0, middle - CIRCLE))))
    output = fork.paths[0][-1].output if fork.paths[0] else shape
    piece.add(Label(9, middle - CIRCLE - GAP / 2, shape_text(output)))
    residual = of_input and fork.join == "add" and len(fork.paths) == 2
    if residual:
        piece.add(Label(-9, middle - CIRCLE - GAP / 2, "F(x)", "end", FONT, "italic"))
        if not fork.paths[1]:
            piece.add(Label(-CIRCLE - 8, middle, "F(x) + x", "end", FONT, "italic"))
    for path, side in zip(fork.paths[1:], sides, strict=True):
        x = piece.right + SIDE + side.left
        if residual:
            piece.add(Label(x + 8, 14, say("shortcut"), style="side"))
        if not path:
            piece.add(Line(((0, 0), (x, 0), (x, middle), (CIRCLE, middle)), side=True))
            piece.add(Label(x + 8, middle / 2, say("identity"), size=FONT, style="side"))
            continue
        top = (middle - side.height) / 2
        piece.add(Line(((0, 0), (x, 0), (x, top)), head=False, side=True))
        piece.put(_aside(side), x, top)
        bottom = top + side.height
        piece.add(Line(((x, bottom), (x, middle), (CIRCLE, middle)), side=True))
        piece.add(Label(x + 9, bottom + GAP / 2, shape_text(path[-1].output)))
    piece.add(Circle(0, 0, ""), Circle(0, middle, SIGNS.get(fork.join, fork.join)))
    return piece


def _aside(piece: Piece) -> Piece:
    """Its lines in the colour of a shortcut."""
    shown = [replace(item, side=True) if isinstance(item, Line) else item for item in piece.shown]
    return replace(piece, shown=shown)


# ------------------------------------------------------------------ whole pictures


def chunk(of: Chunk, title: str, below: str, say: Translate) -> Drawing:
    """A block, the stem or the head, with the shape at every arrow."""
    piece = Piece()
    block = bool(of.module)
    x = "x  " if block else ""
    piece.add(Label(0, 8, f"{x}{shape_text(of.input)}", "middle", FONT, "ink"))
    inner = _chain(of.chain, of.input, say, named=False, whole=block)
    piece.put(inner, 0, 18)
    end = 18 + inner.height
    piece.add(Line(((0, end), (0, end + GAP))))
    piece.add(Label(0, end + GAP + 11, shape_text(of.output), "middle", FONT, "ink"))
    piece.height = end + GAP + 20
    return _framed(piece, title, below)


def _framed(piece: Piece, title: str, below: str = "") -> Drawing:
    head = TITLE + 14 + (SMALL + 7 if below else 0)
    wide = max(text_width(title, TITLE * 1.06), text_width(below, SMALL))
    width = max(piece.left + piece.right, wide) + 2 * MARGIN
    start = MARGIN + (width - 2 * MARGIN - piece.left - piece.right) / 2 + piece.left
    shown = [moved(item, start, MARGIN + head) for item in piece.shown]
    titles = [Label(MARGIN, MARGIN + 5, title, size=TITLE, style="bold")]
    if below:
        titles.append(Label(MARGIN, MARGIN + TITLE + 11, below))
    return Drawing(title, width, piece.height + head + 2 * MARGIN, (*titles, *shown))


def net(outline: Outline, say: Translate) -> Drawing:
    """The whole net: a frame for each section, its blocks and layers in it."""
    bodies = [_section(section, say) for section in outline.sections]
    half = max(max(body.left, body.right) for body in bodies) + 12
    piece = Piece()
    shape = outline.sections[0].input
    piece.add(Label(0, 8, f"{say('image')} {shape_text(shape)}", "middle", FONT, "ink"))
    piece.height = 18.0
    for section, body in zip(outline.sections, bodies, strict=True):
        top = piece.height + GAP
        piece.add(Line(((0, piece.height), (0, top))))
        if section is not outline.sections[0]:
            piece.add(Label(9, piece.height + GAP / 2, shape_text(section.input)))
        height = body.height + 34
        piece.add(Box(0, top, 2 * half, height, "frame"))
        name = section_name(section.name, say)
        piece.add(Label(10 - half, top + 14, name, size=FONT, style="bold"))
        params = say("{params} parameters", params=f"{section.params:,}")
        piece.add(Label(half - 10, top + 14, params, "end"))
        piece.put(body, 0, top + 24)
        piece.height = top + height
    piece.add(Line(((0, piece.height), (0, piece.height + GAP))))
    last = shape_text(outline.sections[-1].output)
    piece.add(Label(0, piece.height + GAP + 11, last, "middle", FONT, "ink"))
    piece.height += GAP + 20
    params = f"{outline.params:,}"
    return _framed(
        piece, say("{net}: {params} parameters", net=printable(outline.label), params=params)
    )


def _section(section: Section, say: Translate) -> Piece:
    """The boxes of a section; as wide as its title line needs at least."""
    boxes = [
        _box([_run_text(member, say)], "block", 190)
        if isinstance(member, Run)
        else _box(_chunk_lines(member, say), "layers", 190)
        for member in section.members
    ]
    piece = Piece()
    for number, box in enumerate(boxes):
        if number:
            piece.add(Line(((0, piece.height), (0, piece.height + 16))))
            piece.height += 16
        piece.put(box, 0, piece.height)
        piece.height += box.height
    params = say("{params} parameters", params=f"{section.params:,}")
    title = text_width(section_name(section.name, say), FONT) + text_width(params, SMALL)
    piece.left = piece.right = max(piece.left, piece.right, title / 2 + 10)
    return piece


def _run_text(run: Run, say: Translate) -> str:
    times = f" {TIMES} {run.times}" if run.times > 1 else ""
    return f"{block_name(run.kind, say)} ({printable(run.kind.example.module)}){times}"


def _chunk_lines(of: Chunk, say: Translate) -> list[str]:
    """A line for each convolution, pool or linear layer, with the norm and activation after it."""
    found: list[list[str]] = []
    for item in of.chain:
        text = item.said(say) if isinstance(item, Step) else SIGNS.get(item.join, item.join)
        starts = not isinstance(item, Step) or item.role not in ("norm", "activation")
        if starts or not found or text_width(" · ".join([*found[-1], text]), 1) > WIDEST:
            found.append([])
        found[-1].append(text)
    return [" · ".join(line) for line in found]


def drawings(outline: Outline, say: Translate) -> dict[str, Drawing]:
    """All pictures of a net by their names: net, block-1, ..., stem, head."""
    label = printable(outline.label)
    found = {"net": net(outline, say)}
    for kind in outline.kinds:
        below = say(
            "{module}, {place}, one of {count} · {params} parameters"
            if len(kind.places) > 1
            else "{module}, {place} · {params} parameters",
            module=printable(kind.example.module),
            place=kind.example.name,
            count=len(kind.places),
            params=f"{kind.example.params:,}",
        )
        title = f"{label}, {block_name(kind, say)}"
        found[f"block-{kind.number}"] = chunk(kind.example, title, below, say)
    for of in outline.chunks():
        name, number = of.name, 2
        while name in found:
            name, number = f"{of.name}-{number}", number + 1
        below = say("{params} parameters", params=f"{of.params:,}")
        found[name] = chunk(of, f"{label}, {section_name(spaced(of.name), say)}", below, say)
    return found

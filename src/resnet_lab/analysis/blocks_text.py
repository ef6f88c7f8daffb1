"""A net's outline as text: every step, and the shape wherever it changes; no torch."""

from collections import Counter
from collections.abc import Iterator, Sequence

from resnet_lab.analysis.blocks_steps import (
    Chain,
    Fork,
    Kind,
    Outline,
    Run,
    Section,
    Shape,
    Step,
    section_name,
    shape_text,
)
from resnet_lab.files import printable
from resnet_lab.language import Translate

ARROW = " -> "
INDENT = 2
KOREAN = {
    "{label}: {params} parameters": "{label}: 파라미터 {params}개",
    "block {number}": "블록 {number}",
    "{block}, {module}: once, {place}": "{block}, {module}: 1번, {place}",
    "{block}, {module}: {count} times, in {places}; shown: {place}": (
        "{block}, {module}: 모두 {count}번, {places}; 아래는 {place}"
    ),
    "{stage} ({count})": "{stage} ({count}번)",
    "before": "앞",
    "branch": "잔차 가지",
    "shortcut": "숏컷",
    "path {number}": "경로 {number}",
    "after": "뒤",
    "layers": "층",
}

# Of a path of steps: how deep it stands, its name, the parts between the arrows.
Line = tuple[int, str, list[str]]


def lines(outline: Outline, say: Translate, width: int) -> list[str]:
    """The text of a net: its sections, and every kind of block.

    Args:
        width: of the screen; longer lines go on below, at an arrow.
    """
    params = f"{outline.params:,}"
    found = [say("{label}: {params} parameters", label=printable(outline.label), params=params)]
    rows: list[Line] = [(0, say("image"), [shape_text(outline.sections[0].input)])]
    for section in outline.sections:
        rows += _section_lines(section, say)
    found += ["", *_table(rows, width)]
    for kind in outline.kinds:
        found += ["", block_title(kind, say)]
        rows = list(_chain_lines(kind.example.chain, kind.example.input, 1, say))
        found += _table(rows, width)
    return found


def block_name(kind: Kind, say: Translate) -> str:
    return say("block {number}", number=kind.number)


def block_title(kind: Kind, say: Translate) -> str:
    """ "block 1, BasicBlock: 5 times, in stage 1 (3), stage 2 (2); shown: stage1.1"."""
    by_stage = Counter(place.partition(".")[0] for place in kind.places)
    places = [(section_name(spaced(stage), say), count) for stage, count in by_stage.items()]
    once = len(kind.places) == 1
    return say(
        "{block}, {module}: once, {place}"
        if once
        else "{block}, {module}: {count} times, in {places}; shown: {place}",
        block=block_name(kind, say),
        module=printable(kind.example.module),
        count=len(kind.places),
        places=", ".join(say("{stage} ({count})", stage=s, count=n) for s, n in places),
        place=kind.example.name,
    )


def spaced(stage: str) -> str:
    """ "stage2" -> "stage 2"."""
    return f"stage {stage.removeprefix('stage')}" if stage.startswith("stage") else stage


def _section_lines(section: Section, say: Translate) -> list[Line]:
    parts, nested = [shape_text(section.input)], []
    for member in section.members:
        if isinstance(member, Run):
            times = f" x {member.times}" if member.times > 1 else ""
            parts.append(f"{block_name(member.kind, say)}{times}")
            continue
        if any(isinstance(item, Fork) for item in member.chain):
            nested += list(_chain_lines(member.chain, member.input, 1, say))
            parts.append("...")
            continue
        if parts[-1] != shape_text(member.input):
            parts.append(shape_text(member.input))
        parts += _parts(_steps(member.chain), member.input, say)[1:]
    if parts[-1] != shape_text(section.output):
        parts.append(shape_text(section.output))
    return [(0, section_name(section.name, say), parts), *nested]


def _steps(chain: Chain) -> list[Step]:
    return [item for item in chain if isinstance(item, Step)]


def _parts(steps: Sequence[Step], shape: Shape, say: Translate) -> list[str]:
    """Steps, and the shape at their start and wherever it changes."""
    parts = [shape_text(shape)]
    for step in steps:
        inside = ARROW.join(inner.said(say) for inner in step.inside)
        parts.append(step.said(say) + (f" ({inside})" if inside else ""))
        if step.output != shape:
            shape = step.output
            parts.append(shape_text(shape))
    return parts


def _chain_lines(chain: Chain, shape: Shape, depth: int, say: Translate) -> Iterator[Line]:
    forks = [i for i, item in enumerate(chain) if isinstance(item, Fork)]
    start = 0
    for number, place in enumerate([*forks, len(chain)]):
        steps = _steps(chain[start:place])
        last = place == len(chain)
        if steps or not forks:
            name = "layers" if not forks else "after" if number else "before"
            parts = _parts(steps, shape, say)
            shape = steps[-1].output if steps else shape
            if last and parts[-1] != shape_text(shape):
                parts.append(shape_text(shape))
            yield depth, say(name), parts
        if not last:
            fork = chain[place]
            assert isinstance(fork, Fork)
            yield from _fork_lines(fork, shape, depth, say)
            shape, start = fork.output, place + 1


def _fork_lines(fork: Fork, shape: Shape, depth: int, say: Translate) -> Iterator[Line]:
    two = len(fork.paths) == 2 and fork.join == "add"
    for number, path in enumerate(fork.paths):
        name = say("shortcut" if number else "branch") if two else None
        name = name or say("path {number}", number=number + 1)
        if any(isinstance(item, Fork) for item in path):
            yield depth, name, []
            yield from _chain_lines(path, shape, depth + 1, say)
            yield depth + 1, "", [say(fork.join)]
            continue
        parts = _parts(_steps(path), shape, say) if path else [shape_text(shape), say("identity")]
        yield depth, name, [*parts, say(fork.join)]


def _table(rows: Sequence[Line], width: int) -> list[str]:
    """Names in a column, and parts with arrows, which go on below where the line is full."""
    column = max(INDENT * depth + display_width(name) for depth, name, _ in rows) + 2
    found = []
    for depth, name, parts in rows:
        head = " " * INDENT * depth + name
        line = head + " " * (column - display_width(head))
        for number, part in enumerate(parts):
            text = part if number == 0 else f"{ARROW}{part}"
            if number and display_width(line + text) > width:
                found.append(line)
                line = " " * column + text.lstrip()
            else:
                line += text
        found.append(line.rstrip())
    return found


def display_width(text: str) -> int:
    """Columns on a screen: a Hangul syllable takes two."""
    return sum(2 if ord(character) >= 0x1100 else 1 for character in text)

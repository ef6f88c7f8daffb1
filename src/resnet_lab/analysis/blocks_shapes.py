"""The shapes that a drawing is made of: boxes, arrows, circles, texts.

Lengths are in pixels, y goes down.
"""

from dataclasses import dataclass, field, replace

FONT, SMALL, TITLE = 13.0, 11.0, 14.0  # heights of letters
LINE = 17.0  # from line to line in a box
CIRCLE = 11.0  # radius


@dataclass(frozen=True)
class Box:
    x: float  # of its middle
    y: float  # of its upper edge
    width: float
    height: float
    role: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """An arrow along points, or a line where `head` is False; `side`: of a shortcut."""

    points: tuple[tuple[float, float], ...]
    head: bool = True
    side: bool = False


@dataclass(frozen=True)
class Circle:
    x: float
    y: float
    sign: str  # "" is a dot


@dataclass(frozen=True)
class Label:
    x: float
    y: float  # of the middle of its height
    text: str
    anchor: str = "start"  # start | middle | end
    size: float = SMALL
    style: str = "muted"  # muted | ink | bold | italic | side


Shown = Box | Line | Circle | Label


@dataclass
class Piece:
    """Shapes around x = 0, from y = 0 to `height`, and how far they reach to both sides."""

    height: float = 0.0
    left: float = 0.0
    right: float = 0.0
    shown: list[Shown] = field(default_factory=list)

    def add(self, *shown: Shown) -> None:
        for item in shown:
            self.shown.append(item)
            left, right = reach(item)
            self.left, self.right = max(self.left, -left), max(self.right, right)

    def put(self, piece: "Piece", x: float, y: float) -> None:
        """Another piece, its own x = 0 and y = 0 at this place."""
        self.add(*(moved(item, x, y) for item in piece.shown))


@dataclass(frozen=True)
class Drawing:
    """A whole picture: `title` says what it is of; `shown` lies in width x height."""

    title: str
    width: float
    height: float
    shown: tuple[Shown, ...]


def text_width(text: str, size: float) -> float:
    """About as wide as `text` is; fonts differ."""
    return size * sum(1.0 if ord(character) >= 0x1100 else 0.6 for character in text)


def reach(item: Shown) -> tuple[float, float]:
    if isinstance(item, Box):
        return item.x - item.width / 2, item.x + item.width / 2
    if isinstance(item, Circle):
        return item.x - CIRCLE, item.x + CIRCLE
    if isinstance(item, Line):
        across = [x for x, _ in item.points]
        return min(across) - 4, max(across) + 4
    width = text_width(item.text, item.size)
    before = {"start": 0.0, "middle": width / 2, "end": width}[item.anchor]
    return item.x - before, item.x - before + width


def moved(item: Shown, x: float, y: float) -> Shown:
    if isinstance(item, Line):
        return replace(item, points=tuple((px + x, py + y) for px, py in item.points))
    return replace(item, x=item.x + x, y=item.y + y)

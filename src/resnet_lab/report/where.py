"""Which runs are meant: `val/acc > 0.8 and model == resnet20`, read by a small parser of our own.

    condition   comparisons joined by and, or, not and parentheses
    comparison  NAME == VALUE, also != < <= > >=; NAME ~ TEXT (contains, in any case of letters);
                NAME in [VALUE, VALUE]
    NAME        a column of `row.row`, a value of result.json, a group of the config, or a
                dotted key of it
    VALUE       a number, true, false, null, or a text, in quotes where it has blanks or signs

What a run does not have makes a comparison false, but for `NAME == null`, which asks for that.
"""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.report.row import COLUMNS, columns_of_config, of_config, row, typed_value
from resnet_lab.report.runs import Run

Get = Callable[[str], Any]  # the value of a name in one run, None where it has none
Condition = Callable[[Get], bool]

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    **{"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
}
_COMPARES = (*_ORDER, "==", "=", "!=", "~", "in")
_TOKEN = re.compile(
    r"""\s*(?: (?P<quoted> "[^"]*" | '[^']*' )
             | (?P<sign> == | != | <= | >= | [<>=~()\[\],] )
             | (?P<word> [^\s()\[\],=!<>~'"]+ ) )""",
    re.VERBOSE,
)
_EXAMPLE = "such as 'val/acc>0.8 and model==resnet20'"
DEEPEST = 50  # parentheses within each other


@dataclass(frozen=True)
class Where:
    """A condition on runs.

    Attributes:
        names: those that it asks for.
        holds: whether a run, by its values, meets it.
    """

    names: tuple[str, ...]
    holds: Condition


def parse(text: str) -> Where:
    """Read a condition.

    Raises:
        UserError: it cannot be read.
    """
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.names, self.depth = text, list[str](), 0
        self.tokens: list[tuple[str, str]] = []  # kind (quoted, sign or word) and text
        at, end = 0, len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._error(f"{text[at:].strip()[:20]!r} is not understood")
            kind = match.lastgroup or ""
            self.tokens.append((kind, match[kind][1:-1] if kind == "quoted" else match[kind]))
            at = match.end()

    def parse(self) -> Where:
        if not self.tokens:
            raise self._error("it is empty")
        condition = self._either()
        if self.tokens:
            raise self._error(f"{self.tokens[0][1]!r} is too much; join comparisons by and or or")
        return Where(tuple(dict.fromkeys(self.names)), condition)

    def _either(self) -> Condition:
        parts = [self._both()]
        while self._takes("word", "or"):
            parts.append(self._both())
        return lambda get: any(part(get) for part in parts)

    def _both(self) -> Condition:
        parts = [self._one()]
        while self._takes("word", "and"):
            parts.append(self._one())
        return lambda get: all(part(get) for part in parts)

    def _one(self) -> Condition:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._error("it is nested too deeply")
        try:
            if self._takes("word", "not"):
                inner = self._one()
                return lambda get: not inner(get)
            if self._takes("sign", "("):
                inner = self._either()
                if not self._takes("sign", ")"):
                    raise self._error("a ) is missing")
                return inner
            return self._comparison()
        finally:
            self.depth -= 1

    def _comparison(self) -> Condition:
        name = self._next("a column")
        sign = self.tokens.pop(0)[1] if self.tokens and self.tokens[0][0] != "quoted" else ""
        if sign not in _COMPARES:
            raise self._error(f"behind {name} one of {' '.join(_COMPARES)} is missing")
        self.names.append(name)
        if sign == "in":
            values = self._list()
            return lambda get: any(_equal(get(name), value) for value in values)
        value = self._value()
        return lambda get: _compare(get(name), sign, value)

    def _list(self) -> list[Any]:
        closing = "]" if self._takes("sign", "[") else ")" if self._takes("sign", "(") else ""
        values = [self._value()]
        while self._takes("sign", ","):
            values.append(self._value())
        if closing and not self._takes("sign", closing):
            raise self._error(f"a {closing} is missing")
        return values

    def _value(self) -> Any:
        quoted = bool(self.tokens) and self.tokens[0][0] == "quoted"
        text = self._next("a value")
        return text if quoted else typed_value(text)

    def _next(self, what: str) -> str:
        if not self.tokens or self.tokens[0][0] == "sign":
            there = f"before {self.tokens[0][1]!r}" if self.tokens else "at the end"
            raise self._error(f"{what} is missing {there}")
        return self.tokens.pop(0)[1]

    def _takes(self, kind: str, text: str) -> bool:
        found = bool(self.tokens) and self.tokens[0] == (kind, text)
        if found:
            self.tokens.pop(0)
        return found

    def _error(self, fault: str) -> UserError:
        return UserError(
            f"--where {printable(self.text)!r} cannot be read: {printable(fault)}. Write a "
            f"condition {_EXAMPLE}."
        )


def _compare(cell: Any, sign: str, value: Any) -> bool:
    if value is None and sign in ("==", "=", "!="):
        return (cell is None) == (sign != "!=")
    if cell is None or value is None:
        return False
    if sign == "~":
        texts = cell if isinstance(cell, list) else [cell]
        return any(str(value).casefold() in str(text).casefold() for text in texts)
    if sign in ("==", "="):
        return _equal(cell, value)
    if sign == "!=":
        return not _equal(cell, value)
    if _is_number(cell) and _is_number(value):
        return _ORDER[sign](cell, value)
    if isinstance(cell, str) and not isinstance(value, bool):  # a date in ISO 8601, or a name
        return _ORDER[sign](cell, str(value))
    return False


def _equal(cell: Any, value: Any) -> bool:
    if cell is None or value is None:
        return cell is value
    if isinstance(cell, list):
        return any(_equal(one, value) for one in cell)
    if _is_number(cell) and _is_number(value):
        return bool(cell == value)
    if isinstance(cell, str) and _is_number(value):  # precision is "32"
        return bool(typed_value(cell) == value)
    if isinstance(cell, bool) or isinstance(value, bool):
        return cell is value
    return str(cell) == str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ------------------------------------------------------------------ runs


def getter(run: Run) -> Get:
    """What a run has under a name; its files are opened only for what is asked."""
    cells = row(run, Path.cwd())

    def get(name: str) -> Any:
        if name == "size" and cells["size"] is None:
            cells["size"] = row(run, Path.cwd(), size=True)["size"]
        if name in cells:
            return cells[name]
        found = run.result.get(name)
        if found is not None:
            return found if isinstance(found, str | int | float) else None
        return of_config(run, name)

    return get


def select(runs: Sequence[Run], text: str | None) -> list[Run]:
    """The runs that meet a condition; all of them where there is none.

    Raises:
        UserError: it cannot be read, or asks for what no run has.
    """
    if text is None:
        return list(runs)
    where = parse(text)
    check_names(runs, where.names)
    return [run for run in runs if where.holds(getter(run))]


def check_names(runs: Sequence[Run], names: Iterable[str]) -> None:
    """Raise UserError for a name that no run has, with those that are nearest."""
    unknown = [name for name in names if name not in COLUMNS]
    for run in runs:
        unknown = [n for n in unknown if n not in run.result and of_config(run, n) is None]
        if not unknown:
            return
    known: set[str] = set()
    for run in runs:
        known |= {*columns_of_config(run), *run.result}
    for name in unknown:  # a key may be there and null
        if name not in known and runs:
            raise UserError(f"{printable(name)}: no run has such a column. {_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    choices = [*COLUMNS, *sorted(set(known) - set(COLUMNS))]
    ends = [choice for choice in choices if choice.endswith((f".{name}", f"/{name}"))]
    close = ends or difflib.get_close_matches(name, choices, 4, 0.5)
    if close:
        return f"Did you mean {', '.join(close[:4])}?"
    return f"Columns are {', '.join(COLUMNS)}, and every key of a config."

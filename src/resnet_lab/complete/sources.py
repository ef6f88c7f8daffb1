"""What a command takes, as its source in commands/ says: nothing is imported."""

import ast
import functools
from dataclasses import dataclass, field
from pathlib import Path

COMMANDS = Path(__file__).parents[1] / "commands"


@dataclass
class Arguments:
    """What a command takes.

    Attributes:
        options: each with its values, or "path" where it is followed by one, or None for no value.
        positional: what its arguments without a dash are, in their order, the last repeated:
            "run", "path", "" or their values.
        settings: whether it takes key=value.
    """

    options: dict[str, tuple[str, ...] | str | None] = field(default_factory=dict)
    positional: list[tuple[str, ...] | str] = field(default_factory=list)
    settings: bool = False


@functools.cache
def commands() -> dict[str, Path]:
    """The file of every command, by its name."""
    return {path.stem.replace("_", "-"): path for path in sorted(COMMANDS.glob("[!_]*.py"))}


def summary(path: Path) -> str:
    line = (ast.get_docstring(_source(path)) or "").partition("\n")[0]
    return line[:1].lower() + line[1:].rstrip(".")


@functools.cache
def _source(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def arguments(path: Path) -> Arguments:
    """What the source of a command says that it takes; what argparse adds is known."""
    found = Arguments({"--help": None})
    _collect(_source(path), "add", found)
    return found


def _collect(source: ast.Module, function: str, found: Arguments) -> None:
    shared = _source(COMMANDS / "__init__.py")
    body = next(n for n in source.body if isinstance(n, ast.FunctionDef) and n.name == function)
    calls = [node for node in ast.walk(body) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        name = getattr(call.func, "attr", None) or getattr(call.func, "id", "")
        if name in ("add_run", "add_overrides"):
            found.settings |= name == "add_overrides"
            _collect(shared, name, found)
        elif name == "add_argument":
            _add(call, found)


def _add(call: ast.Call, found: Arguments) -> None:
    names = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    given = {word.arg: word.value for word in call.keywords}
    metavar = getattr(given.get("metavar"), "value", "")
    path = metavar in ("FILE", "FOLDER", "PATH", "IMAGE", "DIR") or (
        getattr(given.get("type"), "id", "") == "Path"
    )
    action = given.get("action")
    values: tuple[str, ...] | str = "path" if path else ""
    if isinstance(given.get("choices"), ast.List | ast.Tuple):
        values = tuple(ast.literal_eval(given["choices"]))
    if not str(names[0]).startswith("-"):
        found.positional.append("run" if metavar == "RUN_DIR" else values)
        return
    flag = isinstance(action, ast.Constant) and str(action.value).startswith("store_")
    if isinstance(action, ast.Attribute):  # argparse.BooleanOptionalAction
        flag = True
        names.append(f"--no-{str(names[0]).removeprefix('--')}")
    found.options |= {str(name): None if flag else values for name in names}

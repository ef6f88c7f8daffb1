"""What a word of a command line may become."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from resnet_lab.complete.sources import Arguments, arguments, commands, summary
from resnet_lab.config import options
from resnet_lab.config.words import TRUNKS

Found = Iterator[tuple[str, str]]  # words, and what each means ("": nothing is said)

HYDRA_OPTIONS: dict[str, tuple[str, ...]] = {  # of train.py, and their values
    "--help": (),
    "--hydra-help": (),
    "--version": (),
    "--cfg": ("job", "hydra", "all"),
    "--resolve": (),
    "--package": (),
    "--run": (),
    "--multirun": (),
    "-m": (),
    "--shell-completion": (),
    "--config-path": (),
    "--config-name": (),
    "--config-dir": (),
    "--experimental-rerun": (),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
FOLDERS = ("data.root", "data.cache_dir", "hydra.run.dir", "hydra.sweep.dir", "model.weights")


def complete(words: Sequence[str], current: str) -> Found:
    """Everything that a word may become.

    Args:
        words: those before it, the program first.
        current: its beginning.
    """
    kind, rest = _program(words)
    if kind == "train":
        found = _setting(rest, current, HYDRA_OPTIONS, rest[-1:])
    elif kind == "" and not rest:
        found = ((name, summary(path)) for name, path in commands().items())
    elif kind == "" and rest[0] == "train":
        found = _setting(rest[1:], current, HYDRA_OPTIONS, rest[-1:])
    elif kind == "" and rest[0] in commands():
        found = _of_command(commands()[rest[0]], rest[1:], current)
    else:
        return
    seen: set[str] = set()
    for word, meaning in found:
        new = word.removesuffix("/") not in seen  # a run is no folder to look into as well
        if word.startswith(current) and new and word.isprintable():
            seen.add(word)
            yield word, meaning


def _program(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Whether it is train.py ("train") or resnet-lab (""), and its arguments; None: another one."""
    name = re.sub(r"\.exe$", "", os.path.basename(words[0])) if words else ""
    if re.fullmatch(r"python[\d.]*", name):
        if words[1:3] == ["-m", "resnet_lab.cli"]:
            return "", [*words[3:]]
        name, words = os.path.basename([*words, ""][1]), words[1:]
    if name == "train.py" and words:  # if it is one of ours
        folder = Path(words[0]).expanduser().resolve().parent
        if (folder / "hydra_plugins").is_dir():  # a project of `resnet-lab new`
            options.add_folder(folder / "conf")
        elif folder != options.APP:
            return None, []
        return "train", [*words[1:]]
    return ("" if name == "resnet-lab" else None), [*words[1:]]


# ------------------------------------------------------------------ commands


def _of_command(path: Path, rest: Sequence[str], current: str) -> Found:
    takes = arguments(path)
    values = takes.options.get(rest[-1]) if rest else None
    if values == "path":
        yield from _paths(current)
    elif values:
        yield from ((value, "") for value in values)
    elif current.startswith("-"):
        yield from ((name, "") for name in takes.options)
    else:
        given = [word for word in _without_options(rest, takes) if "=" not in word]
        kinds = [kind for kind in takes.positional if kind or not takes.settings]
        kind = kinds[min(len(given), len(kinds) - 1)] if kinds else ""
        if isinstance(kind, tuple):
            yield from ((value, "") for value in kind)
        elif kind == "run" and len(given) < len(kinds):
            yield from _runs()
            yield from _paths(current, folders=True)
        elif takes.settings:
            yield from _setting(rest, current, {}, ())
        else:
            yield from _runs()
            yield from _paths(current)


def _without_options(rest: Sequence[str], takes: Arguments) -> Iterator[str]:
    skip = False
    for word in rest:
        if not skip and not word.startswith("-"):
            yield word
        skip = word.startswith("-") and takes.options.get(word) is not None


# ------------------------------------------------------------------ key=value


def _setting(
    rest: Sequence[str],
    current: str,
    flags: Mapping[str, tuple[str, ...]],
    before: Sequence[str],
) -> Found:
    if before and flags.get(before[0]):
        yield from ((value, "") for value in flags[before[0]])
    elif before and before[0] in ("--config-dir", "--config-path"):
        yield from _paths(current)
    elif current.startswith("-"):
        yield from ((name, "") for name in flags)
    elif "=" in current:
        key, _, value = current.partition("=")
        # Of a list or a sweep the last one is being typed: callbacks=[default,em
        start = value[: max(value.rfind(","), value.rfind("[")) + 1]
        for word, meaning in _values(key.lstrip("+"), value[len(start) :], rest):
            yield f"{key}={start}{word}", meaning
    else:
        sign = current[: len(current) - len(current.lstrip("+~"))]
        for word, meaning in _keys(current[len(sign) :], rest, deleted=sign == "~"):
            yield sign + (word.removesuffix("=") if sign == "~" else word), meaning


def _keys(current: str, rest: Sequence[str], deleted: bool) -> Found:
    for group, names in options.groups().items():
        if not group.startswith("hydra/") or current.startswith("hydra"):
            yield f"{group}=", f"one of {len(names)} files"
    known = options.keys(options.selection(rest))
    for name, key in known.items():
        section, _, below = name.partition(".")
        if "_target_" in name or (name.startswith("hydra.") and not current.startswith("hydra")):
            continue
        if below and "." not in current:
            yield f"{section}.", ""
        elif deleted or key.value or not any(other.startswith(f"{name}.") for other in known):
            yield f"{name}=", key.comment


def _values(key: str, current: str, rest: Sequence[str]) -> Found:
    if key in options.groups():
        for name in options.groups()[key]:
            yield name, options.read(f"{key}/{name}").summary
    elif key == "resume":
        yield from _runs()
        yield from _paths(current, folders=True)
    elif key == "model.trunk":
        yield from ((name, "") for name in TRUNKS)
        yield from _runs()
    elif key in FOLDERS:
        yield from _paths(current)
    elif (known := options.keys(options.selection(rest)).get(key)) is not None:
        yield from ((value, "") for value in values_of(known))


def values_of(key: options.Key) -> list[str]:
    """The values that a file of conf/ names for a key: its own, and those of "auto | cpu | gpu"."""
    default = key.value
    found = [default] if re.fullmatch(r"[\w.+-]+|\[[\w., -]*\]", default) else []
    if default in ("true", "false"):
        found += ["true", "false"]
    plain = re.sub(r"\([^)]*\)", "", key.comment)
    for clause in re.split(r"[;:]", plain):
        if " | " in clause:
            named = (part.strip(" .") for part in re.split(r"[|,]", clause))
            found += [part for part in named if re.fullmatch(r"[\w.-]+", part)]
    return list(dict.fromkeys(word.replace(" ", "") for word in found))


# ------------------------------------------------------------------ folders and files


def _runs() -> Found:
    """Runs and sweeps where they usually are."""
    for pattern in ("runs/*/*", "sweeps/*", "sweeps/*/*=*"):
        for path in sorted(Path("outputs").glob(pattern), reverse=True):
            if path.is_dir() and not path.name.startswith("."):
                yield path.as_posix(), ""


def _paths(current: str, folders: bool = False) -> Found:
    """Files, or not, and folders with "/"; hidden ones only if their dot is typed."""
    typed, name = os.path.split(current)
    try:
        with os.scandir(os.path.expanduser(typed) or ".") as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError:
        return
    for entry, is_folder in found:
        hidden = entry.startswith(".") and not name.startswith(".")
        if entry.startswith(name) and not hidden and (is_folder or not folders):
            yield os.path.join(typed, entry) + ("/" if is_folder else ""), ""

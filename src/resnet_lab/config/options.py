"""Every group, choice and key of the config files, read without composing anything.

For `--help`, for completion and to name what a wrong word may have meant: a tenth of a second,
without Hydra. The files are read by the line, which their plain form allows.
"""

import functools
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# conf/ and train.py: of the checkout, or as they were shipped with the package.
APP = PACKAGE / "app" if (PACKAGE / "app").is_dir() else PACKAGE.parents[1]
CONF = APP / "conf"

_added: list[Path] = []  # folders of configs besides CONF and those of projects

HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
_KEY = re.compile(r"( *)([\w+.-]+):(?: +(.*))?$")
_ENTRY = re.compile(r"- (override )?(/?)([\w/]+)(?:@[\w.]+)?(?:: *(.+))?$")
_ENDS = re.compile(r"(?<=[.?])(?<!al\.)\s+")  # of a sentence, but not in "He et al. 2015"


@dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
        value: as it is written in the file; "" for a mapping.
        comment: what the file says of it, "" where it says nothing.
    """

    value: str
    comment: str


@dataclass(frozen=True)
class ConfigFile:
    """What one file of conf/ holds.

    Attributes:
        header: the comment at its top, without its examples.
        package: where in the config its keys go: "optimizer"; "" for the top.
        entries: the lines of its defaults list: (overrides another choice, group, choices); a file
            of the same group has the group "".
        keys: by their dotted names, the package included.
    """

    header: str
    package: str
    entries: tuple[tuple[bool, str, tuple[str, ...]], ...]
    keys: Mapping[str, Key]

    @property
    def summary(self) -> str:
        """The first sentence of the header."""
        return _ENDS.split(self.header, maxsplit=1)[0]


def add_folder(folder: Path) -> None:
    """Read the configs of one more folder, such as that of --config-dir."""
    if folder not in _added:
        _added.append(folder)
        for function in (files, read, groups):
            function.cache_clear()


@functools.cache
def files() -> dict[str, Path]:
    """Every config file by its name, such as "optimizer/sgd"; of two, the one that Hydra takes.

    Those of a project (`resnet-lab new`) lie in conf/ beside its hydra_plugins/.
    """
    plugins = importlib.util.find_spec("hydra_plugins")
    places = (plugins and plugins.submodule_search_locations) or ()
    folders = [CONF, *_added, *(Path(place).absolute().parent / "conf" for place in places)]
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in reversed(folders)
        for path in sorted(folder.rglob("*.yaml"))
        if path.is_file()
    }


@functools.cache
def read(name: str) -> ConfigFile:
    """The file of a choice, by its name ("optimizer/sgd"), which must be one of `files`."""
    lines = files()[name].read_text("utf-8", "replace").splitlines()
    package = name.rpartition("/")[0].replace("/", ".")
    if lines and (named := re.match(r"# @package (\S+)", lines[0])):
        package = "" if named[1] == "_global_" else named[1]
        del lines[0]
    return ConfigFile(_header(lines), package, tuple(_entries(lines)), dict(_keys(lines, package)))


def _header(lines: Sequence[str]) -> str:
    words: list[str] = []
    for line in lines:
        if not line.startswith("# ") or line.startswith("#  "):  # indented: an example
            break
        words.append(line[2:].strip())
    return " ".join(words)


def _entries(lines: Sequence[str]) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
    inside = False
    for line in lines:
        if line and not line.startswith((" ", "#", "-")):
            inside = line.startswith("defaults:")
        elif inside and (entry := _ENTRY.match(line.partition(" #")[0].strip())):
            override, absolute, name, listed = entry.groups()
            if listed is None:  # a file of this group, or named from the top: /scheduler_options
                group, _, choice = name.rpartition("/")
                yield False, (group or "/") if absolute else "", (name if not absolute else choice,)
            else:
                yield bool(override), name, _listed(listed)


def _listed(text: str) -> tuple[str, ...]:
    words = re.findall(r"[\w/.-]+", text)
    return () if words == ["null"] else tuple(words)


def _keys(lines: Sequence[str], package: str) -> Iterator[tuple[str, Key]]:
    parents: list[tuple[int, str]] = []  # indentation and name of each mapping around the line
    above = ""  # a comment that stands on lines of its own
    for line in lines:
        if (comment := line.strip()).startswith("#"):
            above = f"{above} {comment.lstrip('# ')}".strip()
            continue
        if match := _KEY.match(line):
            indent, name, rest = len(match[1]), match[2], match[3] or ""
            value, comment = _parted(rest)
            while parents and parents[-1][0] >= indent:
                parents.pop()
            parents.append((indent, name))
            path = [name for _, name in parents]
            if path[0] != "defaults" and name != "_partial_":
                # What stands above is often a heading, but not where it lists values.
                comment = comment or (above if " | " in above else "")
                yield ".".join([*filter(None, [package]), *path]), Key(value, comment)
        above = ""


def _parted(rest: str) -> tuple[str, str]:
    """Value and comment of the rest of a line."""
    value, _, comment = f" {rest}".partition(" #")
    return value.strip(), comment.strip()


# ------------------------------------------------------------------ groups and choices


@functools.cache
def groups() -> dict[str, list[str]]:
    """The choices of every group: {"model": ["cifar_resnet", ...], "experiment": ["rsb/a1"]}."""
    names = sorted({name.partition("/")[0] for name in files() if "/" in name})
    names = [*(name for name in names if name != "hydra"), *HYDRA_GROUPS]
    return {name: choices_of(name) for name in names}


def choices_of(group: str) -> list[str]:
    """The choices of a group, those in its folders as "folder/name"."""
    return sorted(
        name.removeprefix(f"{group}/") for name in files() if name.startswith(f"{group}/")
    )


# ------------------------------------------------------------------ the keys of a config


def selection(overrides: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The choice of every group that a command line makes: {"model": ("resnet20",), ...}.

    Of a key with several values (a sweep) all; names that do not exist are left out.
    """
    typed: dict[str, tuple[str, ...]] = {}
    for word in overrides:
        group, given, value = word.lstrip("+").partition("=")
        if given and group in groups():
            names = (name.strip("[]'\" ") for name in value.split(","))
            known = tuple(name for name in names if name in groups()[group])
            if known or value in ("[]", "null"):
                typed[group] = known
    chosen = {group: names for _, group, names in read("train").entries if group}
    chosen |= {group: typed[group] for group in ("experiment",) if group in typed}
    # What an experiment overrides holds unless the command line gives it.
    for file in _walk("experiment", chosen.get("experiment", ()), set()):
        chosen |= {group.lstrip("/"): names for override, group, names in file.entries if override}
    return chosen | typed


def keys(chosen: Mapping[str, Sequence[str]]) -> dict[str, Key]:
    """The keys of the config of these choices (`selection`), in its order."""
    found: dict[str, Key] = dict(read("train").keys)
    taken = [read("sweep")]
    for group, names in chosen.items():
        taken += _walk(group, names, set())
    for file in taken:
        for name, key in file.keys.items():
            before = found[name].comment if name in found else ""
            listed = " | " in before and " | " not in key.comment  # the values that there are
            comment = before if listed or not key.comment else key.comment
            found[name] = replace(key, comment=comment)
    return found


def _walk(group: str, names: Iterable[str], seen: set[str]) -> Iterator[ConfigFile]:
    """The files of these choices, each after those that its defaults list names."""
    for name in names:
        path = f"{group}/{name}".strip("/")
        if path in seen or path not in files():
            continue
        seen.add(path)
        file = read(path)
        own = path.rpartition("/")[0]
        for override, other, listed in file.entries:
            if not override:
                yield from _walked(_walk(other or own, listed, seen), file.package, other)
        yield file


def _walked(taken: Iterable[ConfigFile], package: str, group: str) -> Iterator[ConfigFile]:
    for file in taken:
        if group == "/":  # from the top, taken into this package: /scheduler_options@_here_
            named = {f"{package}.{name}": key for name, key in file.keys.items()}
            file = replace(file, package=package, keys=named)
        yield file

"""The text of `python train.py --help`: commands, every choice and every key, each explained.

The explanations are the comments of the files in conf/.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from resnet_lab.config import options

NARROWEST, WIDEST = 80, 100  # columns
NAMES, SETTINGS = 26, 36  # columns before an explanation
COMMANDS = (
    ("", "digits: about a minute"),
    ("model=resnet56 data=cifar10", "another net and data set"),
    ("model=pretrained data=imagefolder data.root=PHOTOS", "your photos"),
    ("experiment=he2015/resnet20", "a recipe, ready to run"),
    ("-m seed=0,1,2 optimizer.lr=0.1,0.01", "a sweep: all combinations"),
    ("resume=outputs/runs/DATE/RUN", "go on where a run stopped"),
    ("--help model=pretrained", "the keys of this choice"),
)


def usage(config: Mapping[str, Any], choices: Mapping[str, str | Sequence[str] | None]) -> str:
    """What --help prints.

    Args:
        config: a composed config, unresolved; its keys are listed.
        choices: those that it was composed of, by their group.
    """
    width = min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
    chosen = {
        group: (names,) if isinstance(names, str) else tuple(names or ())
        for group, names in choices.items()
    }
    lines = [*_commands(width), *_choices(chosen, width), *_settings(config, chosen, width)]
    return "\n".join(lines)


def _commands(width: int) -> Iterator[str]:
    yield "resnet-lab: train a residual network"
    yield ""
    for arguments, what in COMMANDS:
        yield from _lines(f"  python train.py {arguments}".rstrip(), what, 53, width)
    yield from _lines("  resnet-lab --help", "report, evaluate, predict", 53, width)


def _choices(chosen: Mapping[str, Sequence[str]], width: int) -> Iterator[str]:
    yield ""
    yield "== Choices: group=choice; * is chosen; a list: callbacks=[default,ema] =="
    for group, names in options.groups().items():
        if len(names) < 2:
            continue
        yield ""
        yield f"{group}="
        before = ""
        for name in sorted(names, key=lambda name: ("/" in name, name)):
            folder = name.rpartition("/")[0]
            if folder != before:
                yield ""
            before = folder
            mark = "*" if name in chosen.get(group, ()) else " "
            summary = options.read(f"{group}/{name}").summary
            yield from _lines(f"{mark} {name}", summary, NAMES, width)


def _settings(
    config: Mapping[str, Any], chosen: Mapping[str, Sequence[str]], width: int
) -> Iterator[str]:
    known = options.keys(chosen)
    yield ""
    yield "== Keys: key=value; --cfg job prints the whole config as YAML =="
    section = None
    for key, value in _leaves(config, ""):
        if key.endswith(("_target_", "_partial_")):
            continue
        name = key.partition(".")[0] if "." in key else ""
        if name != section:
            yield ""
        section = name
        comment = known[key].comment if key in known else ""
        yield from _lines(f"{key}={_spelled(value)}", comment, SETTINGS, width)


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def _spelled(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(_spelled, value)) + "]"
    return str(value)


def _lines(term: str, what: str, column: int, width: int) -> Iterator[str]:
    """A term and what it is, beside each other where they fit, in two lines of text at most."""
    beside = len(term) + 2 <= column
    if not what or not beside:
        yield term
    if what:
        indent = " " * column
        first = f"{term:<{column}}" if beside else indent
        yield from wrap(
            what,
            width,
            max_lines=2,
            placeholder=" ...",
            break_on_hyphens=False,
            initial_indent=first,
            subsequent_indent=indent,
        )

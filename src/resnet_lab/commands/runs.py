"""List runs and sweeps, filter and sort them, tag, note and remove them."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cmp_to_key
from pathlib import Path
from typing import Any

from resnet_lab.commands import describe
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.report.catalogue import Catalogue, named
from resnet_lab.report.runs import Run
from resnet_lab.report.where import check_names, getter, select
from resnet_lab.run.folder import RunFolder

OUTPUTS = Path("outputs")
MOST_TAG, MOST_NOTE = 60, 2000  # letters


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Lists the runs and the jobs of sweeps below outputs/ or other folders, the newest last. "
        "With tag, note or rm as the first word it changes runs instead (a folder of such a name "
        "is ./tag). A RUN is the folder of a run or of a sweep, which stands for all its jobs, or "
        "a name from the list.",
        "resnet-lab runs\n"
        "resnet-lab runs outputs/sweeps/NAME --sort=-test/acc\n"
        "resnet-lab runs --where 'val/acc>0.8 and model in [resnet20, resnet32]'\n"
        "resnet-lab runs --columns name,optimizer.lr,test/acc --csv > runs.csv\n"
        "resnet-lab runs tag RUN RUN --add baseline\n"
        'resnet-lab runs note RUN "learning rate too high"\n'
        "resnet-lab runs rm --where 'state==failed'",
    )
    # `cli` gathers under this name what argparse leaves: words that are typed after options.
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="FOLDER",
        help="where to look (outputs); or tag RUN..., note RUN TEXT, rm RUN...",
    )
    parser.add_argument(
        "--where",
        metavar="CONDITION",
        help="only runs that meet it: columns or config keys with == != < <= > >=, ~ (contains), "
        "in [A, B], joined by and, or, not, parentheses",
    )
    listing = parser.add_argument_group("to list")
    listing.add_argument("--sort", metavar="KEY", help="by a column or config key; -KEY: downwards")
    listing.add_argument("--reverse", action="store_true", help="the other way round")
    listing.add_argument("--columns", metavar="A,B,C", help="columns and config keys to show")
    listing.add_argument("--csv", action="store_true", help="print CSV, with exact numbers")
    tagging = parser.add_argument_group("runs tag")
    tagging.add_argument("--add", action="append", default=[], metavar="TAG")
    tagging.add_argument("--remove", action="append", default=[], metavar="TAG")
    removing = parser.add_argument_group("runs rm")
    removing.add_argument("--yes", action="store_true", help="do not ask")
    what = removing.add_mutually_exclusive_group()
    what.add_argument(
        "--keep-best",
        action="store_true",
        help="leave the best checkpoint, config, result and metrics",
    )
    what.add_argument("--checkpoints-only", action="store_true", help="leave all but checkpoints")


def run(options: argparse.Namespace) -> int:
    words = options.overrides
    actions: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {
        **{"tag": _tag, "note": _note, "rm": _rm},
    }
    action = actions.get(words[0]) if words else None
    _refuse_others(options, words[0] if action else "")
    if action:
        action(options, words[1:])
    else:
        _list(options, [Path(word) for word in words] or [OUTPUTS])
    return 0


def _refuse_others(options: argparse.Namespace, action: str) -> None:
    """Raise UserError for options that another action has."""
    owners = {
        **{"add": "tag", "remove": "tag", "yes": "rm", "keep_best": "rm"},
        **{"checkpoints_only": "rm", "sort": "", "reverse": "", "columns": "", "csv": ""},
    }
    for option, owner in owners.items():
        if getattr(options, option) and owner != action:
            name = "--" + option.replace("_", "-")
            raise UserError(f"{name} belongs to `resnet-lab runs{' ' + owner if owner else ''}`.")
    if action in ("tag", "note") and options.where:
        raise UserError(f"--where chooses what is listed or removed; name the runs to {action}.")


# ------------------------------------------------------------------ list


def _list(options: argparse.Namespace, folders: Sequence[Path]) -> None:
    from resnet_lab.report.listing import as_csv, show

    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; name one that holds runs.")
    runs = Catalogue(folders).read()
    if not runs:
        raise UserError(f"There is no run in {', '.join(map(str, folders))}.")
    chosen = select(runs, options.where)
    columns = options.columns and [name.strip() for name in options.columns.split(",")]
    check_names(runs, [name for name in columns or () if name != "time"])
    if options.sort:
        chosen = _sorted(runs, chosen, options.sort)
    if options.reverse:
        chosen.reverse()
    if options.csv:
        sys.stdout.write(as_csv(chosen, columns))
    elif chosen:
        show(chosen, columns)
    else:
        print(f"None of {len(runs):,} runs meets {options.where}.")


def _sorted(runs: Sequence[Run], chosen: Sequence[Run], key: str) -> list[Run]:
    """By the values of a key, numbers before texts; runs without one come first, whatever the
    direction: the end of a list is what one sees."""
    down, name = key.startswith("-"), key.lstrip("-+")
    check_names(runs, [name])
    told = [(getter(run)(name), run) for run in chosen]
    missing = [run for value, run in told if value is None]
    known = [(value, run) for value, run in told if value is not None]

    def compare(one: tuple[Any, Run], other: tuple[Any, Run]) -> int:
        a, b = (_order(value) for value in (one[0], other[0]))
        return (a > b) - (a < b)

    known.sort(key=cmp_to_key(compare), reverse=down)
    return missing + [run for _, run in known]


def _order(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, " ".join(map(str, value)) if isinstance(value, list) else str(value)


# ------------------------------------------------------------------ tag, note


def _labelled(words: Sequence[str]) -> list[RunFolder]:
    """The run folders that are named; the jobs of a sweep that have begun."""
    runs = Catalogue(named(words)).read()
    folders = [RunFolder(run.folder) for run in runs if run.folder.is_dir()]
    if not folders:
        raise UserError("None of these runs has begun: there is no folder to write into.")
    return folders


def _tag(options: argparse.Namespace, words: list[str]) -> None:
    import re

    if not words or not (options.add or options.remove):
        raise UserError("Write: resnet-lab runs tag RUN... --add TAG, or --remove TAG.")
    for tag in options.add:
        if not re.fullmatch(r"[\w.+:@/-]+", tag) or len(tag) > MOST_TAG:
            raise UserError(f"--add {printable(tag)!r}: a tag is one word of at most {MOST_TAG}.")
    for folder in _labelled(words):
        tags, note = folder.read_labels()
        tags = [tag for tag in dict.fromkeys([*tags, *options.add]) if tag not in options.remove]
        folder.write_labels(tags, note)
        print(f"{folder}: {' '.join(tags) or 'no tags'}")


def _note(options: argparse.Namespace, words: list[str]) -> None:
    if len(words) != 2:
        raise UserError('Write: resnet-lab runs note RUN "TEXT"; "" takes the note away.')
    note = printable(" ".join(words[1].split()))
    if len(note) > MOST_NOTE:
        raise UserError(f"The note has {len(note):,} letters; {MOST_NOTE:,} are the most.")
    for folder in _labelled(words[:1]):
        folder.write_labels(folder.read_labels()[0], note)
        print(f"{folder}: {note or 'no note'}")


# ------------------------------------------------------------------ rm


def _rm(options: argparse.Namespace, words: list[str]) -> None:
    from resnet_lab.report.removal import Extent, plan, remove

    if not words and options.where is None:
        raise UserError("Write: resnet-lab runs rm RUN..., or --where CONDITION.")
    extent = (
        Extent.ALL_BUT_BEST
        if options.keep_best
        else Extent.CHECKPOINTS
        if options.checkpoints_only
        else Extent.EVERYTHING
    )
    if options.where is None:
        places = named(words)
    else:
        folders = [Path(word) for word in words] or [OUTPUTS]
        places = [run.folder for run in select(Catalogue(folders).read(), options.where)]
    planned = plan(places, extent)
    for line in planned.lines():
        print(line)
    if not planned.items:
        return
    if not options.yes:
        if not sys.stdin.isatty():
            raise UserError("Nothing was removed: give --yes where nobody can be asked.")
        if input("Remove this? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return
    for line in remove(planned):
        print(line)

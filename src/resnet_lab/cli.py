"""`resnet-lab COMMAND ...`: every file of commands/ is a command, imported when it is called."""

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).with_name("commands")
# As --help lists them.
GROUPS = {
    "train, and use what was trained": "train evaluate predict export find-lr",
    "follow and compare runs": "runs diff report ui tensorboard rerun power",
    "see what a net does": "summary signals schedule look landscape lesion explain cka features",
    "trust its figures": "calibration corruptions agreement",
    "prepare": "new stats split make-folder completion",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    A command's module has `add(parser)`, which declares its arguments, and `run(options)`, which
    returns the exit status. The first line of its docstring stands in `resnet-lab --help`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:  # Hydra reads its command line, --help included
        from resnet_lab.commands.train import train

        train(words[1:])
        return 0
    parser = argparse.ArgumentParser(
        prog="resnet-lab",
        usage="resnet-lab [-h] COMMAND ...",
        description="Train residual networks, and work with what was trained.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_listed() if words[:1] in (["-h"], ["--help"]) else "",
    )
    usage = ""  # of the command that is called
    commands = parser.add_subparsers(
        prog="resnet-lab", required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )
    for path in sorted(FOLDER.glob("[!_]*.py")):
        name = _name(path)
        command = commands.add_parser(name)
        if words[:1] == [name]:
            module = import_module(f"resnet_lab.commands.{path.stem}")
            module.add(command)
            command.set_defaults(run=module.run)
            usage = command.format_usage()

    if not words:
        parser.error("name a command; resnet-lab --help lists them")
    options, rest = parser.parse_known_args(words)
    if rest and (any(word.startswith("-") for word in rest) or "overrides" not in options):
        if "KEY=VALUE" in usage:
            from resnet_lab.config.arguments import mistaken_options

            if meant := mistaken_options(words, rest):
                sys.exit(f"error: {meant}")
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes overrides only in one place, people type them anywhere
        options.overrides += rest
    if "overrides" in options:
        from resnet_lab.config.compose import at_home

        options.overrides = at_home(options.overrides)
    from resnet_lab.config.messages import one_sentence_errors

    try:
        with one_sentence_errors():
            status: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `resnet-lab ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _listed() -> str:
    """All commands in their groups, each with its first line; those of no group come last."""
    there = {_name(path): path for path in sorted(FOLDER.glob("[!_]*.py"))}
    groups = {group: names.split() for group, names in GROUPS.items()}
    grouped = {name for names in groups.values() for name in names}
    lines = []
    for group, names in (*groups.items(), ("more", [*there.keys() - grouped])):
        if found := [name for name in names if name in there]:
            lines += ["", f"{group}:"]
            lines += [f"  {name:<13}{_first_line(there[name])}" for name in found]
    return "\n".join([*lines, "", "resnet-lab COMMAND --help says more."])[1:]


def _name(path: Path) -> str:
    return path.stem.replace("_", "-")


def _first_line(path: Path) -> str:
    """What a command's file says of itself, read without importing it: "labels of any images"."""
    line = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
    return line[:1].lower() + line[1:].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())

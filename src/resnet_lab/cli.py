"""`resnet-lab COMMAND ...`: every file of commands/ is a command, imported when it is called."""

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).with_name("commands")


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
        prog="resnet-lab", description="Train residual networks, and work with what was trained."
    )
    usage = ""  # of the command that is called
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for path in sorted(FOLDER.glob("[!_]*.py")):
        name = path.stem.replace("_", "-")
        command = commands.add_parser(name, help=_first_line(path))
        if words[:1] == [name]:
            module = import_module(f"resnet_lab.commands.{path.stem}")
            module.add(command)
            command.set_defaults(run=module.run)
            usage = command.format_usage()

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


def _first_line(path: Path) -> str:
    """What the file says of itself, read without importing it: "labels of any images"."""
    line = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
    return line[:1].lower() + line[1:].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())

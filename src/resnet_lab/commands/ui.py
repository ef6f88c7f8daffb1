"""A live page of all runs in the browser."""

import argparse
from pathlib import Path

from resnet_lab.commands import describe

PORT = 8111


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Shows all runs and sweeps on a page of this machine alone: a table, curves while they "
        "train, pictures, differences; stops and resumes them. Ctrl-C ends it; what trains goes "
        "on.",
        "resnet-lab ui\nresnet-lab ui outputs/sweeps --port 9000 --no-open",
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="*",
        metavar="FOLDER",
        default=[Path("outputs")],
        help="where runs and sweeps are looked for (outputs)",
    )
    parser.add_argument("--port", type=int, help=f"on 127.0.0.1 ({PORT}, or the next that is free)")
    parser.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="open it in a browser (yes)",
    )


def run(options: argparse.Namespace) -> int:
    from resnet_lab.ui.start import serve

    serve(options.folders, options.port, PORT, options.open)
    return 0

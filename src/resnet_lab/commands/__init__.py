"""What several commands share: texts of --help, arguments, and how they refuse to overwrite."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from resnet_lab.config.errors import UserError


def describe(parser: argparse.ArgumentParser, description: str, examples: str = "") -> None:
    """Give --help a description, and examples of a line each."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = fill(description, 90)
    if examples:
        lines = examples.replace("\n", "\n  ")
        parser.epilog = f"examples:\n  {lines}"


def add_overrides(parser: argparse.ArgumentParser, help: str) -> None:
    """Arguments key=value, in `options.overrides`."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=help)


def add_run(parser: argparse.ArgumentParser) -> None:
    """The arguments of `run.load.load_run`: run_dir, checkpoint and trust."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a finished run")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="other weights of this run (default: its best)",
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package of your own that the run's config may name; may be given several times. "
        "Other code than this project's, torch's and Lightning's is not run without it",
    )


def check_trust(run_dir: Path, trust: Sequence[str]) -> None:
    """What `run.load.load_run` says of no run, and of foreign code, before torch is imported."""
    from resnet_lab.run.folder import SECTIONS, RunFolder, check_trusted

    folder = RunFolder(run_dir)
    config = {k: v for k, v in folder.read_config().items() if k in SECTIONS}
    check_trusted(config, folder.config, trust)


def refuse_existing(*paths: Path | None) -> None:
    """Raise UserError for a file that is there already."""
    for path in paths:
        if path is not None and path.exists():
            raise UserError(f"{path} is there already; remove it, or name another file.")

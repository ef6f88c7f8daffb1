"""Write a small project of your own: a net, a data set, configs, tests."""

import argparse
import importlib.machinery
import importlib.util
import json
import keyword
import re
import shlex
from importlib.metadata import version
from pathlib import Path

from resnet_lab.commands import describe
from resnet_lab.commands._new_folder import new_folder, refuse_existing_folder
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.screen import console

TEMPLATE = Path(__file__).resolve().parents[1] / "project" / "template"
LONGEST = 40  # letters of a name: lines with it stay within a hundred
OWN = {"conf", "data", "hydra_plugins", "outputs", "tests", "train"}  # names in every project


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "The project trains, sweeps and tests at once, in seconds on a CPU: its net is a small "
        "residual net, its data are drawn shapes. Change them, or put your own beside them. Its "
        "README.md says how to install it, and how to use and extend it.",
        "resnet-lab new my_project\n"
        "resnet-lab new work/leaves --title 'Leaves of Korean trees'\n"
        "cd my_project && pip install -e '.[dev]' && python train.py experiment=shapes",
    )
    parser.add_argument(
        "folder", type=Path, metavar="NAME", help="the new folder; its name is the package's"
    )
    parser.add_argument("--title", help="the first line of README.md (NAME in words)")


def run(options: argparse.Namespace) -> int:
    folder = options.folder.expanduser()
    name = folder.name
    title = printable(options.title or name.replace("_", " ").capitalize()).strip()
    refuse_existing_folder(folder, may_be_empty=True)
    check_name(name, folder)
    with new_folder(folder, may_be_empty=True) as part:
        write(part, name, title)
    where = printable(str(folder))
    console.print(f"{where}: a project with a net, a data set, a callback and tests; it begins by:")
    for line in (
        f"cd {shlex.quote(where)}",
        "pip install -e '.[dev]'",
        "python train.py experiment=shapes",
        "python -m pytest -q",
    ):
        console.print(f"  {line}", soft_wrap=True)
    return 0


def check_name(name: str, folder: Path) -> None:
    """Raise UserError unless `name` can be that of a new package in `folder`."""
    shown = printable(name)
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name) or keyword.iskeyword(name):
        better = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
        hint = f", such as {better}" if better and not keyword.iskeyword(better) else ""
        raise UserError(
            f"{shown}: a package's name has small letters, digits and _ alone, begins with a "
            f"letter, and is no word of Python's; give another{hint}."
        )
    if len(name) > LONGEST:
        raise UserError(f"{shown}: a name has at most {LONGEST} letters; give a shorter one.")
    if name in OWN:
        raise UserError(f"{shown}: every project has something of that name; give another.")
    spec = importlib.util.find_spec(name)
    if spec is not None and not _is_folder(spec, folder):
        raise UserError(
            f"{shown}: there is a module of that name already, and it would be imported in place "
            "of yours; give another name."
        )


def _is_folder(spec: importlib.machinery.ModuleSpec, folder: Path) -> bool:
    """Whether Python only means `folder` itself, which is empty, or another without any code."""
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    return spec.origin is None and all(place.resolve() == folder.resolve() for place in places)


def write(folder: Path, name: str, title: str) -> None:
    """Write the files of the template into `folder`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE), undefined=StrictUndefined, keep_trailing_newline=True
    )
    facts = {
        "name": name,
        "title": title,
        "description": json.dumps(title, ensure_ascii=False),  # quoted as TOML has it
        "version": version("resnet-lab"),
    }
    for template in environment.list_templates(extensions=["j2"]):
        place = template.removesuffix(".j2").replace("NAME", name).replace("DOT", ".")
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(environment.get_template(template).render(facts), encoding="utf-8")

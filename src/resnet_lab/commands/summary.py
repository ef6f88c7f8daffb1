"""`resnet-lab summary`: what nets are made of and cost, section by section and side by side."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.table import Table

from resnet_lab.config.check import PRETRAINED
from resnet_lab.config.compose import compose
from resnet_lab.config.errors import UserError
from resnet_lab.config.rules import net_faults
from resnet_lab.screen import console
from resnet_lab.sweep.grid import swept_keys

if TYPE_CHECKING:
    from resnet_lab.models.complexity import Section  # imports torch

NOTE = (
    "Multiply-adds are those of convolutions, linear layers and attention, for one image; norms, "
    "activations and sums are left out."
)
SHARE = 7  # characters of a share and the blank before it


class Net(NamedTuple):
    """One net of the summary. `image`: the shape of what it sees, (channels, height, width)."""

    label: str
    image: tuple[int, int, int]
    sections: "list[Section]"

    @property
    def params(self) -> int:
        return sum(section.params for section in self.sections)

    @property
    def macs(self) -> int:
        return sum(section.macs for section in self.sections)


def summary(
    overrides: Sequence[str], image_size: int | None = None, num_classes: int | None = None
) -> None:
    """Print the table of every net that the overrides describe.

    Args:
        overrides: as for train.py; of keys with several values all combinations.
        image_size: side of the images in pixels; None is what the data config says.
        num_classes: the size of the logits; None is what the data config says.

    No data is read and no weight is made. ValueError where a config is wrong, or where it says
    neither size nor classes.
    """
    nets = measure(overrides, image_size, num_classes)
    if len(nets) == 1:
        console.print(one(nets[0]))
    else:
        for table in pages(nets):
            console.print(table)
        console.print(totals(nets))
    console.print(NOTE, soft_wrap=True)


def measure(
    overrides: Sequence[str], image_size: int | None = None, num_classes: int | None = None
) -> list[Net]:
    """The nets behind `summary`, in the order of a sweep."""
    keys = swept_keys(overrides)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    given = {"data.image_size": image_size, "data.num_classes": num_classes}
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    configs = []
    for job in jobs:
        cfg, choices = compose([*job, *options])
        _check(cfg, choices)
        configs.append((_label(job, keys, choices["model"]), cfg))

    from resnet_lab.models.complexity import breakdown
    from resnet_lab.run import build

    nets = []
    for label, cfg in configs:
        cfg = build.follow_trunk(cfg)  # it may be a run's net, and say how large images are
        side, channels = cfg.data.image_size, cfg.model.get("in_channels") or 3
        sections = breakdown(build.outline(cfg), side, channels)
        nets.append(Net(label, (channels, side, side), sections))
    return nets


def _check(cfg: DictConfig, choices: dict[str, str]) -> None:
    """What `config.check` says of a net, without asking for data that is not needed here."""
    wanted = {"data.image_size": "--image-size 224", "data.num_classes": "--classes 1000"}
    if cfg.model._target_ == PRETRAINED:
        del wanted["data.image_size"]  # its trunk says it
    if missing := [option for key, option in wanted.items() if OmegaConf.select(cfg, key) is None]:
        raise UserError(
            f"data={choices['data']} does not say what only its images can: give "
            f"{' and '.join(missing)} (or what it is)."
        )
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    if faults := list(net_faults(model)):
        raise UserError("\n".join(faults))


def _label(job: Sequence[str], keys: Sequence[str], model: str) -> str:
    """The net's name, and below it a line for each other key that has several values."""
    values = dict(override.lstrip("+").partition("=")[::2] for override in job)
    others = [f"{key.rpartition('.')[2]}={values[key]}" for key in keys if key != "model"]
    return "\n".join([model, *others])


# ------------------------------------------------------------------ tables


def one(net: Net) -> Table:
    """A row for each section."""
    table = Table(title=net.label, box=box.SIMPLE_HEAD, title_style="bold", show_footer=True)
    table.add_column("section", "total")
    table.add_column("output", justify="right")
    table.add_column("blocks", justify="right")
    table.add_column("parameters", f"{net.params:,}", justify="right")
    table.add_column("share", justify="right", style="dim")
    table.add_column("multiply-adds", _millions(net.macs), justify="right")
    table.add_column("share", justify="right", style="dim")
    table.add_row("image", _shape(net.image))
    for section in net.sections:
        table.add_row(
            section.name,
            _shape(section.output),
            str(section.blocks or ""),
            f"{section.params:,}",
            _share(section.params, net.params),
            _millions(section.macs),
            _share(section.macs, net.macs),
        )
    return table


def pages(nets: Sequence[Net]) -> Iterator[Table]:
    """All nets side by side; where the console is too narrow, as many at a time as fit."""
    wide = console.options.update(width=10_000)
    while nets:
        n = len(nets)
        while n > 1 and console.measure(beside(nets[:n]), options=wide).maximum > console.width:
            n -= 1
        yield beside(nets[:n])
        nets = nets[n:]


def beside(nets: Sequence[Net]) -> Table:
    """A column for each net, and rows of the same section next to each other."""
    # The net with the most sections knows best in which order they come.
    longest_first = sorted(nets, key=lambda net: -len(net.sections))
    names = list(dict.fromkeys(s.name for net in longest_first for s in net.sections))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("section")
    for net in nets:
        table.add_column(net.label, justify="right")

    def add(what: str, cells: dict[str, list[str]]) -> None:
        shown = {name: row for name, row in cells.items() if any(row)}
        for i, (name, row) in enumerate(shown.items()):
            table.add_row(what if i == 0 else "", name, *row, end_section=i == len(shown) - 1)

    by_name = [{section.name: section for section in net.sections} for net in nets]

    def row(name: str, column: str) -> list[str]:
        return [_cell(net, of.get(name), column) for net, of in zip(nets, by_name, strict=True)]

    images = {"image": [_shape(net.image) for net in nets]}
    add("output", images | {name: row(name, "output") for name in names})
    add("blocks", {name: row(name, "blocks") for name in names})
    for what, column in (("parameters", "params"), ("multiply-adds", "macs")):
        total = [f"{_number(getattr(net, column), column)}{1:>{SHARE}.1%}" for net in nets]
        add(what, {name: row(name, column) for name in names} | {"total": total})
    return table


def _cell(net: Net, section: "Section | None", column: str) -> str:
    if section is None:
        return ""
    if column == "output":
        return _shape(section.output)
    if column == "blocks":
        return str(section.blocks or "")
    value, whole = getattr(section, column), getattr(net, column)
    return f"{_number(value, column)}{_share(value, whole):>{SHARE}}"


def totals(nets: Sequence[Net]) -> Table:
    """A row for each net, with its cost as a multiple of the first one's."""
    first = nets[0]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("net")
    for column in ("parameters", "times", "multiply-adds", "times"):
        table.add_column(column, justify="right")
    for net in nets:
        table.add_row(
            net.label.replace("\n", ", "),
            f"{net.params:,}",
            f"{net.params / first.params:.2f}",
            _millions(net.macs),
            f"{net.macs / first.macs:.2f}",
        )
    return table


def _number(value: int, column: str) -> str:
    return _millions(value) if column == "macs" else f"{value:,}"


def _millions(macs: int) -> str:
    return f"{macs / 1e6:,.2f} M"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, shape)) if shape else ""

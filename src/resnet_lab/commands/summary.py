"""Output, parameters and multiply-adds of every stage of a net, or of several."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.table import Table

from resnet_lab.commands import _analysis, add_overrides, describe
from resnet_lab.config.check import PRETRAINED
from resnet_lab.config.compose import CONF, VERSION_BASE, compose
from resnet_lab.config.errors import UserError
from resnet_lab.config.rules import net_faults
from resnet_lab.screen import console
from resnet_lab.sweep.grid import points, swept_keys

if TYPE_CHECKING:
    from torch import nn

    from resnet_lab.models.complexity import Section  # imports torch

BATCH = 32  # images, in the shapes of drawings
NOTE = (
    "Multiply-adds are those of convolutions, linear layers and attention, for one image; norms, "
    "activations and sums are left out."
)


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "A table of one net, or of several, section by section. No data is read and no weight is "
        "made, so the largest net takes no longer than the smallest. Image size and classes are "
        "those of the data config (data=digits, where none is named). With --blocks also every "
        "step with the shape of what it puts out, as text, and as pictures (SVG and PNG) of the "
        "net, its stem, each kind of block and its head.",
        "resnet-lab summary model=resnet50 --image-size 224 --classes 1000\n"
        "resnet-lab summary model=resnet20,resnet56 model.shortcut=A,B   all combinations\n"
        "resnet-lab summary 'model=glob(resnet*)'\n"
        "resnet-lab summary model=resnet50 --image-size 224 --classes 1000 --blocks",
    )
    add_overrides(parser, "a config as for train.py; several values as for a sweep: all of them")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images")
    parser.add_argument("--classes", type=int, metavar="N", help="the size of the logits")
    parser.add_argument("--blocks", action="store_true", help="draw the nets, step by step")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="images of a batch, the first number of shapes (32)"
    )
    _analysis.add_out(parser)


def run(options: argparse.Namespace) -> int:
    for option in ("image_size", "classes", "batch"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value}: must be 1 or more.")
    of_drawings = {"batch": None, "out": None, "language": "en"}
    for option, default in of_drawings.items():
        value = getattr(options, option)
        if value != default and not options.blocks:
            raise UserError(f"--{option} {value}: this is for drawings; add --blocks.")
    _analysis.refuse_filled(options.out)
    nets = measure(options.overrides, options.image_size, options.classes)
    console.print(table(nets))
    console.print(NOTE, soft_wrap=True)
    if options.blocks:
        _draw(nets, options)
    return 0


def _draw(nets: Sequence["Net"], options: argparse.Namespace) -> None:
    """The nets as text on the screen, and as pictures in a folder."""
    from resnet_lab.analysis import blocks_picture, blocks_text, tracing
    from resnet_lab.analysis.blocks_sections import arrange
    from resnet_lab.language import translator

    say = translator(options.language, blocks_picture.KOREAN)
    outlines = []
    for net in nets:
        image = (options.batch or BATCH, *net.image)
        chain, blocks = tracing.trace(net.module, image)
        outlines.append(arrange(net.label, image, chain, blocks, net.costs()["total"][0]))
    for outline in outlines:
        console.print()
        for line in blocks_text.lines(outline, say, console.width):
            console.print(line, soft_wrap=True)
    folder = _analysis.result_folder(options, "blocks")
    blocks_picture.write(outlines, folder, say)
    console.print(f"\nwritten     {folder}", soft_wrap=True)


class Net(NamedTuple):
    """One net of the summary.

    `image`: the shape of what it sees, (channels, height, width). `module`: on the meta device.
    """

    label: str
    image: tuple[int, int, int]
    sections: "list[Section]"
    module: "nn.Module"

    def costs(self) -> dict[str, tuple[int, int]]:
        """Parameters and multiply-adds of each section, and of all as "total"."""
        costs = {section.name: (section.params, section.macs) for section in self.sections}
        params, macs = zip(*costs.values(), strict=True)
        return {**costs, "total": (sum(params), sum(macs))}


def measure(
    overrides: Sequence[str], image_size: int | None = None, num_classes: int | None = None
) -> list[Net]:
    """The nets that a command line describes, in the order of a sweep.

    Args:
        overrides: as for train.py; of keys with several values all combinations.
        image_size: side of the images in pixels; None is what the data config says.
        num_classes: the size of the logits; None is what the data config says.

    Raises:
        UserError: a config is wrong, or says neither size nor classes.
    """
    keys = swept_keys(overrides)
    given = {"data.image_size": image_size, "data.num_classes": num_classes}
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    configs = []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        for job in points(overrides, GlobalHydra.instance().config_loader()):
            cfg, choices = compose([*job, *options])
            _check(cfg, choices)
            configs.append((_label(job, keys, choices["model"]), cfg))
    if not configs:
        raise UserError(f"{' '.join(overrides)}: no name fits this pattern.")

    from resnet_lab.models.complexity import breakdown
    from resnet_lab.run import build

    nets = []
    for label, cfg in configs:
        cfg = build.follow_trunk(cfg)  # it may be a run's net, and say how large images are
        side, channels = cfg.data.image_size, cfg.model.get("in_channels") or 3
        module = build.outline(cfg)
        sections = breakdown(module, side, channels)
        nets.append(Net(label, (channels, side, side), sections, module))
    return nets


def _check(cfg: DictConfig, choices: dict[str, str]) -> None:
    """As `config.check` for a net, without asking for data that is not needed here."""
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
    """The net's name, and the other keys that have several values."""
    values = dict(override.lstrip("+").partition("=")[::2] for override in job)
    others = [f"{key.rpartition('.')[2]}={values[key]}" for key in keys if key != "model"]
    return ", ".join([model, *others])


def table(nets: Sequence[Net]) -> Table:
    """A row for each section and net, and what each costs as a whole.

    Beside a figure stands its share of the net; of several nets, how many times the first one's
    it is.
    """
    alone = len(nets) == 1
    table = Table(box=box.SIMPLE_HEAD, title=nets[0].label if alone else None, title_style="bold")
    table.add_column("section", no_wrap=True)
    if not alone:
        table.add_column("net", overflow="fold")
    relative = "share" if alone else "times"
    for column in ("output", "blocks", "parameters", relative, "multiply-adds", relative):
        style = "dim" if column == relative else None
        table.add_column(column, justify="right", no_wrap=True, style=style)
    # The net with the most sections knows best in which order they come.
    longest_first = sorted(nets, key=lambda net: -len(net.sections))
    names = list(dict.fromkeys(s.name for net in longest_first for s in net.sections))
    first = nets[0].costs()
    for name in ("image", *names, "total"):
        heading = name
        having = [net for net in nets if name == "image" or name in net.costs()]
        for net in having:
            cells = [heading] if alone else [heading, net.label]
            heading = ""
            if name == "image":
                table.add_row(*cells, _shape(net.image), end_section=net is having[-1])
                continue
            section = next((s for s in net.sections if s.name == name), None)
            cells += [_shape(section.output), str(section.blocks or "")] if section else ["", ""]
            whole = net.costs()["total"] if alone else first.get(name)
            for i, cost in enumerate(net.costs()[name]):
                cells.append(f"{cost / 1e6:,.2f} M" if i else f"{cost:,}")
                ratio = cost / whole[i] if whole and whole[i] else None
                cells.append("" if ratio is None else f"{ratio:.1%}" if alone else f"{ratio:.2f}")
            table.add_row(*cells, end_section=net is having[-1] and not alone)
    return table


def _shape(shape: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, shape)) if shape else ""

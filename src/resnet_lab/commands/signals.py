"""How signals pass through nets that are not trained: gradients, activations, dead ReLUs."""

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_lab.commands import _analysis, _configs, add_overrides, describe
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.screen import console

if TYPE_CHECKING:
    import torch

    from resnet_lab.analysis.signals import Signals
    from resnet_lab.analysis.signals_picture import Net

FEWEST_IMAGES = 8


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Trains nothing: makes the nets of a command line, shows them the first batch of a "
        "training and goes back once. Block by block: the gradient of the weights, the scale of "
        "the activations, in how many directions they vary, and the share of ReLUs that are 0 for "
        "every image. Also whether gradients are shattered: how alike they are at two inputs "
        "(Balduzzi et al. 2017, arXiv 1702.08591). Writes signals.png and CSV files.",
        "resnet-lab signals model=resnet56 model.shortcut=A,B,C,none\n"
        "resnet-lab signals model=resnet56 model.norm=batch,none model.shortcut=A,none\n"
        "resnet-lab signals model=resnet56 model.zero_init_residual=true,false --random",
    )
    add_overrides(parser, "a config as for train.py; several values as for a sweep: all of them")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="initialisations of each net (3)"
    )
    parser.add_argument(
        "--images", type=int, default=128, metavar="N", help="of the batch that is shown (128)"
    )
    parser.add_argument(
        "--random", action="store_true", help="show noise with random labels; no data are read"
    )
    _analysis.add_device(parser)
    _analysis.add_out(parser)


def run(options: argparse.Namespace) -> int:
    for option, fewest in (("seeds", 1), ("images", FEWEST_IMAGES)):
        value = getattr(options, option)
        if value < fewest:
            raise UserError(f"--{option} {value}: must be {fewest} or more.")
    _analysis.refuse_filled(options.out)
    configs = _configs.combinations(options.overrides)

    from resnet_lab import charts
    from resnet_lab.analysis import signals_picture
    from resnet_lab.analysis.signals import DISTANCES
    from resnet_lab.language import translator
    from resnet_lab.run import machine

    device = machine.named(options.device)
    machine.allow_tf32(False)
    say = translator(options.language, signals_picture.KOREAN)
    nets = _measure(configs, options, device, [config.label(say) for config in configs])
    folder = _analysis.result_folder(options, "signals")
    title = _title(configs, options, say)
    charts.write_png(
        folder / "signals.png", lambda: signals_picture.draw(nets, DISTANCES, title, say)
    )
    _write(folder, nets, [config.cfg.seed for config in configs])
    _show(nets)
    console.print(f"\nwritten     {folder}", soft_wrap=True)
    return 0


def _title(configs: Sequence[_configs.Config], options: argparse.Namespace, say: Translate) -> str:
    net = _configs.common(config.choices["model"] for config in configs)
    data = "noise" if options.random else _configs.common(config.data for config in configs)
    return say(
        "Signals through {net} before training ({n} images of {images}, seeds: {seeds})",
        net=net or say("several nets"),
        n=options.images,
        images=say(data or "several data sets"),
        seeds=options.seeds,
    )


# ------------------------------------------------------------------ what is measured


def _measure(
    configs: Sequence[_configs.Config],
    options: argparse.Namespace,
    device: "torch.device",
    labels: Sequence[str],
) -> "list[Net]":
    from omegaconf import OmegaConf

    from resnet_lab.analysis.signals import Signals, measure
    from resnet_lab.analysis.signals_picture import Net
    from resnet_lab.analysis.untrained import FirstBatch, first_batch, initialised, noise
    from resnet_lab.data.cache import progress
    from resnet_lab.run import build

    batches: dict[str, FirstBatch] = {}  # by the config of their data

    def all_runs() -> Iterator[Signals]:
        for config in configs:
            cfg = build.follow_trunk(config.cfg)
            key = OmegaConf.to_yaml(cfg.data, resolve=True)
            if key not in batches:
                batches[key] = (noise if options.random else first_batch)(cfg, options.images)
            batch = batches[key]
            images, targets = batch.images.to(device), batch.targets.to(device)
            for seed in range(cfg.seed, cfg.seed + options.seeds):
                net = initialised(cfg, batch, seed).to(device)
                yield measure(net, images, targets)

    runs = list(progress(all_runs(), len(configs) * options.seeds, "signals through depth"))
    return [
        Net(label, runs[i * options.seeds : (i + 1) * options.seeds])
        for i, label in enumerate(labels)
    ]


# ------------------------------------------------------------------ what is written and shown


def _write(folder: Path, nets: "Sequence[Net]", seeds: Sequence[int]) -> None:
    from resnet_lab.analysis.signals import DISTANCES

    runs = [
        (printable(net.label), seed + i, signals)
        for net, seed in zip(nets, seeds, strict=True)
        for i, signals in enumerate(net.runs)
    ]
    _analysis.write_csv(
        folder / "signals.csv",
        "net seed part gradient activation rank dead",
        (
            (label, seed, *row)
            for label, seed, of in runs
            for row in zip(of.names, of.gradient, of.activation, of.rank, of.dead, strict=True)
        ),
    )
    _analysis.write_csv(
        folder / "correlation.csv",
        "net seed distance correlation",
        (
            (label, seed, *row)
            for label, seed, of in runs
            for row in zip(DISTANCES, of.correlation, strict=True)
        ),
    )


def _show(nets: "Sequence[Net]") -> None:
    """Means over the seeds: of ratios the geometric one."""
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("net", overflow="fold")
    for title in (
        "gradient:\nfirst / last block",
        "activations:\nlast / first block",
        "rank of the\nlast block",
        "dead\nReLUs, %",
        "gradients alike\nup to a distance of",
    ):
        table.add_column(title, justify="right")
    for net in nets:
        ends = [(signals, signals.blocks[0], signals.blocks[-1]) for signals in net.runs]
        rows = zip(*(signals.correlation for signals in net.runs), strict=True)
        table.add_row(
            printable(net.label),
            _ratio((s.gradient[first], s.gradient[last]) for s, first, last in ends),
            _ratio((s.activation[last], s.activation[first]) for s, first, last in ends),
            f"{fmean(s.rank[last] for s, _, last in ends):.1f}",
            f"{100 * fmean(_dead(s) for s in net.runs):.1f}",
            _reach([fmean(row) for row in rows]),
        )
    console.print(table)
    console.print(
        "\nDistances are shares of the way from one image to another; there the correlation of the "
        "two gradients is one half.",
        soft_wrap=True,
    )


def _ratio(pairs: Iterable[tuple[float, float]]) -> str:
    ratios = [over / under if under else math.nan for over, under in pairs]
    if not all(0 < ratio < math.inf for ratio in ratios):
        return "-"
    mean = geometric_mean(ratios)
    return f"{mean:,.0f}" if mean >= 100 else f"{mean:.2g}"


def _dead(signals: "Signals") -> float:
    """The mean share over the blocks that have ReLUs."""
    shares = [share for i in signals.blocks if not math.isnan(share := signals.dead[i])]
    return fmean(shares) if shares else math.nan


def _reach(correlation: Sequence[float]) -> str:
    from resnet_lab.analysis.signals import DISTANCES, reach

    distance = reach(correlation)
    if math.isnan(distance):
        return "-"
    if distance == 0:
        return f"< {DISTANCES[0]:.0e}"
    return f"> {DISTANCES[-1]:g}" if math.isinf(distance) else f"{distance:.1g}"

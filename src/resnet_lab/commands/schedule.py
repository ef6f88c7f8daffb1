"""The learning rate at every step of a training, drawn before it."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_lab.commands import _analysis, _configs, add_overrides, describe
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable, replacing
from resnet_lab.screen import console

if TYPE_CHECKING:  # which import torch and matplotlib
    from resnet_lab.analysis.rates import Rates
    from resnet_lab.analysis.schedule_picture import Line

MOST_POINTS = 2000  # of a line, in the picture and the file


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Draws the learning rates of a training, from the optimizer and the scheduler that it "
        "would have, and the momentum where it changes, too. The length of an epoch is that of the "
        "data config; no image is decoded and nothing is trained. Writes schedule.png and "
        "schedule.csv.",
        "resnet-lab schedule scheduler=onecycle,cosine,multistep trainer.max_epochs=10\n"
        "resnet-lab schedule scheduler=cosine scheduler.warmup=0,5 --steps-per-epoch 391\n"
        "resnet-lab schedule experiment=he2015/resnet110 --log",
    )
    add_overrides(parser, "a config as for train.py; of several values each is a line")
    parser.add_argument(
        "--steps-per-epoch", type=int, metavar="N", help="batches of an epoch (of the data)"
    )
    parser.add_argument("--log", action="store_true", help="a logarithmic axis")
    _analysis.add_out(parser)


def run(options: argparse.Namespace) -> int:
    if options.steps_per_epoch is not None and options.steps_per_epoch < 1:
        raise UserError(f"--steps-per-epoch {options.steps_per_epoch}: must be 1 or more.")
    _analysis.refuse_filled(options.out)
    configs = _configs.combinations(options.overrides, training=False)

    from resnet_lab import charts
    from resnet_lab.analysis import schedule_picture
    from resnet_lab.analysis.rates import rates
    from resnet_lab.analysis.schedule_picture import Line
    from resnet_lab.language import translator

    say = translator(options.language, schedule_picture.KOREAN)
    batches = _batches(configs, options.steps_per_epoch)
    found = [rates(config.cfg, n) for config, n in zip(configs, batches, strict=True)]
    labels = [
        config.label(say) if config.own else config.cfg.scheduler._target_.rpartition(".")[2]
        for config in configs
    ]
    lines = [Line(label, _points(of)) for label, of in zip(labels, found, strict=True)]
    folder = _analysis.result_folder(options, "schedule")
    epochs = [say("{epochs} epochs", epochs=f"{line.points[-1][0]:.4g}") for line in lines]
    optimizers = [config.choices["optimizer"] for config in configs]
    what = filter(None, map(_configs.common, (labels, optimizers, epochs)))
    title = say("Learning rate of every step: {what}", what=", ".join(what))
    charts.write_png(
        folder / "schedule.png",
        lambda: schedule_picture.draw(lines, title, say, log=options.log),
    )
    _write(folder / "schedule.csv", lines, found)
    _show(labels, found)
    console.print(f"\nwritten     {folder}", soft_wrap=True)
    return 0


def _batches(configs: Sequence[_configs.Config], given: int | None) -> list[int]:
    """Batches of an epoch, by config."""
    if given is not None:
        return [given] * len(configs)
    from omegaconf import OmegaConf

    from resnet_lab.analysis.rates import CIFAR_IMAGES, batches_per_epoch

    known: dict[str, int] = {}  # by the config of the data
    batches = []
    for config in configs:
        key = OmegaConf.to_yaml(config.cfg.data, resolve=True)
        if key not in known:
            known[key], reason = batches_per_epoch(config.cfg)
            if reason:
                console.print(
                    f"{CIFAR_IMAGES:,} images are assumed ({printable(reason)})", soft_wrap=True
                )
        batches.append(known[key])
    return batches


# ------------------------------------------------------------------ what is written and shown


def _points(rates: "Rates") -> list[tuple[float, float, float | None]]:
    """As of `schedule_picture.Line`, of at most so many steps, the first and the last among them.

    The last stands at its end, so that a line fills its last epoch.
    """
    steps = _some(len(rates.rate))
    points = [
        (step / rates.steps_per_epoch, rates.rate[step], _of(rates.momentum, step))
        for step in steps
    ]
    end = len(rates.rate) / rates.steps_per_epoch
    return [*points, (end, *points[-1][1:])]


def _some(n: int) -> list[int]:
    return sorted({i * (n - 1) // max(1, MOST_POINTS - 1) for i in range(MOST_POINTS)})


def _of(momentum: Sequence[float], step: int) -> float | None:
    return momentum[step] if momentum else None


def _write(path: Path, lines: "Sequence[Line]", found: "Sequence[Rates]") -> None:
    with replacing(path, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["schedule", "step", "epoch", "lr", "momentum"])
        for line, rates in zip(lines, found, strict=True):
            for step in _some(len(rates.rate)):
                epoch, momentum = step / rates.steps_per_epoch, _of(rates.momentum, step)
                writer.writerow(
                    [
                        *(printable(line.label), step, f"{epoch:.6g}", f"{rates.rate[step]:.6g}"),
                        "" if momentum is None else f"{momentum:.6g}",
                    ]
                )


def _show(labels: Sequence[str], found: "Sequence[Rates]") -> None:
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("schedule", overflow="fold")
    for title in ("steps", "steps an epoch", "first", "largest", "at epoch", "last"):
        table.add_column(title, justify="right")
    for label, rates in zip(labels, found, strict=True):
        peak = max(range(len(rates.rate)), key=rates.rate.__getitem__)
        table.add_row(
            printable(label),
            f"{len(rates.rate):,}",
            f"{rates.steps_per_epoch:,}",
            f"{rates.rate[0]:.4g}",
            f"{rates.rate[peak]:.4g}",
            f"{peak / rates.steps_per_epoch:.3g}",
            f"{rates.rate[-1]:.4g}",
        )
    console.print(table)
    several = max(rates.groups for rates in found)
    if several > 1:
        console.print(
            f"\n{several} groups of parameters have rates of their own: these are the largest.",
            soft_wrap=True,
        )

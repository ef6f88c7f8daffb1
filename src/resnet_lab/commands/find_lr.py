"""A learning rate for a config, from one short training with a rising one."""

import argparse
import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, open_dict

from resnet_lab.commands import add_overrides, describe
from resnet_lab.config.check import check
from resnet_lab.config.compose import compose
from resnet_lab.config.errors import UserError
from resnet_lab.files import replacing
from resnet_lab.screen import console
from resnet_lab.style import MUTED, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST_STEPS = 20
WINDOW = 0.7  # decades of the learning rate that one point of the smoothed loss is made from
CLIP = 1.2  # times the first losses: what lies higher shall not pull the smoothed loss up with it
NOISE = 4.0  # a fall of less than this many standard deviations of the loss is none
BLUE, ORANGE = PALETTE[:2]


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "The learning-rate range test (Smith 2017, arXiv 1506.01186, section 3.3): the rate rises "
        "by the same ratio at every step, all else is as in training. Suggests the rate where the "
        "smoothed loss falls fastest, and draws the curve, into "
        "outputs/find_lr/<date>_<time>-<model>-<data>/. With scheduler=onecycle it is the peak "
        "that is suggested. The same command gives the same curve; other seeds, others.",
        "resnet-lab find-lr model=resnet20 data=cifar10\n"
        "resnet-lab find-lr model=resnet56 data=digits optimizer=adamw --to 1 --steps 200",
    )
    add_overrides(parser, "a config as for train.py")
    parser.add_argument(
        "--from", type=float, default=1e-6, metavar="LR", dest="low", help="the first (1e-6)"
    )
    parser.add_argument(
        "--to", type=float, default=10.0, metavar="LR", dest="high", help="the last (10)"
    )
    parser.add_argument(
        "--steps", type=int, default=100, metavar="N", help="unless the loss explodes before (100)"
    )


def run(options: argparse.Namespace) -> int:
    """Everything but the schedule is as in training; one device, no callbacks, no loggers."""
    low, high, steps = options.low, options.high, options.steps
    if not 0 < low < high < float("inf"):
        raise UserError(f"--from {low:g} --to {high:g}: give two numbers above 0, rising.")
    if steps < FEWEST_STEPS:
        raise UserError(f"--steps {steps}: give {FEWEST_STEPS} or more, or there is no curve.")
    cfg, choices = compose(options.overrides)
    check(cfg)
    model, data = choices["model"], choices["data"]
    batch = cfg.data.batch_size
    console.print(
        f"{model} on {data}: {steps} steps of {batch} images, learning rate from {low:g} to "
        f"{high:g}",
        soft_wrap=True,
    )
    curve = _measure(cfg, low, high, steps)

    from resnet_lab.charts import write_png
    from resnet_lab.run.folder import RunFolder

    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{model}-{data}".replace("/", "-")
    folder = RunFolder(Path("outputs/find_lr", name)).claim().path
    _write(curve, folder / "curve.csv")
    title = f"{model} on {data}, {cfg.optimizer._target_.rpartition('.')[2]}, batch {batch}"
    write_png(folder / "curve.png", lambda: draw(curve, title))
    for line in explain(curve):
        console.print(line, soft_wrap=True)
    console.print(f"curve       {folder}/curve.png, curve.csv", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class Curve:
    """One range test, an entry for each step.

    Attributes:
        rates: the learning rate.
        losses: of the step's images, before the step.
        smoothed: a parabola fitted to the losses around each step (Savitzky and Golay 1964), which
            keeps a sharp minimum where it is; losses far above the first ones are clipped.
        steepest: the step where `smoothed` falls fastest per decade, before it is lowest: the
            suggestion. None where it falls by no more than its noise.
        lowest: the step where `smoothed` is lowest.
        exploded: whether the test ended there, before its last learning rate.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    steepest: int | None
    lowest: int
    exploded: bool


def _measure(cfg: DictConfig, low: float, high: float, steps: int) -> Curve:
    lr = cfg.optimizer.lr
    with open_dict(cfg):
        cfg.run_dir = None  # nothing is written before there is a curve
        cfg.logger = None
        cfg.callbacks = {"range_test": {"_target_": "resnet_lab.callbacks.range_test.RangeTest"}}
        cfg.scheduler = {
            "_target_": "resnet_lab.schedule.exponential",
            "_partial_": True,
            "start": low / lr,  # groups with a rate of their own keep their ratio to it
            "final": high / lr,
        }
        devices = cfg.trainer.devices
        cfg.trainer.update(
            devices=[devices[0]] if isinstance(devices, list) else 1,
            num_nodes=1,
            max_epochs=steps,  # an epoch has a step at least
            max_steps=steps,
            max_time=None,
            limit_val_batches=0,
            fast_dev_run=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )

    from resnet_lab.callbacks.range_test import RangeTest
    from resnet_lab.run import build, training

    with training.known_warnings():
        parts = build.build(cfg)
        parts.trainer.fit(parts.classifier, datamodule=parts.datamodule)
    callbacks: list[Any] = parts.trainer.callbacks  # type: ignore[attr-defined]
    (test,) = (callback for callback in callbacks if isinstance(callback, RangeTest))
    rates = np.geomspace(low, high, steps)[: len(test.losses)]
    return read(rates, np.array(test.losses), test.exploded)


def read(rates: np.ndarray, losses: np.ndarray, exploded: bool) -> Curve:
    """Smooth a test's losses and find where they fall fastest.

    Raises:
        UserError: there are too few of them.
    """
    from scipy.signal import savgol_filter

    if len(losses) < FEWEST_STEPS // 2:
        raise UserError(
            f"the loss explodes within {len(losses) + 1} steps, which is no curve: "
            "begin lower, with --from."
        )
    decade = np.log10(rates[1] / rates[0])  # from one step to the next
    half = min(max(2, round(WINDOW / decade / 2)), (len(losses) - 1) // 2)
    clipped = losses.clip(max=CLIP * losses[: FEWEST_STEPS // 2].mean())
    smoothed = savgol_filter(clipped, 2 * half + 1, polyorder=2, mode="nearest")
    slope = savgol_filter(clipped, 2 * half + 1, polyorder=2, deriv=1, mode="nearest")
    lowest = int(smoothed.argmin())
    fall = smoothed[: lowest + 1].max() - smoothed[lowest]
    # From one step to the next the loss changes by its noise above all.
    noise = np.diff(clipped[: max(lowest + 1, FEWEST_STEPS // 2)]).std() / np.sqrt(2)
    steepest = int(slope[: lowest + 1].argmin()) if fall > NOISE * noise else None
    return Curve(rates, losses, smoothed, steepest, lowest, exploded)


def explain(curve: Curve) -> list[str]:
    """What the curve suggests, and what to do where it ends too early."""
    if curve.steepest is None:
        return [
            "suggestion  none: the loss does not fall by more than its noise; try another range "
            "with --from and --to, or more --steps."
        ]
    rate = curve.rates[curve.steepest]
    lines = [f"suggestion  optimizer.lr={rate:.2g}: there the smoothed loss falls fastest"]
    if curve.lowest >= len(curve.rates) - 2 and not curve.exploded:
        lines.append(
            "            the loss is still falling at the end; try a larger rate with --to."
        )
    return lines


def _write(curve: Curve, path: Path) -> None:
    with replacing(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "lr", "loss", "smoothed_loss"])
        for step, row in enumerate(zip(curve.rates, curve.losses, curve.smoothed, strict=True)):
            writer.writerow([step, *(f"{value:.6g}" for value in row)])


def draw(curve: Curve, title: str) -> "Figure":
    """The losses over the learning rate, with the suggestion marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.rates, curve.losses, ".", color=MUTED, alpha=0.5, markersize=5, label="steps")
    axes.plot(curve.rates, curve.smoothed, color=BLUE, linewidth=2, label="smoothed")
    if curve.steepest is not None:
        rate = curve.rates[curve.steepest]
        axes.axvline(rate, color=ORANGE, linewidth=1.2)
        label = f"falls fastest: {rate:.2g}"
        axes.plot(rate, curve.smoothed[curve.steepest], "o", color=ORANGE, ms=8, label=label)
    margin = 0.05 * curve.smoothed.max()
    top = min(curve.losses.max(), 1.5 * curve.smoothed.max())  # an explosion would flatten the rest
    axes.set_ylim(min(curve.losses.min(), curve.smoothed.min()) - margin, top + margin)
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss of the batch (nats)")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=3)
    return figure

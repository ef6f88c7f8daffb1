"""`resnet-lab find-lr`: the learning-rate range test (Smith, arXiv 1506.01186, section 3.3).

The learning rate rises by the same ratio at every step of one short training, and the loss tells
where the net begins to learn, where it learns fastest and where it is thrown off.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, open_dict

from resnet_lab.config.check import check
from resnet_lab.config.compose import compose
from resnet_lab.config.errors import UserError
from resnet_lab.run.folder import RunFolder
from resnet_lab.screen import console
from resnet_lab.style import GRID, MUTED, PALETTE

FEWEST_STEPS = 20
WINDOW = 0.7  # decades of the learning rate that one point of the smoothed loss is made from
CLIP = 1.2  # times the first losses: what lies higher shall not pull the smoothed loss up with it
NOISE = 4.0  # a fall of less than this many standard deviations of the loss is none
BLUE, ORANGE, GREEN = PALETTE[:3]


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


def find_lr(
    overrides: Sequence[str], low: float = 1e-6, high: float = 10.0, steps: int = 100
) -> Path:
    """Run the test for a config, print the suggestion and return the folder of curve and figure.

    Everything but the schedule is as in training: optimizer, batch size, augmentation, precision
    and seed; on one device, without callbacks and loggers. The folder is a new one below
    outputs/find_lr. ValueError where config or range are wrong.

    Args:
        low, high: the first and the last learning rate.
        steps: optimizer steps, unless the loss explodes before.
    """
    if not 0 < low < high:
        raise UserError(f"--from {low:g} --to {high:g}: give two numbers above 0, rising.")
    if steps < FEWEST_STEPS:
        raise UserError(f"--steps {steps}: give {FEWEST_STEPS} or more, or there is no curve.")
    cfg, choices = compose(overrides)
    check(cfg)
    console.print(
        f"{choices['model']} on {choices['data']}: {steps} steps of {cfg.data.batch_size} images, "
        f"learning rate from {low:g} to {high:g}",
        soft_wrap=True,
    )
    curve = _measure(cfg, low, high, steps)
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{choices['model']}-{choices['data']}"
    folder = RunFolder(Path("outputs/find_lr", name.replace("/", "-"))).claim().path
    _write(curve, folder / "curve.csv")
    optimizer = cfg.optimizer._target_.rpartition(".")[2]
    title = f"{choices['model']} on {choices['data']}, {optimizer}, batch {cfg.data.batch_size}"
    draw(curve, title, folder / "curve.png")
    for line in explain(curve):
        console.print(line, soft_wrap=True)
    console.print(f"curve       {folder}/curve.png, curve.csv", soft_wrap=True)
    return folder


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

    ValueError where there are too few to say anything.
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
    """What the curve suggests, by which rule, and what to mistrust."""
    at_lowest = curve.rates[curve.lowest]
    if curve.steepest is None:
        return [
            "suggestion  none: the loss does not fall by more than its noise; try another range "
            "with --from and --to, or more --steps."
        ]
    suggested = curve.rates[curve.steepest]
    lines = [
        f"suggestion  optimizer.lr={suggested:.2g}: there the smoothed loss falls fastest; "
        f"by another rule {at_lowest / 10:.2g}, a tenth of where it is lowest"
    ]
    if curve.lowest >= len(curve.rates) - 2 and not curve.exploded:
        lines.append(
            "            the loss is still falling at the end: go on to a larger rate with --to."
        )
    return lines


def _write(curve: Curve, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "lr", "loss", "smoothed_loss"])
        for step, row in enumerate(zip(curve.rates, curve.losses, curve.smoothed, strict=True)):
            writer.writerow([step, *(f"{value:.6g}" for value in row)])


def draw(curve: Curve, title: str, path: Path) -> None:
    """The losses over the learning rate, with the two suggestions marked, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(curve.rates, curve.losses, ".", color=MUTED, alpha=0.5, markersize=5, label="steps")
    axes.plot(curve.rates, curve.smoothed, color=BLUE, linewidth=2, label="smoothed")
    if curve.steepest is not None:
        rate, lowest = curve.rates[curve.steepest], curve.rates[curve.lowest]
        axes.axvline(rate, color=ORANGE, linewidth=1.2)
        falls = f"falls fastest: {rate:.2g}"
        axes.plot(rate, curve.smoothed[curve.steepest], "o", color=ORANGE, ms=8, label=falls)
        axes.axvline(lowest / 10, color=GREEN, linewidth=1.2, linestyle="--")
        tenth = f"lowest: {lowest:.2g}, a tenth: {lowest / 10:.2g}"
        axes.plot(lowest, curve.smoothed[curve.lowest], "v", color=GREEN, ms=8, label=tenth)
    margin = 0.05 * curve.smoothed.max()
    top = min(curve.losses.max(), 1.5 * curve.smoothed.max())  # an explosion would flatten the rest
    axes.set_ylim(min(curve.losses.min(), curve.smoothed.min()) - margin, top + margin)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss of the batch (nats)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=150)

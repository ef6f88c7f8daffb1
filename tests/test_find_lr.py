"""The command `find-lr`: the test as it was asked for, and what is read from it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lab import SMALL_NET, read_csv
from PIL import Image

from resnet_lab.callbacks.range_test import RangeTest
from resnet_lab.cli import main
from resnet_lab.commands.find_lr import WINDOW, explain, read

RATES = np.geomspace(1e-6, 10, 100)


@pytest.fixture
def find_lr(shared_cache, tmp_path, monkeypatch) -> Callable[..., Path]:
    """`find_lr(low, high, steps, "model.width=1")`: the folder that the command writes."""
    monkeypatch.chdir(tmp_path)

    def command(low: float, high: float, steps: int, *overrides: str) -> Path:
        before = set(Path("outputs/find_lr").glob("*"))
        options = [f"--from={low}", f"--to={high}", f"--steps={steps}"]
        cache = f"data.cache_dir={shared_cache}"
        assert main(["find-lr", *SMALL_NET, cache, *overrides, *options]) == 0
        (folder,) = set(Path("outputs/find_lr").iterdir()) - before
        return folder

    return command


def rows(folder) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items()} for row in read_csv(folder / "curve.csv")]


def fall(centre: float, seed: int) -> np.ndarray:
    """Losses that fall from 2.3 to 0.8, fastest at `centre`, and explode two decades above it."""
    decades = np.log10(RATES / centre)
    losses = 2.3 - 1.5 / (1 + np.exp(-decades / 0.3)) + np.exp(8 * (decades - 2))
    return losses + np.random.default_rng(seed).normal(0, 0.03, len(RATES))


@pytest.mark.parametrize("centre", [1e-4, 1e-3, 1e-2])
def test_suggests_where_the_loss_falls_fastest(centre):
    for seed in range(5):
        losses = fall(centre, seed)
        curve = read(RATES, losses, exploded=False)
        assert abs(np.log10(RATES[curve.steepest] / centre)) < 0.3
        assert centre * 10 < RATES[curve.lowest] < centre * 100


def test_an_explosion_does_not_reach_further_than_the_smoothing():
    losses = np.where(RATES < 0.1, 2.3 - 0.5 * np.log10(RATES / 1e-6) / 5, 1e6)
    curve = read(RATES, losses, exploded=True)
    assert abs(np.log10(RATES[curve.lowest] / RATES[losses.argmin()])) < WINDOW / 2
    assert curve.smoothed.min() == pytest.approx(losses.min(), abs=0.1)


def test_noise_alone_suggests_nothing():
    suggested = 0
    for seed in range(100):
        losses = np.random.default_rng(seed).normal(2.3, 0.1, 100)
        curve = read(RATES, losses, exploded=False)
        suggested += curve.steepest is not None
    assert suggested <= 1
    flat = read(RATES, np.full(100, 2.3), exploded=False)
    assert explain(flat)[0].startswith("suggestion  none")


def test_a_loss_that_still_falls_asks_for_a_larger_rate():
    curve = read(RATES, np.linspace(2.3, 1.0, 100), exploded=False)
    assert "--to" in explain(curve)[1]


def test_too_short_a_test_is_no_curve():
    with pytest.raises(ValueError, match="explodes within 6 steps"):
        read(RATES[:5], np.full(5, 2.3), exploded=True)


def test_curve_figure_and_suggestion(find_lr, capsys):
    folder = find_lr(1e-4, 1, 40, "model.width=0.5", "data.batch_size=64")
    out = capsys.readouterr().out
    assert folder.name.endswith("-cifar_resnet-digits")
    assert {path.name for path in folder.iterdir()} == {"curve.csv", "curve.png"}
    curve = rows(folder)
    assert [row["lr"] for row in curve] == pytest.approx(np.geomspace(1e-4, 1, 40), rel=1e-5)
    assert curve[0]["loss"] > min(row["loss"] for row in curve) + 0.3  # it learns on the way
    with Image.open(folder / "curve.png") as image:
        image.load()
    assert "suggestion  optimizer.lr=" in out
    assert f"{folder}/curve.png" in out


@pytest.mark.slow
def test_same_command_same_curve_in_a_folder_of_its_own(find_lr):
    first, second = (find_lr(1e-4, 1, 20) for _ in range(2))
    assert first != second
    assert rows(first) == rows(second) != rows(find_lr(1e-4, 1, 20, "seed=1"))


@pytest.mark.slow
def test_the_optimizer_has_the_rates_of_the_curve(find_lr, monkeypatch):
    seen = []

    def record(self, trainer, *_):
        seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    monkeypatch.setattr(RangeTest, "on_train_batch_start", record)
    folder = find_lr(1e-5, 1e-2, 20, "optimizer=adamw")
    assert seen == pytest.approx([row["lr"] for row in rows(folder)], rel=1e-5)


@pytest.mark.slow
def test_accumulated_batches_are_one_step(find_lr, monkeypatch):
    batches = []
    ended = RangeTest.on_train_batch_end

    def record(self, trainer, pl_module, outputs, batch, batch_idx):
        batches.append(float(outputs["loss"]))
        ended(self, trainer, pl_module, outputs, batch, batch_idx)

    monkeypatch.setattr(RangeTest, "on_train_batch_end", record)
    folder = find_lr(1e-4, 1e-1, 20, "trainer.accumulate_grad_batches=2")
    losses = [row["loss"] for row in rows(folder)]
    assert len(losses) == 20
    assert losses == pytest.approx(np.reshape(batches, (20, 2)).sum(axis=1), rel=1e-5)


@pytest.mark.slow
def test_ends_when_the_loss_explodes(find_lr):
    curve = rows(find_lr(1e-4, 1e4, 60, "model.norm=none"))
    assert len(curve) < 60
    assert curve[-1]["lr"] < 1e4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--from", "1", "--to", "0.1"], "--from 1 --to 0.1: give two numbers above 0, rising.\n"),
        (["--steps", "3"], "--steps 3: give 20 or more, or there is no curve.\n"),
        (["optimizer.lr=fast"], "optimizer.lr=fast: must be a number above 0.\n"),
        (["optimizer=sgd,adam"], "optimizer=sgd,adam: give one value alone.\n"),
    ],
)
def test_mistakes_are_one_sentence_before_torch(refused, arguments, sentence):
    assert refused("find-lr", *arguments) == sentence

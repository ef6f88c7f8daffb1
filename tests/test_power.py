"""Seeds that a difference needs: textbook values, spreads by hand, sweeps of all kinds."""

import json
from math import inf, nan, sqrt
from pathlib import Path

import numpy as np
import pytest
from lab import CLI, ROOT, read_csv, without_torch

from resnet_lab.config.errors import UserError
from resnet_lab.language import translator
from resnet_lab.report import power, power_picture
from resnet_lab.report.power import Repeats
from resnet_lab.report.runs import read
from resnet_lab.report.stats import spread


def setting(name: str, *values: float, images: float = 10_000, best: bool = False) -> Repeats:
    return Repeats(name, spread(values, images), images, best)


# Cohen 1988, table 2.4.1: n of each group for a two-sided t test at 5%.
@pytest.mark.parametrize(
    ("d", "wanted", "seeds"),
    [
        *((0.2, 0.8, 394), (0.5, 0.8, 64), (0.8, 0.8, 26), (1.0, 0.8, 17)),
        *((0.5, 0.9, 86), (1.0, 0.9, 23)),
    ],
)
def test_seeds_of_the_textbook(d, wanted, seeds):
    assert power.seeds_needed(d, 1.0, wanted) == seeds
    assert power.seeds_needed(d / 3, 1 / 3, wanted) == seeds
    assert power.power(d, 1.0, seeds) >= wanted > power.power(d, 1.0, seeds - 1)


def test_power_is_what_a_simulation_finds():
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 1, (20_000, 4)), rng.normal(1.5, 1, (20_000, 4))
    error = np.sqrt((one.var(axis=1, ddof=1) + two.var(axis=1, ddof=1)) / 4)
    found = np.abs(two.mean(axis=1) - one.mean(axis=1)) / error > 2.446912  # t(0.975, 6)
    assert power.power(1.5, 1.0, 4) == pytest.approx(found.mean(), abs=0.01)


def test_ends_of_power():
    assert power.power(0.0, 1.0, 5) == pytest.approx(0.05)
    assert power.power(0.0, 1.0, 5, alpha=0.01) == pytest.approx(0.01)
    assert power.power(1.0, 0.0, 2) == 1.0
    for shift in (10, 38, 40, 60, 1000, 1e6):  # where the distribution underflows
        assert power.power(shift / sqrt(2.5), 1.0, 5) == pytest.approx(1.0)
    assert power.seeds_needed(1.0, 0.0, 0.9) == 2
    assert power.seeds_needed(0.001, 1.0, 0.9) is None
    assert power.detectable(0.0, 2, 0.9) == 0


@pytest.mark.parametrize("seeds", [2, 3, 5, 50])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_detectable_difference_has_the_power(seeds, alpha):
    smallest = power.detectable(0.3, seeds, 0.8, alpha)
    assert power.power(smallest, 0.3, seeds, alpha) == pytest.approx(0.8, abs=1e-6)
    assert power.seeds_needed(smallest * 1.001, 0.3, 0.8, alpha) == seeds


def test_the_spread_by_hand():
    # Squared distances to the means: 1 + 1, and 1 + 0 + 1.
    settings = [setting("a", 80.0, 82.0), setting("b", 89.0, 90.0, 91.0), setting("c", 50.0)]
    found = power.noise(settings)
    assert found.freedom == 1 + 2
    assert found.sd == pytest.approx(sqrt((2 + 2) / 3))
    # chi-square of 3 degrees of freedom: 0.2158 and 9.3484
    assert found.low == pytest.approx(sqrt(4 / 9.348404))
    assert found.high == pytest.approx(sqrt(4 / 0.215795), rel=1e-5)
    errors = [p * (100 - p) / 10_000 for p in (81, 90, 50)]
    assert found.binomial == pytest.approx(sqrt(sum(errors) / 3))
    assert found.images == 10_000
    assert power.usual_seeds(settings) == 2


def test_one_seed_tells_no_spread():
    with pytest.raises(UserError, match="seed=0,1,2"):
        power.noise([setting("a", 80.0), setting("b", 81.0)])


def test_unknown_numbers_of_images():
    found = power.noise([setting("a", 80.0, 81.0, images=nan)])
    assert found.binomial == 0
    assert found.images != found.images


def test_welch_is_that_of_scipy():
    first, second = setting("a", 1.0, 2.0, 3.0), setting("b", 6.0, 8.0)
    pair = power.welch(first, second)
    assert pair.difference == 5
    from scipy.stats import ttest_ind

    other = ttest_ind([6.0, 8.0], [1.0, 2.0, 3.0], equal_var=False)
    assert pair.p == pytest.approx(other.pvalue)
    interval = other.confidence_interval()
    assert (pair.low, pair.high) == pytest.approx((interval.low, interval.high))


def test_pairs_are_the_better_minus_the_other():
    settings = [setting("a", 80.0, 80.2), setting("b", 70.0, 70.1), setting("c", 75.0)]
    (pair,) = power.pairs(settings)  # c has one seed
    assert (pair.second.name, pair.first.name) == ("a", "b")
    assert pair.difference > 0
    same = power.pairs([setting("a", 80.0, 80.0), setting("b", 80.0, 80.0)])
    assert (same[0].p, same[0].differs) == (1.0, False)
    apart = power.pairs([setting("a", 80.0, 80.0), setting("b", 81.0, 81.0)])
    assert (apart[0].p, apart[0].differs) == (0.0, True)


def test_all_pairs_are_counted():
    rng = np.random.default_rng(1)
    pairs = power.pairs([setting(str(n), *rng.normal(80, 1, 4)) for n in range(12)])
    assert len(pairs) == 66
    assert any(pair.p < 0.05 for pair in pairs)
    assert not any(pair.differs for pair in pairs)


# ------------------------------------------------------------------ picture


@pytest.mark.parametrize(("language", "count"), [("en", 1), ("ko", 3), ("en", 9)])
def test_the_picture(language, count):
    rng = np.random.default_rng(0)
    settings = [
        setting(f"x={n} $\x1b", *rng.normal(80 + n, 0.3, 3), best=n == 0) for n in range(count)
    ]
    settings.append(setting("alone", 70.0))
    found, pairs = power.noise(settings), power.pairs(settings)
    say = translator(language, power_picture.KOREAN)
    figure = power_picture.draw("a $ name", settings, found, pairs, "val", say)
    seeds, needed, *rest = figure.axes
    assert [text.get_text() for text in seeds.get_yticklabels()][:1] == ["x=0 $\\x1b"]
    assert len(seeds.get_yticklabels()) == count
    assert len(rest) == (count > 1)
    (point,) = (line for line in needed.get_lines() if len(line.get_xdata()) == 1)
    assert point.get_xydata()[0] == pytest.approx([power.detectable(found.sd, 3, 0.8), 3])
    if count == 9:  # 36 pairs: only those with the best
        names = [text.get_text() for text in rest[0].get_yticklabels()]
        assert len(names) == 8
        assert all("x=0 $" in name for name in names)
    if language == "ko":
        texts = [axes.get_xlabel() for axes in figure.axes]
        assert not any(text.isascii() for text in texts)


def test_seeds_without_any_spread_are_drawn():
    settings = [setting("a", 80.0, 80.0), setting("b", 81.0, 81.0)]
    found, pairs = power.noise(settings), power.pairs(settings)
    assert (found.sd, found.low, found.high) == (0, 0, 0)
    figure = power_picture.draw("s", settings, found, pairs, "test", translator("en"))
    assert figure.axes[1].get_xlim() == (0.05, 5.0)


# ------------------------------------------------------------------ sweeps


def sweep(folder: Path, accuracies: dict[str, list[float]], **result: object) -> Path:
    """A sweep over `x` with finished runs, a test accuracy for each seed."""
    jobs = []
    for value, figures in accuracies.items():
        for seed, figure in enumerate(figures):
            run = folder / f"x={value},seed={seed}"
            run.mkdir(parents=True)
            content = {
                **{"status": "finished", "data": "cifar10", "seed": seed, "test/acc": figure},
                **{"val/acc": figure, "n_val": 5000, "n_test": 10_000},
                **result,
            }
            (run / "result.json").write_text(json.dumps(content))
            overrides = [f"x={value}", f"seed={seed}"]
            jobs.append({"folder": run.name, "overrides": overrides, "state": "finished"})
    content = {"command": "train.py", "keys": ["x", "seed"], "jobs": jobs}
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def test_a_seed_that_ran_twice_counts_once(tmp_path):
    folder = sweep(tmp_path / "s", {"a": [0.8, 0.8, 0.81]}, seed=0)
    (study,) = read([folder])
    (found,) = power.repeats(study, "test")
    assert found.seeds.values == pytest.approx([100 * (0.8 + 0.8 + 0.81) / 3])


def test_the_command(tmp_path):
    folder = sweep(
        tmp_path / "s", {"a": [0.80, 0.804, 0.808], "b": [0.9, 0.904, 0.908], "c": [0.5]}
    )
    done = without_torch(tmp_path, "power", str(folder), "--out", "out", script=CLI)
    assert done.returncode == 0, done.stderr
    assert "sd between seeds: 0.40 points" in done.stdout
    assert "1 of 1 pairs differ" in done.stdout
    assert "Settings with one seed, which are not compared: 1" in done.stdout
    out = tmp_path / "out"
    content = json.loads((out / "power.json").read_text())
    assert content["sd_between_seeds"] == pytest.approx(0.4)
    assert content["degrees_of_freedom"] == 4
    assert content["usual_seeds"] == 3
    assert [row["setting"] for row in read_csv(out / "pairs.csv")] == ["x=b"]
    rows = read_csv(out / "power.csv")
    assert len(rows) == 10
    whole = [row for row in rows if row["difference"] == "1.0" and row["power"] == "0.8"]
    assert whole[0]["seeds"] == str(power.seeds_needed(1.0, 0.4, 0.8))
    assert (out / "power.png").stat().st_size > 10_000
    again = without_torch(tmp_path, "power", str(folder), "--out", "out", script=CLI)
    assert again.returncode == 1
    assert "there is something already" in again.stderr


def test_what_cannot_be_told(refused, tmp_path):
    single = sweep(tmp_path / "single", {"a": [0.8], "b": [0.9]})
    assert "run the sweep with seed=0,1,2" in refused("power", str(single))
    untested = sweep(tmp_path / "untested", {"a": [0.8, 0.9]})
    for result in untested.glob("*/result.json"):
        content = json.loads(result.read_text())
        del content["test/acc"]
        result.write_text(json.dumps(content))
    assert "no finished run has a test accuracy" in refused("power", str(untested))
    sweep(tmp_path / "both" / "one", {"a": [0.8, 0.81]})
    sweep(tmp_path / "both" / "two", {"a": [0.8, 0.81]}, data="digits")
    assert "different data" in refused("power", str(tmp_path / "both"))
    assert "no run and no sweep" in refused("power", str(tmp_path / "nothing"))


def test_our_own_results():
    (study,) = read([ROOT / "docs" / "results" / "shortcut_types"])
    settings = power.repeats(study, "test")
    found = power.noise(settings)
    assert found.freedom == sum(one.seeds.n - 1 for one in settings)
    assert found.low < found.sd < found.high < inf

"""Calibration: figures reckoned by hand, known temperatures, the picture and the command."""

import math
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lab import read_csv

from resnet_lab import cli
from resnet_lab.analysis import calibration, calibration_picture
from resnet_lab.analysis.calibration import Bin
from resnet_lab.commands import calibration as command
from resnet_lab.language import translator

# Ten answers in four bins of width 1/15: (8/15, 9/15], (10/15, 11/15], (13/15, 14/15], the last.
CONFIDENCE = torch.tensor([0.55, 0.55, 0.7, 0.7, 0.7, 0.7, 0.9, 0.9, 1.0, 1.0]).double()
RIGHT = torch.tensor([1, 0, 1, 1, 1, 0, 1, 0, 1, 1]).double()


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(calibration, "DRAWS", 40)


def test_the_expected_error_by_hand():
    which = calibration.equal_width(CONFIDENCE)
    assert which.tolist() == [8, 8, 10, 10, 10, 10, 13, 13, 14, 14]
    # |0.5 - 0.55| * 0.2 + |0.75 - 0.7| * 0.4 + |0.5 - 0.9| * 0.2 + 0 * 0.2
    assert calibration.expected_error(CONFIDENCE, RIGHT, which) == pytest.approx(0.11)
    bins = calibration.reliability(CONFIDENCE, RIGHT)
    assert [one.count for one in bins] == [0] * 8 + [2, 0, 4, 0, 0, 2, 2]
    assert bins[10].confidence == pytest.approx(0.7)
    assert bins[10].accuracy == pytest.approx(0.75)
    assert bins[13].accuracy == pytest.approx(0.5)


def test_edges_of_bins_belong_to_the_lower_bin():
    edges = torch.tensor([0.25, 0.5, 0.75, 1.0, 0.75 + 1e-9], dtype=torch.double)
    assert calibration.equal_width(edges, 4).tolist() == [0, 1, 2, 3, 3]


def test_bins_of_equal_mass():
    which = calibration.equal_mass(torch.tensor([0.9, 0.1, 0.5, 0.6, 0.2, 0.95]), 3)
    assert which.tolist() == [2, 0, 1, 1, 0, 2]
    counts = calibration.equal_mass(torch.rand(100), 15).bincount(minlength=15)
    assert {*counts.tolist()} == {6, 7}


def test_loss_and_brier_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # (1/4, 3/4), (1/2, 1/2)
    found = calibration.measure(logits, torch.tensor([1, 1]))
    assert found.nll == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert found.brier == pytest.approx((2 / 16 + 2 / 4) / 2)
    assert found.accuracy == 0.5  # of two equal classes the first is the answer
    assert found.ece == pytest.approx((0.25 + 0.5) / 2)


def answers(n: int, factor: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a calibrated net times `factor`, and labels drawn from its probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    return factor * logits, labels


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(factor):
    logits, labels = answers(5000, factor)
    temperature = calibration.fit_temperature(logits, labels)
    assert temperature == pytest.approx(factor, rel=0.08)
    one = calibration.fit_temperature(logits / factor, labels)
    assert temperature / one == pytest.approx(factor, rel=1e-4)


def test_the_fitted_temperature_is_a_minimum():
    logits, labels = answers(500, 1.7, seed=3)

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits.double() / temperature, labels))

    best = calibration.fit_temperature(logits, labels)
    assert best > 0
    assert loss(best) <= loss(1.0)
    assert loss(best) < min(loss(best * 1.02), loss(best / 1.02))


def test_a_temperature_stays_finite():
    logits = torch.eye(3)
    assert calibration.fit_temperature(logits, torch.arange(3)) < 0.1  # the colder the better
    assert calibration.fit_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(100)


def test_a_temperature_changes_no_answer():
    logits, labels = answers(300, 3.0)
    before, after = (calibration.measure(logits, labels, t) for t in (1.0, 3.0))
    assert before.accuracy == after.accuracy
    assert after.ece < before.ece / 2
    assert after.nll < before.nll


def test_few_images_give_a_calibrated_net_an_error():
    few, many = (calibration.measure(*answers(n)) for n in (200, 5000))
    for found in (few, many):
        assert found.ece <= found.chance_limit
        assert found.low == 0  # cannot be told from a calibrated net
        assert found.high < 2 * found.chance_limit
    assert few.by_chance > 3 * many.by_chance


@pytest.mark.slow
def test_the_interval_holds_the_error_of_very_many_images(monkeypatch):
    monkeypatch.setattr(calibration, "DRAWS", 200)
    logits, labels = answers(200_000, 3.0, seed=9)
    truth = calibration.measure(logits, labels).ece
    held = 0
    for part in range(20):
        found = calibration.measure(*(x[1000 * part :][:1000] for x in (logits, labels)))
        held += found.low <= truth <= found.high
        assert truth > 0.05
        assert found.high - found.low < 0.12
    assert held >= 17


def test_the_draws_depend_on_their_seed():
    logits, labels = answers(100)
    one, same, other = (calibration.measure(logits, labels, seed=n) for n in (1, 1, 2))
    assert one == same
    assert (one.ece, one.nll) == (other.ece, other.nll)
    assert one.high != other.high


# ------------------------------------------------------------------ picture, files


def nets(*with_temperature: bool) -> list[calibration_picture.Net]:
    logits, labels = answers(300, 2.0)
    before, after = (calibration.measure(logits, labels, t) for t in (1.0, 2.0))
    return [
        calibration_picture.Net(
            f"net $ {n}\x1b", before, after if scaled else None, 2.0 if scaled else None
        )
        for n, scaled in enumerate(with_temperature)
    ]


@pytest.mark.parametrize(("language", "count"), [("en", 1), ("ko", 4)])
def test_the_picture_has_two_panels_for_each_net(language, count):
    say = translator(language, calibration_picture.KOREAN)
    some = nets(*[n != 1 for n in range(count)])
    figure = calibration_picture.draw(some, say)
    assert len(figure.axes) == 2 * count
    assert figure.axes[0].get_title() == "net $ 0\\x1b"
    assert any("T = 2.00" in text.get_text() for text in figure.axes[0].texts)
    if count > 1:
        assert not any("T =" in text.get_text() for text in figure.axes[2].texts)
    assert (say("as trained") == "as trained") == (language == "en")


def test_the_interval_of_a_share_by_hand():
    low, high = calibration_picture.wilson(Bin(0, 1, 10, 0.5, 1.0))
    assert high == pytest.approx(1)
    assert low == pytest.approx(10 / (10 + 1.959964**2))


def test_tables(tmp_path, capsys):
    some = nets(True, False)
    command._write(tmp_path, ["a", "b"], some)
    rows = read_csv(tmp_path / "calibration.csv")
    assert [(row["run"], row["temperature"]) for row in rows] == [
        ("a", "1"),
        ("a", "2"),
        ("b", "1"),
    ]
    assert float(rows[0]["ece"]) == pytest.approx(some[0].before.ece, rel=1e-5)
    bins = read_csv(tmp_path / "bins.csv")
    assert len(bins) == 3 * calibration.BINS
    assert sum(int(row["images"]) for row in bins[:15]) == 300
    assert [row["accuracy"] == "" for row in bins] == [row["images"] == "0" for row in bins]
    command._show(some)
    shown = capsys.readouterr().out
    assert "net $ 1\\x1b" in shown
    assert "by chance" in shown


# ------------------------------------------------------------------ the command


def test_the_command(finished, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["calibration", str(finished), "--device", "cpu", "--images", "60", "--out", str(out)]
    assert cli.main(words) == 0
    assert str(out) in capsys.readouterr().out
    before, after = read_csv(out / "calibration.csv")
    assert before["images"] == after["images"] == "60"
    assert before["accuracy"] == after["accuracy"]
    assert (out / "calibration.png").stat().st_size > 10_000


def test_a_run_without_validation_images_gets_no_temperature(capsys):
    test = SimpleNamespace(run=SimpleNamespace(result={"n_val": 0}))
    assert command._validation(Path("a\x1b"), test, Namespace()) is None
    assert "a\\x1b: no validation images (data.val_size=0)" in capsys.readouterr().out


def test_mistakes(refused, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    message = refused("calibration", "run", "--out", str(tmp_path / "full"))
    assert "there is something already" in message
    assert "--seed -1: must be 0 or more" in refused("calibration", "run", "--seed", "-1")

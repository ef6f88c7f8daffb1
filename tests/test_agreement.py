"""How far nets agree: answers that are known, and the command."""

import json
import shutil
from itertools import combinations

import numpy as np
import pytest
import torch
from lab import CLI, read_csv, without_torch

from resnet_lab import cli
from resnet_lab.analysis import agreement_picture
from resnet_lab.analysis.agreement import Agreement, Miss, independent
from resnet_lab.commands import agreement as command
from resnet_lab.config.errors import UserError
from resnet_lab.language import translator


def of_answers(answers: list[list[int]], labels: list[int], sure: float = 0.8) -> Agreement:
    """Nets that give 0.8 to their answer, and the rest to the other two classes."""
    hot = torch.nn.functional.one_hot(torch.tensor(answers), 3).double()
    return Agreement(hot * sure + (1 - hot) * (1 - sure) / 2, torch.tensor(labels))


THREE = of_answers(
    [
        [0, 1, 2, 0, 1],  # 4 right
        [0, 1, 2, 1, 2],  # 3 right
        [0, 2, 2, 1, 0],  # 2 right
    ],
    labels=[0, 1, 2, 0, 1],
)


def test_shares_by_hand():
    # Right: [1 1 1 1 1], [1 1 1 0 0], [1 0 1 0 0]
    assert THREE.accuracies == pytest.approx([1.0, 0.6, 0.4])
    assert THREE.disagreement()[0] == pytest.approx([0, 0.4, 0.6])
    assert THREE.disagreement()[1] == pytest.approx([0.4, 0, 0.4])
    assert THREE.both_wrong()[1] == pytest.approx([0, 0.4, 0.4])
    assert THREE.same_mistake()[1] == pytest.approx([0, 0.4, 0.2])
    assert THREE.nets_right() == pytest.approx([0, 0.4, 0.2, 0.4])


def test_the_ensemble_is_the_mean_of_probabilities():
    # Two nets that are a little sure of 0 are outvoted by one that is very sure of 1.
    probabilities = torch.tensor([[[0.55, 0.45]], [[0.55, 0.45]], [[0.01, 0.99]]]).double()
    found = Agreement(probabilities, torch.tensor([1]))
    assert found.ensemble[0].tolist() == pytest.approx([0.37, 0.63])
    assert found.ensemble_accuracy == 1
    assert found.accuracies == [0, 0, 1]


def test_independent_nets():
    assert independent([0.5, 0.5]) == pytest.approx([0.25, 0.5, 0.25])
    assert independent([0.9, 0.6]) == pytest.approx([0.04, 0.42, 0.54])
    assert independent([0.8] * 3) == pytest.approx([0.008, 0.096, 0.384, 0.512])


def test_the_spread_that_images_alone_give():
    # Two nets, four images: right by 2, 1, 1 and 0 of them. p (1 - p) is 0, 1/4, 1/4, 0.
    found = of_answers([[0, 0, 1, 1], [0, 1, 0, 1]], [0, 0, 0, 0])
    assert found.expected_spread() == pytest.approx((0.5 * 2 / 1) ** 0.5 / 4)
    assert of_answers([[0]], [0]).expected_spread() is None


def test_the_spread_of_independent_nets_is_the_expected_one():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(400, generator=generator)
    right = torch.rand(500, 400, generator=generator) < p
    found = of_answers((~right).long().tolist(), [0] * 400)
    assert found.expected_spread() == pytest.approx(
        float(torch.tensor(found.accuracies).std()), rel=0.1
    )


def test_images_that_all_get_wrong_come_with_the_likeliest_mistake():
    probabilities = torch.tensor(
        [
            # true class 0 of each: wrong but the right one has the most on average; right by one
            # net; wrong, surely; wrong, less surely
            [[0.40, 0.60, 0.00], [0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]],
            [[0.45, 0.05, 0.50], [0.2, 0.8, 0.0], [0.0, 0.9, 0.1], [0.1, 0.2, 0.7]],
        ]
    ).double()
    found = Agreement(probabilities, torch.zeros(4).long())
    assert found.missed_by_all(10) == [
        Miss(2, 1, pytest.approx(0.85)),
        Miss(3, 2, pytest.approx(0.55)),
        Miss(0, 1, pytest.approx(0.325)),
    ]
    assert len(found.missed_by_all(1)) == 1


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize("nets", [2, 13])
def test_the_picture_shows_counts_and_pairs(nets):
    say = translator("ko", agreement_picture.KOREAN)
    titles = [f"net $ {n}\x1b" for n in range(nets)]
    found = [1 / (nets + 1)] * (nets + 1)
    matrix = [[0.1 * (a != b) for a in range(nets)] for b in range(nets)]
    figure = agreement_picture.draw(titles, found, found, matrix, 50, say)
    left, right = figure.axes[:2]
    assert [bar.get_height() for bar in left.patches] == pytest.approx(
        [100 / (nets + 1)] * (nets + 1)
    )
    numbers = [text.get_text() for text in right.texts]
    assert numbers == (["-", "10.0", "10.0", "-"] if nets == 2 else [])


def test_images_of_one_channel_are_shown():
    images = np.zeros((2, 8, 8, 1), dtype=np.uint8)
    figure = agreement_picture.missed(
        images, ["a$", "b"], ["c", "d\x1b"], [0.9, 0.5], 3, translator("en")
    )
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "it is a$\ntaken for c (90%)" in texts
    assert "it is b\ntaken for d\\x1b (50%)" in texts


# ------------------------------------------------------------------ the command


def test_a_folder_of_runs_is_compared(finished, tmp_path, capsys):
    for name in ("one", "two", "three"):
        shutil.copytree(finished, tmp_path / "runs" / name)
    result = tmp_path / "runs" / "three" / "result.json"
    result.write_text(result.read_text().replace('"finished"', '"failed"'))
    out = tmp_path / "out"
    words = ["agreement", str(tmp_path / "runs"), "--images", "50", "--device", "cpu"]
    assert cli.main([*words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "left out" in shown
    assert "three (failed)" in shown
    (pair,) = read_csv(out / "pairs.csv")
    assert float(pair["different"]) == 0  # one net, twice
    content = json.loads((out / "agreement.json").read_text())
    assert content["images"] == len(read_csv(out / "images.csv")) == 50
    assert content["accuracies"] == [content["ensemble_accuracy"]] * 2
    assert float(pair["both_wrong"]) == pytest.approx(1 - content["ensemble_accuracy"], abs=1e-5)
    assert (out / "agreement.png").stat().st_size > 10_000


def test_one_run_agrees_with_nobody(finished, tmp_path):
    done = without_torch(tmp_path, "agreement", str(finished), script=CLI)
    assert done.returncode == 1
    assert "two finished runs or more" in done.stderr
    done = without_torch(tmp_path, "agreement", str(tmp_path / "none"), script=CLI)
    assert "there is no run in it" in done.stderr


class Shown:
    """As much of a Subject as is compared."""

    def __init__(self, labels: list[int], classes: str = "ab", pixel: int = 0, side: int = 2):
        self.labels = torch.tensor(labels)
        self.pixels = torch.full((len(labels), side, side, 3), pixel, dtype=torch.uint8)
        self.run = type("Run", (), {"class_names": list(classes), "run_dir": "run"})


def test_nets_must_have_seen_the_same_images():
    first = Shown([0, 1])
    command._refuse_others(first, Shown([0, 1]))
    command._refuse_others(first, Shown([0, 1], pixel=7, side=4))  # in another size
    others = Shown([1, 1]), Shown([0]), Shown([0, 1], classes="ac"), Shown([0, 1], pixel=7)
    for other in others:
        with pytest.raises(UserError, match="have different images or classes"):
            command._refuse_others(first, other)


def test_tables(tmp_path, capsys):
    command._write(tmp_path, [tmp_path / n for n in "abc"], ["x", "y", "z"], THREE)
    rows = read_csv(tmp_path / "pairs.csv")
    assert len(rows) == len(list(combinations("abc", 2)))
    assert float(rows[2]["both_wrong_if_independent"]) == pytest.approx(0.4 * 0.6)
    assert [row["nets_right"] for row in read_csv(tmp_path / "images.csv")] == [*"32311"]
    command._show(["a", "b", "c\x1b"], THREE, independent(THREE.accuracies), "test")
    shown = capsys.readouterr().out
    assert "c\\x1b" in shown
    assert "none is right" in shown
    assert "standard deviation of the accuracies: 30.55 points" in shown

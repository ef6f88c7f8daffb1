"""CKA: the estimate, its invariances, and the parts of nets that it compares."""

from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lab import read_csv
from torch import Tensor, nn

from resnet_lab import charts
from resnet_lab.analysis import similarity
from resnet_lab.analysis.similarity_picture import KOREAN, Heat, draw, stage_ticks
from resnet_lab.analysis.subject import Subject
from resnet_lab.cli import main
from resnet_lab.config.errors import UserError
from resnet_lab.language import translator
from resnet_lab.models.parts import Part


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cka_of(*layers: Tensor) -> Tensor:
    """Of features of one batch."""
    return similarity.cka([torch.stack([similarity.gram(layer) for layer in layers])])


def test_the_estimate_by_hand():
    # Of x = (0, 0, 1, 1) only the pair of images 3 and 4 has a product: tr = 2, both sums 2,
    # sums of rows (0, 0, 1, 1): (2 + 2*2 / (3*2) - 2 * 2/2) / (4 * 1) = 1/6.
    # With y = (0, 1, 0, 1): tr = 0, product of the sums of rows 1: (0 + 2/3 - 1) / 4 = -1/12.
    x, y = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1])
    raw = torch.stack([torch.outer(x, x), torch.outer(y, y)]).double()
    expected = torch.tensor([[1 / 6, -1 / 12], [-1 / 12, 1 / 6]], dtype=torch.float64)
    torch.testing.assert_close(similarity.hsic(raw), expected)
    centred = torch.stack([similarity.gram(feature[:, None]) for feature in (x, y)])
    torch.testing.assert_close(similarity.hsic(centred), expected, rtol=1e-6, atol=1e-9)
    ratio = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(cka_of(x[:, None], y[:, None]), ratio, rtol=1e-6, atol=1e-9)


def test_the_estimate_is_the_mean_over_all_fours_of_images():
    k, line = (randn(6, 3, seed=seed).double() for seed in (1, 2))
    k, line = k @ k.T, line @ line.T
    terms = [
        k[i, j] * (line[i, j] + line[q, r] - 2 * line[i, q])
        for i, j, q, r in permutations(range(6), 4)
    ]
    found = similarity.hsic(torch.stack([k, line]))[0, 1]
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_rotation_and_scale_change_nothing_and_what_is_unrelated_is_near_zero():
    features = randn(200, 400)
    rotation = torch.linalg.qr(randn(400, 400, seed=1)).Q
    other = randn(200, 400, seed=2)
    matrix = cka_of(features, features @ rotation, 7 * features + 100, other)
    assert matrix[0].tolist() == pytest.approx([1, 1, 1, 0], abs=0.02)
    assert torch.equal(matrix, matrix.T)
    # The estimate with a bias calls them alike, as there are more channels than images.
    centring = torch.eye(200) - 1 / 200
    a, b = (centring @ (f @ f.T) @ centring for f in (features, other))
    assert float((a * b).sum() / (a.norm() * b.norm())) > 0.5


def test_batches_are_averaged_before_the_ratio():
    pairs = [(randn(20, 5, seed=n), randn(20, 9, seed=n) + n) for n in range(3)]
    batches = [torch.stack([similarity.gram(a), similarity.gram(b)]) for a, b in pairs]
    mean = torch.stack([similarity.hsic(batch) for batch in batches]).mean(dim=0)
    expected = mean[0, 1] / (mean[0, 0] * mean[1, 1]).sqrt()
    torch.testing.assert_close(similarity.cka(batches)[0, 1], expected)


def test_a_layer_that_gives_all_images_the_same_has_no_similarity():
    matrix = cka_of(randn(10, 3), torch.ones(10, 4))
    assert float(matrix[0, 0]) == pytest.approx(1)
    assert torch.isnan(matrix[1]).all()


def tiny(seed: int = 0, n: int = 12) -> Subject:
    """A net of two parts on random images."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    run: Any = SimpleNamespace(
        net=net.eval(),
        run_dir=Path(f"run{seed}"),
        datamodule=SimpleNamespace(mean=[0.5] * 3, std=[0.25] * 3),
    )
    pixels = (randn(n, 4, 4, 3) * 50 + 100).clamp(0, 255).to(torch.uint8)
    return Subject(run, torch.device("cpu"), pixels, torch.arange(n) % 2)


def test_the_parts_of_both_nets_are_compared(monkeypatch):
    monkeypatch.setattr(similarity, "BATCH", 5)
    one, two = tiny(0), tiny(1)
    batches = list(similarity.grams_of([one, two]))
    assert [tuple(grams.shape) for grams in batches] == [(4, 4, 4)] * 3  # 12 images in thirds
    images = one.normalised(one.pixels[:4])
    with torch.no_grad():
        maps = [subject.net[0](images) for subject in (one, two)]
        logits = [subject.net(images) for subject in (one, two)]
    outputs = [maps[0], logits[0], maps[1], logits[1]]
    expected = torch.stack([similarity.gram(output) for output in outputs])
    torch.testing.assert_close(batches[0], expected)


def test_nets_that_saw_other_images_are_not_compared():
    similarity.check([tiny(0), tiny(1)])
    other = tiny(1)
    other.pixels = other.pixels + 1
    with pytest.raises(UserError, match="run0 and run1 do not have the same images"):
        similarity.check([tiny(0), other])
    other = tiny(1)
    other.labels = 1 - other.labels
    with pytest.raises(UserError, match="do not have the same images"):
        similarity.check([tiny(0), other])
    with pytest.raises(UserError, match="--images 3: CKA needs 4"):
        similarity.check([tiny(0, n=3)])


def test_means_of_stages_by_hand():
    module = nn.Identity()
    rows = [Part("stem", "stem", module), *(Part("stage1", f"stage1.{n}", module) for n in (1, 2))]
    matrix = torch.tensor([[1.0, 0.5, 0.25], [0.5, 1.0, 0.8], [0.25, 0.8, 1.0]])
    means = similarity.stage_means(matrix, rows, rows)
    torch.testing.assert_close(means, torch.tensor([[1.0, 0.375], [0.375, 0.9]]))


def test_the_axes_are_named_by_stages():
    say = translator("ko", KOREAN)
    stages = ["stem", "stage1", "stage1", "stage1", "head"]
    middles, names, edges = stage_ticks(stages, say)
    assert middles == [0, 2, 4]
    assert names == ["스템", "1단계", "분류층"]
    assert edges == [0.5, 3.5]
    assert stage_ticks(["a$\n$"], say)[1] == ["a$\\n$"]


def test_the_command_compares_a_run_with_another(finished, tmp_path, capsys, monkeypatch):
    heats: list[Heat] = []
    monkeypatch.setattr(charts, "DPI", 30)
    monkeypatch.setattr(
        "resnet_lab.analysis.similarity_picture.draw",
        lambda all_, n, say: heats.extend(all_) or draw(all_, n, say),
    )
    asked = ["cka", str(finished), str(finished), "--device", "cpu", "--images", "60"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "cka.png").is_file()
    own, other, crossed = heats[-3:]
    assert len({own.names[0], other.names[0]}) == 2
    assert crossed.names == (own.names[0], other.names[0])
    np.testing.assert_allclose(crossed.values, own.values, atol=1e-6)  # it is the same net
    np.testing.assert_allclose(np.diag(own.values), 1, atol=1e-9)
    rows = read_csv(tmp_path / "cka.csv")
    assert len(rows) == 3 * own.values.size
    assert [row["part"] for row in rows[:: len(own.values)]][:5] == [
        "stem",
        "stage1.1",
        "stage2.1",
        "stage3.1",
        "head",
    ]
    assert float(rows[1]["cka"]) == pytest.approx(own.values[0, 1], abs=1e-6)
    assert "mean CKA of its stages" in capsys.readouterr().out


def test_more_than_two_runs_are_refused(refused):
    assert "3 runs are named; CKA compares one or two" in refused("cka", "A", "B", "C")

"""Features: what is collected, their map, their neighbours, TensorBoard's files, the command."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lab import read_csv
from PIL import Image
from torch import nn

from resnet_lab import charts
from resnet_lab.analysis import features_picture
from resnet_lab.analysis.features import (
    collect,
    neighbour_accuracy,
    principal_components,
    umap_places,
)
from resnet_lab.analysis.features_picture import KOREAN, Curve, Map, depth_places, draw
from resnet_lab.analysis.projector import thumbnails, write_projector
from resnet_lab.analysis.subject import Subject
from resnet_lab.cli import main
from resnet_lab.config.errors import UserError
from resnet_lab.language import translator


class TinyNet(nn.Module):
    """Two parts and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.stages = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU())))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(images)))


def subject_of(net: nn.Module) -> Subject:
    run: Any = SimpleNamespace(
        net=net.eval(), datamodule=SimpleNamespace(mean=[0.5] * 3, std=[0.25] * 3)
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (300, 2, 2, 3), dtype=torch.uint8, generator=generator)
    return Subject(run, torch.device("cpu"), pixels, torch.arange(300) % 2)


def test_features_are_those_in_front_of_the_head_and_the_means_of_all_parts():
    torch.manual_seed(0)
    subject = subject_of(TinyNet())
    found = collect(subject)
    images = subject.normalised(subject.pixels)
    with torch.no_grad():
        stem = subject.net.stem(images)
        last = subject.net.stages(stem)
        logits = subject.net(images)
    assert [part.name for part, _ in found.parts] == ["stem", "stage1.1"]
    torch.testing.assert_close(found.parts[0][1], stem.mean(dim=(2, 3)))
    torch.testing.assert_close(found.parts[1][1], last.mean(dim=(2, 3)))
    torch.testing.assert_close(found.before_head, found.parts[1][1])
    assert torch.equal(found.predicted, logits.argmax(dim=1))
    assert found.pixels.shape == (300, 12)
    assert not subject.net.head[-1]._forward_pre_hooks  # nothing listens any longer
    with pytest.raises(UserError, match="no linear layer"):
        collect(subject_of(nn.Conv2d(3, 2, 2)))


def test_neighbours_by_hand():
    # Directions in the plane, in degrees: two groups, and one image of class 1 among the others.
    degrees = torch.tensor([0.0, 5, 10, 90, 95, 100, 8])
    angles = degrees.deg2rad()
    lengths = torch.tensor([1.0, 2, 3, 1, 2, 3, 50])  # which do not count
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * lengths[:, None]
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    # One neighbour: of 0 it is 5, of 5 it is 8 (wrong), of 10 it is 8 (wrong), of 8 it is 10
    # (wrong); the other three are right.
    assert neighbour_accuracy(features, labels, k=1) == pytest.approx(4 / 7)
    # Two: only for 8 (10 and 5) both are of another class; of 0, 5 and 10 one is 8, a tie. At 0
    # the nearer (5) is of class 0: right. At 5 the nearer is 8, at 10 as well: wrong.
    assert neighbour_accuracy(features, labels, k=2) == pytest.approx(4 / 7)
    # Three: the others outvote it.
    assert neighbour_accuracy(features, labels, k=3) == pytest.approx(6 / 7)
    # More than there are: all others. Of 0, 5 and 10 two of six are of their class, of the rest
    # three: a tie, and the sum of cosines of their own is larger but for 8.
    assert neighbour_accuracy(features, labels, k=99) == pytest.approx(3 / 7)


def test_neighbours_in_several_pieces_are_the_same(monkeypatch):
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    labels = (features[:, 0] > 0).long()
    whole = neighbour_accuracy(features, labels)
    monkeypatch.setattr("resnet_lab.analysis.features.ROWS", 7)
    assert neighbour_accuracy(features, labels) == whole
    assert 0.6 < whole < 1


def test_principal_components_of_known_data():
    # Along (3, 4) / 5 at -2, -1, 1, 2 (squares: 10), across it at 1, -1, -1, 1 (4), moved aside.
    along, across = torch.tensor([0.6, 0.8, 0]), torch.tensor([-0.8, 0.6, 0])
    one, two = torch.tensor([-2.0, -1, 1, 2]), torch.tensor([1.0, -1, -1, 1])
    features = one[:, None] * along + two[:, None] * across + torch.tensor([5.0, -3.0, 100.0])
    places, shares = principal_components(features)
    torch.testing.assert_close(shares, torch.tensor([10 / 14, 4 / 14]))
    torch.testing.assert_close(places, torch.stack([one, -two], dim=1))  # its largest weight: -0.8
    flat, none = principal_components(torch.ones(5, 3))
    assert torch.equal(flat, torch.zeros(5, 2))
    assert torch.equal(none, torch.zeros(2))


def test_nets_of_any_depth_share_an_axis():
    order = ["stem", "stage1", "stage2"]
    deep = depth_places(["stem", "stage1", "stage1", "stage2", "stage2"], order)
    shallow = depth_places(["stem", "stage1", "stage2"], order)
    assert shallow == pytest.approx([0.3, 1.1, 2.1])
    assert deep == pytest.approx([0.3, 0.85, 1.35, 1.85, 2.35])


@pytest.mark.slow
def test_a_picture_of_many_classes(monkeypatch):
    monkeypatch.setattr(charts, "DPI", 30)
    names = [f"$class_{n}^" for n in range(30)]
    labels = np.arange(60) % 30
    places = np.random.default_rng(0).normal(size=(60, 2))
    maps = [Map("net\n", places, labels, labels > 3, None)]
    curves = [
        Curve("a", ["trunk"], [0.5], 0.2),
        Curve("$b", ["stem", "stage1"], [0.5, 0.75], 0.2),
    ]
    pixels = charts.render(lambda: draw(maps, curves, names, 20, translator("ko", KOREAN)))
    assert pixels.shape[0] > 100
    colours = {features_picture._colour(number) for number in range(20)}
    assert len(colours) == 20
    assert features_picture._colour(20) == features_picture._colour(29)


# ------------------------------------------------------------------ TensorBoard


def test_the_projector_gets_a_line_and_a_picture_for_each_image(tmp_path):
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    pixels = torch.zeros(5, 8, 8, 3, dtype=torch.uint8)
    pixels[3] = 200
    labels, predicted = torch.tensor([0, 1, 1, 0, 0]), torch.tensor([0, 1, 0, 0, 1])
    features = torch.arange(10.0).view(5, 2)
    write_projector(tmp_path, features, pixels, labels, predicted, ["a\tb", "c\nd"])
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    rows = (tmp_path / embedding.metadata_path).read_text().splitlines()
    assert rows[0].split("\t") == ["class", "predicted", "answer"]
    assert [row.split("\t") for row in rows[1:]] == [
        ["a\\tb", "a\\tb", "right"],
        ["c\\nd", "c\\nd", "right"],
        ["c\\nd", "a\\tb", "wrong"],
        ["a\\tb", "a\\tb", "right"],
        ["a\\tb", "c\\nd", "wrong"],
    ]
    tensors = np.loadtxt(tmp_path / embedding.tensor_path, delimiter="\t")
    np.testing.assert_array_equal(tensors, features.numpy())
    assert list(embedding.sprite.single_image_dim) == [8, 8]
    with Image.open(tmp_path / embedding.sprite.image_path) as sprite:
        assert sprite.size == (24, 24)  # three by three
        means = np.asarray(sprite).reshape(3, 8, 3, 8, 3).mean(axis=(1, 3, 4)).round()
    assert means.tolist() == [[0, 0, 0], [200, 0, 0], [0, 0, 0]]


def test_pictures_for_the_projector_are_small_enough(monkeypatch):
    images = torch.zeros(17, 100, 80, 1, dtype=torch.uint8)
    assert thumbnails(images).shape == (17, 3, 64, 64)
    monkeypatch.setattr("resnet_lab.analysis.projector.LARGEST_SPRITE", 100)
    assert thumbnails(images[:16]).shape == (16, 3, 25, 25)  # four beside each other
    assert thumbnails(images).shape == (17, 3, 20, 20)


# ------------------------------------------------------------------ the command


def test_the_command_draws_lists_and_writes_for_tensorboard(
    finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(charts, "DPI", 30)
    asked = ["features", str(finished), "--device", "cpu", "--images", "60", "--projector"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    screen = capsys.readouterr().out
    assert f"tensorboard --logdir {tmp_path}/projector" in screen
    (projector,) = (tmp_path / "projector").iterdir()
    assert projector.name == "1-cifar-resnet-shortcut-A"
    assert (projector / "projector_config.pbtxt").is_file()
    assert (tmp_path / "features.png").is_file()
    rows = read_csv(tmp_path / "map.csv")
    assert len(rows) == 60
    assert sum(row["class"] == row["predicted"] for row in rows) / 60 == pytest.approx(
        float(screen.splitlines()[1].split()[-1].rstrip("%")) / 100, abs=1e-3
    )
    curve = read_csv(tmp_path / "neighbours.csv")
    assert [row["part"] for row in curve] == ["pixels", "stem", "stage1.1", "stage2.1", "stage3.1"]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in curve)


def test_mistakes_are_said_before_anything_is_loaded(refused, tmp_path: Path):
    assert "4 runs are named; 3 at most" in refused("features", *"ABCD")
    if find_spec("umap") is None:
        sentence = refused("features", "A", "--map", "umap")
        assert "--map umap needs the package umap-learn: pip install umap-learn" in sentence
        with pytest.raises(UserError, match="pip install umap-learn"):
            umap_places(torch.zeros(3, 2))

"""Heat maps: the formula, the layer they are made of, the pictures and their commands."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lab import SMALL_NET, composed, read_csv
from PIL import Image
from torch import nn

from resnet_lab import charts
from resnet_lab.analysis import gradcam
from resnet_lab.analysis.gradcam_picture import KOREAN, MAP, Block, Cell, draw, overlay
from resnet_lab.analysis.subject import open_subject
from resnet_lab.cli import main
from resnet_lab.config.errors import UserError
from resnet_lab.language import translator
from resnet_lab.models import classic, resnet
from resnet_lab.run import predict

# Two channels of 2 x 2 pixels: one is bright on the left, the other on the right.
IMAGE = torch.tensor([[[[4.0, 0.0], [8.0, 0.0]], [[0.0, 4.0], [0.0, 2.0]]]])
WEIGHTS = torch.tensor([[1.0, -1.0], [-1.0, 2.0], [-1.0, -1.0]])  # of three classes


def linear(weights: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(*weights.T.shape, bias=False)
    layer.weight = nn.Parameter(weights)
    return layer


def small_net(*after: nn.Module) -> nn.Sequential:
    """A convolution that passes the image through, what comes `after`, and a linear head."""
    passing = nn.Conv2d(2, 2, 1, bias=False)
    passing.weight = nn.Parameter(torch.eye(2).view(2, 2, 1, 1))
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(WEIGHTS))
    return nn.Sequential(passing, *after, *pool).eval()


def maps_of(net: nn.Module, image: torch.Tensor, classes: list[int]) -> torch.Tensor:
    found = gradcam.find_layer(net, image)
    return gradcam.heat_maps(net, found, image, torch.tensor([classes]))[0]


def test_a_map_is_the_formula_and_responds_to_the_class():
    # d logit / d pixel = weight / 4, its mean over the pixels as well; what is negative goes.
    left, right, neither = maps_of(small_net(), IMAGE, [0, 1, 2])
    assert left.tolist() == [[1.0, 0.0], [2.0, 0.0]]
    assert right.tolist() == [[0.0, 2.0], [0.0, 1.0]]
    assert neither.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_channel_weighs_as_much_as_its_mean_gradient():
    # No pooling: class 0 counts the upper left pixel alone, with 4; class 1 takes channel 1 off.
    weights = torch.tensor([[4.0, 0, 0, 0, 0, 0, 0, 0], [1.0, 1, 1, 1, -2, -2, -2, -2]])
    net = nn.Sequential(nn.Identity(), nn.Flatten(), linear(weights))
    one, two = maps_of(net, IMAGE, [0, 1])
    assert one.tolist() == [[4.0, 0.0], [8.0, 0.0]]
    assert two.tolist() == [[4.0, 0.0], [8.0, 0.0]]


def test_images_are_computed_apart_and_nothing_is_changed():
    net = small_net(nn.ReLU(inplace=True))
    images = torch.cat([IMAGE, IMAGE.flip(1), IMAGE * 2] * 12)  # more than a batch
    classes = torch.tensor([[0], [1], [0]] * 12)
    net[0].weight.requires_grad_(False)
    before = images.clone()
    with torch.no_grad():
        expected = net(images)
    # The output of the convolution is overwritten by what follows, and is still weighed as it was.
    maps = gradcam.heat_maps(net, net[0], images, classes)
    alone = [gradcam.heat_maps(net, net[0], images[n, None], classes[n, None]) for n in (1, 35)]
    assert torch.equal(maps[[1, 35]], torch.cat(alone))
    assert torch.equal(maps[2], 2 * maps[0])
    assert torch.equal(images, before)
    assert [p.requires_grad for p in net.parameters()] == [False, True]
    torch.testing.assert_close(net(images), expected)


def name_of(net: nn.Module, layer: nn.Module) -> str:
    return next(name for name, module in net.named_modules() if module is layer)


def test_the_layer_is_the_last_picture_before_pooling():
    image = torch.zeros(2, 3, 32, 32)
    net = resnet.cifar_resnet(8, num_classes=3, width=0.25).eval()
    layer = gradcam.find_layer(net, image)
    assert name_of(net, layer) in ("stages", "stages.2", "stages.2.0")  # all put out the same
    preact = resnet.cifar_resnet(8, num_classes=3, width=0.25, block="preact_basic").eval()
    assert name_of(preact, gradcam.find_layer(preact, image)) == "head.1"  # the last relu
    with torch.device("meta"):
        cnn = classic.TextbookCNN(num_classes=3).eval()
    assert name_of(cnn, gradcam.find_layer(cnn, image.to("meta"))) == "stages.2.3"

    assert gradcam.find_layer(net, image, "stage2") is net.stages[1][-1]
    assert gradcam.find_layer(net, image, "stage1.1") is net.stages[0][0]
    assert gradcam.find_layer(net, image, "stages.0.0.branch.0") is net.stages[0][0].branch[0]
    maps = gradcam.heat_maps(net, net.stages[1][-1], image, torch.zeros(2, 1, dtype=torch.long))
    assert maps.shape == (2, 1, 16, 16)
    with pytest.raises(UserError, match="--layer stage7: did you mean stage1"):
        gradcam.find_layer(net, image, "stage7")
    with pytest.raises(UserError, match="--layer head: its output is not"):
        gradcam.find_layer(net, image, "head")


def test_a_net_without_pictures_says_so():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(UserError, match="this net has no layer whose output is"):
        gradcam.find_layer(flat, IMAGE)


def test_a_correlation_by_hand():
    one = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    assert gradcam.correlation(one, 5 * one + 1) == pytest.approx(1)
    assert gradcam.correlation(one, -one) == pytest.approx(-1)
    # Deviations (-3, -1, 1, 3) / 2 and (1, -1, -1, 1) / 2 have the product 0.
    other = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert gradcam.correlation(one, other) == pytest.approx(0)
    flat = torch.cat([one, torch.zeros(1, 2, 2)])
    assert gradcam.correlation(flat, flat) == pytest.approx(1)  # the second image does not count
    assert math.isnan(gradcam.correlation(flat[1:], flat[1:]))


def test_random_weights_are_the_same_ones_each_time_and_in_range():
    cfg = composed(*SMALL_NET)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 50
    before = torch.get_rng_state()
    one, two = (gradcam.random_twin(cfg, images) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not one.training
    with torch.no_grad():
        logits = one(images)
    assert torch.equal(logits, two(images))
    assert 0.01 < float(logits.std()) < 10  # although the images are 50 times too bright


def test_the_wrong_ones_are_sure_and_the_right_ones_are_not():
    sure = torch.tensor([0.9, 0.6, 0.7, 0.8, 0.95])
    probabilities = torch.stack([sure, 1 - sure], dim=1)
    labels = torch.tensor([0, 1, 0, 1, 1])
    assert gradcam.extremes(probabilities, labels, 2) == ([4, 3], [2, 0])
    assert gradcam.extremes(probabilities, 1 - labels, 9) == ([0, 2], [1, 3, 4])


def test_a_heat_map_lies_over_the_whole_image():
    image = np.full((40, 40, 3), 128, dtype=np.uint8)
    heat = np.array([[0.0, 0.0], [0.0, 5.0]])
    laid = overlay(image, heat).astype(int)
    assert laid[-1, -1].tolist() == pytest.approx(
        0.35 * 128 + 0.65 * 255 * np.array(charts.matplotlib.colormaps[MAP](1.0))[:3], abs=1
    )
    assert laid[0, 0].tolist() == pytest.approx([96] * 3, abs=2)  # 3/4 of the grey, 1/4 of black
    assert laid[0, 0, 0] < laid[20, 20, 0] < laid[-1, -1, 0]  # the red of the colours grows
    assert overlay(image, heat * 7).tolist() == laid.tolist()  # by its own largest value
    assert overlay(image, heat * 0).max() <= 97


@pytest.mark.slow
def test_a_picture_of_any_texts_and_of_no_rows(monkeypatch):
    monkeypatch.setattr(charts, "DPI", 30)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    cells = [Cell(image, "$x^$ 고양이"), Cell(image, "a\nb", np.eye(2))]
    blocks = [Block("one", ["a", "b"], [cells, cells[:1]]), Block("two", ["a"], [])]
    pixels = charts.render(lambda: draw(blocks, translator("ko", KOREAN)))
    assert pixels.shape[0] > 50
    texts = [text for text in KOREAN.values() if not text.isascii()]
    assert len(texts) == len(KOREAN)


# ------------------------------------------------------------------ commands


def is_png(path: Path) -> bool:
    with Image.open(path) as image:
        return image.format == "PNG"


def test_explain_writes_what_the_net_answers(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(charts, "DPI", 30)
    asked = ["explain", str(finished), "--device", "cpu", "--rows", "1", "--randomised"]
    assert main([*asked, "--out", str(tmp_path / "new")]) == 0
    assert "trained and random weights: mean correlation" in capsys.readouterr().out
    assert is_png(tmp_path / "new" / "gradcam.png")
    rows = read_csv(tmp_path / "new" / "gradcam.csv")
    subject = open_subject(finished, device="cpu")
    probabilities = subject.logits().softmax(dim=1)
    assert len(rows) == 4
    for row in rows:
        number = int(row["image"])
        assert row["true_class"] == str(int(subject.labels[number]))
        assert float(row["probability"]) == pytest.approx(
            float(probabilities[number, int(row["class"])]), abs=1e-5
        )
    predicted, second = rows[::2], rows[1::2]
    assert all(row["class"] != row["true_class"] for row in predicted[:1])
    assert all(row["class"] == row["true_class"] for row in [second[0], predicted[1]])
    layer = gradcam.find_layer(subject.net, subject.normalised(subject.pixels[:1]))
    number, kind = int(rows[0]["image"]), int(rows[0]["class"])
    images = subject.normalised(subject.pixels[[number]])
    most = gradcam.heat_maps(subject.net, layer, images, torch.tensor([[kind]])).max()
    assert float(rows[0]["map_maximum"]) == pytest.approx(float(most), rel=1e-3)


def test_predict_explains_any_image(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(charts, "DPI", 30)
    drawn: list[list[Block]] = []
    monkeypatch.setattr(
        "resnet_lab.analysis.gradcam_picture.draw",
        lambda blocks, say: drawn.append(list(blocks)) or draw(blocks, say),
    )
    wide = Image.new("RGB", (60, 30), "white")
    for place in ("3/a.png", "other/$.png"):
        (tmp_path / place).parent.mkdir()
        wide.save(tmp_path / place)
    (tmp_path / "other" / "broken.png").write_text("no image")
    photos = [str(tmp_path / name) for name in ("3", "other")]
    out = tmp_path / "deep" / "heat.png"
    asked = ["predict", str(finished), *photos, "--device", "cpu", "--format", "json"]
    assert main([*asked, "--explain", str(out)]) == 1  # one is broken
    labels = {row["file"]: row.get("labels") for row in json.loads(capsys.readouterr().out)}
    assert is_png(out)
    ((block,),) = drawn
    known, unknown = block.rows
    assert known[0].below == "a.png\nit is 3"
    assert unknown[0].below == "$.png"
    likeliest = labels[str(tmp_path / "3" / "a.png")][:2]
    texts = [f"{one['label']}  {one['probability']:.0%}" for one in likeliest]
    assert [cell.below for cell in known[1:3]] == texts
    kinds = [one["label"] for one in likeliest]
    assert len(known) == (3 if "3" in kinds else 4)
    assert [cell.below for cell in unknown[1:]] == texts  # the same image
    assert unknown[0].image.shape == (30, 30, 3)  # the square that the net sees


def test_what_the_net_sees_of_a_photo():
    photo = Image.new("RGB", (256, 128))
    photo.paste("red", (64, 0, 192, 128))
    whole = predict.seen(predict.Picture(Path("a.png"), thumbnail=photo), 32)
    assert (whole == [255, 0, 0]).all()
    assert whole.shape == (128, 128, 3)
    assert predict.seen(predict.Picture(Path("a.png"), thumbnail=photo), 224).shape[0] == 112


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["predict", "RUN", "a.png", "--explain", "a.jpg"], "--explain a.jpg: it becomes a PNG"),
        (["predict", "RUN", "a.png", "--layer", "stage1"], "--layer is of --explain FILE.png"),
        (
            ["predict", "RUN", "a.png", "--grid", "a.png", "--explain", "a.png"],
            "--grid and --explain need two files",
        ),
        (["explain", "RUN", "--rows", "0"], "--rows 0: must be 1 or more"),
        (["explain", "RUN", "--out", "."], "--out .: there is something already"),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(arguments, sentence, refused, tmp_path):
    (tmp_path / "file").touch()
    assert sentence in refused(*arguments)

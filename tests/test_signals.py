"""Signals through depth before training: figures by hand, the nets of a training, the command."""

import math
from pathlib import Path

import pytest
import torch
from lab import CPU, QUICK, SMALL_NET, assert_same, read_csv
from torch import Tensor, nn

from resnet_lab.analysis import signals, signals_picture
from resnet_lab.analysis.signals import DISTANCES, Signals, participation_ratio, reach
from resnet_lab.analysis.signals_picture import KOREAN, Net, draw
from resnet_lab.analysis.untrained import first_batch, initialised, noise
from resnet_lab.cli import main
from resnet_lab.config.errors import UserError
from resnet_lab.language import translator
from resnet_lab.models.resnet import cifar_resnet
from resnet_lab.run import build


def with_weight(layer: nn.Module, weight: Tensor, bias: float | None = None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.fill_(bias)
    return layer


def images_of(rows: list[list[float]]) -> Tensor:
    """[n, 1, 1, pixels]"""
    return torch.tensor(rows)[:, None, None]


def test_gradients_and_activations_of_two_linear_layers_by_hand():
    # logits = log 3 * x, so the softmax of the first image (1, 0) is (3/4, 1/4). Its gradient at
    # the logits, of a mean over two images, is (-1/8, 1/8), and that of the second the opposite.
    # So W2's gradient is [[-1, 1], [1, -1]] / 8, of norm 1/4; W1's is log 3 times that.
    factor = math.log(3)
    net = nn.Sequential(
        nn.Flatten(),
        with_weight(nn.Linear(2, 2, bias=False), torch.eye(2)),
        with_weight(nn.Linear(2, 2, bias=False), factor * torch.eye(2)),
    )
    images, labels = images_of([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    found = signals.measure(net, images, labels)
    assert found.names == ["1", "2"]
    assert found.gradient == pytest.approx([factor / 4, 1 / 4])
    std = float(images.std())
    assert found.activation == pytest.approx([std, factor * std])
    assert found.rank == pytest.approx([1, 1])  # two points lie on a line
    assert all(math.isnan(share) for share in found.dead)
    # The gradient of a linear net is the same everywhere.
    assert found.correlation == pytest.approx([1] * len(DISTANCES))
    assert reach(found.correlation) == math.inf


def test_the_participation_ratio_of_known_eigenvalues():
    axes = torch.eye(3, dtype=torch.float64)
    variances = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64).sqrt()
    points = torch.cat([axes, -axes]) * variances  # of mean 0 and uncorrelated
    assert participation_ratio(points) == pytest.approx((4 + 1) ** 2 / (16 + 1))
    assert participation_ratio(1e30 * points + 1e30) == pytest.approx(25 / 17)
    assert participation_ratio(torch.cat([axes, -axes])) == pytest.approx(3)
    assert math.isnan(participation_ratio(torch.ones(4, 3)))


@pytest.mark.parametrize(("bias", "share"), [(-100.0, 1.0), (100.0, 0.0)])
def test_relus_below_zero_for_every_image_are_dead(bias, share):
    layer = with_weight(nn.Linear(2, 3), torch.ones(3, 2), bias)
    net = nn.Sequential(nn.Sequential(nn.Flatten(), layer, nn.ReLU()), nn.Linear(3, 2))
    found = signals.measure(net, images_of([[1.0, 2], [3, 4]]), torch.tensor([0, 1]))
    assert found.dead[0] == share


def test_a_relu_that_one_image_wakes_is_not_dead():
    # Of the four units the first is positive for one image, the second for the other, the third
    # for both and the fourth for none.
    weight = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, -1]])
    layer = with_weight(nn.Linear(2, 4), weight, 0.0)
    relu = nn.ReLU()  # taken twice: both count
    net = nn.Sequential(nn.Flatten(), nn.Sequential(layer, relu, relu), nn.Linear(4, 2))
    found = signals.measure(net, images_of([[1.0, 0], [0, 1]]), torch.tensor([0, 1]))
    assert found.dead[-2] == 1 / 4


class Square(nn.Module):
    """Its first logit is half of the squared length of the input, so its gradient is the input."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.flatten(1).square().sum(1, keepdim=True) / 2
        return torch.cat([half, -half], dim=1)


def test_the_correlation_of_gradients_by_hand():
    images = images_of([[1.0, 0.0], [0.0, 1.0]])
    start = [k / (2 * signals.STARTS) for k in range(signals.STARTS)]

    def cosine(s: float, t: float) -> float:
        product = (1 - s) * (1 - t) + s * t
        return product / math.hypot(1 - s, s) / math.hypot(1 - t, t)

    expected = [sum(cosine(s, s + d) for s in start) / len(start) for d in DISTANCES]
    assert signals.gradient_correlation(Square(), images) == pytest.approx(expected, abs=1e-5)


def test_the_distance_of_half_a_correlation():
    falling = [1.0] * (len(DISTANCES) - 2) + [0.75, 0.25]
    assert reach(falling) == pytest.approx(math.sqrt(DISTANCES[-2] * DISTANCES[-1]))
    assert reach([0.4] * len(DISTANCES)) == 0
    assert reach([1.0] * len(DISTANCES)) == math.inf
    assert math.isnan(reach([math.nan] * len(DISTANCES)))


def test_without_shortcuts_gradients_explode_and_are_shattered():
    torch.manual_seed(0)
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 4
    nets = [
        cifar_resnet(26, width=0.5, num_classes=4, shortcut=shortcut, image_size=8)
        for shortcut in ("A", "none")
    ]
    residual, plain = (signals.measure(net, images, labels) for net in nets)
    inner = [f"stage{number}" for number in (1, 2, 3) for _ in range(4)]
    assert residual.stages == plain.stages == ["stem", *inner, "head"]
    first, last = plain.blocks[0], plain.blocks[-1]
    assert (first, last) == (1, 12)
    growth = [of.gradient[first] / of.gradient[last] for of in (residual, plain)]
    assert growth[1] > 4 * growth[0]
    assert reach(residual.correlation) > 4 * reach(plain.correlation)


def test_a_net_of_one_part_has_no_depth():
    with pytest.raises(UserError, match="Sequential: it has one part alone"):
        signals.measure(nn.Sequential(nn.Linear(2, 2)), torch.ones(2, 2), torch.tensor([0, 1]))


def test_net_and_batch_are_those_of_the_first_step(config):
    cfg = config(*QUICK, "augment=mixup")
    parts = build.build(cfg)
    images, targets = parts.datamodule.prepare(next(iter(parts.datamodule.train_dataloader())))
    batch = first_batch(cfg, 64)
    assert torch.equal(batch.images, images)
    assert torch.equal(batch.targets, targets)
    assert_same(initialised(cfg, batch, cfg.seed).state_dict(), parts.net.state_dict())
    with pytest.raises(UserError, match="--images 257: there are 256 training images"):
        first_batch(cfg, 257)


def test_noise_reads_no_data(config):
    cfg = config("data.cache_dir=/nowhere")
    batch = noise(cfg, 5)
    assert tuple(batch.images.shape) == (5, 3, 32, 32)
    assert batch.num_classes == 10
    cfg.data.image_size = None  # as of an image folder
    with pytest.raises(UserError, match="--random: these data do not say"):
        noise(cfg, 5)


def made_up(stages: str, gradient: float = 1.0) -> Signals:
    of = stages.split()
    n = len(of)
    return Signals(
        of, of, [gradient] * n, [2.0] * n, [3.0] * n, [math.nan] * n, [0.5] * len(DISTANCES)
    )


def test_nets_of_other_depths_share_the_axis_of_stages():
    short = Net("short", [made_up("stem stage1 stage2 head")])
    long = Net("long", [made_up("stem stage1 stage1 stage2 stage2 head")])
    depth = signals_picture._Depth([short, long], translator("en"))
    assert depth.places(short.runs[0].stages) == pytest.approx([0.16, 0.82, 1.82, 2.48])
    assert depth.places(long.runs[0].stages) == pytest.approx([0.16, 0.57, 1.07, 1.57, 2.07, 2.48])
    other = Net("other", [made_up("features head")])
    depth = signals_picture._Depth([short, other], translator("en"))
    assert depth.places(other.runs[0].stages) == [0.25, 0.75]


def test_the_picture_takes_any_name_and_any_number():
    nets = [
        Net("$\\frac{", [made_up("stem stage1 stage2 head", norm) for norm in (1.0, 0.0)]),
        Net("b\n", [made_up("stem stage1 stage2 head", math.inf)]),
    ]
    figure = draw(nets, DISTANCES, "$x", translator("ko", KOREAN))
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == ["$\\frac{", "b\\n"]
    assert not any(text.get_parse_math() for text in (*texts, figure.texts[0]))
    panels = figure.get_axes()
    assert [label.get_text() for label in panels[0].get_xticklabels()] == [
        *("스템", "1단계", "2단계", "분류층")
    ]
    rank = panels[2].lines[0].get_ydata()
    assert list(rank[:3]) == [3.0, 3.0, 3.0]
    assert math.isnan(rank[3])  # that of logits is another thing


def test_the_command_writes_every_figure(tmp_path: Path, shared_cache: Path, capsys):
    out = tmp_path / "out"
    words = [*SMALL_NET, *CPU, f"data.cache_dir={shared_cache}", "model.shortcut=A,none"]
    arguments = ["signals", *words, "--images", "16", "--seeds", "2", "--device", "cpu"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        *("signals.png", "signals.csv", "correlation.csv")
    }
    rows = read_csv(out / "signals.csv")
    names = ["stem", "stage1.1", "stage2.1", "stage3.1", "head"]
    assert [row["part"] for row in rows] == names * 4
    assert [(row["net"], row["seed"]) for row in rows[::5]] == [
        *(("shortcut A", "0"), ("shortcut A", "1"), ("plain", "0"), ("plain", "1"))
    ]
    assert all(float(row["gradient"]) > 0 for row in rows)
    assert len(read_csv(out / "correlation.csv")) == 4 * len(DISTANCES)
    printed = capsys.readouterr().out
    assert "shortcut A" in printed
    assert f"written     {out}" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "2"], "--images 2: must be 8 or more"),
        (
            ["model.zero_init_residual=true", "model.shortcut=A,none"],
            "model.shortcut=none: model.zero_init_residual=true: without a shortcut",
        ),
        (["--out", "."], "--out .: there is something already"),
    ],
)
def test_mistakes_cost_no_time(refused, tmp_path, words, message):
    (tmp_path / "file").touch()
    assert message in refused("signals", *words)

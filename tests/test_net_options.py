"""What a residual net can have besides the papers' first blocks: shortcuts, places of ReLU, ends of
branches, widths."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from lab import SMALL_NET, composed, read_csv, train_here, weights
from test_models import small_net
from torch import Tensor, nn

from resnet_lab.config.check import check
from resnet_lab.config.errors import UserError
from resnet_lab.models import resnet
from resnet_lab.models.resnet import (
    BlurPool,
    BranchScale,
    DropPath,
    Gate,
    ResNet,
    cifar_resnet,
    imagenet_resnet,
)

SHORTCUTS = [*"ABCD", "scale", "gate", "shortcut_gate", "conv", "dropout", "learned"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def blocks(net: ResNet) -> list[nn.Module]:
    return [block for stage in net.stages for block in stage]


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# ---------------------------------------------------------------- published nets


def test_published_nets_have_their_parameters():
    with torch.device("meta"):
        wide = ResNet(
            block="preact_basic",
            depths=[4, 4, 4],
            widths=[16, 32, 64],
            width=10,
            stem_width=16,
            shortcut="B",
            stem="cifar",
            num_classes=10,
        )
        grouped = ResNet(
            block="bottleneck",
            depths=[3, 3, 3],
            widths=[64, 128, 256],
            groups=8,
            stem="cifar",
            num_classes=10,
        )
        fifty = {"depth": 50, "num_classes": 1000}
        assert parameters(imagenet_resnet(**fifty, se=16)) == 28_088_024  # timm's seresnet50
        deep = imagenet_resnet(**fifty, stem="deep", shortcut="D")
        assert parameters(deep) == 25_576_264  # timm's resnet50d
        for options, name in (
            ({"groups": 32, "group_width": 4}, "resnext50_32x4d"),
            ({"group_width": 128}, "wide_resnet50_2"),
            ({"blur": True}, "resnet50"),
        ):
            theirs = getattr(torchvision.models, name)()
            assert parameters(imagenet_resnet(**fifty, **options)) == parameters(theirs), name
    # By hand: stem, and for each block convolutions and two numbers a channel of each norm.
    stem = 3 * 9 * 16 + 2 * 16
    first, total = 16, stem
    for width in (160, 320, 640):
        for inside in [first, *[width] * 3]:
            total += 9 * inside * width + 9 * width * width + 2 * width + 2 * inside
            total += inside * width if inside != width else 0
        first = width
    total -= 2 * 16  # the first block's norm is the stem's
    assert parameters(wide) == total + 2 * 640 + 640 * 10 + 10 == 36_479_194
    first, total = 64, 3 * 9 * 64 + 2 * 64
    for width in (64, 128, 256):
        inner, out = 8 * width, 4 * width
        for inside in [first, out, out]:
            total += inside * inner + 9 * inner * inner // 8 + inner * out + 2 * (2 * inner + out)
            total += inside * out + 2 * out if inside != out else 0
        first = out
    assert parameters(grouped) == total + 1024 * 10 + 10 == 34_426_698


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"groups": 32, "group_width": 4}, "resnext50_32x4d"),
        ({"group_width": 128}, "wide_resnet50_2"),
    ],
)
@pytest.mark.slow
def test_grouped_and_wide_nets_compute_what_torchvisions_do(options, name):
    ours = imagenet_resnet(50, num_classes=7, **options).eval()
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    shapes = {k: v for k, v in ours.state_dict().items() if v.ndim}
    values = [v for v in theirs.state_dict().values() if v.ndim]
    # Ours hold a block's shortcut behind its branch, as torchvision its downsample.
    assert [v.shape for v in shapes.values()] == [v.shape for v in values]
    ours.load_state_dict(dict(zip(shapes, values, strict=True)), strict=False)
    images = torch.randn(2, 3, 64, 64)
    ours.stem = nn.Sequential(*ours.stem)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"blur": True}, "resnetblur50"),
        ({"stem": "deep", "shortcut": "D"}, "resnet50d"),
        ({"se": 16}, "seresnet50"),
    ],
)
@pytest.mark.slow
def test_blurred_deep_and_squeezed_nets_compute_what_timms_do(options, name):
    timm = pytest.importorskip("timm", reason="the extra [optim] is not installed")
    ours = imagenet_resnet(50, num_classes=7, **options).eval()
    theirs = timm.create_model(name, num_classes=7, zero_init_last=False).eval()
    values = theirs.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    images = torch.randn(2, 3, 64, 64)
    expected = theirs(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- shortcuts


def test_each_shortcut_is_its_equation():
    x = torch.randn(4, 8, 6, 6)
    for shortcut in SHORTCUTS:
        block = blocks(small_net(shortcut=shortcut).eval())[1]
        branch = block.branch(x)
        sums = {"A": branch + x, "B": branch + x, "D": branch + x, "scale": (branch + x) / 2}
        if shortcut in ("C", "conv"):
            sums[shortcut] = branch + block.shortcut[1](block.shortcut[0](x))
        if shortcut.endswith("gate"):
            g = block.weights.conv(x).sigmoid()
            assert float(g.detach().mean()) < 0.02
            sums["gate"], sums["shortcut_gate"] = g * branch + (1 - g) * x, branch + (1 - g) * x
        if shortcut == "dropout":
            sums["dropout"] = branch + x  # in evaluation
        if shortcut == "learned":
            block.shortcut[1].factor.data.fill_(0.3)
            sums["learned"] = branch + 0.3 * x
        torch.testing.assert_close(block(x), F.relu(sums[shortcut]), msg=shortcut)


def test_where_the_shape_changes_the_shortcut_changes_it():
    x = torch.randn(4, 8, 6, 6)
    padded = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 8))
    for shortcut in ("scale", "gate", "shortcut_gate", "dropout", "learned"):
        block = blocks(small_net(shortcut=shortcut).eval())[2]
        torch.testing.assert_close(block.shortcut(x), padded)
        assert block(x).shape == (4, 16, 3, 3)
    pooled = blocks(small_net(shortcut="D").eval())[2].shortcut
    expected = F.conv2d(F.avg_pool2d(x, 2), pooled[1].weight)
    torch.testing.assert_close(pooled(x), pooled[2](expected))
    assert pooled(torch.randn(1, 8, 5, 5)).shape == (1, 16, 3, 3)  # an odd side, as the branch


def test_dropout_on_the_shortcut_leaves_out_half_in_training():
    block = blocks(small_net(shortcut="dropout").train())[1]
    kept = block.shortcut(torch.ones(8, 8, 16, 16))
    assert sorted(kept.unique().tolist()) == [0.0, 2.0]
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.05)


def test_conv_is_c_and_has_its_weights():
    one = small_net(shortcut="C")
    torch.manual_seed(0)
    two = small_net(shortcut="conv")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_preactivation_blocks_take_every_shortcut():
    images = torch.randn(2, 3, 32, 32)
    for shortcut in [*SHORTCUTS, "none"]:
        net = small_net(block="preact_basic", shortcut=shortcut).eval()
        block = blocks(net)[1]
        x = torch.randn(2, 8, 4, 4)
        branch, carried = block.branch(block.preact(x)), x
        if shortcut in ("C", "conv"):
            carried = block.shortcut(block.preact(x))
        if shortcut in ("A", "B", "C", "D", "conv", "dropout", "learned"):
            torch.testing.assert_close(block(x), branch + carried)
        assert net(images).shape == (2, 5)


# ---------------------------------------------------------------- places of ReLU


def test_places_of_relu_are_those_of_the_paper():
    x = torch.randn(4, 8, 6, 6)

    def parts(activation: str) -> tuple[nn.Module, list[nn.Module]]:
        block = blocks(small_net(activation=activation).eval())[1]
        return block, list(block.branch)

    block, (conv1, norm1, _, conv2, norm2) = parts("original")
    inner = conv2(F.relu(norm1(conv1(x))))
    torch.testing.assert_close(block(x), F.relu(norm2(inner) + x))
    block, (conv1, norm1, _, conv2) = parts("norm_after")
    inner = conv2(F.relu(norm1(conv1(x))))
    torch.testing.assert_close(block(x), F.relu(block.after[0](inner + x)))
    block, (conv1, norm1, _, conv2, norm2, _) = parts("relu_before")
    inner = F.relu(norm2(conv2(F.relu(norm1(conv1(x))))))
    torch.testing.assert_close(block(x), inner + x)
    block, (_, conv1, norm1, _, conv2, norm2) = parts("relu_only")
    inner = norm2(conv2(F.relu(norm1(conv1(F.relu(x))))))
    torch.testing.assert_close(block(x), inner + x)
    heads = {a: small_net(activation=a).head for a in ("original", "relu_before", "relu_only")}
    assert [a for a, head in heads.items() if isinstance(head[0], nn.ReLU)] == ["relu_only"]
    full = small_net(activation="full")
    torch.manual_seed(0)
    preact = small_net(block="preact_basic")
    assert list(full.state_dict()) == list(preact.state_dict())


@pytest.mark.parametrize("activation", ["norm_after", "relu_before", "relu_only"])
def test_places_of_relu_cost_no_parameters(activation):
    with torch.device("meta"):
        assert parameters(cifar_resnet(20, num_classes=10, activation=activation)) == 269_722
        net = small_net(block="bottleneck", activation=activation, shortcut="B")
        assert net(torch.empty(2, 3, 32, 32)).shape == (2, 5)


# ---------------------------------------------------------------- branches


def test_squeeze_and_excitation_weighs_channels_between_0_and_1():
    block = blocks(small_net(se=4).eval())[0]
    *rest, last = block.branch
    x = torch.randn(2, 8, 5, 5)
    before = nn.Sequential(*rest)(x)
    squeeze, excite = last.excite[1], last.excite[3]
    weights = torch.sigmoid(excite(F.relu(squeeze(before.mean((2, 3), keepdim=True)))))
    assert squeeze.out_channels == 2
    torch.testing.assert_close(block.branch(x), weights * before)


def test_blur_pool_smooths_before_it_halves():
    blur = BlurPool()
    stripes = torch.tensor([1.0, 0.0]).repeat(4).expand(1, 2, 8, 8)
    torch.testing.assert_close(blur(stripes), torch.full((1, 2, 4, 4), 0.5))
    ramp = torch.arange(9.0).expand(1, 1, 9, 9)
    torch.testing.assert_close(blur(ramp)[0, 0, 1, 1:-1], torch.tensor([2.0, 4.0, 6.0]))
    net = small_net(blur=True, stem="imagenet")
    assert sum(isinstance(module, BlurPool) for module in net.modules()) == 2  # stem and stage 2
    assert not [key for key in net.state_dict() if "kernel" in key]
    assert net.stem(torch.randn(2, 3, 64, 64)).shape == (2, 8, 16, 16)
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_drop_path_rises_to_the_last_block_and_keeps_the_mean():
    net = small_net(drop_path=0.4)
    drops = [m.drop for m in net.modules() if isinstance(m, DropPath)]
    assert drops == pytest.approx([0.1, 0.2, 0.3, 0.4])
    last = DropPath(0.4).train()
    x = torch.ones(20_000, 2, 1, 1)
    kept = last(x)
    assert torch.equal(kept[:, 0], kept[:, 1])  # whole branches
    assert sorted(kept.unique().tolist()) == pytest.approx([0.0, 1 / 0.6])
    assert float((kept > 0).float().mean()) == pytest.approx(0.6, abs=0.015)
    assert torch.equal(last.eval()(x), x)
    assert not [m for m in small_net().modules() if isinstance(m, DropPath)]


def test_skipinit_starts_as_the_shortcut_and_fixup_as_its_rules_say():
    x = torch.rand(3, 8, 6, 6)
    skip = small_net(norm="none", branch_scale="skipinit")
    assert torch.equal(blocks(skip)[1](x), x)
    torch.manual_seed(0)
    plain = small_net(norm="none")
    torch.manual_seed(0)
    fixup = small_net(norm="none", branch_scale="fixup")
    block, before = blocks(fixup)[1], blocks(plain)[1]
    assert torch.equal(block(x), x)
    assert isinstance(block.branch[-1], BranchScale)
    assert block.branch[-1].factor.tolist() == 1.0
    # Four blocks of two convolutions: the first of each is 4 ** (-1 / 2) as large.
    torch.testing.assert_close(block.branch[0].weight, before.branch[0].weight / 2)
    assert float(fixup.head[-1].weight.detach().abs().max()) == 0.0
    bottleneck = small_net(norm="none", branch_scale="fixup", block="bottleneck", shortcut="B")
    assert float(blocks(bottleneck)[0].branch[-3].weight.detach().abs().max()) == 0.0


def test_dropout_stands_between_the_convolutions():
    kinds = [type(m).__name__ for m in blocks(small_net(dropout=0.3))[0].branch]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Dropout", "Conv2d", "BatchNorm2d"]


def test_a_deep_stem_leaves_a_quarter_of_each_side():
    stem = small_net(stem="deep").stem
    assert [m.out_channels for m in stem if isinstance(m, nn.Conv2d)] == [4, 4, 8]
    assert stem(torch.randn(2, 3, 64, 64)).shape == (2, 8, 16, 16)
    assert small_net(stem_width=5).stem[0].out_channels == 5


# ---------------------------------------------------------------- all of them

OPTIONS = [
    *({"shortcut": shortcut} for shortcut in SHORTCUTS),
    *({"activation": a} for a in ("norm_after", "relu_before", "relu_only", "full")),
    *({"stem": "deep"}, {"se": 4}, {"blur": True}, {"drop_path": 0.5}, {"dropout": 0.2}),
    *({"branch_scale": scale, "norm": "none"} for scale in ("skipinit", "fixup")),
    {"block": "bottleneck", "groups": 2, "group_width": 32, "shortcut": "B"},
]


@pytest.mark.parametrize("bf16", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_option_takes_a_step_that_moves_it(bf16):
    images = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.arange(8) % 5
    for options in OPTIONS:
        net = small_net(**options).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        losses = []
        for _ in range(2 if bf16 else 8):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        missing = [name for name, p in net.named_parameters() if p.grad is None]
        assert not missing, options
        assert all(map(math.isfinite, losses)), options
        if not bf16 and not options.keys() & {"drop_path", "dropout"}:
            assert losses[-1] < losses[0], options


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_deep_nets_without_norm_train_where_branches_start_at_nothing(norm):
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 5
    scales = (None,) if norm == "batch" else ("skipinit", "fixup")
    for scale in scales:
        net = small_net(depths=[8, 8], norm=norm, branch_scale=scale)
        norms = net.stages(net.stem(images)).norm() / net.stem(images).norm()
        assert float(norms.detach()) < 4, scale
        F.cross_entropy(net(images), labels).backward()
    exploding = small_net(depths=[8, 8], norm="none")
    out = exploding.stages(exploding.stem(images)).norm() / exploding.stem(images).norm()
    assert float(out.detach()) > 20


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("model.shortcut=none", "model.drop_path=0.1"), "a block has nothing but its branch"),
        (("model.shortcut=none", "model.branch_scale=skipinit"), "a block has nothing but its"),
        (("model.branch_scale=fixup",), "set model.norm=none"),
        (("model.branch_scale=skipinit", "model.zero_init_residual=true"), "has its own start"),
        (("model.block=preact_basic", "model.activation=relu_only"), "is activation=full"),
        (("model.groups=4",), "only bottleneck blocks have groups"),
        (("model=resnet50", "model.dropout=0.3"), "only basic blocks have dropout"),
        (("model.shortcut=gated",), "must be one of A, B, C, D, scale, gate"),
        (("model.activation=before",), "must be one of original, norm_after"),
        (("model=wrn28_10", "model.shortcut=A", "model.stem_width=161"), "than the 160 channels"),
        (("model.stem_width=17",), "more than the 16 channels that the first stage puts out"),
        (("model.activation=relu_before", "model.zero_init_residual=true"), "passes no gradient"),
        (
            ("model.activation=relu_before", "model.branch_scale=fixup", "model.norm=none"),
            "passes no gradient",
        ),
        (
            ("model=resnet", "model.shortcut=gate", "model.widths=[32,16,8]"),
            "can only add channels",
        ),
        (("model.se=0",), "must be a whole number of 1 or more"),
    ],
)
def test_what_contradicts_itself_is_one_sentence(overrides, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        check(composed("data=digits", *overrides))
    assert "\n" not in str(caught.value)


def test_a_stem_as_wide_as_the_first_stage_passes_the_check():
    for overrides in (["model=wrn28_10", "model.stem_width=160"], ["model.stem_width=16"]):
        check(composed("data=digits", "model.shortcut=A", *overrides))


@pytest.mark.parametrize(
    ("options", "learns"),
    [
        ({"zero_init_residual": True}, False),
        ({"branch_scale": "fixup", "norm": "none"}, False),
        ({"branch_scale": "skipinit", "norm": "none"}, True),
    ],
)
def test_behind_a_relu_a_branch_that_starts_at_zero_never_learns(options, learns):
    """Why the rules refuse it."""
    net = small_net(activation="relu_before", **options)
    nn.init.normal_(net.head[-1].weight)
    net(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert any(p.grad.any() for b in blocks(net) for p in b.branch.parameters()) is learns


def test_the_narrowest_and_the_smallest_have_a_channel_and_a_pixel():
    narrow = small_net(block="bottleneck", groups=2, group_width=4, shortcut="B")
    assert [b.branch[0].out_channels for b in blocks(narrow)] == [2, 2, 2, 2]
    blurred = small_net(blur=True, stem="imagenet", depths=[1, 1, 1, 1], widths=[8, 8, 8, 8])
    assert blurred(torch.randn(2, 3, 16, 16)).shape == (2, 5)  # a pixel from the third stage on
    pixel = torch.randn(1, 2, 1, 1)
    torch.testing.assert_close(BlurPool()(pixel), pixel)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"shortcut": "gate", "se": 4, "blur": True, "drop_path": 0.5, "stem": "deep"},
        pytest.param(
            {
                "block": "preact_basic",
                "shortcut": "scale",
                "dropout": 0.2,
                "branch_scale": "skipinit",
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_nets_of_many_options_compile_as_one_graph(options):
    graphs = []

    def remember(graph, _):
        graphs.append(graph)
        return graph.forward

    net = small_net(**options).eval()
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(net, backend=remember, fullgraph=True)
    torch.testing.assert_close(compiled(images), net(images))
    compiled(images.clone())
    net.train()
    compiled(images)  # in training it draws, still in one graph
    assert len(graphs) == 2


def test_gates_are_initialised_apart_from_other_biases():
    net = small_net(shortcut="gate", norm="none")
    gates = [m for m in net.modules() if isinstance(m, Gate)]
    assert len(gates) == 4
    assert all(float(gate.conv.bias.detach().max()) == -6.0 for gate in gates)
    others = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert sum(float(m.bias.detach().abs().max()) > 0 for m in others) == 4
    weights: Tensor = resnet.make_weights("A", 8)  # type: ignore[assignment]
    assert weights is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("model.drop_path=0.5", "model.dropout=0.2", "model.shortcut=dropout"),
        ("model.shortcut=gate", "model.se=4", "model.blur=true", "trainer.precision=bf16-mixed"),
        ("model.activation=norm_after", "model.shortcut=learned", "model.stem=deep"),
        ("model.branch_scale=fixup", "model.norm=none", "model.shortcut=D"),
    ],
)
def test_a_run_with_options_is_resumed_bit_for_bit(tmp_path, options):
    tiny = (*SMALL_NET, "data.train_size=96", "data.val_size=48", "data.batch_size=16")
    whole = (*tiny, *options, "trainer.max_epochs=3", "callbacks=[checkpoints,epoch_log]")
    for name, overrides in (
        ("whole", (*whole, "hydra.run.dir=whole")),
        ("paused", (*whole, "hydra.run.dir=paused", "callbacks.last.pause_after=1")),
        ("", ("resume=paused", "callbacks.last.pause_after=null")),
    ):
        done = train_here(tmp_path, *overrides)
        assert done.returncode == 0, (name, done.stderr)
    one, other = (weights(tmp_path / name) for name in ("whole", "paused"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    rows = (read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "paused"))
    losses = [[row["train/loss"] for row in of_run] for of_run in rows]
    assert losses[0] == losses[1]

"""The residual nets: the papers' arithmetic, the shortcuts, the options, and every model file."""

import inspect
import re

import pytest
import torch
import torchvision
from hydra.utils import get_method, instantiate
from lab import choices, composed, slow_except
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_lab.config.check import PRETRAINED
from resnet_lab.config.errors import UserError
from resnet_lab.config.rules import NET_RULES, NETS, net_faults
from resnet_lab.models import family, resnet
from resnet_lab.models.complexity import count
from resnet_lab.models.resnet import (
    BLOCKS,
    Design,
    NarrowProjection,
    PadShortcut,
    ResNet,
    cifar_resnet,
    imagenet_resnet,
)

MODEL_FILES = choices("model")
NORMS = (nn.BatchNorm2d, nn.GroupNorm)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small_net(**options) -> ResNet:
    outline = {"block": "basic", "depths": [2, 2], "widths": [8, 16]}
    return ResNet(**outline | {"num_classes": 5, "image_size": 32} | options)


def blocks(net):
    return [block for stage in net.stages for block in stage]


def randomise(net):
    """Random weights and statistics of a trained net's scale: a fresh norm would hide mistakes."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return net.eval()


# Parameters and multiply-adds


# Parameters, and multiply-adds in millions as the public tables round them.
@pytest.mark.parametrize(
    ("depth", "params", "millions"),
    [
        (20, 269_722, 40.55),
        (32, 464_154, 68.86),
        (44, 658_586, 97.17),
        (56, 853_018, 125.49),
        (110, 1_727_962, 252.89),
        pytest.param(1202, 19_421_274, None, marks=pytest.mark.slow),
    ],
)
def test_cifar_nets_cost_what_the_paper_says(depth, params, millions):
    with torch.device("meta"):
        net = cifar_resnet(depth, num_classes=10)
    cost = count(net, 32)
    # Every 3x3 convolution between equal widths costs as much in each stage; the first of the
    # second and third stage sees half the channels.
    n = (depth - 2) // 6
    convolution = 9 * 16 * 16 * 32 * 32
    macs = 9 * 3 * 16 * 32 * 32 + (6 * n - 2) * convolution + 2 * convolution // 2 + 64 * 10
    assert cost == (params, macs)
    if millions is not None:
        assert round(cost.macs / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("depth", "params", "billions"),
    [
        (18, 11_689_512, 1.814),
        (34, 21_797_672, 3.664),
        (50, 25_557_032, 4.089),
        pytest.param(101, 44_549_160, 7.801, marks=pytest.mark.slow),
        pytest.param(152, 60_192_808, 11.514, marks=pytest.mark.slow),
    ],
)
def test_imagenet_nets_cost_what_torchvisions_do(depth, params, billions):
    with torch.device("meta"):
        net = imagenet_resnet(depth, num_classes=1000)
        theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None)
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            theirs(torch.empty(1, 3, 224, 224))
    cost = count(net, 224)
    assert cost == (params, flops.get_total_flops() // 2)
    assert round(cost.macs / 1e9, 3) == billions


def test_count_takes_any_net_and_leaves_it_as_it_was():
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, groups=2),  # 9x9 -> 4x4, one channel in per channel out
        nn.Flatten(),
        nn.BatchNorm1d(6 * 4 * 4),  # in training it would refuse a single image
        nn.Linear(6 * 4 * 4, 7),
    )
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    cost = count(net, 9, in_channels=2)
    assert cost.macs == 6 * 4 * 4 * 9 + 96 * 7
    assert cost.params == (6 * 9 + 6) + 2 * 96 + (96 * 7 + 7)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    after = net.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_weight_used_twice_counts_once_as_parameter_and_twice_as_work():
    layer = nn.Conv2d(3, 3, 1, bias=False)
    assert count(nn.Sequential(layer, layer), 4) == (9, 2 * 9 * 16)


# torchvision


def our_name(theirs: str) -> str:
    """The name in `imagenet_resnet` of a tensor of torchvision's net of the same depth."""

    def place(kind, number):  # of conv1, bn1, conv2, ... in our rows of convolution, norm, relu
        return 3 * (int(number) - 1) + (kind == "bn")

    for pattern, ours in (
        (r"(conv|bn)1\.(\w+)", lambda m: f"stem.{place(m[1], 1)}.{m[2]}"),
        (
            r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(\w+)",
            lambda m: f"stages.{int(m[1]) - 1}.{m[2]}.branch.{place(m[3], m[4])}.{m[5]}",
        ),
        (
            r"layer(\d)\.(\d+)\.downsample\.(\d\.\w+)",
            lambda m: f"stages.{int(m[1]) - 1}.{m[2]}.shortcut.{m[3]}",
        ),
        (r"fc\.(\w+)", lambda m: f"head.2.{m[1]}"),
    ):
        if match := re.fullmatch(pattern, theirs):
            return ours(match)
    raise AssertionError(theirs)


@pytest.mark.parametrize("depth", slow_except((18, 50), (18, 34, 50, 101, 152)))
def test_torchvisions_weights_give_torchvisions_outputs(depth):
    theirs = randomise(getattr(torchvision.models, f"resnet{depth}")(weights=None))
    ours = imagenet_resnet(depth, num_classes=1000).eval()
    ours.load_state_dict({our_name(name): t for name, t in theirs.state_dict().items()})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, logits = theirs(images), ours(images)
    assert expected.std() > 0.1  # no dead net, or equality would say nothing
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


# Shortcuts


def test_shortcut_a_slices_and_pads_without_parameters():
    shortcut = PadShortcut(4, 6, 2)
    assert not list(shortcut.parameters())
    x = torch.randn(2, 4, 5, 5)
    out = shortcut(x)
    assert out.shape == (2, 6, 3, 3)
    assert torch.equal(out[:, :4], x[:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert torch.equal(out[:, 4:], torch.zeros(2, 2, 3, 3))


@pytest.mark.parametrize("block", BLOCKS)
def test_which_blocks_have_which_shortcut(block):
    # Stages change shape in their first block, the first stage only under a bottleneck's widening.
    changes = ["bottleneck" in block, False, True, False]

    def kinds(shortcut):
        return [type(block.shortcut) for block in blocks(small_net(block=block, shortcut=shortcut))]

    projection = nn.Conv2d if "preact" in block else nn.Sequential  # pre-activation: no norm on it
    assert kinds("A") == [PadShortcut if change else nn.Identity for change in changes]
    assert kinds("B") == [projection if change else nn.Identity for change in changes]
    assert kinds("C") == [projection] * 4
    assert kinds("none") == [type(None)] * 4


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_block_is_relu_of_branch_plus_shortcut(block, shortcut):
    x = torch.randn(2, 8, 6, 6)
    unit = randomise(BLOCKS[block](8, 8, 2, Design(shortcut)))
    assert torch.equal(unit(x), torch.relu(unit.branch(x) + unit.shortcut(x)))


@pytest.mark.parametrize("block", BLOCKS)
def test_a_plain_net_carries_nothing_past_its_branch(block):
    unit = BLOCKS[block](8, 8 // BLOCKS[block].expansion, 1, Design("none")).eval()
    for parameter in unit.branch.parameters():
        nn.init.zeros_(parameter)
    assert not unit(torch.randn(2, 8, 6, 6)).any()


@pytest.mark.parametrize("block", ["preact_basic", "preact_bottleneck"])
def test_preactivation_carries_x_itself_but_projects_the_activation(block):
    x = torch.randn(2, 8, 6, 6)
    expansion = BLOCKS[block].expansion
    same = randomise(BLOCKS[block](8, 8 // expansion, 1, Design("B")))
    assert torch.equal(same(x), same.branch(same.preact(x)) + x)
    assert same(x).min() < 0  # nothing clips the sum

    change = randomise(BLOCKS[block](8, 16 // expansion, 2, Design("B")))
    activated = torch.relu(change.preact[0](x))
    assert torch.equal(change(x), change.branch(activated) + change.shortcut(activated))


@pytest.mark.parametrize("block", ["preact_basic", "preact_bottleneck"])
def test_a_preactivation_net_activates_after_the_stem_and_before_the_head_once(block):
    net = small_net(block=block)
    first, *others = blocks(net)
    assert isinstance(first.preact, nn.Identity)
    assert all(isinstance(unit.preact[0], nn.BatchNorm2d) for unit in others)
    assert [type(layer) for layer in net.stem[-2:]] == [nn.BatchNorm2d, nn.ReLU]
    assert [type(layer) for layer in net.head[:2]] == [nn.BatchNorm2d, nn.ReLU]


# Options


@pytest.mark.parametrize("block", BLOCKS)
def test_without_norm_every_convolution_has_a_bias(block):
    net = small_net(block=block, norm="none")
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert all(convolution.bias is not None for convolution in convolutions)
    assert not any(isinstance(module, NORMS) for module in net.modules())
    with_norm = small_net(block=block).modules()
    assert all(module.bias is None for module in with_norm if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("block", BLOCKS)
def test_group_norm_treats_each_image_alone(block):
    images = torch.randn(4, 3, 16, 16)
    net = small_net(block=block, norm="group").train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    torch.testing.assert_close(net(images)[:1], net(images[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (64, 32), (16, 8), (24, 12), (7, 1), (1, 1)]
)
def test_group_norm_leaves_two_channels_in_a_group(channels, groups):
    assert resnet.make_norm("group", channels).num_groups == groups


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("block", BLOCKS)
def test_zero_init_residual_starts_every_block_as_its_shortcut(block, norm):
    def start(**options):
        for unit in blocks(small_net(block=block, norm=norm, **options)):
            in_channels = next(unit.branch.parameters()).shape[1]
            yield unit, torch.rand(2, in_channels, 6, 6)  # never negative, as after a block's relu

    for unit, x in start(zero_init_residual=True):
        if isinstance(unit.shortcut, nn.Identity):
            assert torch.equal(unit(x), x)
        assert not unit.branch(x).any()
    assert all(unit.branch(x).any() for unit, x in start())


@pytest.mark.parametrize(
    ("options", "stem"),
    [
        ({"image_size": 32}, "cifar"),
        ({"image_size": 64}, "cifar"),
        ({"image_size": 65}, "imagenet"),
        ({"image_size": None}, "imagenet"),
        ({"image_size": 224, "stem": "cifar"}, "cifar"),
        ({"image_size": 32, "stem": "imagenet"}, "imagenet"),
    ],
)
def test_the_stem_follows_the_image_size(options, stem):
    net = small_net(**options)
    sides = {"cifar": 64, "imagenet": 16}
    assert net.stem(torch.randn(1, 3, 64, 64)).shape == (1, 8, sides[stem], sides[stem])
    assert net.stem[0].kernel_size == ((3, 3) if stem == "cifar" else (7, 7))


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize(
    ("make", "depth", "options"),
    [
        (cifar_resnet, 20, {}),
        (cifar_resnet, 29, {"block": "bottleneck"}),
        (imagenet_resnet, 18, {}),
        (imagenet_resnet, 50, {"preact": True}),
    ],
)
def test_nets_take_small_and_large_images(make, depth, options, size):
    net = make(depth, num_classes=7, image_size=size, **options).eval()
    activations = net.stages(net.stem(torch.randn(1, 3, size, size)))
    stem = 1 if size == 32 else 4
    assert activations.shape[-1] == size // stem // 2 ** (len(net.stages) - 1)
    assert net.head(activations).shape == (1, 7)


@pytest.mark.parametrize(
    ("width", "widths"), [(2, [16, 32]), (0.5, [4, 8]), (1.3, [10, 21]), (0.01, [1, 1])]
)
def test_width_multiplies_every_stage(width, widths):
    net = small_net(width=width)
    assert [stage[-1].branch[0].out_channels for stage in net.stages] == widths
    assert net.stem[0].out_channels == widths[0]
    assert net.head[-1].in_features == widths[-1]
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 5)


def test_grey_images_and_an_empty_batch():
    net = small_net(in_channels=1).eval()
    assert net(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    assert net(torch.empty(0, 1, 32, 32)).shape == (0, 5)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none"])
def test_channels_last_survives_the_stages(block, shortcut):
    net = small_net(block=block, shortcut=shortcut).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    activations = net.stages(net.stem(images))
    assert activations.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_a_narrow_projection_is_the_strided_convolution(channels):
    """Which alone crashes on some CPUs, so in doubles."""
    conv = NarrowProjection(channels, 5, 1, 2).double()
    plain = torch.nn.Conv2d(channels, 5, 1, 2).double()
    plain.load_state_dict(conv.state_dict())
    images = torch.randn(3, channels, 7, 8, dtype=torch.double, requires_grad=True)
    one, other = conv(images), plain(images)
    torch.testing.assert_close(one, other)
    for found, expected in zip(
        torch.autograd.grad(one.square().sum(), (images, *conv.parameters())),
        torch.autograd.grad(other.square().sum(), (images, *plain.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shortcut", ["B", "C"])
def test_the_narrowest_nets_train_in_channels_last(shortcut):
    net = cifar_resnet(depth=8, num_classes=10, width=0.25, shortcut=shortcut)
    assert sum(isinstance(module, NarrowProjection) for module in net.modules()) == 1
    net = net.to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, 32, 32).to(memory_format=torch.channels_last)
    for _ in range(5):
        net(images).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_a_net_compiles_as_one_graph(block):
    graphs = []

    def remember(graph, _):
        graphs.append(graph)
        return graph.forward

    net = small_net(block=block, shortcut="A").eval()
    images = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(net, backend=remember, fullgraph=True)
    torch.testing.assert_close(compiled(images), net(images))
    assert len(graphs) == 1


def test_he_init_by_fan_out():
    weight = cifar_resnet(20, num_classes=10).stages[2][0].branch[0].weight  # 32 -> 64 channels
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)


# Nets that cannot be


@pytest.mark.parametrize(
    ("depth", "block", "plan"),
    [
        (20, "basic", (3, 3, 3)),
        (8, "preact_basic", (1, 1, 1)),
        (164, "preact_bottleneck", (18, 18, 18)),
        (1001, "bottleneck", (111, 111, 111)),
    ],
)
def test_cifar_depths(depth, block, plan):
    assert family.cifar_plan(depth, block) == (block, plan, (16, 32, 64))


def test_imagenet_depths():
    assert family.imagenet_plan(34) == ("basic", (3, 4, 6, 3), (64, 128, 256, 512))
    assert family.imagenet_plan(50, preact=True).block == "preact_bottleneck"
    for depth, depths in family.IMAGENET_DEPTHS.items():
        layers = 2 if depth < 50 else 3
        assert sum(depths) * layers + 2 == depth


NET = {"num_classes": 3, "block": "basic", "depths": [1, 1], "widths": [8, 16]}


def faults(name, options):
    return list(net_faults({"_target_": f"resnet_lab.models.resnet.{name}"} | options))


IMPOSSIBLE_DEPTHS = [
    (
        "cifar_resnet",
        {"depth": 21},
        "depth=21: a CIFAR ResNet of basic blocks has 6n+2 layers; the nearest are 20 and 26.",
    ),
    (
        "cifar_resnet",
        {"depth": 112, "block": "bottleneck"},
        "depth=112: a CIFAR ResNet of bottleneck blocks has 9n+2 layers; "
        "the nearest are 110 and 119.",
    ),
    (
        "cifar_resnet",
        {"depth": 2},
        "depth=2: a CIFAR ResNet of basic blocks has 6n+2 layers; the smallest is 8.",
    ),
    (
        "imagenet_resnet",
        {"depth": 20},
        "depth=20: an ImageNet ResNet has 18, 34, 50, 101, 152 or 200 layers.",
    ),
]


@pytest.mark.parametrize(("name", "options", "sentence"), IMPOSSIBLE_DEPTHS)
def test_an_impossible_depth_is_refused_by_the_check_and_by_the_net(name, options, sentence):
    options = {"num_classes": 3} | options
    assert faults(name, options) == [f"model.{sentence}"]
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        getattr(resnet, name)(**options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"block": "wide"}, "block=wide: must be one of basic, bottleneck, preact_basic or "),
        ({"shortcut": "E"}, "shortcut=E: must be one of A, B, C, D, scale, gate, "),
        ({"shortcut": None}, "shortcut=null: must be one of A, B, C, D, "),
        ({"stem": "vit"}, "stem=vit: must be one of cifar, imagenet or deep, or null."),
        ({"norm": "layer"}, "norm=layer: must be one of batch, group or none."),
        ({"width": 0}, "width=0: must be a number above 0."),
        ({"width": "x"}, "width=x: must be a number above 0."),
        ({"width": float("nan")}, "width=nan: must be a number above 0."),
        ({"width": float("inf")}, "width=inf: must be a number above 0."),
        ({"width": True}, "width=true: must be a number above 0."),
        ({"num_classes": 0}, "num_classes=0: must be a whole number of 1 or more, or null."),
        ({"in_channels": 0}, "in_channels=0: must be a whole number of 1 or more."),
        ({"image_size": -1}, "image_size=-1: must be a whole number of 1 or more, or null."),
        ({"zero_init_residual": "maybe"}, "zero_init_residual=maybe: must be true or false."),
        ({"depths": [1, 0]}, "depths=[1,0]: must be a list of whole numbers of 1 or more, "),
        ({"widths": []}, "widths=[]: must be a list of whole numbers of 1 or more, such as "),
        ({"widths": 8}, "widths=8: must be a list of whole numbers of 1 or more, such as "),
        (
            {"shortcut": "A", "widths": [16, 8]},
            "shortcut=A: it can only add channels, but model.widths=[16,8] take some away; "
            "use B, C or none, or widths that never fall.",
        ),
        (
            {"zero_init_residual": True, "shortcut": "none"},
            "zero_init_residual=true: without a shortcut every block would put out zeros and never "
            "learn; use shortcut A, B or C, or zero_init_residual=false.",
        ),
        (
            {"depths": [1]},
            "depths=[1] and model.widths=[8,16]: give both for the same number of stages.",
        ),
        ({"widht": 2}, "widht: ResNet has no such option; it has activation, block, "),
    ],
)
def test_an_impossible_value_gets_one_sentence(options, sentence):
    (fault,) = faults("ResNet", NET | options)
    assert fault.startswith(f"model.{sentence}")


def test_every_fault_of_a_net_has_its_line_and_so_has_a_missing_option():
    assert faults("cifar_resnet", {"num_classes": 3, "norm": "layer"}) == [
        "model.depth: cifar_resnet needs it; it must be a whole number of 1 or more.",
        "model.norm=layer: must be one of batch, group or none.",
    ]
    assert faults("cifar_resnet", {"num_classes": 3, "depth": "abc"}) == [
        "model.depth=abc: must be a whole number of 1 or more."
    ]
    assert faults("imagenet_resnet", {"num_classes": 3, "depth": 18, "preact": 1}) == [
        "model.preact=1: must be true or false."
    ]


def test_a_trunk_that_is_described_is_checked_where_it_stands():
    trunk = {"_target_": "resnet_lab.models.resnet.cifar_resnet", "num_classes": 3, "depth": 21}
    model = {"_target_": PRETRAINED, "trunk": trunk, "num_classes": 3}
    (fault,) = net_faults(model)
    assert fault.startswith("model.trunk.depth=21: a CIFAR ResNet")
    (fault,) = net_faults(model | {"trunk": 18})
    assert fault.startswith("model.trunk=18: must be a name, a run folder or a net")


@pytest.mark.parametrize("target", NETS)
def test_the_rules_know_every_option_of_our_nets_and_no_other(target):
    known = {name for names in NETS[target] for name in names.split()}
    parameters = inspect.signature(get_method(target)).parameters
    ours = set(parameters) - {"options"}
    if "options" in parameters:  # handed on to ResNet
        ours |= set(inspect.signature(ResNet).parameters) - {"block", "depths", "widths"}
    assert known == ours
    needed = NETS[target][0].split()
    assert all(parameters[n].default is inspect.Parameter.empty for n in needed if n in parameters)
    assert known <= set(NET_RULES)


def test_the_rules_pass_what_is_not_known_yet_and_what_is_not_ours():
    options = {"depth": 20, "num_classes": None, "image_size": None, "_convert_": "all"}
    assert faults("cifar_resnet", options) == []
    own = {"_target_": "my_package.Net", "depth": 21, "norm": "layer", "head": "linear"}
    assert list(net_faults(own)) == []


# The model files


def model_config(name, image_size, *overrides):
    images = ("data.num_classes=10", f"data.image_size={image_size}")
    cfg = composed(f"model={name}", *images, *overrides)
    OmegaConf.resolve(cfg.model)
    return cfg.model


# Of each kind of net a small one trains in the default suite.
SMALL_NETS = ["resnet20", "preresnet18", "pretrained"]


@pytest.mark.parametrize("name", slow_except(SMALL_NETS, MODEL_FILES))
def test_every_model_file_trains_a_step(name):
    cfg = model_config(name, 16)
    assert list(net_faults(OmegaConf.to_container(cfg))) == []
    net = instantiate(cfg)
    assert isinstance(net, nn.Module)
    images, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 7])
    for bf16 in (False, True):
        before = net.head[-1].weight.detach().clone()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = net(images)
        assert logits.dtype == (torch.bfloat16 if bf16 else torch.float32)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        assert loss.isfinite()
        loss.backward()
        assert all(
            parameter.grad is not None and parameter.grad.isfinite().all()
            for parameter in net.parameters()
            if parameter.requires_grad
        )
        torch.optim.SGD(net.parameters(), lr=1e-3).step()
        assert not torch.equal(net.head[-1].weight, before)
        net.zero_grad()


DEPTHS = [name for name in MODEL_FILES if name[-1].isdigit()]


@pytest.mark.parametrize("name", slow_except(SMALL_NETS, DEPTHS))
def test_a_model_file_has_the_depth_in_its_name(name):
    with torch.device("meta"):
        net = instantiate(model_config(name, 32))
    convolutions = sum(
        isinstance(module, nn.Conv2d)
        for part in [net.stem, *(block.branch for block in blocks(net))]
        for module in part.modules()
    )
    assert convolutions + 1 == int(name.removeprefix("pre").removeprefix("resnet"))
    assert name.startswith("pre") == ("Preact" in type(blocks(net)[0]).__name__)


@pytest.mark.parametrize("name", ["resnet20", "resnet50", "preresnet18", "resnet"])
@pytest.mark.parametrize(
    "option",
    ["shortcut=none", "shortcut=C", "stem=imagenet", "norm=group", "norm=none", "width=0.5"],
)
def test_every_option_works_on_every_family(name, option):
    with torch.device("meta"):
        net = instantiate(model_config(name, 32, f"model.{option}"))
        default = instantiate(model_config(name, 32))
        assert net(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert str(net) != str(default)

"""The teaching nets: every shape, parameter and multiply-add worked out by hand."""

import pytest
import torch
from torch import nn

from resnet_lab.models.classic import TextbookBlock, TextbookCNN, TextbookResNet
from resnet_lab.models.complexity import count


def shapes(net: nn.Module, *kinds: type[nn.Module]) -> list[tuple[int, ...]]:
    """What each layer of `kinds` puts out for one image of 32 pixels, in the order they run."""
    seen: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    net.eval()(torch.zeros(1, 3, 32, 32))
    return seen


def conv(in_channels: int, out_channels: int, size: int) -> int:
    """Weights and biases of a convolution."""
    return in_channels * out_channels * size**2 + out_channels


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_every_layer_of_the_cnn():
    assert shapes(TextbookCNN(num_classes=10), nn.Conv2d, nn.MaxPool2d, nn.Linear) == [
        *((16, 32, 32), (32, 32, 32), (32, 16, 16)),
        *((64, 16, 16), (128, 16, 16), (128, 8, 8)),
        *((128, 8, 8), (256, 8, 8), (256, 4, 4)),
        *((2048,), (256,), (10,)),
    ]


def test_the_cnn_has_a_relu_after_every_layer_but_the_last():
    net = TextbookCNN(num_classes=10)
    kinds = [
        type(m)
        for m in net.modules()
        if isinstance(m, nn.Conv2d | nn.ReLU | nn.MaxPool2d | nn.Linear)
    ]
    stage = [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    assert kinds == stage * 3 + [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


def test_the_cnn_counts_as_by_hand():
    # 448 + 4,640, 18,496 + 73,856, 147,584 + 295,168: the stages' 540,192.
    stages = (
        *(conv(3, 16, 3), conv(16, 32, 3)),
        *(conv(32, 64, 3), conv(64, 128, 3)),
        *(conv(128, 128, 3), conv(128, 256, 3)),
    )
    # 8,390,656 + 524,544 + 2,570: the head's 8,917,770.
    head = (linear(256 * 4 * 4, 2048), linear(2048, 256), linear(256, 10))
    # Each weight of a convolution is used once for every pixel that it puts out.
    macs = (
        32 * 32 * 9 * (3 * 16 + 16 * 32)
        + 16 * 16 * 9 * (32 * 64 + 64 * 128)
        + 8 * 8 * 9 * (128 * 128 + 128 * 256)
        + (4096 * 2048 + 2048 * 256 + 256 * 10)
    )
    assert sum(stages) + sum(head) == 9_457_962
    assert macs == 65_980_928
    assert count(TextbookCNN(num_classes=10), 32) == (9_457_962, macs)


def test_every_layer_of_the_resnet():
    # In a block: the branch's two convolutions, then the shortcut's.
    kinds = (nn.Conv2d, TextbookBlock, nn.AvgPool2d, nn.Linear)
    assert shapes(TextbookResNet(num_classes=7), *kinds) == [
        *[(64, 32, 32)] * 4,
        (64, 16, 16),
        *[(128, 16, 16)] * 4,
        (128, 8, 8),
        *[(256, 8, 8)] * 4,
        (256, 4, 4),
        *((2048,), (512,), (7,)),
    ]


def test_the_resnet_counts_as_by_hand():
    def block(i: int, o: int) -> int:
        # Two 3x3 convolutions, the 1x1 shortcut, and scale and shift of two norms.
        return conv(i, o, 3) + conv(o, o, 3) + conv(i, o, 1) + 2 * (2 * o)

    # 39,232 + 230,272 + 919,296: the stages' 1,188,800.
    stages = block(3, 64) + block(64, 128) + block(128, 256)
    # 8,390,656 + 1,049,088 + 5,130: the head's 9,444,874.
    head = linear(256 * 4 * 4, 2048) + linear(2048, 512) + linear(512, 10)
    macs = (
        32 * 32 * (9 * (3 * 64 + 64 * 64) + 3 * 64)
        + 16 * 16 * (9 * (64 * 128 + 128 * 128) + 64 * 128)
        + 8 * 8 * (9 * (128 * 256 + 256 * 256) + 128 * 256)
        + (4096 * 2048 + 2048 * 512 + 512 * 10)
    )
    assert stages + head == 10_633_674
    assert count(TextbookResNet(num_classes=10), 32) == (10_633_674, macs)


def test_the_shortcut_is_a_biased_projection_added_before_the_last_relu():
    block = TextbookBlock(4, 4).eval()
    assert isinstance(block.shortcut, nn.Conv2d)  # also where the shape stays, and with no norm
    assert block.shortcut.bias is not None
    assert all(m.bias is not None for m in block.modules() if isinstance(m, nn.Conv2d))
    images = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        block.branch[-1].weight.zero_()  # a branch that puts out nothing
        block.shortcut.weight.copy_(-torch.eye(4)[:, :, None, None])
        block.shortcut.bias.fill_(0.5)
        torch.testing.assert_close(block(images), (0.5 - images).clamp(min=0))


@pytest.mark.parametrize("net", [TextbookCNN, TextbookResNet])
def test_the_head_follows_the_image(net):
    logits = net(num_classes=3, image_size=48).eval()(torch.zeros(2, 3, 48, 48))
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("net", [TextbookCNN, TextbookResNet])
@pytest.mark.parametrize(("size", "use"), [(30, "24 or 32"), (33, "32 or 40"), (4, "8"), (0, "8")])
def test_a_size_that_cannot_be_halved_is_one_sentence(net, size, use):
    with pytest.raises(ValueError, match=rf"^image_size={size}: .*multiple of 8.*={use}\.$"):
        net(num_classes=10, image_size=size)


@pytest.mark.parametrize("net", [TextbookCNN, TextbookResNet])
def test_every_weight_gets_a_gradient(net):
    torch.manual_seed(0)
    made = net(num_classes=10, image_size=8)
    made(torch.randn(4, 3, 8, 8)).logsumexp(1).sum().backward()
    # A bias that a BatchNorm follows has none: the norm takes it away again.
    assert all(p.grad.abs().sum() > 0 for p in made.parameters() if p.ndim > 1)

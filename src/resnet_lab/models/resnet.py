"""All residual nets: stem, stages of blocks, head.

The nets of He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385) and
"Identity Mappings in Deep Residual Networks" (arXiv 1603.05027), each choice of the papers an
option. Images are (batch, channels, height, width); logits are (batch, classes).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lab.models import family


def make_norm(norm: str, channels: int) -> nn.Module:
    """Batch norm, group norm or nothing over `channels`.

    Group norm (arXiv 1803.08494) has 32 groups, the paper's default, or the most that divide the
    channels and leave two or more in each: a group of one channel would be instance norm.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        most = max(1, min(32, channels // 2))
        return nn.GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels)
    return nn.Identity()


class NarrowProjection(nn.Conv2d):
    """A strided 1x1 convolution that takes every `stride`-th pixel first, which is the same.

    oneDNN's kernel for AVX2 computes wrong weight gradients, hangs or crashes in float32 and
    channels_last where there are fewer channels than it takes at once (uxlfoundation/oneDNN 6035).
    """

    SAFE_FROM = 8  # channels

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def conv_norm(
    in_channels: int, out_channels: int, size: int, stride: int, norm: str
) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution, which keeps the size at stride 1, and its norm; a bias in place of no norm."""
    narrow = size == 1 and stride > 1 and in_channels < NarrowProjection.SAFE_FROM
    conv = (NarrowProjection if narrow else nn.Conv2d)(
        in_channels, out_channels, size, stride, padding=size // 2, bias=norm == "none"
    )
    return conv, make_norm(norm, out_channels)


class PadShortcut(nn.Module):
    """Shortcut A: every `stride`-th pixel, and zeros for the new channels; no parameters.

    The zeros come after the old channels, as in the Torch implementation by the paper's group
    (fb.resnet.torch). Source: arXiv 1512.03385, Section 3.3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, 0, self.new_channels))


def make_shortcut(
    shortcut: str, in_channels: int, out_channels: int, stride: int, norm: str, preact: bool = False
) -> nn.Module | None:
    """What a block adds to its branch; None in a plain net. Source: 1512.03385, Section 3.3.

    Args:
        preact: the projection is a convolution alone, as in 1603.05027 no norm stands on the
            shortcut.
    """
    if shortcut == "none":
        return None
    same_shape = stride == 1 and in_channels == out_channels
    if shortcut == "C" or (shortcut == "B" and not same_shape):
        projection = conv_norm(in_channels, out_channels, 1, stride, norm)
        return projection[0] if preact else nn.Sequential(*projection)
    return nn.Identity() if same_shape else PadShortcut(in_channels, out_channels, stride)


def basic_branch(in_channels: int, width: int, stride: int, norm: str) -> nn.Sequential:
    """Two 3x3 convolutions. Source: arXiv 1512.03385, Figure 5, left."""
    return nn.Sequential(
        *conv_norm(in_channels, width, 3, stride, norm),
        nn.ReLU(),
        *conv_norm(width, width, 3, 1, norm),
    )


def bottleneck_branch(in_channels: int, width: int, stride: int, norm: str) -> nn.Sequential:
    """1x1, 3x3 and 1x1 convolutions. Source: arXiv 1512.03385, Figure 5, right.

    The stride is on the 3x3 convolution, as in torchvision; the paper has it on the first.
    """
    return nn.Sequential(
        *conv_norm(in_channels, width, 1, 1, norm),
        nn.ReLU(),
        *conv_norm(width, width, 3, stride, norm),
        nn.ReLU(),
        *conv_norm(width, 4 * width, 1, 1, norm),
    )


class Block(nn.Module):
    """A residual block. Source: arXiv 1512.03385, Section 3."""

    expansion: int  # output channels per unit of width
    make_branch: Callable[[int, int, int, str], nn.Sequential]

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str, norm: str) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.branch = self.make_branch(in_channels, width, stride, norm)
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is None:
            return F.relu(self.branch(x))
        return F.relu(self.branch(x) + self.shortcut(x))


class PreactBlock(nn.Module):
    """A block with norm and relu before each convolution. Source: arXiv 1603.05027, Figure 4(e)."""

    expansion: int
    make_branch: Callable[[int, int, int, str], nn.Sequential]

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str, norm: str) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.preact = nn.Sequential(make_norm(norm, in_channels), nn.ReLU())
        self.branch = self.make_branch(in_channels, width, stride, norm)[:-1]  # ends in no norm
        self.shortcut = make_shortcut(
            shortcut, in_channels, out_channels, stride, norm, preact=True
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = self.preact(x)
        if self.shortcut is None:
            return self.branch(activated)
        # An identity carries x untouched; where the shape changes, both paths share the activation.
        carried = x if isinstance(self.shortcut, nn.Identity) else activated
        return self.branch(activated) + self.shortcut(carried)


class BasicBlock(Block):
    expansion = 1
    make_branch = staticmethod(basic_branch)


class Bottleneck(Block):
    expansion = 4
    make_branch = staticmethod(bottleneck_branch)


class PreactBasicBlock(PreactBlock):
    expansion = 1
    make_branch = staticmethod(basic_branch)


class PreactBottleneck(PreactBlock):
    expansion = 4
    make_branch = staticmethod(bottleneck_branch)


BLOCKS: dict[str, type[Block | PreactBlock]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
    "preact_basic": PreactBasicBlock,
    "preact_bottleneck": PreactBottleneck,
}


def make_stem(stem: str, in_channels: int, width: int, norm: str) -> nn.Sequential:
    """cifar: a 3x3 convolution; imagenet: 7x7 and a max pool, which leave a quarter of each side.

    Source: arXiv 1512.03385, Section 4.2 and Table 1.
    """
    if stem == "cifar":
        return nn.Sequential(*conv_norm(in_channels, width, 3, 1, norm), nn.ReLU())
    return nn.Sequential(
        *conv_norm(in_channels, width, 7, 2, norm),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


class ResNet(nn.Module):
    """A residual net: `stem`, `stages` (a Sequential of Sequentials of blocks) and `head`.

    Every stage but the first begins by halving height and width.

    Args:
        block: basic | bottleneck | preact_basic | preact_bottleneck.
        depths: the number of blocks in each stage.
        widths: of each stage; a bottleneck's output is four times as wide. The stem is as wide as
            the first stage.
        num_classes: the size of the logits.
        shortcut: A zero-pads new channels; B projects where the shape changes; C projects in every
            block; none is the plain net.
        stem: cifar (3x3) | imagenet (7x7 and max pool). None: cifar where `image_size` is known
            and at most 64, else imagenet.
        norm: batch | group | none. Convolutions have a bias where it is none; a deep net then
            needs `zero_init_residual`, or its activations grow with every block.
        width: multiplies `widths`, see `family.scale`.
        zero_init_residual: zero the last layer of each branch that has weights, so that each block
            starts as its shortcut (arXiv 1706.02677, Section 5.1).
        in_channels: of the images.
        image_size: their side in pixels.

    What a config may ask for is checked by `config.rules`, not here.
    """

    def __init__(
        self,
        *,
        block: str,
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        shortcut: str = "B",
        stem: str | None = None,
        norm: str = "batch",
        width: float = 1.0,
        zero_init_residual: bool = False,
        in_channels: int = 3,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        if stem is None:
            stem = "cifar" if image_size is not None and image_size <= 64 else "imagenet"
        widths = family.scale(widths, width)
        make_block = BLOCKS[block]

        self.stem = make_stem(stem, in_channels, widths[0], norm)
        stages: list[nn.Sequential] = []
        channels = widths[0]
        for stage, (depth, stage_width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(make_block(channels, stage_width, stride, shortcut, norm))
                channels = stage_width * make_block.expansion
            stages.append(nn.Sequential(*blocks))

        last_activation: list[nn.Module] = []
        if block.startswith("preact"):
            # The stem already ends in norm and relu, ahead of both paths of the first block, and
            # the last sum needs its own: arXiv 1603.05027, Appendix.
            stages[0][0].preact = nn.Identity()
            last_activation = [make_norm(norm, channels), nn.ReLU()]

        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            *last_activation,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, num_classes),
        )
        self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He init (arXiv 1502.01852) by fan out, so that gradients keep their scale: the
                # choice of the papers' implementations.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if zero_init_residual:
            for block in self.modules():
                if isinstance(block, Block | PreactBlock):
                    last = [layer for layer in block.branch if hasattr(layer, "weight")][-1]
                    for parameter in last.parameters():
                        nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)))


def cifar_resnet(
    depth: int,
    *,
    block: str = "basic",
    shortcut: str = "A",
    image_size: int | None = 32,
    **options: Any,
) -> ResNet:
    """The three-stage net of `depth` layers: 6n+2, or 9n+2 with bottlenecks.

    Depths, widths and errors are those of `family.cifar_plan`, the other options those of `ResNet`.
    Source: arXiv 1512.03385, Section 4.2.
    """
    plan = family.cifar_plan(depth, block)._asdict()
    return ResNet(**plan, shortcut=shortcut, image_size=image_size, **options)


def imagenet_resnet(
    depth: int, *, preact: bool = False, image_size: int | None = 224, **options: Any
) -> ResNet:
    """The four-stage net of 18, 34, 50, 101, 152 or 200 layers; `preact`: as in arXiv 1603.05027.

    Depths, widths and errors are those of `family.imagenet_plan`, the other options those of
    `ResNet`. Source: arXiv 1512.03385, Table 1.
    """
    return ResNet(**family.imagenet_plan(depth, preact)._asdict(), image_size=image_size, **options)

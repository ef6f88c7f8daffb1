"""All residual nets: stem, stages of blocks, head.

The nets of He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385) and
"Identity Mappings in Deep Residual Networks" (arXiv 1603.05027), each choice of the papers an
option. Images are (batch, channels, height, width); logits are (batch, classes).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
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


class BlurPool(nn.Module):
    """Every second pixel of the image smoothed by (1, 2, 1) / 4 down and across, so that what is
    too fine for the new grid does not come back as something else.

    Source: Zhang 2019, arXiv 1904.11486, Section 3; borders reflected, as in timm.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.tensor([1.0, 2.0, 1.0]) / 4, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = torch.outer(self.kernel, self.kernel).to(x.dtype).expand(channels, 1, 3, 3)
        mode = "reflect" if min(x.shape[2:]) > 1 else "replicate"  # one pixel reflects nothing
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), weight, stride=2, groups=channels)


def conv_norm(
    in_channels: int, out_channels: int, size: int, stride: int, norm: str, groups: int = 1
) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution, which keeps the size at stride 1, and its norm; a bias in place of no norm."""
    narrow = size == 1 and stride > 1 and in_channels < NarrowProjection.SAFE_FROM
    conv = (NarrowProjection if narrow else nn.Conv2d)(
        *(in_channels, out_channels, size, stride),
        padding=size // 2,
        groups=groups,
        bias=norm == "none",
    )
    return conv, make_norm(norm, out_channels)


def conv_norm_relu(
    in_channels: int, out_channels: int, stride: int, norm: str, groups: int = 1, blur: bool = False
) -> tuple[nn.Module, ...]:
    """A 3x3 convolution, norm and relu; with `blur` it is a `BlurPool` that takes the stride."""
    if blur and stride > 1:
        return *conv_norm(in_channels, out_channels, 3, 1, norm, groups), nn.ReLU(), BlurPool()
    return *conv_norm(in_channels, out_channels, 3, stride, norm, groups), nn.ReLU()


# ---------------------------------------------------------------- shortcuts


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


class Learned(nn.Module):
    """One learned number, from 1, times the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Scale(nn.Module):
    """Half of the branch and half of the shortcut: constant scaling (1603.05027, Section 3.1)."""

    def forward(self, carried: Tensor) -> tuple[float, float]:
        return 0.5, 0.5


class Gate(nn.Module):
    """g of the branch and 1 - g of the shortcut, g = sigmoid(1x1 convolution): exclusive gating.

    Its bias begins at -6, so g is 1/400 and the shortcut nearly whole. Where a block changes the
    shape, g looks at the shortcut of the new shape. Source: 1603.05027, Section 3.1 and Table 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, carried: Tensor) -> tuple[Tensor | float, Tensor]:
        g = self.conv(carried).sigmoid()
        return g, 1 - g


class ShortcutGate(Gate):
    """The whole branch and 1 - g of the shortcut: shortcut-only gating (1603.05027, 3.1)."""

    def forward(self, carried: Tensor) -> tuple[Tensor | float, Tensor]:
        return 1.0, super().forward(carried)[1]


def make_weights(shortcut: str, channels: int) -> nn.Module | None:
    """What says, of the shortcut [b, channels, h, w], the weights of branch and shortcut in their
    sum; None: both whole."""
    gates = {"gate": Gate, "shortcut_gate": ShortcutGate}
    if shortcut in gates:
        return gates[shortcut](channels)
    return Scale() if shortcut == "scale" else None


def make_shortcut(
    shortcut: str, in_channels: int, out_channels: int, stride: int, norm: str, preact: bool = False
) -> nn.Module | None:
    """What a block adds to its branch; None in a plain net. Source: 1512.03385, Section 3.3.

    Those of 1603.05027, Section 3, stand on shortcut A. Its "1x1 convolution" is C.

    Args:
        preact: the projection is a convolution alone, as in 1603.05027 no norm stands on the
            shortcut.
    """
    if shortcut == "none":
        return None
    same_shape = stride == 1 and in_channels == out_channels
    if shortcut == "D" and not same_shape:  # arXiv 1812.01187, Section 4.2
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        conv, normed = conv_norm(in_channels, out_channels, 1, 1, norm)
        return nn.Sequential(
            pool if stride > 1 else nn.Identity(), conv, *([] if preact else [normed])
        )
    if shortcut in ("C", "conv") or (shortcut == "B" and not same_shape):
        projection = conv_norm(in_channels, out_channels, 1, stride, norm)
        return projection[0] if preact else nn.Sequential(*projection)
    carried = nn.Identity() if same_shape else PadShortcut(in_channels, out_channels, stride)
    if shortcut == "dropout":  # 1603.05027, Section 3.3
        return nn.Sequential(carried, nn.Dropout(0.5))
    return nn.Sequential(carried, Learned()) if shortcut == "learned" else carried


# ---------------------------------------------------------------- branches


class SqueezeExcitation(nn.Module):
    """Each channel times a number between 0 and 1 that two layers make of all channels' means.

    Source: Hu et al. 2017, arXiv 1709.01507, Section 3.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        squeezed = max(1, channels // reduction)
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(x)


class BranchScale(nn.Module):
    """One learned number times the branch.

    From 0 in SkipInit (De and Smith 2020, arXiv 2002.10444, Section 3) and ReZero (Bachlechner et
    al. 2020, arXiv 2003.04887), from 1 in Fixup (Zhang et al. 2019, arXiv 1901.09321, Section 3).
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class DropPath(nn.Module):
    """In training the branch of each image is left out with probability `drop`, else it is divided
    by 1 - drop, so that evaluation needs nothing.

    Stochastic depth: Huang et al. 2016, arXiv 1603.09382, Section 3, which draws by batch.
    """

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
        return x * (kept / (1 - self.drop)).to(x.dtype)


@dataclass(frozen=True)
class Design:
    """What the blocks of a net have in common; `ResNet` explains it."""

    shortcut: str
    norm: str = "batch"
    activation: str = "original"
    groups: int = 1
    group_width: int = 64
    se: int | None = None
    blur: bool = False
    branch_scale: str | None = None
    dropout: float = 0.0


def basic_branch(in_channels: int, width: int, stride: int, design: Design) -> nn.Sequential:
    """Two 3x3 convolutions. Source: arXiv 1512.03385, Figure 5, left.

    Dropout between them: arXiv 1605.07146, Section 2.4.
    """
    dropout = [nn.Dropout(design.dropout)] if design.dropout else []
    return nn.Sequential(
        *conv_norm_relu(in_channels, width, stride, design.norm, blur=design.blur),
        *dropout,
        *conv_norm(width, width, 3, 1, design.norm),
    )


def bottleneck_branch(in_channels: int, width: int, stride: int, design: Design) -> nn.Sequential:
    """1x1, 3x3 and 1x1 convolutions. Source: arXiv 1512.03385, Figure 5, right.

    The stride is on the 3x3 convolution, as in torchvision; the paper has it on the first. Groups:
    arXiv 1611.05431, Section 3, and `group_width` as torchvision reckons it.
    """
    norm, groups = design.norm, design.groups
    inner = max(1, int(width * design.group_width / 64)) * groups
    return nn.Sequential(
        *conv_norm(in_channels, inner, 1, 1, norm),
        nn.ReLU(),
        *conv_norm_relu(inner, inner, stride, norm, groups, design.blur),
        *conv_norm(inner, 4 * width, 1, 1, norm),
    )


def branch_end(channels: int, design: Design, drop: float) -> list[nn.Module]:
    """What follows a branch's last convolution and norm, ahead of the sum."""
    end: list[nn.Module] = []
    if design.se is not None:
        end.append(SqueezeExcitation(channels, design.se))
    if design.branch_scale is not None:
        end.append(BranchScale(0.0 if design.branch_scale == "skipinit" else 1.0))
    if drop:
        end.append(DropPath(drop))
    return end


# ---------------------------------------------------------------- blocks


class Block(nn.Module):
    """A residual block. Source: arXiv 1512.03385, Section 3; for the activations besides the
    original 1603.05027, Section 4.1 and Figure 4.

    Args:
        drop: the probability that its branch is left out in training.
    """

    expansion: int  # output channels per unit of width
    make_branch: Callable[[int, int, int, Design], nn.Sequential]

    def __init__(
        self, in_channels: int, width: int, stride: int, design: Design, drop: float = 0.0
    ) -> None:
        super().__init__()
        channels, norm = width * self.expansion, design.norm
        branch = self.make_branch(in_channels, width, stride, design)
        self.after: nn.Module = nn.ReLU()
        if design.activation == "norm_after":  # (b): the branch's last norm is behind the sum
            branch, self.after = branch[:-1], nn.Sequential(make_norm(norm, channels), nn.ReLU())
        elif design.activation == "relu_before":  # (c)
            branch, self.after = branch.append(nn.ReLU()), nn.Identity()
        elif design.activation == "relu_only":  # (d)
            branch, self.after = nn.Sequential(nn.ReLU(), *branch), nn.Identity()
        self.branch = branch.extend(branch_end(channels, design, drop))
        self.shortcut = make_shortcut(design.shortcut, in_channels, channels, stride, norm)
        self.weights = make_weights(design.shortcut, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is None:
            return self.after(self.branch(x))
        if self.weights is None:
            return self.after(self.branch(x) + self.shortcut(x))
        carried = self.shortcut(x)
        of_branch, of_shortcut = self.weights(carried)
        return self.after(of_branch * self.branch(x) + of_shortcut * carried)


class PreactBlock(nn.Module):
    """A block with norm and relu before each convolution. Source: arXiv 1603.05027, Figure 4(e)."""

    expansion: int
    make_branch: Callable[[int, int, int, Design], nn.Sequential]

    def __init__(
        self, in_channels: int, width: int, stride: int, design: Design, drop: float = 0.0
    ) -> None:
        super().__init__()
        channels, norm = width * self.expansion, design.norm
        self.preact = nn.Sequential(make_norm(norm, in_channels), nn.ReLU())
        branch = self.make_branch(in_channels, width, stride, design)[:-1]  # ends in no norm
        self.branch = branch.extend(branch_end(channels, design, drop))
        self.shortcut = make_shortcut(
            design.shortcut, in_channels, channels, stride, norm, preact=True
        )
        self.weights = make_weights(design.shortcut, channels)
        # An identity carries x untouched; where the shape changes, both paths share the activation.
        same_shape = stride == 1 and in_channels == channels
        self.carries_x = same_shape and design.shortcut not in ("C", "conv")

    def forward(self, x: Tensor) -> Tensor:
        activated = self.preact(x)
        if self.shortcut is None:
            return self.branch(activated)
        carried = self.shortcut(x if self.carries_x else activated)
        if self.weights is None:
            return self.branch(activated) + carried
        of_branch, of_shortcut = self.weights(carried)
        return of_branch * self.branch(activated) + of_shortcut * carried


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


# ---------------------------------------------------------------- the net


def make_stem(stem: str, in_channels: int, width: int, norm: str, blur: bool) -> nn.Sequential:
    """cifar: a 3x3 convolution; imagenet: 7x7 and a max pool, which leave a quarter of each side;
    deep: three 3x3 in place of the 7x7.

    Sources: arXiv 1512.03385, Section 4.2 and Table 1; deep: 1812.01187, Section 4.2 (ResNet-C).
    """
    if stem == "cifar":
        return nn.Sequential(*conv_norm(in_channels, width, 3, 1, norm), nn.ReLU())
    pool = [nn.MaxPool2d(3, stride=1 if blur else 2, padding=1), *([BlurPool()] if blur else [])]
    if stem == "deep":
        half = max(1, width // 2)
        return nn.Sequential(
            *conv_norm_relu(in_channels, half, 2, norm),
            *conv_norm_relu(half, half, 1, norm),
            *conv_norm_relu(half, width, 1, norm),
            *pool,
        )
    return nn.Sequential(*conv_norm(in_channels, width, 7, 2, norm), nn.ReLU(), *pool)


class ResNet(nn.Module):
    """A residual net: `stem`, `stages` (a Sequential of Sequentials of blocks) and `head`.

    Every stage but the first begins by halving height and width.

    Args:
        block: basic | bottleneck | preact_basic | preact_bottleneck.
        depths: the number of blocks in each stage.
        widths: of each stage; a bottleneck's output is four times as wide.
        num_classes: the size of the logits.
        shortcut: A zero-pads new channels; B projects where the shape changes; C projects in every
            block; D pools and projects; scale, gate, shortcut_gate, conv, dropout and learned: see
            `make_shortcut` and `make_weights`; none is the plain net.
        activation: original | norm_after | relu_before | relu_only | full, the places of norm and
            relu in arXiv 1603.05027, Figure 4, (a) to (e). None: by the block; full makes a block
            a preact one.
        stem: cifar (3x3) | imagenet (7x7 and max pool) | deep (three 3x3 and max pool). None: cifar
            where `image_size` is known and at most 64, else imagenet.
        stem_width: channels of the stem. None: as the first stage.
        groups, group_width: of a bottleneck's 3x3 convolution, see `bottleneck_branch`.
        se: the reduction of a `SqueezeExcitation` at the end of each branch.
        blur: whether `BlurPool` halves the sides, in branches and stem; shortcuts stride as without
            it, as in timm.
        drop_path: the probability that the last block's branch is left out in training, see
            `DropPath`; that of block l of L is l / L times as large (1603.09382, equation 4).
        branch_scale: skipinit | fixup, see `BranchScale`: nets without norm that train.
        dropout: between the convolutions of a basic block.
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
        activation: str | None = None,
        stem: str | None = None,
        stem_width: int | None = None,
        norm: str = "batch",
        width: float = 1.0,
        groups: int = 1,
        group_width: int = 64,
        se: int | None = None,
        blur: bool = False,
        drop_path: float = 0.0,
        branch_scale: str | None = None,
        dropout: float = 0.0,
        zero_init_residual: bool = False,
        in_channels: int = 3,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        if stem is None:
            stem = "cifar" if image_size is not None and image_size <= 64 else "imagenet"
        widths = family.scale(widths, width)
        if activation == "full" and not block.startswith("preact"):
            block = f"preact_{block}"
        design = Design(
            shortcut=shortcut,
            norm=norm,
            activation=activation or "original",
            groups=groups,
            group_width=group_width,
            se=se,
            blur=blur,
            branch_scale=branch_scale,
            dropout=dropout,
        )
        make_block = BLOCKS[block]

        channels = stem_width or widths[0]
        self.stem = make_stem(stem, in_channels, channels, norm, blur)
        stages: list[nn.Sequential] = []
        total, built = sum(depths), 0
        for stage, (depth, stage_width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                built += 1
                drop = drop_path * built / total
                blocks.append(make_block(channels, stage_width, stride, design, drop))
                channels = stage_width * make_block.expansion
            stages.append(nn.Sequential(*blocks))

        last_activation: list[nn.Module] = []
        if block.startswith("preact"):
            # The stem already ends in norm and relu, ahead of both paths of the first block, and
            # the last sum needs its own: arXiv 1603.05027, Appendix.
            stages[0][0].preact = nn.Identity()
            last_activation = [make_norm(norm, channels), nn.ReLU()]
        elif activation == "relu_only":
            last_activation = [nn.ReLU()]

        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            *last_activation,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, num_classes),
        )
        self._initialise(zero_init_residual or branch_scale == "fixup")
        if branch_scale == "fixup":
            self._rescale(total)

    def _initialise(self, zero_init_residual: bool) -> None:
        gate_convs = {module.conv for module in self.modules() if isinstance(module, Gate)}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He init (arXiv 1502.01852) by fan out, so that gradients keep their scale: the
                # choice of the papers' implementations.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    gates = module in gate_convs
                    nn.init.constant_(module.bias, -6.0 if gates else 0.0)
        if zero_init_residual:
            for block in self.modules():
                if isinstance(block, Block | PreactBlock):
                    last = [layer for layer in block.branch if hasattr(layer, "weight")][-1]
                    for parameter in last.parameters():
                        nn.init.zeros_(parameter)

    def _rescale(self, blocks: int) -> None:
        """Fixup, rules 1 and 2: a branch of m convolutions begins L^(-1 / (2m - 2)) times as
        large, and the classifier at zero. Source: arXiv 1901.09321, Section 3."""
        for block in self.modules():
            if isinstance(block, Block | PreactBlock):
                convs = [layer for layer in block.branch if isinstance(layer, nn.Conv2d)]
                for conv in convs[:-1]:
                    conv.weight.data *= blocks ** (-1 / (2 * len(convs) - 2))
        for parameter in self.head[-1].parameters():
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

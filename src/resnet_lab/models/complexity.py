"""What a net costs for one image: parameters and multiply-adds, in all and by section."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Complexity(NamedTuple):
    """`params`: trainable or not, each once. `macs`: multiply-adds for one image."""

    params: int
    macs: int


class Section(NamedTuple):
    """A part of a net that runs as one: its stem, a stage, its head.

    `blocks`: how many a stage is made of; None where it has none. `output`: the shape of its
    output for one image, without the batch; None where it has none, or where that is no tensor.
    """

    name: str
    blocks: int | None
    output: tuple[int, ...] | None
    params: int
    macs: int


def count(net: nn.Module, image_size: int, in_channels: int = 3) -> Complexity:
    """The cost of any net on one image of `in_channels` x `image_size` x `image_size`."""
    sections = breakdown(net, image_size, in_channels)
    return Complexity(sum(s.params for s in sections), sum(s.macs for s in sections))


def breakdown(net: nn.Module, image_size: int, in_channels: int = 3) -> list[Section]:
    """The cost of each section of any net, in the order in which the net holds them.

    Multiply-adds are those of convolutions and matrix products, the ones of attention among them:
    half the operations that torch's `FlopCounterMode` counts. Norms, activations, biases and sums
    are left out. Nothing is computed: a copy of the net without its weights, on torch's meta
    device, is run once in eval mode. The net itself is not touched.

    Returns:
        A section for each child of the net, with one named `stages` split into "stage 1",
        "stage 2", ...; then "rest" for what belongs to no child, if anything does. What two
        sections share is counted in the first.
    """
    # deepcopy takes these as the copies it has made already: no memory is spent on weights.
    tensors: dict[int, Any] = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), requires_grad=False)
        for tensor in net.parameters()
    }
    tensors |= {id(tensor): tensor.to("meta") for tensor in net.buffers()}
    skeleton = copy.deepcopy(net, tensors).eval()

    parts = list(_parts(skeleton))
    owner: dict[Any, str] = {}  # module or parameter -> its section
    for name, part in parts:
        for item in (*part.modules(), *part.parameters()):
            owner.setdefault(item, name)
    params: Counter[str | None] = Counter()  # by section; None: the rest
    flops: Counter[str | None] = Counter()
    for parameter in skeleton.parameters():
        params[owner.get(parameter)] += parameter.numel()
    running: list[str | None] = [None]  # the section of each module that is running, innermost last
    outputs: dict[nn.Module, tuple[int, ...]] = {}

    def settle() -> None:
        """What was counted since the last call belongs to the innermost module."""
        flops[running[-1]] += counter.get_total_flops() - flops.total()

    def enter(module: nn.Module, _: Any) -> None:
        settle()
        running.append(owner[module])

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        settle()
        running.pop()
        if isinstance(output, Tensor):
            outputs[module] = tuple(output.shape[1:])

    for module in skeleton.modules():
        if module in owner:
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
    # Attention in its plain form: the counter might not know a fused kernel.
    attention = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), attention, FlopCounterMode(display=False) as counter:
        skeleton(torch.empty(1, in_channels, image_size, image_size, device="meta"))
        settle()

    sections = [
        Section(name, _blocks(name, part), outputs.get(part), params[name], flops[name] // 2)
        for name, part in parts
    ]
    if params[None] or flops[None]:
        sections.append(Section("rest", None, None, params[None], flops[None] // 2))
    return sections


def _parts(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in net.named_children():
        if name == "stages":
            yield from ((f"stage {i}", stage) for i, stage in enumerate(child.children(), start=1))
        else:
            yield name, child


def _blocks(name: str, part: nn.Module) -> int | None:
    """The children that are made of layers themselves: a lone convolution or pool is no block."""
    blocks = sum(any(True for _ in child.children()) for child in part.children())
    return blocks if blocks and name.startswith("stage ") else None

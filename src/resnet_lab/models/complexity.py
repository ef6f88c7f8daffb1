"""What a net costs: its parameters, and its multiply-adds for one image, in all and by section."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Complexity(NamedTuple):
    """`params`: trainable or not, each once. `macs`: multiply-adds for one image."""

    params: int
    macs: int


class Section(NamedTuple):
    """A part of a net that runs as one: its stem, a stage, its head.

    `blocks`: how many a stage is made of; None where it has none. `output`: the shape of what
    it puts out for one image, without the batch; None where it puts out nothing, or no tensor.
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

    Sections are the net's children, with one named `stages` taken apart into "stage 1", "stage 2",
    ...; what belongs to none of them is the section "rest", where there is such a thing. What two
    share is counted in the first.

    Counts the multiply-adds of every `nn.Conv2d` and `nn.Linear` that runs, as the papers do;
    norms, activations, biases and sums are left out. Nothing is computed: a copy of the net without
    its weights, on torch's meta device, is run once. The net itself is not touched.
    """
    # Told that these tensors are already copied, deepcopy takes the meta ones: no memory is spent.
    tensors: dict[int, Any] = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), requires_grad=False)
        for tensor in net.parameters()
    }
    tensors |= {id(tensor): tensor.to("meta") for tensor in net.buffers()}
    skeleton = copy.deepcopy(net, tensors).eval()

    parts = _parts(skeleton)
    owner: dict[int, int] = {}  # id of a module or parameter -> index of its section
    for index, (_, part) in enumerate(parts):
        for item in (*part.modules(), *part.parameters()):
            owner.setdefault(id(item), index)
    rest = len(parts)
    params, macs = [0] * (rest + 1), [0] * (rest + 1)
    outputs: list[tuple[int, ...] | None] = [None] * (rest + 1)
    for parameter in skeleton.parameters():
        params[owner.get(id(parameter), rest)] += parameter.numel()

    def add(module: nn.Conv2d | nn.Linear, _: tuple[Tensor, ...], output: Tensor) -> None:
        # One multiply-add per weight that an output sees.
        macs[owner.get(id(module), rest)] += output.numel() * module.weight[0].numel()

    def see(module: nn.Module, _: tuple[Tensor, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[owner[id(module)]] = tuple(output.shape[1:])

    for module in skeleton.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    for _, part in parts:
        part.register_forward_hook(see)
    with torch.no_grad():
        skeleton(torch.empty(1, in_channels, image_size, image_size, device="meta"))

    sections = [
        Section(
            name,
            _blocks(part) if name.startswith("stage ") else None,
            outputs[index],
            params[index],
            macs[index],
        )
        for index, (name, part) in enumerate(parts)
    ]
    if params[rest] or macs[rest]:
        sections.append(Section("rest", None, None, params[rest], macs[rest]))
    return sections


def _parts(net: nn.Module) -> list[tuple[str, nn.Module]]:
    parts = []
    for name, child in net.named_children():
        if name == "stages":
            parts += [(f"stage {i}", stage) for i, stage in enumerate(child.children(), start=1)]
        else:
            parts.append((name, child))
    return parts


def _blocks(part: nn.Module) -> int | None:
    """The children that are made of layers themselves: a lone convolution or pool is no block."""
    return sum(any(True for _ in child.children()) for child in part.children()) or None

"""What a net costs: its parameters, and its multiply-adds for one image."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Complexity(NamedTuple):
    """`params`: trainable or not, each once. `macs`: multiply-adds for one image."""

    params: int
    macs: int


def count(net: nn.Module, image_size: int, in_channels: int = 3) -> Complexity:
    """The cost of any net on one image of `in_channels` x `image_size` x `image_size`.

    Counts the multiply-adds of every `nn.Conv2d` and `nn.Linear` that runs, as the papers do;
    norms, activations, biases and sums are left out. Nothing is computed: a copy of the net without
    its weights, on torch's meta device, is run once. The net itself is not touched.
    """
    params = sum(parameter.numel() for parameter in net.parameters())
    # Told that these tensors are already copied, deepcopy takes the meta ones: no memory is spent.
    tensors: dict[int, Any] = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), requires_grad=False)
        for tensor in net.parameters()
    }
    tensors |= {id(tensor): tensor.to("meta") for tensor in net.buffers()}
    skeleton = copy.deepcopy(net, tensors).eval()

    macs = 0

    def add(module: nn.Conv2d | nn.Linear, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()  # one multiply-add per weight it sees

    for module in skeleton.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with torch.no_grad():
        skeleton(torch.empty(1, in_channels, image_size, image_size, device="meta"))
    return Complexity(params, macs)

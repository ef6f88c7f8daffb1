"""What the layers and functions of a net are called in drawings."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lab.analysis.blocks_steps import Phrase, Shape
from resnet_lab.models.resnet import BlurPool, DropPath

Named = tuple[tuple[Phrase, ...], str] | None  # the phrases of a step and its role

# Functions and methods of tensors by what they do.
SUMS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_", "__add__"}
PRODUCTS: set[Any] = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
DIFFERENCES: set[Any] = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
JOINS: set[Any] = {torch.cat, torch.concat}
SIGMOIDS: set[Any] = {torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_", F.hardsigmoid}
ACTIVATIONS = {"relu": "ReLU", "relu_": "ReLU", "sigmoid": "sigmoid", "sigmoid_": "sigmoid"}
FLATTENERS: set[Any] = {torch.flatten, "flatten", "view", "reshape", torch.reshape}
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one step: a layer of torch's, or one that has a name here.

    Another module without children is looked into, as `PadShortcut` is.
    """
    if isinstance(module, BlurPool | DropPath):
        return True
    kinds = [kind for kind in type(module).__mro__ if kind not in (nn.Module, *CONTAINERS)]
    return any(kind.__module__.startswith("torch.nn.") for kind in kinds) and not isinstance(
        module, CONTAINERS
    )


def joins(function: Any) -> str:
    """What a function of several tensors does."""
    for functions, name in ((SUMS, "add"), (PRODUCTS, "multiply"), (JOINS, "concatenate")):
        if function in functions:
            return name
    return _plain_name(function)


# ------------------------------------------------------------------ layers


def name_layer(module: nn.Module) -> Named:
    """The phrases and role of a layer; None where it does nothing."""
    for kinds, name in _LAYERS:
        if isinstance(module, kinds):
            return name(module)
    if type(module).__module__.startswith("torch.nn.modules.activation"):
        return (Phrase(type(module).__name__),), "activation"
    return (Phrase(type(module).__name__),), "other"


def _conv(conv: Any) -> Named:
    phrases = [Phrase("conv {size}", {"size": _by(conv.kernel_size)})]
    phrases.append(Phrase("{n}", {"n": conv.out_channels}))
    if _by(conv.stride, "") != "":
        phrases.append(_stride(conv.stride))
    if (dilation := max(conv.dilation)) > 1:
        phrases.append(Phrase("dilation {dilation}", {"dilation": dilation}))
    if conv.groups > 1:
        phrases.append(Phrase("{n} groups", {"n": conv.groups}))
    return tuple(phrases), "conv"


def _pool(text: str) -> Callable[[Any], Named]:
    def name(pool: Any) -> Named:
        phrases = [Phrase(text, {"size": _by(pool.kernel_size)})]
        if _by(pool.stride, "") != "":
            phrases.append(_stride(pool.stride))
        return tuple(phrases), "pool"

    return name


def _adaptive(pool: Any) -> Named:
    if _by(pool.output_size) == "1x1":
        return (Phrase("global average pool"),), "pool"
    return (Phrase("average pool to {size}", {"size": _by(pool.output_size)}),), "pool"


def _group_norm(norm: Any) -> Named:
    return (Phrase("GroupNorm"), Phrase("{n} groups", {"n": norm.num_groups})), "norm"


def _linear(linear: Any) -> Named:
    return (Phrase("linear"), Phrase("{n}", {"n": linear.out_features})), "conv"


def _share(text: str, attribute: str) -> Callable[[Any], Named]:
    def name(layer: Any) -> Named:
        share = getattr(layer, attribute)
        return ((Phrase(text, {"n": f"{100 * share:.3g}%"}),), "other") if share else None

    return name


def _always(*phrases: str, role: str) -> Callable[[Any], Named]:
    return lambda layer: (tuple(Phrase(text) for text in phrases), role)


_LAYERS: tuple[tuple[Any, Callable[[Any], Named]], ...] = (
    (nn.Identity, lambda layer: None),
    (nn.Conv2d, _conv),
    (nn.Linear, _linear),
    (nn.modules.batchnorm._BatchNorm, _always("BatchNorm", role="norm")),
    (nn.GroupNorm, _group_norm),
    (nn.MaxPool2d, _pool("max pool {size}")),
    (nn.AvgPool2d, _pool("average pool {size}")),
    (nn.AdaptiveAvgPool2d, _adaptive),
    (nn.Flatten, _always("flatten", role="other")),
    (nn.Sigmoid, _always("sigmoid", role="activation")),
    (nn.modules.dropout._DropoutNd, _share("dropout, {n}", "p")),
    (DropPath, _share("drop path, {n}", "drop")),
    (BlurPool, _always("blur", "every 2nd pixel", role="pool")),
)


def _by(size: Any, one: str | None = None) -> str:
    """3 or (3, 3) -> "3x3"; `one` stands for 1x1 where it is given."""
    height, width = (size, size) if isinstance(size, int) else size
    return one if one is not None and height == width == 1 else f"{height}x{width}"


def _stride(stride: Any) -> Phrase:
    height, width = (stride, stride) if isinstance(stride, int) else stride
    return Phrase("stride {stride}", {"stride": height if height == width else _by(stride)})


# ------------------------------------------------------------------ functions


def name_function(function: Any, arguments: Any, before: Shape, after: Shape) -> Named:
    """The phrases and role of a function or method; None where it changes nothing.

    Args:
        function: itself, or a method's name.
        arguments: what it gets besides tensors: numbers, slices.
        before: the shape of its tensor.
        after: the shape of what it gives.
    """
    numbers = [a for a in arguments if isinstance(a, int | float) and not isinstance(a, bool)]
    if function is operator.getitem:
        return _slices(before, after)
    if function is F.pad:
        if before == after:
            return None
        if len(before) == 4 and before[2:] == after[2:]:
            return (Phrase("{n} channels of zeros", {"n": after[1] - before[1]}),), "pool"
        return (Phrase("pad"),), "other"
    if function is F.adaptive_avg_pool2d and set(after[2:]) == {1}:
        return (Phrase("global average pool"),), "pool"
    if function in PRODUCTS and numbers:
        factor = f"{numbers[0]:g}"
        return None if factor == "1" else ((Phrase("times {factor}", {"factor": factor}),), "other")
    if function in DIFFERENCES and numbers[:1] == [1]:
        return (Phrase("1 minus this"),), "other"
    if function in FLATTENERS:
        return ((Phrase("flatten"),), "other") if before != after else None
    if function == "mean" or function is torch.mean:
        return (Phrase("global average pool" if len(after) < len(before) else "mean"),), "pool"
    name = _plain_name(function)
    if name in ACTIVATIONS:
        return (Phrase(ACTIVATIONS[name]),), "activation"
    return (Phrase(name),), "other"


def _slices(before: Shape, after: Shape) -> Named:
    """x[:, :, ::2, ::2]: what it leaves, by its shapes."""
    if before == after:
        return None
    if not len(before) == len(after) == 4 or before[:2] != after[:2] or not after[-1]:
        return (Phrase("part"),), "other"
    stride = -(-before[-1] // after[-1])
    if stride == 2:
        return (Phrase("every 2nd pixel"),), "pool"
    return (Phrase("every {stride}th pixel", {"stride": stride}),), "pool"


def _plain_name(function: Any) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", str(function))

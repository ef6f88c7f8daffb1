"""The parts of a net in its depth: stem, blocks of the stages, head."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn


class Part(NamedTuple):
    """Some layers that stand together in a net's depth, and the stage they belong to."""

    stage: str  # "stem", "stage1", ..., "head"
    name: str  # "stem", "stage1.1", "stage1.2", ..., "head"
    module: nn.Module


def parts(net: nn.Module) -> list[Part]:
    """The parts of a net from input to output, those with parameters.

    They are its children; a Sequential of larger parts than layers is opened. A ResNet gives its
    stem, "stage1.1", "stage1.2", ..., and its head.
    """
    found = []
    for name, module in _opened("", net):
        first, *rest = name.split(".")
        if first == "stages":
            first, rest = f"stage{int(rest[0]) + 1}", [str(int(n) + 1) for n in rest[1:]]
        if any(True for _ in module.parameters()):
            found.append(Part(first, ".".join([first, *rest]), module))
    return found


def _opened(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if isinstance(child, nn.Sequential) and any(list(part.children()) for part in child):
            yield from _opened(path, child)
        else:
            yield path, child

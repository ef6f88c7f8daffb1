"""State dicts of other projects' residual nets, renamed for ours."""

import re
from collections.abc import Mapping

from torch import Tensor


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's resnet18/34/50/101/152 weights under the names of `imagenet_resnet`'s.

    For the net of the same depth with its default block, shortcut B, the imagenet stem and batch
    norm. The tensors are shared, not copied.

    Raises ValueError at a name that no torchvision ResNet has.
    """
    return {_rename(name): tensor for name, tensor in state_dict.items()}


def _rename(name: str) -> str:
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        kind, what = match.groups()
        return f"stem.{_place(kind, 1)}.{what}"
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(\w+)", name):
        stage, block, kind, number, what = match.groups()
        return f"stages.{int(stage) - 1}.{block}.branch.{_place(kind, int(number))}.{what}"
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.(\d\.\w+)", name):
        stage, block, rest = match.groups()
        return f"stages.{int(stage) - 1}.{block}.shortcut.{rest}"
    if match := re.fullmatch(r"fc\.(\w+)", name):
        return f"head.2.{match[1]}"
    raise ValueError(
        f"{name}: not a weight of torchvision's resnet18, 34, 50, 101 or 152, "
        "the only nets that can be converted."
    )


def _place(kind: str, number: int) -> int:
    """Where conv1, bn1, conv2, ... stand in our Sequential of convolution, norm, relu, ..."""
    return 3 * (number - 1) + (kind == "bn")

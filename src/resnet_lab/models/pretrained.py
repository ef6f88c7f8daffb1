"""Transfer learning: a trunk that may have been trained elsewhere, under a new head.

Images are (batch, 3, height, width); the trunk turns them into features (batch, features), the head
those into logits (batch, classes). torchvision is imported only where one of its nets is the trunk.
"""

import logging
import socket
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor, nn

from resnet_lab.config.errors import UserError

log = logging.getLogger(__name__)

# The nets of torchvision that can be a trunk.
TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
)


class Preprocessing(NamedTuple):
    """The images a trunk was trained with: side in pixels, mean and std of pixels from 0 to 1."""

    image_size: int
    mean: list[float]
    std: list[float]


class Pretrained(nn.Module):
    """`trunk` under a new `head`. What a trunk is worth: Yosinski et al., arXiv 1411.1792.

    Args:
        trunk: a name in `TORCHVISION`, or a net; its own head (everything from the first linear
            layer of its last part on) is removed.
        num_classes: the size of the logits.
        weights: what `load_weights` reads: DEFAULT (those torchvision recommends for the trunk), a
            file, or None. The trunk is random until then, so that a net whose checkpoint is at
            hand is built without them.
        freeze: all, none, or the number of stages, counted from the images, that do not learn; see
            `stages`. What is frozen has no gradients and stays in eval mode: batch norm keeps its
            statistics, and dropout is off.
        head: widths of linear layers before the last, each followed by relu and dropout.
        dropout: the share that is dropped there.

    Raises:
        UserError: there is no such trunk, it cannot lose its head, or it has fewer stages.
    """

    def __init__(
        self,
        *,
        trunk: str | nn.Module,
        num_classes: int,
        weights: str | None = None,
        freeze: str | int = "all",
        head: Sequence[int] = (),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.name = trunk if isinstance(trunk, str) else type(trunk).__name__
        self.weights = weights
        self.trunk: nn.Module = (
            _torchvision(trunk).get_model(trunk) if isinstance(trunk, str) else trunk
        )
        width = remove_head(self.trunk, self.name)

        layers: list[nn.Module] = []
        for hidden in head:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden
        self.head = nn.Sequential(*layers, nn.Linear(width, num_classes))

        # Names, not modules: SyncBatchNorm takes the place of the batch norm it is made from.
        self.frozen = [""] if freeze == "all" else []  # "" is the trunk itself
        if freeze not in ("all", "none"):
            found = stages(self.trunk)
            if not isinstance(freeze, int) or not 1 <= freeze <= len(found):
                raise UserError(
                    f"model.freeze={freeze}: use all, none, or for {self.name} "
                    f"a number of stages from 1 to {len(found)}."
                )
            self.frozen = [name for stage in found[:freeze] for name in stage]
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    def _frozen_modules(self) -> Iterator[nn.Module]:
        return (self.trunk.get_submodule(name) for name in self.frozen)

    def train(self, mode: bool = True) -> "Pretrained":
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def unfreeze(self) -> None:
        """Let everything learn from now on."""
        for module in self._frozen_modules():
            module.requires_grad_(True)
        self.frozen = []
        self.train(self.training)

    def load_weights(self) -> None:
        """Fill the trunk with `weights`, downloading them where they are not at hand.

        Raises:
            UserError: they cannot be downloaded or read, or belong to another trunk.
        """
        if self.weights is None:
            return
        found = download(self.name) if self.weights == "DEFAULT" else read(Path(self.weights))
        tensors = self.trunk.state_dict()
        fitting = {  # a file may hold more, such as a head
            name: found[name]
            for name, tensor in tensors.items()
            if name in found and found[name].shape == tensor.shape
        }
        # Files older than the counter of batches lack it; nothing depends on it.
        misfits = [n for n in tensors if n not in fitting and not n.endswith("num_batches_tracked")]
        if misfits:
            raise UserError(
                f"model.weights={self.weights}: these are not weights of the trunk {self.name}; "
                f"{len(misfits)} of its {len(tensors)} tensors are missing or have another shape, "
                f"first {misfits[0]}."
            )
        self.trunk.load_state_dict(fitting, strict=False)
        log.info(f"{'trunk':<12}{self.name}, weights from {self.weights}")

    def parts(self) -> list[nn.Module]:
        """From the images to the logits: the trunk's stages, see `stages`, those that are made of
        blocks as their blocks, and the head."""
        parts: list[nn.Module] = []
        for names in stages(self.trunk):
            layers = [self.trunk.get_submodule(name) for name in names]
            blocks = list(layers[0].children()) if isinstance(layers[0], nn.Sequential) else []
            made_of_blocks = any(list(block.children()) for block in blocks)
            parts += blocks if made_of_blocks else [nn.ModuleList(layers)]
        return [*parts, self.head]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))


def _torchvision(name: str) -> Any:
    """torchvision.models, for its net `name`; UserError where that cannot be a trunk."""
    if name not in TORCHVISION:
        raise UserError(
            f"model.trunk={name}: neither a run folder nor one of torchvision's "
            f"{', '.join(TORCHVISION)}."
        )
    from torchvision import models

    return models


def preprocessing(name: str) -> Preprocessing:
    """The images that the recommended weights of torchvision's net `name` were trained with."""
    transforms = _torchvision(name).get_model_weights(name).DEFAULT.transforms()
    return Preprocessing(transforms.crop_size[0], transforms.mean, transforms.std)


def remove_head(net: nn.Module, name: str) -> int:
    """Cut `net` before the first linear layer of its last part.

    What comes before it in that part (pooling, norm, flatten) stays.

    Returns:
        The number of features there.

    Raises:
        UserError: the last part has no linear layer.
    """
    place, last = list(net.named_children())[-1]
    layers = list(last.named_children()) if isinstance(last, nn.Sequential) else [("", last)]
    for index, (_, layer) in enumerate(layers):
        if isinstance(layer, nn.Linear):
            setattr(net, place, nn.Sequential(OrderedDict(layers[:index])))
            return layer.in_features
    raise UserError(f"model.trunk={name}: its last part has no linear layer; use another trunk.")


def stages(trunk: nn.Module) -> list[list[str]]:
    """The stages of a trunk from the images on, each as the names of its modules.

    A part that is made of layers is a stage. Single layers in a row are one, too, up to and with
    a pooling: the stem of torchvision's ResNets, so that these have 5 stages, as in arXiv
    1512.03385, Table 1, and each stage of its VGG nets, 5 (arXiv 1409.1556, Table 1). What has no
    parameters is not counted.
    """
    found: list[list[str]] = [[]]
    for name, child in trunk.named_children():
        split = name in ("stages", "features")  # ours, and the one of VGG
        parts = [(f"{name}.{n}", part) for n, part in child.named_children()] if split else []
        for part_name, part in parts or [(name, child)]:
            if list(part.children()):
                found += [[part_name], []]
            else:
                found[-1].append(part_name)
                if "Pool" in type(part).__name__:
                    found.append([])
    return [
        stage
        for stage in found
        if any(True for name in stage for _ in trunk.get_submodule(name).parameters())
    ]


def download(name: str) -> dict[str, Tensor]:
    """The recommended weights of torchvision's net `name`, downloaded once into torch's hub folder.

    Raises:
        UserError: they cannot be had; says which file to put where.
    """
    weights = _torchvision(name).get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    file.parent.mkdir(parents=True, exist_ok=True)
    log.info(f"{'trunk':<12}{weights.url}, kept in {file.parent}")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds; torch's download sets none
    try:
        with FileLock(f"{file}.lock"):
            tensors: dict[str, Tensor] = weights.get_state_dict(
                check_hash=True, progress=sys.stderr.isatty(), weights_only=True
            )
    except Exception as error:  # a damaged file raises anything
        failed = f"read {file}" if file.exists() else f"download {weights.url}"
        raise UserError(
            f"model.weights=DEFAULT: cannot {failed} ({_reason(error)}); put {file.name} into "
            f"{file.parent}, or use model.weights=null for a random trunk."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return tensors


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a trunk in `file`, by their names in the trunk, and whatever else it holds.

    Args:
        file: a state dict as torchvision publishes them (.pth or .safetensors), or a checkpoint
            made here, of any net; of a pretrained one its trunk is taken.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if file.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
            tensors = dict(content.get("state_dict", content))
    except Exception as error:  # a damaged file raises anything
        raise UserError(
            f"model.weights={file}: cannot be read ({_reason(error)}); it must be a state dict, "
            "or a checkpoint made here."
        ) from error
    for prefix in ("net.", "trunk."):
        if any(name.startswith(prefix) for name in tensors):
            tensors = {k.removeprefix(prefix): tensors[k] for k in tensors if k.startswith(prefix)}
    return tensors


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

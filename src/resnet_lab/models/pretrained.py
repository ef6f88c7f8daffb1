"""Transfer learning: a trunk that may have learned elsewhere, under a new head.

Images are (batch, 3, height, width); the trunk turns them into features (batch, features), the head
those into logits (batch, classes). torchvision is imported only where a trunk of its is asked for.
"""

import difflib
import logging
import re
import socket
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor, nn

from resnet_lab.config.errors import UserError

log = logging.getLogger(__name__)

# Children that hold a net's stages side by side: ours, and those of torchvision's families.
STAGE_LISTS = ("stages", "features", "layers", "trunk_output", "blocks")

# What is as the weights want it. Those of the Inception nets come from another framework and its
# normalisation; heads that help lower layers to train (arXiv 1409.4842, Section 5) are not wanted.
INCEPTION: dict[str, Any] = {"transform_input": True, "aux_logits": False, "init_weights": False}
BUILDER_OPTIONS = {
    "googlenet": INCEPTION,
    "inception_v3": INCEPTION,
    "vit_h_14": {"image_size": 518},  # of its weights; it has no other size
}


class Preprocessing(NamedTuple):
    """What images a trunk wants: side in pixels, mean and std of pixels from 0 to 1."""

    image_size: int
    mean: list[float]
    std: list[float]


class Pretrained(nn.Module):
    """`trunk` under a new `head`. What a trunk is worth: Yosinski et al., arXiv 1411.1792.

    - trunk: the name of a torchvision classification model, or a net; its own head (everything from
      the first linear layer of its last part on) is taken off.
    - num_classes: the size of the logits.
    - weights: what `load_weights` reads: DEFAULT (those torchvision recommends for the trunk), a
      file, or None. The trunk is random until that is called, so that a net whose checkpoint is
      at hand is built without them.
    - freeze: all, none, or the number of stages, counted from the images, that do not learn; see
      `stages`. What is frozen has no gradients and stays in eval mode: batch norm keeps the
      statistics it came with, and dropout is off.
    - head: widths of linear layers before the last, each followed by relu and dropout.
    - dropout: the share that is dropped there.

    Raises ValueError, one sentence that says what is possible.
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
        self.trunk = make_torchvision(trunk) if isinstance(trunk, str) else trunk
        width = take_head_off(self.trunk, self.name)

        layers: list[nn.Module] = []
        for hidden in head:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden
        self.head = nn.Sequential(*layers, nn.Linear(width, num_classes))

        # Names, not modules: SyncBatchNorm takes the place of the batch norm it is made from.
        self.frozen = self._to_freeze(freeze)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    def _to_freeze(self, freeze: str | int) -> list[str]:
        if freeze == "none":
            return []
        if freeze == "all":
            return [""]  # the trunk itself
        there = stages(self.trunk)
        if not isinstance(freeze, int) or not 1 <= freeze <= len(there):
            raise UserError(
                f"model.freeze={freeze}: use all, none, or for {self.name} "
                f"a number of stages from 1 to {len(there)}."
            )
        return [name for stage in there[:freeze] for name in stage]

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

        ValueError where they cannot be had, cannot be read or belong to another trunk.
        """
        if self.weights is None:
            return
        file = fetch(self.name) if self.weights == "DEFAULT" else Path(self.weights)
        found = read_weights(file)
        tensors = self.trunk.state_dict()
        misfits = [
            name
            for name, tensor in tensors.items()
            # Files older than this counter lack it; nothing depends on it.
            if not name.endswith("num_batches_tracked")
            and (name not in found or found[name].shape != tensor.shape)
        ]
        if misfits:
            raise UserError(
                f"model.weights={self.weights}: these are not weights of the trunk {self.name}; "
                f"{len(misfits)} of its {len(tensors)} tensors are missing or have another shape, "
                f"first {misfits[0]}."
            )
        # Into the trunk's own: what else the file holds, such as its head, is left out.
        tensors.update({name: found[name] for name in tensors if name in found})
        self.trunk.load_state_dict(tensors)
        log.info(f"{'trunk':<12}{self.name}, weights from {file}")

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))


def _in_torchvision(name: str) -> Any:
    """torchvision.models, where it has a classification model `name`; ValueError elsewhere."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, cutoff=0)
        raise UserError(
            f"model.trunk={name}: neither a classification model of torchvision, such as "
            f"{', '.join(close)}, nor a run folder."
        )
    return models


def make_torchvision(name: str) -> nn.Module:
    """torchvision's classification model `name` with random weights."""
    models = _in_torchvision(name)
    net: nn.Module = models.get_model(name, weights=None, **BUILDER_OPTIONS.get(name, {}))
    return net


def recommended(name: str) -> Any:
    """All about the weights that torchvision recommends for its model `name`, but not they."""
    return _in_torchvision(name).get_model_weights(name).DEFAULT


def preprocessing(name: str) -> Preprocessing:
    """What the recommended weights of torchvision's model `name` were trained to see."""
    make_transforms = recommended(name).transforms
    transforms = make_transforms()
    return Preprocessing(transforms.crop_size[0], transforms.mean, transforms.std)


def take_head_off(net: nn.Module, name: str) -> int:
    """Cut `net` before the first linear layer of its last part, and return the features there.

    What stands ahead of it in that part (pooling, norm, flatten) stays. ValueError where the last
    part has no linear layer.
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

    A stage is a part that stands by itself: the stem, a stage of blocks, an inverted residual,
    whatever the trunk lists at its top. Single layers in a row are one stage, up to and with a
    pooling: the stem of torchvision's ResNets, so that these have 5 stages, as in arXiv 1512.03385,
    Table 1; VGG nets have 5, too (arXiv 1409.1556, Table 1). Parts without parameters do not count.
    """
    parts: list[tuple[str, nn.Module]] = []
    for name, child in trunk.named_children():
        if name in STAGE_LISTS:
            parts += [(f"{name}.{below}", part) for below, part in child.named_children()]
        else:
            parts.append((name, child))

    found: list[list[str]] = []
    open_row = False  # whether the last stage is a row of single layers that may go on
    for name, part in parts:
        is_layer = not list(part.children())
        if is_layer and open_row:
            found[-1].append(name)
        else:
            found.append([name])
        open_row = is_layer and "Pool" not in type(part).__name__

    def learns(stage: list[str]) -> bool:
        return any(list(trunk.get_submodule(name).parameters()) for name in stage)

    return [stage for stage in found if learns(stage)]


def fetch(name: str) -> Path:
    """The file of the recommended weights of torchvision's model `name`, downloaded once.

    ValueError, which says where to put what, where they cannot be downloaded.
    """
    url = recommended(name).url
    folder = Path(torch.hub.get_dir(), "checkpoints")
    file = folder / url.rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if file.exists():
            return file
        sha256 = re.search(r"-([a-f0-9]+)\.", file.name)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30)  # seconds; torch's download sets none
        try:
            log.info(f"{'trunk':<12}downloading {url}")
            torch.hub.download_url_to_file(
                url, str(file), sha256[1] if sha256 else None, progress=sys.stderr.isatty()
            )
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(
                f"model.weights=DEFAULT: cannot download {url} ({error}); put {file.name} into "
                f"{folder}, or use model.weights=null for a random trunk."
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
    return file


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a trunk (and whatever else there is) in `file`, by their names in the trunk.

    `file` is a state dict as torchvision publishes them, or a checkpoint made here, of any net; of
    a pretrained one its trunk is taken. ValueError where it cannot be read.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        tensors: dict[str, Tensor] = dict(content.get("state_dict", content))
    except Exception as error:  # a damaged file raises anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.weights={file}: cannot be read ({reason}); it must be a state dict, or a "
            "checkpoint made here."
        ) from error
    for prefix in ("net.", "trunk."):
        if any(name.startswith(prefix) for name in tensors):
            tensors = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
    # torchvision's DenseNet files still have names that modules may not have any more.
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): tensor
        for name, tensor in tensors.items()
    }

"""What the parts of a net hold about the classes: features, their map, their nearest neighbours."""

from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch
from torch import Tensor, nn

from resnet_lab.analysis.subject import Subject, recording
from resnet_lab.config.errors import UserError
from resnet_lab.data.cache import progress
from resnet_lab.models.parts import Part, parts

NEIGHBOURS = 20
ROWS = 1000  # images compared with all others at once


@dataclass
class Features:
    """What a net makes of images, all float32 or int64 on the CPU.

    Attributes:
        before_head: [n, width], the input of the last linear layer.
        parts: those of the net but its head, with what they put out: [n, channels], the mean over
            all pixels.
        pixels: [n, ...], the images as the net gets them.
        predicted: [n].
    """

    before_head: Tensor
    parts: list[tuple[Part, Tensor]]
    pixels: Tensor
    predicted: Tensor


def collect(subject: Subject) -> Features:
    """One forward pass over the images of a subject.

    Raises:
        UserError: the net has no linear layer.
    """
    net = subject.net
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError("this net has no linear layer, whose input could be drawn.")
    body = [part for part in parts(net) if part.stage != "head"]
    pooled: list[list[Tensor]] = [[] for _ in body]
    inputs: list[Tensor] = []
    logits: list[Tensor] = []
    images: list[Tensor] = []

    def take(number: int, output: Tensor) -> None:
        flat = output.mean(dim=(2, 3)) if output.dim() == 4 else output.flatten(1)
        pooled[number].append(flat.float().cpu())

    def take_input(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0].flatten(1).float().cpu())

    handle = linear[-1].register_forward_pre_hook(take_input)
    n = len(subject.labels)
    try:
        with torch.inference_mode(), recording([part.module for part in body], take):
            for batch, _ in progress(subject.batches(), n, f"{n:,} images"):
                logits.append(net(batch).float().cpu())
                images.append(batch.flatten(1).cpu())
    finally:
        handle.remove()
    of_parts = [(part, torch.cat(found)) for part, found in zip(body, pooled, strict=True)]
    predicted = torch.cat(logits).argmax(dim=1)
    return Features(torch.cat(inputs), of_parts, torch.cat(images), predicted)


def neighbour_accuracy(features: Tensor, labels: Tensor, k: int = NEIGHBOURS) -> float:
    """The share of images whose class is that of most of their k nearest neighbours, 0 to 1.

    Each image is asked about among all others (leave one out). Near is a large cosine; where two
    classes have as many neighbours, the larger sum of cosines decides.

    Args:
        features: float32 [n, width], n at least 2.
        labels: int64 [n].
    """
    n = len(labels)
    k = min(k, n - 1)
    unit = nn.functional.normalize(features.flatten(1), dim=1)
    right = 0
    for rows in torch.arange(n).split(ROWS):
        cosines = unit[rows] @ unit.T
        cosines[torch.arange(len(rows)), rows] = -torch.inf  # none is its own neighbour
        nearest, found = cosines.topk(k, dim=1)
        # The part in brackets is below 1/2 in sum, so that it decides nothing but a tie.
        votes = torch.zeros(len(rows), int(labels.max()) + 1)
        votes.scatter_add_(1, labels[found], 1 + nearest / (4 * k))
        right += int((votes.argmax(dim=1) == labels[rows]).sum())
    return right / n


def principal_components(features: Tensor) -> tuple[Tensor, Tensor]:
    """The two directions in which features vary most.

    Args:
        features: [n, width], at least two of both.

    Returns:
        Places float32 [n, 2], and the shares of the variance along the two, float32 [2]. Signs are
        such that the largest weight of each direction is positive.
    """
    centred = features.double() - features.double().mean(dim=0)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    variances = lengths.square()
    shares = variances[:2] / variances.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return (centred @ directions.T).float(), shares.float()


def umap_places(features: Tensor) -> Tensor:
    """Places float32 [n, 2] by UMAP (McInnes et al. 2018, arXiv 1802.03426), its defaults, seed 0.

    Raises:
        UserError: it is not installed.
    """
    try:
        umap = import_module("umap")
    except ImportError as error:
        raise UserError(
            f"--map umap cannot import umap-learn ({error}): pip install umap-learn, or use "
            "--map pca."
        ) from error
    places = umap.UMAP(n_components=2, random_state=0, n_jobs=1).fit_transform(features.numpy())
    return torch.from_numpy(np.asarray(places, dtype=np.float32))

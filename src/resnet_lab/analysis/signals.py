"""Signals through the depth of a net that is not trained: forward, backward, and between inputs."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import get_total_norm

from resnet_lab.analysis.subject import recording
from resnet_lab.batchnorm import refresh_statistics
from resnet_lab.config.errors import UserError
from resnet_lab.models.parts import Part, parts

LINES = 4  # between pairs of images
STARTS = 4  # points on each line, evenly spaced over its first half
DISTANCES = tuple(2.0**-k for k in range(19, 0, -2))  # to other points, as shares of the line
BATCH = 44  # points at once


@dataclass
class Signals:
    """What one net does to one batch, before training. One entry for each of its `parts`.

    Attributes:
        stages, names: of the parts, see `models.parts`.
        gradient: L2 norm of the gradient of the part's parameters.
        activation: standard deviation of the part's output over images, channels and pixels.
        rank: `participation_ratio` of each channel's mean over the pixels of the part's output.
        dead: share of the part's ReLU outputs that are 0 for every image; NaN where there are none.
        correlation: of the gradients at two inputs, by their distance, see `gradient_correlation`.
    """

    stages: list[str]
    names: list[str]
    gradient: list[float]
    activation: list[float]
    rank: list[float]
    dead: list[float]
    correlation: list[float]

    @property
    def blocks(self) -> list[int]:
        """Places of the parts between stem and head; of all parts where that leaves none."""
        inner = [i for i, stage in enumerate(self.stages) if stage not in ("stem", "head")]
        return inner or list(range(len(self.stages)))


def measure(net: nn.Module, images: Tensor, targets: Tensor) -> Signals:
    """All signals of a net, from one forward and backward pass in training mode.

    Args:
        net: at its initialisation; its gradients and running statistics change.
        images: float32 [n, channels, height, width], 2 or more, normalised.
        targets: labels int64 [n], or shares of classes float [n, classes].

    Raises:
        UserError: the net has fewer than two parts.
    """
    found = parts(net)
    if len(found) < 2:
        raise UserError(f"{type(net).__name__}: it has one part alone, so nothing to compare.")
    activation, rank = [0.0] * len(found), [0.0] * len(found)

    def take(number: int, output: Tensor) -> None:
        output = output.detach().float()
        activation[number] = float(output.std())
        rank[number] = participation_ratio(output.flatten(2).mean(2) if output.ndim > 2 else output)

    counts = DeadUnits(found)
    net.train().zero_grad()
    with ExitStack() as stack:
        stack.enter_context(recording([part.module for part in found], take))
        stack.enter_context(recording(counts.modules, counts.take))
        F.cross_entropy(net(images), targets).backward()
    return Signals(
        stages=[part.stage for part in found],
        names=[part.name for part in found],
        gradient=[_gradient_norm(part.module) for part in found],
        activation=activation,
        rank=rank,
        dead=counts.shares(),
        correlation=gradient_correlation(net, images),
    )


def _gradient_norm(module: nn.Module) -> float:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return float(get_total_norm(gradients)) if gradients else 0.0


def participation_ratio(features: Tensor) -> float:
    """In how many directions features vary: (sum l)^2 / sum l^2 of their covariance's eigenvalues.

    It is k where k directions have the same variance and the others none, and near 1 where the
    features of all images lie on a line. Source: Abbott, Rajan and Sompolinsky 2009,
    arXiv 0912.3832.

    Args:
        features: [n, channels].

    Returns:
        From 1 to the smaller of n - 1 and channels; NaN where nothing varies.
    """
    features = features.cpu().double()  # MPS has no doubles
    centred = features - features.mean(dim=0)
    centred = centred / centred.abs().max()  # so that squares neither overflow nor vanish
    covariance = centred.T @ centred
    return float(covariance.trace() ** 2 / covariance.square().sum())


class DeadUnits:
    """Counts units of ReLUs, each a channel at a place, that are 0 for every image of a batch.

    `take(number, output)` is for `recording(modules, take)`.
    """

    def __init__(self, found: Sequence[Part]) -> None:
        pairs = [
            (number, module)
            for number, part in enumerate(found)
            for module in part.module.modules()
            if isinstance(module, nn.ReLU)
        ]
        self.modules = [module for _, module in pairs]
        self._parts = [number for number, _ in pairs]
        self._dead, self._all = [0] * len(found), [0] * len(found)

    def take(self, number: int, output: Tensor) -> None:
        dead = (output.detach() <= 0).all(dim=0)
        self._dead[self._parts[number]] += int(dead.sum())
        self._all[self._parts[number]] += dead.numel()

    def shares(self) -> list[float]:
        """By part; NaN where there is no ReLU."""
        pairs = zip(self._dead, self._all, strict=True)
        return [dead / every if every else math.nan for dead, every in pairs]


def gradient_correlation(net: nn.Module, images: Tensor) -> list[float]:
    """How alike the gradients at two inputs are, by their distance: are gradients shattered?

    Inputs lie on lines between two images; the gradient is that of the first logit with respect to
    the input, with batch norms fixed at the statistics of `images`. Of the gradients at two inputs
    the cosine is taken: 1 is the same direction, 0 is none in common.

    After Balduzzi et al. 2017, arXiv 1702.08591, who take the autocorrelation of the
    gradient along a line of inputs to fully connected nets.

    Args:
        images: float32 [n, channels, height, width], 2 or more.

    Returns:
        For each of `DISTANCES` the mean over lines and starts.
    """
    refresh_statistics(net, [images])
    net.eval()
    pairs = min(LINES, len(images) // 2)
    ends = zip(images[:pairs], images[pairs : 2 * pairs], strict=True)
    start = torch.arange(STARTS) / (2 * STARTS)
    places = (start[:, None] + torch.tensor([0.0, *DISTANCES])).flatten().to(images)
    means = []
    for a, b in ends:
        points = torch.lerp(a, b, places.view(-1, 1, 1, 1))
        gradients = torch.cat([_input_gradient(net, some) for some in points.split(BATCH)])
        gradients = gradients.flatten(1).double().view(STARTS, len(DISTANCES) + 1, -1)
        cosines = F.cosine_similarity(gradients[:, 1:], gradients[:, :1], dim=2)
        means.append(cosines.mean(dim=0))
    return [float(mean) for mean in torch.stack(means).mean(dim=0)]


def reach(correlation: Sequence[float]) -> float:
    """The distance at which correlations, one for each of `DISTANCES`, fall to one half.

    Between two distances on a line over their logarithms; 0 where the first is below one half, and
    infinite where none is; NaN where one is NaN.
    """
    pairs = list(zip(DISTANCES, correlation, strict=True))
    if any(map(math.isnan, correlation)):
        return math.nan
    if correlation[0] < 0.5:
        return 0.0
    for (near, high), (far, low) in pairwise(pairs):
        if low < 0.5:
            return float(near * (far / near) ** ((high - 0.5) / (high - low)))
    return math.inf


def _input_gradient(net: nn.Module, inputs: Tensor) -> Tensor:
    """Of the first logit with respect to each of `inputs` [n, ...], of their shape."""
    inputs = inputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(net(inputs)[:, 0].sum(), inputs)
    return gradient.cpu()

"""The loss of a net at other weights than its own.

Source of random directions and their normalisation: Li et al. 2018, arXiv 1712.09913, Section 4.
Biases and the weights of norms stay as they are, as in the authors' code.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_lab.analysis.subject import Subject
from resnet_lab.batchnorm import refresh_statistics, statistics_kept
from resnet_lab.config.errors import UserError
from resnet_lab.data.augment import normalise, scale_and_shift
from resnet_lab.files import printable

BATCH = 250  # images at once, at most, where BatchNorm takes its statistics of them
CPU_BATCH = 50  # elsewhere on a CPU: a quarter faster, since its caches hold what layers give

Weights = list[Tensor]  # one tensor for each parameter of a net, in the order of the net


def weights_of(net: nn.Module) -> Weights:
    """A copy of all parameters, on the CPU."""
    return [parameter.detach().cpu().clone() for parameter in net.parameters()]


# ------------------------------------------------------------------ directions


def filter_normalised(direction: Tensor, weight: Tensor) -> Tensor:
    """Each filter of `direction` with the norm of that filter of `weight`; both have one shape.

    A filter is what makes one output channel: weight[i] of a convolution or a linear layer. Tensors
    of one dimension (of norms, and biases) give zeros.
    """
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    wanted, given = (tensor.flatten(1).norm(dim=1) for tensor in (weight, direction))
    return direction * (wanted / given).view(-1, *[1] * (weight.dim() - 1))


def random_directions(weights: Weights, seed: int, count: int) -> list[Weights]:
    """`count` normal directions, filter-normalised.

    Nets whose weights have the same shapes get the same draws, whatever norms they have.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = []
    for _ in range(count):
        drawn = (
            torch.randn(w.shape, generator=generator) if w.dim() > 1 else torch.zeros(w.shape)
            for w in weights
        )
        directions.append([filter_normalised(d, w) for d, w in zip(drawn, weights, strict=True)])
    return directions


# ------------------------------------------------------------------ values


class Value(NamedTuple):
    """loss: cross-entropy in nats, the mean over images; may be infinite or NaN. accuracy: 0-1."""

    loss: float
    accuracy: float


@dataclass
class Section:
    """A net, the bases of a line or plane of its weights, and what it is measured on.

    Attributes:
        net: in evaluation mode. Its weights are those of the last place that was measured.
        bases: the weights at a place are their sum, each times a coefficient.
        scales: of each base, (scale, shift) of the pixels as for `augment.normalise`. They are
            summed like the weights: nets between two nets see images normalised in between.
        pixels, labels: batches on the net's device; uint8 [b, h, w, channels] and int64 [b].
        batchnorm: "running", the statistics that the net came with; "batch", those of each batch
            of images; "recomputed", the mean over `statistics` at each place.
        statistics: batches of pixels like those of training.
    """

    net: nn.Module
    bases: list[Weights]
    scales: list[tuple[Tensor, Tensor]]
    pixels: list[Tensor]
    labels: list[Tensor]
    batchnorm: str = "running"
    statistics: list[Tensor] = field(default_factory=list)

    def move(self, coefficients: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Give the net the weights of a place, and return scale and shift there. Where one
        coefficient is 1 and the others are 0, all are those of that base bit for bit."""
        for number, parameter in enumerate(self.net.parameters()):
            parameter.copy_(combined(coefficients, [base[number] for base in self.bases]))
        scales, shifts = zip(*self.scales, strict=True)
        return combined(coefficients, scales), combined(coefficients, shifts)

    @torch.no_grad()
    def at(self, coefficients: Sequence[float]) -> Value:
        """Loss and accuracy at a place. It depends on no place that was measured before."""
        scaled = self.move(coefficients)
        norms = [
            module
            for module in self.net.modules()
            # A frozen trunk keeps its statistics in training too.
            if isinstance(module, _BatchNorm)
            and (module.weight is None or module.weight.requires_grad)
        ]
        if self.batchnorm == "recomputed":
            _training(norms, True)
            batches = (normalise(pixels, *scaled) for pixels in self.statistics)
            refresh_statistics(self.net, batches)
            _training(norms, False)
        elif self.batchnorm == "batch":
            _training(norms, True)
            with statistics_kept(self.net):
                value = self._measure(*scaled)
            _training(norms, False)
            return value
        return self._measure(*scaled)

    def _measure(self, scale: Tensor, shift: Tensor) -> Value:
        loss, right, n = 0.0, 0, 0
        for pixels, labels in zip(self.pixels, self.labels, strict=True):
            logits = self.net(normalise(pixels, scale, shift)).cpu().double()
            expected = labels.cpu()
            known = ~logits.isnan().any(dim=1)  # the largest of NaN is no answer
            loss += float(F.cross_entropy(logits, expected, reduction="sum"))
            right += int(((logits.argmax(dim=1) == expected) & known).sum())
            n += len(expected)
        return Value(loss / n, right / n)


def combined(coefficients: Sequence[float], bases: Sequence[Tensor]) -> Tensor:
    """The sum of the bases, each times its coefficient; what has 0 is left out, also where it is
    infinite."""
    terms = [base * c for c, base in zip(coefficients, bases, strict=True) if c]
    total = terms[0]
    for term in terms[1:]:
        total += term
    return total


def _training(norms: Sequence[nn.Module], mode: bool) -> None:
    for norm in norms:
        norm.training = mode


def even_batches(tensor: Tensor, most: int = BATCH) -> list[Tensor]:
    """Parts of up to `most` that are as long as each other, or one shorter: none is too short for
    statistics."""
    return list(tensor.tensor_split(math.ceil(len(tensor) / most)))


def make_section(
    subjects: Sequence[Subject],
    bases: Sequence[Weights],
    batchnorm: str = "running",
    training: Subject | None = None,
) -> Section:
    """A section of the first subject's net, measured on its images.

    Args:
        subjects: those whose weights are the first bases; the other bases are directions.
        training: the first run with the images for "recomputed" statistics.
    """
    first = subjects[0]
    device = first.device
    data = [subject.run.datamodule for subject in subjects]
    scales = [scale_and_shift(d.mean, d.std, device) for d in data]
    still = torch.zeros_like(scales[0][0]), torch.zeros_like(scales[0][1])
    most = CPU_BATCH if device.type == "cpu" and batchnorm != "batch" else BATCH
    return Section(
        first.net,
        [[tensor.to(device) for tensor in base] for base in bases],
        scales + [still] * (len(bases) - len(subjects)),
        even_batches(first.pixels.to(device), most),
        even_batches(first.labels.to(device), most),
        batchnorm,
        [] if training is None else even_batches(training.pixels.to(device)),
    )


def own_value(subject: Subject) -> Value:
    """The subject's loss and accuracy, with its own weights and statistics."""
    return make_section([subject], [weights_of(subject.net)]).at((1.0,))


# ------------------------------------------------------------------ which nets, which data


def refuse_other_nets(subjects: Sequence[Subject]) -> None:
    """Raise UserError unless all are one net with other weights, for the same classes."""
    first, *others = subjects
    shapes = [(name, tuple(p.shape)) for name, p in first.net.named_parameters()]
    for other in others:
        there = [(name, tuple(p.shape)) for name, p in other.net.named_parameters()]
        options = [subject.run.cfg.model for subject in (first, other)]
        keys = {*options[0], *options[1]} - INITIAL
        differing = [f"model.{k}" for k in sorted(keys) if options[0].get(k) != options[1].get(k)]
        if shapes != there:
            differing.append("the shapes of their weights")
        if first.pixels.shape[1:] != other.pixels.shape[1:]:
            differing.append("the size of their images")
        if first.run.class_names != other.run.class_names:
            differing.append("their classes")
        if differing:
            pair = f"{first.run.run_dir} and {other.run.run_dir}"
            raise UserError(
                f"{printable(pair)} are different nets ({differing[0]}); only runs of one net have "
                "weights in between."
            )


# Options of a net that say how its weights began, or act in training alone.
INITIAL = {"zero_init_residual", "weights", "freeze", "dropout", "drop_path"}


def fingerprint(subjects: Sequence[Subject]) -> str:
    """Of the nets' weights and the images: the figures of two sections belong together if these are
    equal."""
    total = hashlib.sha256()
    for subject in subjects:
        tensors = [*subject.net.state_dict().values(), subject.pixels, subject.labels]
        for tensor in tensors:
            total.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return total.hexdigest()[:16]


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch computes in one thread, so that several processes give what one gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

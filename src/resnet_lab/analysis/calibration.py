"""How far a net's probabilities can be believed: calibration and temperature.

Guo et al. 2017, arXiv 1706.04599. The confidence of an answer is the largest probability.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15  # as in the paper
DRAWS = 1000  # of the bootstrap, and of nets that are calibrated
COLDEST, HOTTEST = 0.01, 100.0  # temperatures that are searched


@dataclass(frozen=True)
class Bin:
    """Answers whose confidence lies between `low` and `high`.

    Attributes:
        confidence, accuracy: their means over the answers, from 0 to 1; 0 where there is none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """What is measured on the answers to `images` images.

    Attributes:
        accuracy: the share of right answers.
        nll: the mean negative log likelihood of the true class, in nats.
        brier: the mean squared distance of the probabilities to those of the truth, from 0 to 2
            (summed over the classes, as Brier 1950 does).
        ece: expected calibration error over bins of equal width, from 0 to 1.
        low, high: the 95% interval of the true calibration error, by bootstrap; see `interval`. It
            begins at 0 where the ece is within `chance_limit`.
        by_chance: the ece that a calibrated net with these confidences gets on so many images, on
            average.
        chance_limit: which such a net exceeds in 5 of 100 sets of images.
        ece_equal_mass: the ece over bins of equally many answers.
        bins: those of equal width.
    """

    images: int
    accuracy: float
    nll: float
    brier: float
    ece: float
    low: float
    high: float
    by_chance: float
    chance_limit: float
    ece_equal_mass: float
    bins: tuple[Bin, ...]


def measure(logits: Tensor, labels: Tensor, temperature: float = 1.0, seed: int = 0) -> Calibration:
    """Calibration of the probabilities softmax(logits / temperature).

    Args:
        logits: float [n, classes].
        labels: int64 [n].
        seed: of the draws.
    """
    log_p = (logits.double() / temperature).log_softmax(dim=1)
    p = log_p.exp()
    confidence, answers = p.max(dim=1)
    right = (answers == labels).double()
    truth = F.one_hot(labels, logits.shape[1])
    which = equal_width(confidence)
    generator = torch.Generator().manual_seed(seed)
    ece = expected_error(confidence, right, which)
    by_chance = calibrated(confidence, which, generator)
    limit = float(by_chance.quantile(0.95))
    low, high = interval(confidence, right, which, generator)
    low = 0.0 if ece <= limit else low  # it may as well be calibrated
    return Calibration(
        images=len(labels),
        accuracy=float(right.mean()),
        nll=float(F.nll_loss(log_p, labels)),
        brier=float((p - truth).square().sum(dim=1).mean()),
        ece=ece,
        low=low,
        high=high,
        by_chance=float(by_chance.mean()),
        chance_limit=limit,
        ece_equal_mass=expected_error(confidence, right, equal_mass(confidence)),
        bins=reliability(confidence, right),
    )


# ------------------------------------------------------------------ bins and their error


def equal_width(confidence: Tensor, bins: int = BINS) -> Tensor:
    """int64 [n]: the bin of each confidence, (0, 1/bins], ..., (1 - 1/bins, 1]."""
    return ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)


def equal_mass(confidence: Tensor, bins: int = BINS) -> Tensor:
    """int64 [n]: the bin of each confidence, all bins with equally many (but for one)."""
    rank = confidence.argsort(stable=True).argsort(stable=True)
    return rank * bins // max(len(confidence), 1)


def expected_error(confidence: Tensor, right: Tensor, which: Tensor) -> float:
    """sum over bins of (share of the answers) * |accuracy - mean confidence| (equation 3).

    Args:
        right: double [n], 1 or 0.
        which: int64 [n], the bin of each answer.
    """
    gaps = torch.zeros(BINS, dtype=torch.double).index_add_(0, which, right - confidence)
    return float(gaps.abs().sum() / len(right))


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> tuple[Bin, ...]:
    """The bins of equal width."""
    which = equal_width(confidence, bins)
    counts = which.bincount(minlength=bins)
    sums = [which.bincount(weights, minlength=bins) for weights in (confidence, right)]
    means = [(of_bin / counts.clamp(min=1)).tolist() for of_bin in sums]
    return tuple(
        Bin(n / bins, (n + 1) / bins, int(counts[n]), means[0][n], means[1][n]) for n in range(bins)
    )


# ------------------------------------------------------------------ how sure the ece is


def interval(
    confidence: Tensor, right: Tensor, which: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """The 95% interval of the true calibration error, by drawing the images anew.

    An ece is too large on average: a bin's accuracy misses its confidence by chance, and the sum
    takes every miss as an error. The draws miss once more by as much; so their distance to the ece
    is subtracted from it (the basic bootstrap), not added. The interval may lie below the ece.
    """
    found = expected_error(confidence, right, which)
    gaps = right - confidence
    drawn = torch.empty(DRAWS, dtype=torch.double)
    for n in range(DRAWS):
        images = torch.randint(len(gaps), (len(gaps),), generator=generator)
        drawn[n] = expected_error(torch.zeros(()), gaps[images], which[images])
    low, high = (2 * found - drawn.quantile(torch.tensor([0.975, 0.025]).double())).tolist()
    return max(0.0, low), max(0.0, high)


def calibrated(confidence: Tensor, which: Tensor, generator: torch.Generator) -> Tensor:
    """double [DRAWS]: the ece of nets that are right as often as they say, on so many images."""
    drawn = torch.empty(DRAWS, dtype=torch.double)
    for n in range(DRAWS):
        right = torch.rand(len(confidence), generator=generator, dtype=torch.double) < confidence
        drawn[n] = expected_error(confidence, right.double(), which)
    return drawn


# ------------------------------------------------------------------ temperature


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T for which softmax(logits / T) has the least loss on these images (equation 9).

    The loss is convex in 1 / T, so its slope changes sign once: bisection. T stays between
    `COLDEST` and `HOTTEST`; it would not stop where every answer is right, or none better than
    chance.

    Args:
        logits: float [n, classes]; labels: int64 [n].
    """
    logits = logits.double()
    true = logits.gather(1, labels[:, None]).squeeze(1)

    def slope(inverse: float) -> float:
        p = (inverse * logits).softmax(dim=1)
        return float(((p * logits).sum(dim=1) - true).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / (low * high) ** 0.5

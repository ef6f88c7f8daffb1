"""How far nets agree on the same images, and what they know together.

Sources: Lakshminarayanan et al. 2017, arXiv 1612.01474, Section 2.4 (an ensemble's answer is the
mean of its members' probabilities); Jordan 2023, arXiv 2304.01910 (what differs between seeds).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Agreement:
    """Answers of K nets on n images; all shares are from 0 to 1.

    Attributes:
        probabilities: float64 [K, n, classes].
        labels: int64 [n].
    """

    probabilities: Tensor
    labels: Tensor

    @property
    def answers(self) -> Tensor:
        """int64 [K, n]."""
        return self.probabilities.argmax(dim=2)

    @property
    def right(self) -> Tensor:
        """bool [K, n]."""
        return self.answers == self.labels

    @property
    def accuracies(self) -> list[float]:
        """Of each net."""
        return _shares(self.right)

    @property
    def ensemble(self) -> Tensor:
        """The mean of the nets' probabilities, float64 [n, classes]."""
        return self.probabilities.mean(dim=0)

    @property
    def ensemble_accuracy(self) -> float:
        return float((self.ensemble.argmax(dim=1) == self.labels).double().mean())

    def disagreement(self) -> list[list[float]]:
        """For each pair of nets the share of images to which they give different answers."""
        answers = self.answers
        return [_shares(answers != one) for one in answers]

    def both_wrong(self) -> list[list[float]]:
        """For each pair of nets the share of images that both get wrong, whatever they answer."""
        wrong = ~self.right
        return [_shares(wrong & one) for one in wrong]

    def same_mistake(self) -> list[list[float]]:
        """For each pair of nets the share of images to which both give one and the same wrong
        answer."""
        answers, wrong = self.answers, ~self.right
        pairs = zip(answers, wrong, strict=True)
        return [_shares((answers == one) & mistaken) for one, mistaken in pairs]

    def nets_right(self) -> list[float]:
        """The share of images that 0, 1, ..., K of the nets get right."""
        k = len(self.right)
        found = torch.bincount(self.right.sum(dim=0), minlength=k + 1)
        return (found / found.sum()).tolist()

    def expected_spread(self) -> float | None:
        """The standard deviation of accuracy between the nets, were each image decided for itself.

        Each image has a probability to be got right, and images do not depend on each other
        (2304.01910, Hypothesis 1): then the variance is the sum of p (1 - p) over the images,
        divided by n^2. p (1 - p) is estimated without bias from the K nets. None for one net.
        """
        k, n = self.right.shape
        if k < 2:
            return None
        p = self.right.double().mean(dim=0)
        return float((p * (1 - p)).sum().mul(k / (k - 1)).sqrt() / n)

    def missed_by_all(self, most: int) -> "list[Miss]":
        """Images that every net gets wrong, the most confident mistakes first."""
        wrong = self.ensemble.scatter(1, self.labels[:, None], -1.0)  # without the true class
        probabilities, mistakes = wrong.max(dim=1)
        missed = (~self.right).all(dim=0).nonzero().flatten()
        order = missed[probabilities[missed].argsort(descending=True, stable=True)]
        return [Miss(n, int(mistakes[n]), float(probabilities[n])) for n in order[:most].tolist()]


class Miss(NamedTuple):
    """An image that every net gets wrong.

    Attributes:
        image: its number.
        mistake: the wrong class that the nets together find the likeliest.
        probability: of that class, the mean over the nets.
    """

    image: int
    mistake: int
    probability: float


def _shares(found: Tensor) -> list[float]:
    """bool [K, n] -> the share that is true, for each of K."""
    shares: list[float] = found.double().mean(dim=1).tolist()
    return shares


def independent(accuracies: list[float]) -> list[float]:
    """The share of images that 0, 1, ..., K nets would get right, were they independent.

    For nets of one accuracy it is the binomial distribution.
    """
    shares = [1.0]
    for accuracy in accuracies:
        wrong = [share * (1 - accuracy) for share in shares] + [0.0]
        right = [0.0] + [share * accuracy for share in shares]
        shares = [a + b for a, b in zip(wrong, right, strict=True)]
    return shares

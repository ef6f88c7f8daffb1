"""How alike the representations of layers are, by linear CKA.

Centered kernel alignment: Kornblith et al. 2019, arXiv 1905.00414, Section 3. HSIC is estimated
without bias on each batch and averaged over batches, so that no layer's outputs need to be kept:
Nguyen et al. 2020, arXiv 2010.15327 (minibatch CKA).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from resnet_lab.analysis.subject import BATCH, Subject, recording
from resnet_lab.config.errors import UserError
from resnet_lab.models.parts import Part, parts

FEWEST = 4  # images, for which the estimate exists


def gram(features: Tensor) -> Tensor:
    """Scalar products of all pairs of images, float64 [n, n].

    The mean over the images is taken off before: the result of `hsic` stays what it is, and the
    numbers stay small.

    Args:
        features: [n, ...].
    """
    rows = features.flatten(1).float()
    rows = rows - rows.mean(dim=0)
    return (rows @ rows.T).double()


def hsic(grams: Tensor) -> Tensor:
    """The unbiased estimate of HSIC for every pair of some Gram matrices.

    Source: Song et al. 2012, Feature Selection via Dependence Maximization; HSIC_1 in arXiv
    2010.15327.

    Args:
        grams: float64 [layers, n, n], n at least 4.

    Returns:
        float64 [layers, layers].
    """
    n = grams.shape[-1]
    grams = grams * (1 - torch.eye(n, dtype=grams.dtype, device=grams.device))
    flat, rows, sums = grams.flatten(1), grams.sum(dim=2), grams.sum(dim=(1, 2))
    traces = flat @ flat.T  # tr(K L): both are symmetric
    means = torch.outer(sums, sums) / ((n - 1) * (n - 2))
    crossed = rows @ rows.T * 2 / (n - 2)
    return (traces + means - crossed) / (n * (n - 3))


def cka(batches: Iterable[Tensor]) -> Tensor:
    """Linear CKA of every pair of layers, float64 [layers, layers] on the CPU.

    1: the same but for a rotation and a factor; near 0: unrelated. As the estimate has no bias, it
    may be a little below 0. NaN: a layer gives all images the same.

    Args:
        batches: for each batch of images the Gram matrices of all layers, [layers, n, n].
    """
    total: Tensor | float = 0.0
    for grams in batches:
        total = total + hsic(grams).cpu()
    assert isinstance(total, Tensor)
    own = total.diagonal()
    own = own.where(own > 0, torch.nan)
    return total / own.outer(own).sqrt()


def grams_of(subjects: Sequence[Subject]) -> Iterator[Tensor]:
    """Batch by batch, the Gram matrices of the parts of all nets, one net after the other."""
    n = len(subjects[0].labels)
    pieces = torch.arange(n).tensor_split(-(-n // BATCH))  # of almost the same size
    for piece in pieces:
        grams = []
        for subject in subjects:
            of_net: dict[int, Tensor] = {}
            modules = [part.module for part in parts(subject.net)]
            with torch.inference_mode(), recording(modules, _into(of_net)):
                subject.net(subject.normalised(subject.pixels[piece]))
            grams += [of_net[number].cpu() for number in range(len(modules))]
        yield torch.stack(grams)


def _into(found: dict[int, Tensor]) -> Callable[[int, Tensor], None]:
    """What keeps the Gram matrix of a part's output, by the part's number."""

    def take(number: int, output: Tensor) -> None:
        found[number] = gram(output)

    return take


def check(subjects: Sequence[Subject]) -> None:
    """Raise UserError where the nets have not been shown the same images, or too few."""
    first = subjects[0]
    n = len(first.labels)
    if n < FEWEST:
        raise UserError(f"--images {n}: CKA needs {FEWEST} and means little below 100.")
    for other in subjects[1:]:
        same = torch.equal(first.labels, other.labels)
        if same and first.pixels.shape == other.pixels.shape:
            same = torch.equal(first.pixels, other.pixels)
        if not same:
            raise UserError(
                f"{first.run.run_dir} and {other.run.run_dir} do not have the same images; "
                "compare runs on the same data, or use --split test."
            )


def stage_means(matrix: Tensor, rows: Sequence[Part], columns: Sequence[Part]) -> Tensor:
    """The mean over the blocks of two stages, for each pair of them: [stages, stages].

    Args:
        matrix: [rows, columns], CKA of parts.
    """
    stages = [list(dict.fromkeys(part.stage for part in side)) for side in (rows, columns)]
    means = [
        [
            matrix[[i for i, part in enumerate(rows) if part.stage == one]][
                :, [i for i, part in enumerate(columns) if part.stage == two]
            ].mean()
            for two in stages[1]
        ]
        for one in stages[0]
    ]
    return torch.tensor(means)

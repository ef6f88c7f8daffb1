"""The index plan: which images a step sees, and their random draws.

A pure function of (seed, epoch, step, global batch). It knows nothing of workers, and of devices
only which slice each takes, so a run resumes at any step with no loader state, and any number of
devices sees the batches that one would.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from resnet_lab.config.errors import UserError

# What the columns of the draws decide; top and left place the crop, by padding or resizing. Those
# of one operation are neighbours, since slicing on a device needs no copy of indices to it.
TOP, LEFT, FLIP, CUTOUT_ROW, CUTOUT_COLUMN, AREA, RATIO = range(7)
DRAWS = 7
CROP_AND_FLIP, CUTOUT = slice(TOP, FLIP + 1), slice(CUTOUT_ROW, CUTOUT_COLUMN + 1)
NOT_COUNTED = -1  # the label of a row that stands in where there is no image left

# A stream of random numbers for each purpose. What is new gets a new one, and takes nothing from
# what older runs drew.
_ORDER, _AUGMENT, _SPLIT, _MIX, _CLASSES, _COPIES = range(6)
POLICY, JITTER, GRAYSCALE, BLUR, ERASING = range(16, 21)  # see `policies.Augmentation`

# What a step's mixing is decided by: columns of its draws, the same for all of its images.
WHETHER, WHICH, MIXUP, CUTMIX, ROW, COLUMN = range(6)
MIXING = 6


def _random(n: int, *key: int) -> np.ndarray:
    """uint64 [n]. Raw bits, since NumPy keeps those the same from version to version."""
    return np.asarray(np.random.PCG64(np.random.SeedSequence(key)).random_raw(n))


def _whole(n: int, *key: int) -> np.ndarray:
    """int32 [n], uniform in [0, 2**31)."""
    return (_random(n, *key) >> np.uint64(33)).astype(np.int32)


class Visits(NamedTuple):
    """What a device sees in a step.

    Attributes:
        images: int64 [b], or where batches are mixed [b + 1]: the first is the partner of the
            second, and so on. So a device's last image is the partner of the next one's first, as
            on one device alone.
        draws: int32, a row for each image: `DRAWS` columns, those of the plan's `streams`, and
            where batches are mixed the `MIXING` of the step.
    """

    images: np.ndarray
    draws: np.ndarray


@dataclass(frozen=True)
class TrainPlan:
    """One epoch over n training images in global batches; the last incomplete batch is left out.

    Attributes:
        batch_size: images in a global batch, all devices together.
        rank, world_size: which device this is, of how many; it takes a contiguous slice.
        streams: what else is drawn for each image: number of the stream, columns.
        mixing: the parameters of the Beta distributions of MixUp and CutMix, 0 for none of it.
        repeats: how often an image is in its batch, each time with draws of its own; the epoch
            then visits that much fewer images (Hoffer et al. 2019, arXiv 1901.09335).
        labels: int64 [n]; given, every class is visited equally often, images of small ones
            several times.
    """

    n: int
    batch_size: int
    seed: int
    epoch: int
    rank: int = 0
    world_size: int = 1
    streams: tuple[tuple[int, int], ...] = ()
    mixing: tuple[float, float] | None = None
    repeats: int = 1
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.batch_size > self.n:
            raise UserError(
                f"data.batch_size={self.batch_size} is more than there are training images; "
                f"the largest possible is {self.n}"
            )
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise UserError(
                f"data.batch_size={self.batch_size} is shared among {self.world_size} device(s), "
                f"so it must be a multiple of {self.world_size}"
            )

    def __len__(self) -> int:
        """Steps in the epoch."""
        return self.n // self.batch_size

    @cached_property
    def order(self) -> np.ndarray:
        """int64 [n], a permutation: the order in which the epoch visits the images."""
        return np.argsort(_random(self.n, self.seed, self.epoch, _ORDER), kind="stable")

    @cached_property
    def draws(self) -> np.ndarray:
        """int32 [n, DRAWS], uniform whole numbers in [0, 2**31), a row for each image.

        By image and not by position, so an image's augmentation depends on the epoch alone.
        """
        return self._draws()

    def _draws(self, *more: int) -> np.ndarray:
        columns = [
            _whole(self.n * width, self.seed, self.epoch, stream, *more).reshape(self.n, width)
            for stream, width in ((_AUGMENT, DRAWS), *self.streams)
        ]
        return np.concatenate(columns, axis=1) if len(columns) > 1 else columns[0]

    @cached_property
    def _draws_of_copies(self) -> np.ndarray:
        """As `draws`, by position in the epoch: for the second visit to an image and later ones."""
        return self._draws(_COPIES)

    @cached_property
    def _visits(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The images in order, int64 [n], and which visit to each it is; None: all the first."""
        if self.labels is not None:
            return self._balanced(self.labels)
        if self.repeats == 1:
            return self.order, None
        some = self.order[: -(-self.n // self.repeats)]
        visits = np.tile(np.arange(self.repeats), len(some))[: self.n]
        return np.repeat(some, self.repeats)[: self.n], visits

    def _balanced(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        classes = np.unique(labels)
        # Who gets one more changes from epoch to epoch.
        classes = classes[np.argsort(_random(len(classes), self.seed, self.epoch, _CLASSES))]
        images, visits = [], []
        for i, label in enumerate(classes):
            own = self.order[labels[self.order] == label]
            count = self.n // len(classes) + (i < self.n % len(classes))
            images.append(np.resize(own, count))
            visits.append(np.arange(count) // len(own))
        shuffled = np.argsort(_random(self.n, self.seed, self.epoch, _CLASSES, 1), kind="stable")
        return np.concatenate(images)[shuffled], np.concatenate(visits)[shuffled]

    def batch(self, step: int) -> np.ndarray:
        """int64 [batch_size / world_size], this device's images of the step."""
        return self._visits[0][self._positions(step)]

    def _positions(self, step: int) -> np.ndarray:
        share = self.batch_size // self.world_size
        start = step * self.batch_size + self.rank * share
        return np.arange(start, start + share)

    def visits(self, step: int) -> Visits:
        """This device's images of the step with their draws, and with their partners in mixing."""
        positions = self._positions(step)
        if self.mixing is not None:  # the image before, around the global batch
            first = step * self.batch_size
            before = first + (positions[0] - 1 - first) % self.batch_size
            positions = np.append(before, positions)
        order, visits = self._visits
        images = order[positions]
        draws = self.draws[images]
        if visits is not None:
            again = visits[positions] > 0
            if again.any():
                draws[again] = self._draws_of_copies[positions[again]]
        if self.mixing is not None:
            of_step = np.broadcast_to(self._mixing[step], (len(images), MIXING))
            draws = np.concatenate([draws, of_step], axis=1)
        return Visits(images, draws)

    @cached_property
    def _mixing(self) -> np.ndarray:
        """int32 [steps, MIXING]: uniform, but for the columns `MIXUP` and `CUTMIX`, which hold the
        share that an image keeps of itself."""
        from scipy.special import betaincinv

        assert self.mixing is not None
        draws = _whole(len(self) * MIXING, self.seed, self.epoch, _MIX).reshape(-1, MIXING)
        for column, alpha in zip((MIXUP, CUTMIX), self.mixing, strict=True):
            if alpha:
                share = betaincinv(alpha, alpha, draws[:, column] / 2.0**31)
                draws[:, column] = np.minimum(share * 2.0**31, 2.0**31 - 1).astype(np.int32)
        return draws


@dataclass(frozen=True)
class EvalPlan:
    """Every one of n images once, in batches of one size dealt to the devices in turn.

    Every device gets the same number of batches, all of batch_size rows; rows beyond the last
    image stand in with image 0 and are marked as not to be counted.

    Attributes:
        batch_size: rows in one device's batch.
    """

    n: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        """Batches for each device."""
        return -(-self.n // (self.batch_size * self.world_size))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The images, int64 [batch_size], and whether each is to be counted, bool [batch_size]."""
        start = (step * self.world_size + self.rank) * self.batch_size
        images = np.arange(start, start + self.batch_size)
        counted = images < self.n
        return np.where(counted, images, 0), counted


def split_validation(
    labels: np.ndarray, val_size: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a validation part from the training images, with every class in proportion.

    Args:
        labels: int64 [n].
        val_size: a share between 0 and 1, a whole number of images from 1, or 0 for none.
        seed: decides which images, and nothing else does.

    Returns:
        Training and validation indices, each sorted.

    Classes get their quota rounded down, and the largest remainders one image more, so a class
    with few images may have none in the validation part.
    """
    n = len(labels)
    if val_size < 0 or (val_size >= 1 and val_size != int(val_size)):
        raise UserError(
            f"data.val_size={val_size} must be a share between 0 and 1, a whole number of images, "
            "or 0 for none"
        )
    n_val = int(val_size) if val_size >= 1 or val_size == 0 else max(1, round(n * val_size))
    if n_val >= n:
        raise UserError(
            f"data.val_size={val_size} leaves none of the {n} training images to train on; "
            f"the largest possible is {n - 1}"
        )
    class_sizes = np.bincount(labels)
    quotas = n_val * class_sizes  # in units of 1/n image, to stay whole
    counts = quotas // n
    counts[np.argsort(-(quotas % n), kind="stable")[: n_val - counts.sum()]] += 1
    # Shuffled within each class: sorted by class first, by a random number second.
    shuffled = np.lexsort((_random(n, seed, 0, _SPLIT), labels))
    rank_in_class = np.arange(n) - np.repeat(np.cumsum(class_sizes) - class_sizes, class_sizes)
    chosen = rank_in_class < counts[labels[shuffled]]
    return np.sort(shuffled[~chosen]), np.sort(shuffled[chosen])

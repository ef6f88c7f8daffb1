"""The index plan: which images a step sees, and their random draws.

A pure function of (seed, epoch, step, global batch). It knows nothing of workers, and of devices
only which slice each takes, so a run resumes at any step with no loader state, and any number of
devices sees the batches that one would.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from resnet_lab.config.errors import UserError

# What the columns of the draws decide; top and left place the crop, by padding or resizing. Those
# of one operation are neighbours, since slicing on a device needs no copy of indices to it.
TOP, LEFT, FLIP, CUTOUT_ROW, CUTOUT_COLUMN, AREA, RATIO = range(7)
DRAWS = 7
CROP_AND_FLIP, CUTOUT = slice(TOP, FLIP + 1), slice(CUTOUT_ROW, CUTOUT_COLUMN + 1)
NOT_COUNTED = -1  # the label of a row that stands in where there is no image left

_ORDER, _AUGMENT, _SPLIT = range(3)  # one stream of random numbers for each purpose


def _random(n: int, *key: int) -> np.ndarray:
    """uint64 [n]. Raw bits, since NumPy keeps those the same from version to version."""
    return np.asarray(np.random.PCG64(np.random.SeedSequence(key)).random_raw(n))


@dataclass(frozen=True)
class TrainPlan:
    """One epoch over n training images in global batches; the last incomplete batch is left out.

    Attributes:
        batch_size: images in a global batch, all devices together.
        rank, world_size: which device this is, of how many; it takes a contiguous slice.
    """

    n: int
    batch_size: int
    seed: int
    epoch: int
    rank: int = 0
    world_size: int = 1

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
        bits = _random(self.n * DRAWS, self.seed, self.epoch, _AUGMENT) >> np.uint64(33)
        return bits.astype(np.int32).reshape(self.n, DRAWS)

    def batch(self, step: int) -> np.ndarray:
        """int64 [batch_size / world_size], this device's images of the step."""
        share = self.batch_size // self.world_size
        start = step * self.batch_size + self.rank * share
        return self.order[start : start + share]


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

"""Mean and standard deviation of the channels of a set of images; imports NumPy only."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def evenly_spaced(n: int, most: int) -> Sequence[int]:
    """At most `most` of the indices 0 to n-1, spread over the whole range."""
    return [index * n // min(n, most) for index in range(min(n, most))]


def channel_statistics(blocks: Iterable[np.ndarray]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels, which run from 0 to 1.

    Args:
        blocks: uint8 [..., channels]; together they are the set.
    """
    counts: Any = 0  # [channels, 256], of each level: exact, in one pass
    for block in blocks:
        channels = np.moveaxis(block, -1, 0)
        counts += np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])
    return level_statistics(counts / counts.sum(axis=1, keepdims=True))


def level_statistics(share: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, from how frequent each level is.

    Args:
        share: float64 [channels, 256], of the levels 0 to 255, which stand for 0 to 1; each row
            sums to 1.
    """
    levels = np.arange(256) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)
    # A channel that is the same everywhere says nothing; it must not be divided by zero.
    std = np.sqrt(variance).clip(min=1 / 255)
    return mean.tolist(), std.tolist()

"""Features and their images as files for TensorBoard's PROJECTOR."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_lab.files import printable

LARGEST_SPRITE = 8192  # pixels of a side; TensorBoard shows no more
LARGEST_IMAGE = 64  # pixels of a side in it


def write_projector(
    folder: Path,
    features: Tensor,
    pixels: Tensor,
    labels: Tensor,
    predicted: Tensor,
    class_names: Sequence[str],
) -> None:
    """Write what `tensorboard --logdir FOLDER` shows under PROJECTOR.

    Args:
        features: float32 [n, width].
        pixels: uint8 [n, h, w, channels]; large images are made smaller.
        labels, predicted: int64 [n].
    """
    from torch.utils.tensorboard import SummaryWriter

    names = [printable(name) for name in class_names]
    rows = [
        [names[truth], names[answer], "right" if truth == answer else "wrong"]
        for truth, answer in zip(labels.tolist(), predicted.tolist(), strict=True)
    ]
    with SummaryWriter(str(folder)) as writer:
        writer.add_embedding(
            features,
            metadata=rows,
            metadata_header=["class", "predicted", "answer"],
            label_img=thumbnails(pixels),
            tag="features",
        )


def thumbnails(pixels: Tensor) -> Tensor:
    """float32 [n, 3, side, side] from 0 to 1, so small that a square of all of them is allowed."""
    across = int((len(pixels) - 1) ** 0.5) + 1
    side = min(LARGEST_SPRITE // across, LARGEST_IMAGE, *pixels.shape[1:3])
    small = [
        F.interpolate(part.permute(0, 3, 1, 2).float(), (side, side), mode="area") / 255
        for part in pixels.split(250)
    ]
    return torch.cat(small).expand(-1, 3, -1, -1)

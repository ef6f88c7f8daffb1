"""The small nets of the teaching material: a plain CNN, and a residual net of about its size.

Both halve the image three times and end in the same kind of head, three linear layers, which hold
most of their parameters. Images are (batch, channels, height, width); logits are (batch, classes).
Weights begin as torch's layers have them.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lab.config.errors import UserError

LAST_CHANNELS = 256


def make_head(image_size: int, hidden: int, num_classes: int) -> nn.Sequential:
    """Three linear layers; at 32 pixels of 4096 inputs, 2048 and `hidden`.

    Raises:
        UserError: the image cannot be halved three times.
    """
    side, odd = divmod(image_size, 8)
    if odd or not side:
        nearest = f"{8 * side} or {8 * side + 8}" if side else "8"
        raise UserError(
            f"image_size={image_size}: the textbook nets halve the image three times, so its side "
            f"must be a multiple of 8; use data.image_size={nearest}."
        )
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(LAST_CHANNELS * side * side, 2048),
        nn.ReLU(),
        nn.Linear(2048, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


class TextbookCNN(nn.Module):
    """Six 3x3 convolutions in three stages, each ending in a max pool; no norm, no shortcut.

    Stages in the manner of VGG (Simonyan and Zisserman, arXiv 1409.1556, Section 2.1). At 32 pixels
    they put out (32, 16, 16), (128, 8, 8) and (256, 4, 4).

    Args:
        num_classes: the size of the logits.
        image_size: side of the images in pixels, a multiple of 8; the head's size depends on it.
    """

    def __init__(self, *, num_classes: int, image_size: int = 32) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            self._stage(3, 16, 32), self._stage(32, 64, 128), self._stage(128, 128, LAST_CHANNELS)
        )
        self.head = make_head(image_size, 256, num_classes)

    @staticmethod
    def _stage(in_channels: int, width: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, out_channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(images))


class TextbookBlock(nn.Module):
    """A basic block at stride 1 whose shortcut is a 1x1 convolution, whatever the shapes.

    Differs from the paper's option C (arXiv 1512.03385, Section 3.3) in that all convolutions have
    a bias and no norm follows the projection.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class TextbookResNet(nn.Module):
    """Three residual blocks, each followed by an average pool: the smallest net with shortcuts.

    At 32 pixels the stages put out (64, 16, 16), (128, 8, 8) and (256, 4, 4). There is no stem: the
    first block sees the image.

    Args:
        num_classes: the size of the logits.
        image_size: side of the images in pixels, a multiple of 8; the head's size depends on it.
    """

    def __init__(self, *, num_classes: int, image_size: int = 32) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            self._stage(3, 64), self._stage(64, 128), self._stage(128, LAST_CHANNELS)
        )
        self.head = make_head(image_size, 512, num_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(TextbookBlock(in_channels, out_channels), nn.AvgPool2d(2))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(images))

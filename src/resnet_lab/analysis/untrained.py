"""What a training begins with: the net at its initialisation, and the first batch."""

from typing import NamedTuple

import torch
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from resnet_lab.config.errors import UserError
from resnet_lab.run import build


class FirstBatch(NamedTuple):
    """images: float32 [n, channels, height, width], normalised. targets: int64 [n], or of mixed
    images shares of classes, float [n, classes]."""

    images: Tensor
    targets: Tensor
    num_classes: int


def first_batch(cfg: DictConfig, n: int) -> FirstBatch:
    """The batch of the first step of a training with batches of `n`, augmented as there.

    Raises:
        UserError: there are no data, or fewer training images.
    """
    data = build.build_data(cfg)
    data.batch_size = 1  # until it is known how many images there are
    data.setup("fit")
    if n > data.n_train:
        raise UserError(f"--images {n}: there are {data.n_train:,} training images.")
    data.batch_size = n
    loader = data.train_dataloader()
    try:
        images, targets = data.prepare(next(iter(loader)))
    finally:
        loader.close()
    return FirstBatch(images, targets, data.num_classes)


def noise(cfg: DictConfig, n: int) -> FirstBatch:
    """Normal noise of mean 0 and standard deviation 1, with random labels; reads no data.

    Raises:
        UserError: the config does not say how large images are, or how many classes there are.
    """
    side, classes = cfg.data.image_size, cfg.data.num_classes
    if side is None or classes is None:
        raise UserError(
            "--random: these data do not say what only their images can; give "
            "data.image_size=32 data.num_classes=10 (or what it is)."
        )
    generator = torch.Generator().manual_seed(cfg.seed)
    images = torch.randn(n, cfg.data.channels, side, side, generator=generator)
    return FirstBatch(images, torch.randint(classes, (n,), generator=generator), classes)


def initialised(cfg: DictConfig, batch: FirstBatch, seed: int) -> nn.Module:
    """The net of `cfg` for a batch, with the weights that a training with this seed begins with
    (of a pretrained net without its weights)."""
    with open_dict(cfg):
        cfg.data.num_classes, cfg.data.image_size = batch.num_classes, batch.images.shape[-1]
    torch.manual_seed(seed)
    return build.build_net(cfg)

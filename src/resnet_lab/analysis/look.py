"""Training images as the first epochs see them, without a training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resnet_lab.charts import shortened
from resnet_lab.config.errors import UserError
from resnet_lab.data.batches import Part, Rows
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.data.plan import TrainPlan
from resnet_lab.data.statistics import evenly_spaced


class Look(NamedTuple):
    """A picture, float32 [height, width, 3] from 0 to 1, and its class, or its shares of two."""

    picture: np.ndarray
    caption: str
    mixed: bool = False


class Row(NamedTuple):
    """One training image.

    Attributes:
        original: as in evaluation: not augmented, of a photograph the central square.
        epochs: as each epoch from the first on sees it; None in one that leaves it out.
    """

    original: Look
    epochs: list[Look | None]


def rows(data: ImageDataModule, images: int, epochs: int) -> list[Row]:
    """Some training images, evenly spaced, before and after augmentation.

    Args:
        data: not yet set up.
        images: how many of them.
        epochs: how many, from the first.

    Raises:
        UserError: there are no such data, or fewer training images.
    """
    data.setup("fit")
    if images > data.n_train:
        raise UserError(f"--images {images}: there are {data.n_train:,} training images.")
    part = data.train_dataloader().part
    plans = [data.train_plan(epoch) for epoch in range(epochs)]
    visits = [_visits(plan) for plan in plans]
    found = []
    for index in evenly_spaced(data.n_train, images):
        as_it_is = Rows(np.array([index]), counted=np.array([True]))
        looks = [
            _as_trained(data, part, plan, order, index)
            for plan, order in zip(plans, visits, strict=True)
        ]
        found.append(Row(_look(data, _batch(part, as_it_is)), looks))
    return found


def _visits(plan: TrainPlan) -> np.ndarray:
    """int64 [steps * batch_size], the images of an epoch in the order in which it sees them."""
    return np.concatenate([plan.batch(step) for step in range(len(plan))])


def _as_trained(
    data: ImageDataModule, part: Part, plan: TrainPlan, order: np.ndarray, index: int
) -> Look | None:
    """The image as an epoch sees it first, with its partner where images are mixed."""
    (places,) = np.nonzero(order == index)
    if not len(places):
        return None
    step, row = divmod(int(places[0]), plan.batch_size)
    visits = plan.visits(step)
    mixed = plan.mixing is not None  # then the image ahead of it is its partner
    chosen = slice(row, row + 2) if mixed else slice(row, row + 1)
    data.train_side = data.side_at(plan.epoch)
    wanted = Rows(
        visits.images[chosen], draws=visits.draws[chosen], mixed=mixed, size=data.train_side
    )
    return _look(data, _batch(part, wanted))


def _batch(part: Part, wanted: Rows) -> Sequence[Tensor]:
    batch = part[wanted]
    if isinstance(batch, UserError):
        raise batch
    return batch


def _look(data: ImageDataModule, batch: Sequence[Tensor]) -> Look:
    """What the net gets of a batch of one image, with the normalisation undone."""
    images, targets = data.prepare(batch)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    pixels = (images[0] * std + mean).clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0)
    names = data.class_names
    if targets.ndim == 1:
        return Look(pixels.numpy(), shortened(names[int(targets[0])], 16))
    shares, classes = (top.tolist() for top in targets[0].topk(2))
    if shares[1] < 0.005:
        return Look(pixels.numpy(), f"100% {shortened(names[classes[0]], 16)}", mixed=True)
    parts = [
        f"{share:.0%} {shortened(names[label], 7)}"
        for share, label in zip(shares, classes, strict=True)
    ]
    return Look(pixels.numpy(), ", ".join(parts), mixed=True)

"""The one datamodule: any source, cut, planned, loaded and augmented."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from resnet_lab.config.errors import UserError
from resnet_lab.data.augment import (
    cutout,
    gray,
    normalise,
    random_crop_flip,
    resized,
    scale_and_shift,
)
from resnet_lab.data.batches import Batches, InMemory, Part, Rows, Steps, Streamed
from resnet_lab.data.cache import CACHE_FORMAT, cached_json, digest, entry, progress
from resnet_lab.data.decode import SMALL, fit
from resnet_lab.data.inspect import inspect_folder
from resnet_lab.data.plan import CROP_AND_FLIP, CUTOUT, EvalPlan, TrainPlan, split_validation
from resnet_lab.data.policies import Augment, Augmentation
from resnet_lab.data.sources import ImageFolder, Source
from resnet_lab.data.statistics import channel_statistics, evenly_spaced

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
SMALLEST = 8  # pixels a side, as the rule of data.image_size has it
MOST_IN_EVALUATION = 256  # images in a device's batch: no gradients, but the last ones are padding
RESIDENT_SHARE = 0.2  # of a GPU's free memory that a split may take to lie there for good
STATISTICS_IMAGES = 2048  # how many images speak for a set that is too large to read whole


def resolve(source: Source, num_classes: int | None, image_size: int | None) -> tuple[int, int]:
    """The number of classes and the side in pixels of a net for this source; decodes nothing.

    Args:
        num_classes, image_size: what the config says; None is as in conf/train.yaml.

    Raises:
        UserError: the source has another number of classes, or one alone.
    """
    if source.num_classes < 2:
        raise UserError(
            f"the images are of one class alone ({source.class_names[0]}), so there is nothing to "
            "tell apart"
        )
    if num_classes is not None and num_classes != source.num_classes:
        raise UserError(
            f"data.num_classes={num_classes}, but the images have {source.num_classes} classes"
        )
    if image_size is None:
        own_size = source.own_size
        image_size = own_size if own_size is not None and own_size <= SMALL else 224
        if image_size < SMALLEST:
            raise UserError(
                f"the images are of {image_size} x {image_size} pixels, too few for a net; scale "
                "them with data.image_size=32"
            )
    return source.num_classes, image_size


class ImageDataModule(LightningDataModule):
    """Batches of a source's images for training, validation and test.

    Small images are kept in memory; images larger than 64 pixels a side, and sets larger than
    `memory_limit`, are decoded by workers. What the net gets is images float32 [b, c, h, w] in
    channels_last and labels int64 [b], in evaluation `plan.NOT_COUNTED` for rows that stand in.

    conf/train.yaml explains the arguments, in its section `data`; the module `config.rules` says
    what they may be. Beyond that:

    Args:
        source: where images and labels come from. Its own val split, where it has one, is taken in
            place of a cut by `val_size`.
        mean, std: of each channel, for pixels from 0 to 1. They are computed from all training
            images after the cut, or from 2,048 of them where they are photographs.
        crop_padding: pixels of black around an image before its random crop; 0 is no crop.
        channels: 3, or 1 for `augment.gray` images.
        eval_batch_size: it does not follow the number of devices, so the figures do not either.
        test_size: of a source without test images; they are the same whatever `seed`.
        root, test_split: for the config, which passes them on to the source.
        augment: the fields of `policies.Augment`.
        resize: pairs of an epoch and the side of training images from then on.
        balance: whether every class is seen equally often; see `plan.TrainPlan`.

    Attributes (there after `setup`):
        mean, std: as above, given or computed.
        n_train, n_val, n_test: how many images each part has.
        photographs: whether images are larger than 64 pixels a side.
        streaming: whether images are decoded by workers.
        train_batches: steps in an epoch.
        train_side: side in pixels of the training images of the epoch that runs.
        deferred: whether batches stay as they are loaded, until somebody has them prepared.
    """

    deferred = False
    mean: list[float]
    std: list[float]

    def __init__(
        self,
        *,
        source: Source,
        batch_size: int = 128,
        num_classes: int | None = None,
        image_size: int | None = None,
        train_size: int | None = None,
        val_size: float = 0.1,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_padding: int = 4,
        flip: bool = True,
        cutout: int = 0,
        random_resized_crop: Sequence[float] = (0.08, 1.0),
        workers: int | None = None,
        memory_limit: float = 4.0,
        eval_batch_size: int | None = None,
        cache_dir: str = "data/cache",
        root: str | None = None,
        on_bad_image: str = "error",
        check: int | None = 100_000,
        worker_timeout: int = 300,
        channels: int = 3,
        test_size: float | None = None,
        test_split: str = "test",
        augment: Mapping[str, Any] | None = None,
        resize: Sequence[Sequence[int]] | None = None,
        balance: bool = False,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise UserError("data.mean and data.std must be given together, or both be null")
        self.source = source
        self.batch_size = batch_size
        self.train_size = train_size
        self.val_size = val_size
        self.seed = seed
        self.crop_padding = crop_padding
        self.flip = flip
        self.cutout = cutout
        self.random_resized_crop = random_resized_crop
        self.workers = workers
        self.memory_limit = memory_limit
        self.eval_batch_size = eval_batch_size or min(batch_size, MOST_IN_EVALUATION)
        self.cache_dir = os.path.expanduser(cache_dir)
        self.on_bad_image = on_bad_image
        self.check = check
        self.worker_timeout = worker_timeout
        self.channels = channels
        self.test_size = test_size
        self.augment = Augment(**(augment or {}))
        self.resize = resize
        self.balance = balance
        self._given = num_classes, image_size
        if mean is not None and std is not None:
            self.mean, self.std = list(map(float, mean)), list(map(float, std))
        self._parts: dict[str, Part] = {}
        self._loaders: WeakSet[Batches] = WeakSet()
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    # ------------------------------------------------------------------ what there is

    def setup(self, stage: str | None = None) -> None:
        """List and cut the images, decode what `stage` needs (test images only for "test")."""
        if not hasattr(self, "n_train"):
            self._cut()
        if not self.n_val and self.trainer is not None:
            self.trainer.limit_val_batches = 0  # an empty loader alone makes Lightning warn
        for name in {"test": ["test"], None: ["train", "val", "test"]}.get(stage, ["train", "val"]):
            if name not in self._parts and len(self._indices[name]):
                self._parts[name] = self._part(name)
        if not hasattr(self, "mean"):
            fingerprint, train = self.source.fingerprint("train"), self._indices["train"].tolist()
            images = self.image_size, self.photographs, self.channels
            key = digest(CACHE_FORMAT, fingerprint, images, train)
            folder = entry(self.cache_dir, "statistics", key)
            self.mean, self.std = cached_json(folder, self._measure)

    def thin(self, split: str, most: int) -> None:
        """Keep at most `most` images of a split, evenly spaced; ahead of its `setup`."""
        if not hasattr(self, "n_train"):
            self._cut()
        kept = self._indices[split]
        self._indices[split] = kept[np.asarray(evenly_spaced(len(kept), most), np.int64)]
        setattr(self, f"n_{split}", len(self._indices[split]))

    def _cut(self) -> None:
        if isinstance(self.source, ImageFolder):
            self.source, messages = inspect_folder(self.source, self.on_bad_image, self.check)
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                for level, message in messages:
                    log.log(level, message)
        source = self.source
        self.num_classes, self.image_size = resolve(source, *self._given)
        self.class_names = source.class_names
        # A folder that is only evaluated may lack splits.
        n = {split: len(source.labels(split)) for split in source.splits}
        train, val, test = (np.arange(n.get(name, 0)) for name in ("train", "val", "test"))
        labels = source.labels("train") if "train" in n else train
        if "train" in n and "test" not in n and self.test_size is not None:
            train, test = split_validation(labels, self.test_size, seed=0)
        if "train" in n and "val" not in n:
            kept, cut = split_validation(labels[train], self.val_size, self.seed)
            train, val = train[kept], train[cut]
        if not len(test) and not getattr(source, "only", ()):
            raise UserError(
                "there are no test images (no folder test/ with a folder per class); cut some from "
                "the training images with data.test_size=0.1, or take val/ for the test with "
                "data.test_split=val"
            )
        if self.train_size is not None:
            if self.train_size > len(train):
                raise UserError(
                    f"data.train_size={self.train_size} is more than the {len(train)} images "
                    "there are to train on"
                )
            if self.train_size < len(train):
                train = train[split_validation(labels[train], self.train_size, self.seed)[1]]
        self._indices = {"train": train, "val": val, "test": test}
        self.train_counts = np.bincount(labels[train], minlength=self.num_classes).tolist()
        self.n_train, self.n_val, self.n_test = (len(i) for i in self._indices.values())
        if "train" in n:
            self.train_batches = len(TrainPlan(self.n_train, self.batch_size, self.seed, epoch=0))
        gigabytes = n.get("train", max(n.values())) * self.image_size**2 * 3 / 1e9
        self.photographs = self.image_size > SMALL
        self.train_side = self.side_at(0)
        sides = {side for _, side in self.resize or ()} | {self.image_size}
        self._augmentations = {side: Augmentation(self.augment, side) for side in sides}
        self.streaming = self.photographs or gigabytes > self.memory_limit

    def _part(self, name: str) -> Part:
        split = name if name in self.source.splits else "train"  # a part cut from it
        images = self.source, split, self._indices[name], self.image_size
        if not self.streaming:
            return InMemory(*images)
        low, high = self.random_resized_crop
        return Streamed(*images, (float(low), float(high)) if self.photographs else None, self.flip)

    def _measure(self) -> tuple[list[float], list[float]]:
        train, size = self._indices["train"], self.image_size

        def statistics(blocks: Iterable[np.ndarray]) -> tuple[list[float], list[float]]:
            if self.channels == 1:
                blocks = (gray(torch.from_numpy(block)).numpy() for block in blocks)
            return channel_statistics(blocks)

        if not self.streaming:
            images = np.asarray(self.source.images("train", size))
            starts = range(0, len(train), 1024)
            return statistics(images.take(train[i : i + 1024], axis=0) for i in starts)
        some = train  # all, so that the figures are those of images in memory
        if self.photographs:
            some = train[evenly_spaced(len(train), STATISTICS_IMAGES)]
        what = f"computing mean and std from {len(some)} of {len(train)} images"
        read, make = self.source.read, partial(fit, size=size)
        indices = progress(some.tolist(), len(some), what)
        return statistics(np.array(read("train", index, make)) for index in indices)

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> Batches:
        """Training batches from where the trainer stands in its epoch (after a resume)."""
        state = {"n_train": self.n_train, "batch_size": self.batch_size, "seed": self.seed}
        first_plan = self.train_plan(0)

        def rows() -> Iterator[Rows]:
            epoch = start = 0
            if self.trainer is not None and self.trainer.training:
                # The loops' progress: what a checkpoint restores before the public counters follow.
                fit_loop = self.trainer.fit_loop
                start = fit_loop.epoch_loop.batch_progress.current.ready
                # Overfitting asks for the same batches every epoch.
                done: int = fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
                if not self.trainer.overfit_batches:  # type: ignore[attr-defined]
                    epoch = done
                self.train_side = self.side_at(done)
            plan = replace(first_plan, epoch=epoch)
            mixed, size = plan.mixing is not None, self.train_side
            for images, draws in map(plan.visits, range(start, len(plan))):
                yield Rows(images, draws=draws, mixed=mixed, size=size)

        return self._batches("train", Steps(rows, len(first_plan)), state)

    def train_plan(self, epoch: int) -> TrainPlan:
        """Which images an epoch's steps see, with which draws; epochs count from 0."""
        augmentation = self._augmentations[self.image_size]
        return TrainPlan(
            self.n_train,
            self.batch_size,
            self.seed,
            epoch,
            **self._ranks(),
            streams=augmentation.streams,
            mixing=augmentation.mixing,
            repeats=self.augment.repeats,
            labels=self._parts["train"].labels if self.balance else None,
        )

    def val_dataloader(self) -> Batches | list[None]:
        """Validation batches, or no loader where there is nothing to validate on."""
        return self.eval_dataloader("val") if self.n_val else []

    def test_dataloader(self) -> Batches:
        """Test batches."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, name: str) -> Batches:
        """Every image of "train", "val" or "test" once, not augmented."""
        plan = EvalPlan(len(self._indices[name]), self.eval_batch_size, **self._ranks())

        def rows() -> Iterator[Rows]:
            for images, counted in map(plan.batch, range(len(plan))):
                yield Rows(images, counted=counted)

        return self._batches(name, Steps(rows, len(plan)), {})

    def _batches(self, name: str, steps: Steps, state: dict[str, int]) -> Batches:
        part = self._parts[name]
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        on_cuda = device.type == "cuda"
        workers = self.workers if self.streaming else 0
        if workers is None:  # a share of the CPUs for each device; a container may own a few only
            every = range(os.cpu_count() or 1)
            cpus = getattr(os, "sched_getaffinity", lambda process: every)(0)  # Linux has it
            devices = 1 if self.trainer is None else self.trainer.num_devices
            workers = min(16, max(1, len(cpus) // devices))
        if on_cuda and isinstance(part, InMemory):
            free, _ = torch.cuda.mem_get_info(device)
            if part.images.nbytes < RESIDENT_SHARE * free:
                part.move_to(device)
        batches = Batches(steps, part, workers, on_cuda, self.worker_timeout, state)
        self._loaders.add(batches)
        return batches

    def on_exception(self, exception: BaseException) -> None:
        """End the workers; else the process waits for them at its own end."""
        self.teardown()

    def teardown(self, stage: str | None = None) -> None:
        """End the workers."""
        for batches in self._loaders:
            batches.close()

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    # ------------------------------------------------------------------ on the device

    def on_after_batch_transfer(
        self, batch: Sequence[Tensor], dataloader_idx: int = 0
    ) -> tuple[Tensor, ...]:
        """The batch as the net sees it (`prepare`), unless a CUDA graph does that."""
        return tuple(batch) if self.deferred else self.prepare(batch)

    def prepare(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Augment a training batch (one with draws), and normalise any batch, where it is.

        Returns:
            images float32 [b, c, h, w], labels int64 [b]; or of a batch that has been mixed targets
            float32 [b, classes].
        """
        images, labels, *in_training = batch
        if images.device not in self._on_device:
            self._on_device[images.device] = scale_and_shift(self.mean, self.std, images.device)
        scale, shift = self._on_device[images.device]
        if not in_training:
            return self._as_weights(normalise(images, scale, shift)), labels
        (draws,) = in_training
        if not self.photographs:  # which are cropped and mirrored where they are decoded
            images = resized(images, self.train_side)
            images = random_crop_flip(images, draws[:, CROP_AND_FLIP], self.crop_padding, self.flip)
        augmentation = self._augmentations[images.shape[1]]
        images = normalise(augmentation.pixels(images, draws), scale, shift)
        if self.cutout:
            images = cutout(images, draws[:, CUTOUT], self.cutout)
        images = augmentation.erase(images, draws)
        if augmentation.mixing:
            images, labels = augmentation.mix(images, labels, draws, self.num_classes)
        return self._as_weights(images), labels

    def show(self, split: str = "train", count: int = 32) -> Image.Image:
        """A picture of the split's first batch as the net gets it: of "train" augmented. Only the
        normalisation is undone.

        Args:
            split: "train", "val" or "test".
            count: how many images of it.
        """
        if split not in SPLITS:
            raise UserError(f"there is no split {split}; take one of {', '.join(SPLITS)}.")
        from resnet_lab.charts import render
        from resnet_lab.data.pictures import caption, pictures

        self.setup("test" if split == "test" else "fit")
        if not len(self._indices[split]):
            raise UserError(f"these data have no {split} images.")
        loader = self.train_dataloader() if split == "train" else self.eval_dataloader(split)
        try:
            images, targets = self.prepare(next(iter(loader)))
        finally:
            loader.close()
        if targets.ndim == 1:  # rows that stand in come last
            count = min(count, int((targets >= 0).sum()))
        images, targets = images[:count], targets[:count]
        captions = [caption(target, self.class_names) for target in targets]
        title = f"{split} images, as the net gets them"
        pixels = render(lambda: pictures(images, captions, title, self.mean, self.std))
        return Image.fromarray(pixels)

    def side_at(self, epoch: int) -> int:
        """The side in pixels of an epoch's training images; epochs count from 0."""
        sides = [side for first, side in self.resize or () if first <= epoch]
        return sides[-1] if sides else self.image_size

    def _as_weights(self, images: Tensor) -> Tensor:
        """In the kind of numbers of the net's weights (trainer.precision=bf16-true, 64)."""
        module = None if self.trainer is None else self.trainer.lightning_module
        weights = None if module is None else next(module.parameters(), None)
        return images if weights is None else images.to(weights.dtype)

"""The one datamodule: any source, cut, planned, loaded and augmented."""

import logging
import os
from collections.abc import Iterable, Sequence
from functools import partial
from weakref import WeakSet

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from resnet_lab.config.errors import UserError
from resnet_lab.data.augment import cutout, normalise, random_crop_flip, scale_and_shift
from resnet_lab.data.cache import cached_json, progress
from resnet_lab.data.check import check as look_into
from resnet_lab.data.decode import SMALL, fit
from resnet_lab.data.loaders import Batches, EvalRows, InMemory, Part, Streamed, TrainRows
from resnet_lab.data.plan import (
    CUTOUT_COLUMN,
    CUTOUT_ROW,
    FLIP,
    TOP,
    EvalPlan,
    TrainPlan,
    split_validation,
)
from resnet_lab.data.sources import CACHE_FORMAT, ImageFolder, Source, digest, entry, evenly_spaced

log = logging.getLogger(__name__)

MOST_IN_EVALUATION = 256  # images in a device's batch: no gradients, but the last ones are padding
RESIDENT_SHARE = 0.2  # of a GPU's free memory that a split may take to lie there for good
STATISTICS_IMAGES = 2048  # how many images speak for a set that is too large to read whole


def resolve(source: Source, num_classes: int | None, image_size: int | None) -> tuple[int, int]:
    """The number of classes and the side in pixels a net for this source needs; decodes nothing.

    Args:
        num_classes: what the config says, or None to take the source's.
        image_size: what the config says, or None for the images' own size where all share it
            and it is at most 64, else 224.
    """
    if num_classes is not None and num_classes != source.num_classes:
        raise UserError(
            f"data.num_classes={num_classes}, but the images have {source.num_classes} classes"
        )
    if image_size is None:
        own_size = source.own_size
        image_size = own_size if own_size is not None and own_size <= SMALL else 224
    if image_size < 1:
        raise UserError(f"data.image_size={image_size} must be at least 1 pixel")
    return source.num_classes, image_size


class ImageDataModule(LightningDataModule):
    """Batches of a source's images for training, validation and test.

    Small images are kept in memory; images larger than 64 pixels a side, and sets larger than
    `memory_limit`, are decoded by workers. What the net gets is images float32 [b, 3, h, w] in
    channels_last and labels int64 [b], where -1 in evaluation marks a row not to be counted.

    Args:
        source: where images and labels come from.
        batch_size: images in a global batch, all devices together.
        num_classes: checked against the source's; None takes the source's.
        image_size: side in pixels; None is the images' own where all share it and it is at most
            64, else 224.
        train_size: how many of the training images that the cut leaves are used, stratified; None
            is all.
        val_size: share (below 1) or number of the training images that are cut for validation,
            stratified; 0 is none. A source that brings its own val split is not cut.
        seed: decides the cut, the order of every epoch and all augmentation.
        mean, std: of each channel, for pixels from 0 to 1; None computes them from the training
            images after the cut, or from 2,048 of them where they are photographs.
        crop_padding: pixels of black around an image before its random crop; 0 is no crop.
        flip: whether half of the training images are mirrored.
        cutout: side in pixels of the square that is cut out of training images; 0 is none.
        random_resized_crop: smallest and largest share of a photograph's area that is cropped
            in training, in place of crop_padding.
        workers: processes that decode streamed images on each device; None is a share of the CPUs.
        memory_limit: gigabytes of uint8 images up to which small images are kept in memory.
        eval_batch_size: images in one device's evaluation batch; None is batch_size, at most 256.
            It does not follow the number of devices, so that the figures do not either.
        cache_dir: folder of decoded images and statistics.
        root: where the source reads from; the config passes it on to the source.
        on_bad_image: of an image folder's bad files: "error" names them and stops, "skip" leaves
            them out; see `check.check`.
        check: how many files of each split are looked into before, evenly spaced; None is all.
        worker_timeout: seconds that one batch may take to decode.

    Attributes (`mean`, `std`, the `n_` counts and those below are there after `setup`):
        photographs: whether images are larger than 64 pixels a side.
        streaming: whether images are decoded by workers.
        train_batches: steps in an epoch.
    """

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
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size} must be at least 1")
        if eval_batch_size is not None and eval_batch_size < 1:
            raise UserError(f"data.eval_batch_size={eval_batch_size} must be at least 1")
        if (mean is None) != (std is None):
            raise UserError("data.mean and data.std must be given together, or both be null")
        low, high = random_resized_crop
        if not 0 < low <= high <= 1:
            raise UserError(
                f"data.random_resized_crop=[{low}, {high}] must be two shares of the area in "
                "(0, 1], the smaller first"
            )
        self.source = source
        self.batch_size = batch_size
        self.train_size = train_size
        self.val_size = val_size
        self.seed = seed
        self.crop_padding = crop_padding
        self.flip = flip
        self.cutout = cutout
        self.workers = workers
        self.memory_limit = memory_limit
        self.cache_dir = cache_dir
        self.on_bad_image = on_bad_image
        self.check = check
        self.worker_timeout = worker_timeout
        self._num_classes = num_classes
        self._image_size = image_size
        self.eval_batch_size = eval_batch_size or min(batch_size, MOST_IN_EVALUATION)
        self._scale = (float(low), float(high))
        self._statistics: tuple[list[float], list[float]] | None = None
        if mean is not None and std is not None:
            self._statistics = [float(m) for m in mean], [float(s) for s in std]
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
        for name in ("test",) if stage == "test" else ("train", "val"):
            self._make_part(name)
        if stage is None:
            self._make_part("test")
        if self._statistics is None:
            train = self._indices["train"]
            key = digest(
                CACHE_FORMAT,
                self.source.fingerprint("train"),
                self.image_size,
                self.photographs,
                train.tolist(),
            )
            mean, std = cached_json(entry(self.cache_dir, "statistics", key), self._measure)
            self._statistics = mean, std

    def _cut(self) -> None:
        if isinstance(self.source, ImageFolder):
            checked = look_into(self.source, self.on_bad_image, self.check)
            self.source = checked.source
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                for level, message in checked.messages:
                    log.log(level, message)
        source = self.source
        self.num_classes, self.image_size = resolve(source, self._num_classes, self._image_size)
        self.class_names = source.class_names
        labels = source.labels("train")
        if "val" in source.splits:
            train, val = np.arange(len(labels)), np.arange(len(source.labels("val")))
            self._split_of = {"train": "train", "val": "val", "test": "test"}
        else:
            train, val = split_validation(labels, self.val_size, self.seed)
            self._split_of = {"train": "train", "val": "train", "test": "test"}
        if self.train_size is not None:
            if self.train_size > len(train):
                raise UserError(
                    f"data.train_size={self.train_size} is more than the {len(train)} images "
                    "there are to train on"
                )
            if self.train_size < len(train):
                _, chosen = split_validation(labels[train], self.train_size, self.seed)
                train = train[chosen]
        self._indices = {"train": train, "val": val, "test": np.arange(len(source.labels("test")))}
        self.n_train, self.n_val, self.n_test = (len(i) for i in self._indices.values())
        self.train_batches = len(TrainPlan(self.n_train, self.batch_size, self.seed, epoch=0))
        gigabytes = len(labels) * self.image_size**2 * 3 / 1e9
        self.photographs = self.image_size > SMALL
        self.streaming = self.photographs or gigabytes > self.memory_limit

    def _make_part(self, name: str) -> None:
        indices = self._indices[name]
        if name in self._parts or not len(indices):
            return
        args = (self.source, self._split_of[name], indices, self.image_size)
        if self.streaming:
            scale = self._scale if self.photographs else None
            self._parts[name] = Streamed(*args, scale, self.flip)
        else:
            self._parts[name] = InMemory(*args)

    @property
    def mean(self) -> list[float]:
        """Mean of each channel, for pixels from 0 to 1."""
        return self._known_statistics()[0]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel, for pixels from 0 to 1."""
        return self._known_statistics()[1]

    def _known_statistics(self) -> tuple[list[float], list[float]]:
        assert self._statistics is not None, "call setup first"
        return self._statistics

    def _measure(self) -> tuple[list[float], list[float]]:
        train, size = self._indices["train"], self.image_size
        if self.streaming:
            some: Iterable[int]
            if self.photographs:
                some = train[evenly_spaced(len(train), STATISTICS_IMAGES)]
                log.info("mean and std are computed from %d of %d images", len(some), len(train))
            else:  # as from memory: which door they come through must change nothing
                some = progress(train, len(train), f"measuring {len(train)} images")
            square = partial(fit, size=size)
            read = self.source.read
            return channel_statistics(np.asarray(read("train", i, square)) for i in some)
        images = np.asarray(self.source.images("train", size))
        starts = range(0, len(train), 1024)
        return channel_statistics(images.take(train[i : i + 1024], axis=0) for i in starts)

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> Batches:
        """Training batches from where the trainer stands in its epoch."""
        rank, world_size = self._rank_and_world_size()
        plan = TrainPlan(self.n_train, self.batch_size, self.seed, 0, rank, world_size)
        state = {"n_train": self.n_train, "batch_size": self.batch_size, "seed": self.seed}
        return self._batches("train", TrainRows(self._position, len(plan)), state)

    def val_dataloader(self) -> Batches | list[None]:
        """Validation batches, or no loader where there is nothing to validate on."""
        return self.eval_dataloader("val") if self.n_val else []

    def test_dataloader(self) -> Batches:
        return self.eval_dataloader("test")

    def eval_dataloader(self, name: str) -> Batches:
        """Every image of "train", "val" or "test" once, not augmented."""
        return self._batches(name, EvalRows(self._eval_plan(len(self._indices[name]))))

    def _batches(
        self, name: str, rows: TrainRows | EvalRows, state: dict[str, int] | None = None
    ) -> Batches:
        workers = None
        if self.streaming:
            workers = self._cpu_share() if self.workers is None else self.workers
        part = self._parts[name]
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        on_cuda = device.type == "cuda"
        if on_cuda and isinstance(part, InMemory):
            free, _ = torch.cuda.mem_get_info(device)
            if part.images.nbytes < RESIDENT_SHARE * free:
                part.move_to(device)
        batches = Batches(rows, part, workers, on_cuda, self.worker_timeout, state)
        self._loaders.add(batches)
        return batches

    def on_exception(self, exception: BaseException) -> None:
        """Have torch's error about a worker that died name the image; see `Batches.explain`."""
        for batches in self._loaders:
            batches.explain(exception)
            batches.close()

    def teardown(self, stage: str | None = None) -> None:
        for batches in self._loaders:
            batches.close()

    def _cpu_share(self) -> int:
        """Workers for one device, when this machine's CPUs are shared by all its devices."""
        available = getattr(os, "sched_getaffinity", None)  # Linux; a container may own a few only
        cpus = len(available(0)) if available else os.cpu_count() or 1
        devices = self.trainer.num_devices if self.trainer is not None else 1
        return min(16, max(1, cpus // devices))

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _eval_plan(self, n: int) -> EvalPlan:
        rank, world_size = self._rank_and_world_size()
        return EvalPlan(n, self.eval_batch_size, rank, world_size)

    def _position(self) -> tuple[TrainPlan, int]:
        """The plan of the trainer's epoch, and how many steps of it are done (after a resume)."""
        epoch = step = 0
        if self.trainer is not None and self.trainer.training:
            fit_loop = self.trainer.fit_loop
            step = fit_loop.epoch_loop.batch_progress.current.ready
            # Overfitting asks for the same batches every epoch.
            if not self.trainer.overfit_batches:  # type: ignore[attr-defined]
                epoch = fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        rank, world_size = self._rank_and_world_size()
        return TrainPlan(self.n_train, self.batch_size, self.seed, epoch, rank, world_size), step

    # ------------------------------------------------------------------ on the device

    def on_after_batch_transfer(
        self, batch: Sequence[Tensor], dataloader_idx: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Augment a training batch (one with draws), and normalise any batch, where it is."""
        images, labels, *in_training = batch
        if images.device not in self._on_device:
            self._on_device[images.device] = scale_and_shift(self.mean, self.std, images.device)
        scale, shift = self._on_device[images.device]
        if not in_training:
            return normalise(images, scale, shift), labels
        (draws,) = in_training
        if not self.photographs:  # which are cropped and mirrored where they are decoded
            images = random_crop_flip(
                images, draws[:, TOP : FLIP + 1], self.crop_padding, self.flip
            )
        images = normalise(images, scale, shift)
        if self.cutout:
            images = cutout(images, draws[:, CUTOUT_ROW : CUTOUT_COLUMN + 1], self.cutout)
        return images, labels


def channel_statistics(blocks: Iterable[np.ndarray]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels, which run from 0 to 1.

    Args:
        blocks: uint8 [..., 3]; together they are the set.
    """
    counts = np.zeros((3, 256), dtype=np.int64)  # of each level: exact, in one pass
    for block in blocks:
        for channel in range(3):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    return level_statistics(counts / counts.sum(axis=1, keepdims=True))


def level_statistics(share: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, from how frequent each level is.

    Args:
        share: float64 [3, 256], of the levels 0 to 255, which stand for 0 to 1; rows sum to 1.
    """
    levels = np.arange(256) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)
    # A channel that is the same everywhere says nothing; it must not be divided by zero.
    std = np.sqrt(variance).clip(min=1 / 255)
    return mean.tolist(), std.tolist()

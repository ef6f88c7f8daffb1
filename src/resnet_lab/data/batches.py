"""Batches by the plan: gathered from memory, or decoded by workers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnet_lab.config.errors import UserError
from resnet_lab.data.decode import evaluation_zoom, fit, random_resized_crop
from resnet_lab.data.plan import AREA, FLIP, LEFT, NOT_COUNTED, RATIO, TOP
from resnet_lab.data.sources import Source
from resnet_lab.run.stop import spare_worker

Batch = tuple[Tensor, ...]


class Rows(NamedTuple):
    """What one batch is made of, for the images of a part (train, val or test)."""

    images: np.ndarray  # int64 [b], indices within the part
    draws: np.ndarray | None = None  # int32 [b, columns], in training
    counted: np.ndarray | None = None  # bool [b], in evaluation
    mixed: bool = False  # in training: the first image is the partner of the second, and so on
    size: int | None = None  # side in pixels of random-resized-crops


@dataclass
class Steps:
    """The rows of every step that is still to be done, looked up anew whenever it is iterated."""

    rows: Callable[[], Iterator[Rows]]
    length: int  # of a whole epoch, which is what Lightning wants to know

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Rows]:
        return self.rows()


@dataclass(eq=False)
class Part(Dataset[Batch | UserError]):
    """The images of one part of a source; given rows, it makes their batch.

    A training batch is images uint8 [b, h, w, 3], labels int64 [b], draws int32 [b, columns]; one
    that is to be mixed has labels int64 [b, 2], of each image and its partner, and one image and
    row of draws more (see `plan.Visits`). An evaluation batch is images and labels, with label
    `NOT_COUNTED` for rows that stand in.
    """

    source: Source
    split: str
    indices: np.ndarray  # int64 [n], of the part's images in the split
    image_size: int

    def __post_init__(self) -> None:
        self.labels = self.source.labels(self.split)[self.indices]

    def pixels(self, rows: Rows) -> Tensor:
        raise NotImplementedError

    def __getitem__(self, rows: Rows) -> Batch | UserError:
        """The batch, or the error of a bad image: torch wraps what workers raise in pages."""
        labels = self.labels[rows.images]
        try:
            if rows.draws is not None:
                if rows.mixed:
                    labels = np.stack((labels[1:], labels[:-1]), axis=1)
                return self.pixels(rows), torch.from_numpy(labels), torch.from_numpy(rows.draws)
            counted = np.where(rows.counted, labels, NOT_COUNTED)  # type: ignore[arg-type]
            return self.pixels(rows), torch.from_numpy(counted)
        except UserError as error:
            return error


class InMemory(Part):
    """Images decoded beforehand; a batch is one gather from the memory map."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.images = np.asarray(self.source.images(self.split, self.image_size))
        self.resident: Tensor | None = None

    def move_to(self, device: torch.device) -> None:
        """Keep the whole split on `device`, so that a step sends indices and no pixels."""
        if self.resident is None or self.resident.device != device:
            self.resident = torch.tensor(self.images, device=device)

    def pixels(self, rows: Rows) -> Tensor:
        indices = self.indices[rows.images]
        if self.resident is None:
            return torch.from_numpy(self.images.take(indices, axis=0))
        where = torch.from_numpy(indices)
        if self.resident.is_cuda:
            where = where.pin_memory().to(self.resident.device, non_blocking=True)
        return self.resident.index_select(0, where)


@dataclass(eq=False)
class Streamed(Part):
    """Images read from their files for every batch.

    In training a random-resized-crop by the draws; else the central square, see `evaluation_zoom`.

    Attributes:
        scale: the crop's smallest and largest share of the image's area; None is no such crop and
            no mirroring, which small images get as batches, streamed or not.
        flip: whether half of the crops are mirrored.
    """

    scale: tuple[float, float] | None
    flip: bool

    def pixels(self, rows: Rows) -> Tensor:
        random_crops = rows.draws is not None and self.scale is not None
        size = rows.size if random_crops and rows.size else self.image_size
        images = np.empty((len(rows.images), size, size, 3), np.uint8)
        for row, index in enumerate(self.indices[rows.images].tolist()):
            if rows.draws is None or self.scale is None:
                make = partial(fit, size=size, zoom=evaluation_zoom(size))
            else:
                top, left, area, ratio = rows.draws[row, [TOP, LEFT, AREA, RATIO]] / 2.0**31
                make = partial(
                    random_resized_crop,
                    size=size,
                    scale=self.scale,
                    top=top,
                    left=left,
                    area=area,
                    ratio=ratio,
                    mirrored=self.flip and bool(rows.draws[row, FLIP] & 1),
                )
            images[row] = np.asarray(self.source.read(self.split, index, make))
        return torch.from_numpy(images)


@dataclass(eq=False)
class Batches:
    """The batches of some rows: a sized iterable, which Lightning takes for a loader.

    Nothing happens before the first batch is asked for, since Lightning calls `iter` once before
    it knows the epoch and the step it resumes from.

    Raises (while it is iterated):
        UserError: an image cannot be decoded; or a worker died or hangs, where that is noticed
            while waiting for a batch. See `worker_error` for anywhere else.
    """

    steps: Steps
    part: Part
    workers: int  # processes that make batches; 0 is none but this one
    pin_memory: bool  # put batches where a copy to a CUDA device need not wait
    timeout: int  # seconds after which a worker that has no batch ready is taken to hang
    state: dict[str, int]  # what a resumed run must share with the one that wrote its checkpoint

    def __post_init__(self) -> None:
        self._loader: Any = None
        if self.workers:
            # No batching here: an item is a whole batch, made by one worker.
            self._loader = DataLoader(
                self.part,
                batch_size=None,
                sampler=self.steps,
                num_workers=self.workers,
                persistent_workers=True,
                pin_memory=self.pin_memory,
                worker_init_fn=spare_worker,
                timeout=self.timeout,
                generator=torch.Generator(),  # else it draws from the global one
            )

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        here = self._loader is None
        for batch in map(self.part.__getitem__, self.steps) if here else self._from_workers():
            if isinstance(batch, UserError):
                raise batch
            if here and self.pin_memory:
                batch = tuple(t if t.is_cuda else t.pin_memory() for t in batch)
            yield batch

    def _from_workers(self) -> Iterator[Batch | UserError]:
        try:
            yield from self._loader
        except (RuntimeError, OSError, EOFError) as error:  # a time-out, a pipe that broke
            if "in DataLoader worker process" in str(error):
                raise  # of the source's own code, with its traceback
            raise worker_error(error) from error

    def close(self) -> None:
        """End the workers, which takes seconds at the process's end; a next batch starts others."""
        # Private names, as Lightning uses them on a plain DataLoader: torch has no public way.
        if self._loader is not None and self._loader._iterator is not None:
            self._loader._iterator._shutdown_workers()
            self._loader._iterator = None

    def state_dict(self) -> dict[str, Any]:
        """What the order depends on; the position itself is the trainer's to keep."""
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self.state.items():
            if state.get(name, value) != value:
                raise UserError(
                    f"the checkpoint was made with {name}={state[name]} and this run has {value}; "
                    "a run resumes only with the same"
                )


def worker_error(error: BaseException) -> UserError:
    """The sentence for torch's error about a worker.

    Where a worker has died, torch raises a RuntimeError "DataLoader worker ..." from a signal
    handler: in a training step, say, as well as in `Batches`.
    """
    return UserError(
        f"a worker that decodes images died or hangs ({str(error).strip().rstrip('.')}); look at "
        "the memory left (fewer data.workers take less), or raise data.worker_timeout"
    )

"""Two doors for the same plan: batches taken from memory, or decoded by workers."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from resnet_lab.config.errors import UserError
from resnet_lab.data.decode import evaluation_zoom, fit, random_resized_crop
from resnet_lab.data.plan import AREA, FLIP, LEFT, RATIO, TOP, EvalPlan, TrainPlan
from resnet_lab.data.sources import Source
from resnet_lab.run.stop import spare_worker


class Rows(NamedTuple):
    """What one batch is made of, for the images of a part (train, val or test)."""

    images: np.ndarray  # int64 [b], indices within the part
    draws: np.ndarray | None = None  # int32 [b, DRAWS], in training
    counted: np.ndarray | None = None  # bool [b], in evaluation


class TrainRows:
    """The rest of the current epoch, asked for anew whenever it is iterated.

    Args:
        position: the epoch's plan and the step to go on from.
        length: steps in a whole epoch, which is what Lightning wants to know.
    """

    def __init__(self, position: Callable[[], tuple[TrainPlan, int]], length: int) -> None:
        self.position = position
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Rows]:
        plan, start = self.position()
        for step in range(start, len(plan)):
            images = plan.batch(step)
            yield Rows(images, draws=plan.draws[images])


class EvalRows:
    """Every image of a part once; see `EvalPlan`."""

    def __init__(self, plan: EvalPlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Rows]:
        for step in range(len(self.plan)):
            images, counted = self.plan.batch(step)
            yield Rows(images, counted=counted)


class Part(Dataset[tuple[Tensor, ...]]):
    """The images of one part of a source; given rows, it makes their batch.

    A training batch is images uint8 [b, h, w, 3], labels int64 [b], draws int32 [b, DRAWS]; an
    evaluation batch is images and labels, with label -1 where a row is not to be counted.
    """

    def __init__(self, source: Source, split: str, indices: np.ndarray, image_size: int) -> None:
        self.source = source
        self.split = split
        self.indices = indices  # int64 [n], of the part's images in the split
        self.labels = source.labels(split)[indices]
        self.image_size = image_size

    def pixels(self, rows: Rows) -> Tensor:
        raise NotImplementedError

    def __getitem__(self, rows: Rows) -> tuple[Tensor, ...]:
        labels = self.labels[rows.images]
        if rows.draws is not None:
            return self.pixels(rows), torch.from_numpy(labels), torch.from_numpy(rows.draws)
        assert rows.counted is not None
        return self.pixels(rows), torch.from_numpy(np.where(rows.counted, labels, -1))


class InMemory(Part):
    """Images decoded beforehand; a batch is one gather from the memory map."""

    def __init__(self, source: Source, split: str, indices: np.ndarray, image_size: int) -> None:
        super().__init__(source, split, indices, image_size)
        self.images = np.asarray(source.images(split, image_size))
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


class Streamed(Part):
    """Images read from their files for every batch.

    In training a random-resized-crop by the draws; else the central square, see `evaluation_zoom`.

    Args:
        scale: the crop's smallest and largest share of the image's area; None is no such crop and
            no mirroring, which small images get as batches, streamed or not.
        flip: whether half of the crops are mirrored.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        indices: np.ndarray,
        image_size: int,
        scale: tuple[float, float] | None,
        flip: bool,
    ) -> None:
        super().__init__(source, split, indices, image_size)
        self.scale = scale
        self.flip = flip
        self.zoom = evaluation_zoom(image_size)
        self.reading: Tensor | None = None  # in a worker: int64 [], the index being read

    def pixels(self, rows: Rows) -> Tensor:
        images = np.empty((len(rows.images), self.image_size, self.image_size, 3), np.uint8)
        for row, index in enumerate(self.indices[rows.images].tolist()):
            if rows.draws is None or self.scale is None:
                make = partial(fit, size=self.image_size, zoom=self.zoom)
            else:
                top, left, area, ratio = rows.draws[row, [TOP, LEFT, AREA, RATIO]] / 2.0**31
                make = partial(
                    random_resized_crop,
                    size=self.image_size,
                    scale=self.scale,
                    top=top,
                    left=left,
                    area=area,
                    ratio=ratio,
                    mirrored=self.flip and bool(rows.draws[row, FLIP] & 1),
                )
            if self.reading is not None:
                self.reading.fill_(index)
            images[row] = np.asarray(self.source.read(self.split, index, make))
        if self.reading is not None:
            self.reading.fill_(IDLE)
        return torch.from_numpy(images)


IDLE = -1  # in the place of an index


class InWorkers(Dataset[tuple[Tensor, ...] | ValueError]):
    """A streamed part for a DataLoader's workers, which tell what they are reading.

    A bad image comes back as its error: raised, torch would wrap it into a page of traceback.

    reading: int64 [workers, 2], shared: each worker's process and the index it reads, or `IDLE`.
    """

    def __init__(self, part: Streamed, workers: int) -> None:
        self.part = part
        self.reading = torch.full((workers, 2), IDLE).share_memory_()

    def __getitem__(self, rows: Rows) -> tuple[Tensor, ...] | ValueError:
        worker = get_worker_info()
        if worker is not None and self.part.reading is None:
            self.reading[worker.id, 0] = os.getpid()
            self.part.reading = self.reading[worker.id, 1]  # of this process's copy alone
        try:
            return self.part[rows]
        except ValueError as error:
            return error

    def suspects(self) -> list[str]:
        """What the workers that died were reading, or, where none died, what each is reading."""
        alive = {child.pid for child in multiprocessing.active_children()}
        busy = [(pid, index) for pid, index in self.reading.tolist() if index != IDLE]
        some = [index for pid, index in busy if pid not in alive] or [index for _, index in busy]
        return [self.part.source.describe(self.part.split, index) for index in some]


class Batches:
    """The batches of some rows: a sized iterable, which Lightning takes for a loader.

    Nothing happens before the first batch is asked for, since Lightning calls `iter` once before
    it knows the epoch and the step it resumes from.

    Args:
        rows: the rows of every batch.
        part: what makes a batch of them.
        workers: processes that decode, or None to gather in this one.
        pin_memory: put batches where a copy to a CUDA device need not wait.
        timeout: seconds after which a worker that has no batch ready is taken to hang.
        state: figures that a resumed run must share with the one that wrote its checkpoint.
    """

    def __init__(
        self,
        rows: TrainRows | EvalRows,
        part: Part,
        workers: int | None,
        pin_memory: bool,
        timeout: int,
        state: dict[str, int] | None = None,
    ) -> None:
        self.rows = rows
        self.state = state or {}
        self._pin_memory = pin_memory
        self._part = part
        self._in_workers: InWorkers | None = None
        self._loader: Iterable[tuple[Tensor, ...] | ValueError] = ()
        if workers is not None:
            assert isinstance(part, Streamed)
            self._in_workers = InWorkers(part, workers)
            # No batching here: an item is a whole batch, made by one worker.
            self._loader = DataLoader(
                self._in_workers,
                batch_size=None,
                sampler=rows,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=pin_memory,
                worker_init_fn=spare_worker,
                timeout=timeout if workers else 0,
                generator=torch.Generator(),  # else it draws from the global one
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self._in_workers is not None:
            yield from self._decoded(iter(self._loader), self._in_workers)
            return
        for rows in self.rows:
            batch = self._part[rows]
            if self._pin_memory:
                batch = tuple(t if t.is_cuda else t.pin_memory() for t in batch)
            yield batch

    @staticmethod
    def _decoded(
        batches: Iterator[tuple[Tensor, ...] | ValueError], workers: InWorkers
    ) -> Iterator[tuple[Tensor, ...]]:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (OSError, EOFError) as error:  # a pipe that broke when its worker died
                raise UserError(_fault(error, workers.suspects())) from error
            except RuntimeError as error:
                if not _is_of_worker(error):
                    raise
                raise UserError(_fault(error, workers.suspects())) from error
            if isinstance(batch, ValueError):
                raise UserError(str(batch))
            yield batch

    def close(self) -> None:
        """End the workers, which takes seconds at the process's end; a next batch starts others."""
        loader: Any = self._loader
        if self._in_workers is not None and loader._iterator is not None:
            loader._iterator._shutdown_workers()
            loader._iterator = None

    def explain(self, error: BaseException) -> None:
        """Have torch's error about a worker of ours say what it was reading.

        torch raises it from a signal handler, wherever this process is: in a training step, say.
        """
        if self._in_workers is not None and _is_of_worker(error):
            files = self._in_workers.suspects()
            if files:
                error.args = (_fault(error, files),)

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


def _is_of_worker(error: BaseException) -> bool:
    """Whether an error is torch's word for a worker that is dead or takes too long."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader ")


def _fault(error: BaseException, files: list[str]) -> str:
    return (
        f"a worker that decodes images died or hangs ({str(error).rstrip('.')}) while it read "
        f"{' or '.join(files) or 'nothing'}; look at that file and at the memory left (fewer "
        "data.workers take less), or raise data.worker_timeout"
    )

"""TensorBoard as this project uses it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

BY_STEP = ("lr", "train/loss_step")  # what is logged every so many steps; all else ends an epoch


class Board(TensorBoardLogger):
    """Lightning's TensorBoardLogger, writing into `save_dir` itself.

    Every epoch figure ("train/loss", "val/acc", ...) is written against the optimizer step, as
    Lightning does, and once more as "by_epoch/..." against the number of epochs done, since
    steps of different batch sizes cannot be compared. There is no hp_metric of -1: HPARAMS is
    written when the run knows its result (`log_result`).
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        figures = dict(metrics)
        epoch = figures.pop("epoch", None)
        super().log_metrics(figures, step)
        if epoch is not None:
            by_epoch = {
                f"by_epoch/{key.replace('/', '_')}": value
                for key, value in figures.items()
                if key.startswith(("train/", "val/"))
            }
            super().log_metrics(by_epoch, int(epoch) + 1)

    def go_on(self, step: int, epochs: int, steps_of_epochs: int) -> None:
        """Before a resumed run writes: take away what it will write again.

        Its points are those after `step` of what is logged in steps, and those after the last of
        `epochs` (at `steps_of_epochs`) of what is logged at epochs' ends.
        """

        def stays(event: Event, tag: str) -> bool:
            if tag.startswith(("final/", "test/", "_hparams_/")):
                return False
            if tag.startswith("by_epoch/"):
                return bool(event.step <= epochs)
            return bool(event.step <= (step if tag in BY_STEP else steps_of_epochs))

        for path in Path(self.log_dir).glob("events.out.tfevents.*"):
            part = path.with_name(f".{path.name}.part")
            with part.open("wb") as file:
                writer = RecordWriter(file)
                for record in RawEventFileLoader(str(path)).Load():
                    event = Event.FromString(record)
                    if all(stays(event, value.tag) for value in event.summary.value):
                        writer.write(record)
                writer.flush()
            part.replace(path)

    @rank_zero_only
    def save(self) -> None:
        """Bring to the disk what was logged. (Lightning's would add hparams.yaml besides.)"""
        self.experiment.flush()

    @rank_zero_only
    def log_config(self, text: str) -> None:
        """Show the run's config (YAML) under TEXT."""
        self.experiment.add_text("config", "```yaml\n" + text + "\n```")

    @rank_zero_only
    def log_result(self, config: dict[str, Any], scores: dict[str, float], step: int) -> None:
        """Show the run in HPARAMS: its choices and its final scores."""
        self.log_hyperparams(config, {f"final/{k}": v for k, v in scores.items()}, step)

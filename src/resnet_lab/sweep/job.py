"""A job of a sweep, and how far it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_lab.run.state import State


@dataclass(frozen=True)
class Job:
    """One point of a grid or one trial of a search; never changed.

    Attributes:
        folder: its run folder.
        overrides: what a user would type for the single run.
        swept: those of them that name the folder, by key.
        config: what they compose to, interpolations unresolved, nothing filled in from the data.
        devices: processes of the run; None: one for each device that it finds.
        on_cpu: whether it computes on the CPU by its config.
        max_epochs: None where steps or time limit the run.
    """

    folder: Path
    overrides: tuple[str, ...]
    swept: Mapping[str, str]
    config: Mapping[str, Any]
    devices: int | None
    on_cpu: bool
    max_epochs: int | None

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass
class JobRecord:
    """The state of a job.

    Attributes:
        seconds, attempts: of all its attempts so far.
        error: why it failed, or was cut.
        resume: whether the next attempt continues from the newest checkpoint.
        rung: the epoch after which it pauses (`sweep.halving`); None: it runs to its end.
    """

    job: Job
    state: State = State.WAITING
    seconds: float = 0.0
    attempts: int = 0
    error: str | None = None
    resume: bool = False
    rung: int | None = None

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def folder(self) -> Path:
        return self.job.folder

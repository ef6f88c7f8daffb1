"""What runs the jobs of a sweep: processes of this machine (`local`), or a cluster (`slurm`)."""

from collections.abc import Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from resnet_lab.sweep.job import Job


class Ended(NamedTuple):
    """A job that is gone.

    Attributes:
        status: what it exited with; below 0: the signal that killed it.
        seconds: how long it ran.
    """

    name: str
    status: int
    seconds: float


class Executor(Protocol):
    """Starts jobs where there is room for them and says when they are gone.

    Attributes:
        grace_seconds: how long jobs that are asked to stop may take before they are killed.
        pending: the names of started jobs that wait for a machine.
        lost: why nothing can be started any more; None while all is well.
    """

    grace_seconds: float

    @property
    def pending(self) -> Set[str]: ...

    @property
    def lost(self) -> str | None: ...

    def check(self, job: Job) -> None:
        """Raise UserError where this job can never run here; called before anything is written."""

    def open(self, folder: Path, lock: int, n_jobs: int) -> AbstractContextManager[Self]:
        """Make ready for the jobs of the sweep in `folder`.

        Args:
            lock: a file descriptor that is open as long as any process of the sweep lives.
            n_jobs: how many jobs the sweep has in all.
        """

    def find_running(self, folder: Path) -> None:
        """Find the jobs that an earlier command has left running, before folders are read.

        Raises:
            UserError: nobody knows.
        """

    def adopt(self, job: Job) -> bool:
        """Whether the job is one of those; then it counts as started."""

    def room(self, job: Job) -> bool:
        """Whether this job could start now."""

    def start(self, job: Job, arguments: list[str]) -> bool:
        """Run the script with `arguments`; False where there is no room after all."""

    def ended(self, timeout: float) -> list[Ended]:
        """The jobs that are gone since the last call; waits at most `timeout` seconds."""

    def signal(self, number: int) -> None:
        """Send every job a signal."""

"""What has become of a job: the words of sweep.json, sweep_job.json and result.json."""

from enum import StrEnum


class State(StrEnum):
    """The state of a job of a sweep, or of a run by itself.

    `PENDING` is submitted to a cluster and not started; `PAUSED` has come to its rung of a halving
    sweep, and waits for the others.
    """

    WAITING = "waiting"
    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    PRUNED = "pruned"
    INTERRUPTED = "interrupted"
    FAILED = "failed"

    @property
    def done(self) -> bool:
        """Whether nothing is left to be run."""
        return self in (State.FINISHED, State.PRUNED)

    @property
    def has_figures(self) -> bool:
        """Whether a result.json with scores belongs to it."""
        return self.done or self is State.PAUSED

"""Which of a run's processes this one is; imports no torch.

Whoever has started the process says so in its environment: torchrun, SLURM's srun, or Lightning,
which starts those of a machine's other devices by itself.
"""

import os


def by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def by_srun() -> bool:
    """Whether this is a task of a SLURM job step, and no shell that somebody types in."""
    shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # as Lightning tells them
    return not by_torchrun() and "SLURM_STEP_ID" in os.environ and not shell


def from_outside() -> bool:
    """Whether torchrun or srun has started all processes of the run."""
    return by_torchrun() or by_srun()


def is_first() -> bool:
    """Whether this process writes what the run leaves behind; of all machines one is it."""
    if by_torchrun():
        return os.environ["RANK"] == "0"
    if by_srun():
        return os.environ["SLURM_PROCID"] == "0"
    return os.environ.get("LOCAL_RANK", "0") == os.environ.get("NODE_RANK", "0") == "0"


def count() -> int:
    """How many processes torchrun or srun has started; 1 where neither has."""
    if by_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_STEP_NUM_TASKS"]) if by_srun() else 1


def started_again() -> bool:
    """Whether SLURM (after a requeue) or torchrun (after a failure) has begun the run anew."""
    counts = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    return any(int(os.environ.get(name, "0")) > 0 for name in counts)


def job_step() -> str:
    """SLURM's number for what srun has started; the same after a requeue."""
    return f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"

"""Nets whose parameters, gradients and optimizer state lie in pieces on the devices (FSDP)."""

from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy


class Sharded(FSDPStrategy):
    """Lightning's FSDP (Zhao et al. 2023, arXiv 2304.11277) with checkpoints as of any other run.

    They hold the whole state, put together on the first device, and are written by the trainer's
    own checkpoint IO: `resume`, `load_run` and every command read them on one device.

    unit_params: parts of the net of at least so many parameters are gathered and let go one after
    the other; the largest of them is what a device needs to hold besides its own share.
    """

    def __init__(self, unit_params: int = 1_000_000, **settings: Any) -> None:
        policy = partial(size_based_auto_wrap_policy, min_num_params=unit_params)
        super().__init__(auto_wrap_policy=policy, state_dict_type="full", **settings)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        if self.is_global_zero:  # Lightning's takes no options, which our IO understands
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

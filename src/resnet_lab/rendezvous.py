"""What the processes that torchrun has started agree on before they train."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore

KEY = "resnet_lab/run_dir"
PATIENCE = timedelta(minutes=10)  # for the first process, which imports torch before it speaks


def folder_of_all(claim: Callable[[], Path] | None) -> Path:
    """The run folder: what `claim` returns in the first process, the others have None.

    It is kept in torchrun's own store, which outlives the processes: after a restart the folder
    is the one of before. ValueError where torchrun does not let its processes use that store.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ValueError(
            "torchrun's processes cannot agree on a run folder here; name it: hydra.run.dir=..."
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=PATIENCE)
    if claim is not None and not store.check([KEY]):
        store.set(KEY, str(claim().absolute()))
    return Path(store.get(KEY).decode())

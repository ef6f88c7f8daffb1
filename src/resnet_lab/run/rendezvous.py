"""What the processes that torchrun has started agree on before they train.

torchrun keeps a store for them that outlives them: what they left there before a restart is still
in it afterwards.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import torch
from torch.distributed import PrefixStore, TCPStore, init_process_group

from resnet_lab.config.errors import UserError
from resnet_lab.run.folder import RunFolder

KEY = "resnet_lab/run_dir"
PATIENCE = timedelta(minutes=10)  # for the first process, which imports torch before it speaks


def folder_of_all(claim: Callable[[], RunFolder] | None) -> RunFolder:
    """The run folder: what `claim` returns in the first process, the others have None.

    After a restart it is the one of before. ValueError where torchrun does not let its processes
    use its store.
    """
    store = _store(PATIENCE)
    if store is None:
        raise UserError(
            "torchrun's processes cannot agree on a run folder here; name it: hydra.run.dir=..."
        )
    if claim is not None and not store.check([KEY]):
        store.set(KEY, str(claim().path.absolute()))
    return RunFolder(store.get(KEY).decode())


def join(backend: str, device: torch.device, timeout: timedelta) -> None:
    """Make one process group of those that run now.

    Left to itself torch looks into the store for where the others listen, and after a restart it
    may find those that are gone. So each process leaves a name that is new with every start; the
    first takes the names away, and tells each under which one they all meet.
    """
    store = _store(timeout)
    if store is None:
        return  # torch makes the group, and a store for it
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    name = uuid4().hex
    store.set(f"resnet_lab/here/{rank}", name)
    if rank == 0:
        keys = [f"resnet_lab/here/{other}" for other in range(size)]
        store.wait(keys)
        for key in keys:
            store.set(f"resnet_lab/group/{store.get(key).decode()}", name)
            store.delete_key(key)
    group = store.get(f"resnet_lab/group/{name}").decode()
    init_process_group(
        backend,
        store=PrefixStore(group, store),
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=None if device.type == "cpu" else device,
    )


def _store(timeout: timedelta) -> TCPStore | None:
    """torchrun's own, where its processes may use it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=timeout)

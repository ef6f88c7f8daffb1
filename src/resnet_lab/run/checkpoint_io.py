"""How checkpoints and weights alone reach the disk, and come back from it."""

import hashlib
import logging
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from safetensors import safe_open
from safetensors.torch import save

from resnet_lab.config.compose import pasted
from resnet_lab.config.errors import UserError
from resnet_lab.files import replacing
from resnet_lab.run.folder import RunFolder

log = logging.getLogger(__name__)

SAFETENSORS = ".safetensors"  # a file of weights alone
CHECKSUM = "weights_sha256"  # in its metadata, see `fingerprint`: the format has no checksum


class DurableCheckpointIO(CheckpointIO):
    """A checkpoint is there whole or not at all, and holds plain data only.

    Written beside its place and moved over it once it is on the disk: whatever happens during a
    save, the file of that name is the old one or the new one. (Lightning's own goes through the
    system's temporary folder, which may be another file system, where a move is a copy.)

    With the storage option `previous`, a path in the same folder, the old file is kept there.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: dict[str, Path] | None = None,
    ) -> None:
        """Raises UserError where the disk is full or the folder cannot be written."""
        keep = Path(storage_options["previous"]) if storage_options else None
        path = Path(path)
        # Under one name, so that what a killed save leaves behind is overwritten by the next one.
        part = f".{path.name}.part"
        try:
            # A run's folder that was removed is not made again.
            path.parent.mkdir(parents=path.parent.name != "checkpoints", exist_ok=True)
            with replacing(path, "wb", durable=True, part=part, keep=keep) as file:
                torch.save(checkpoint, file)
        except BaseException as error:
            # torch's writer makes a RuntimeError of a failed write.
            if not isinstance(error, OSError | RuntimeError):
                raise
            cause = error if isinstance(error, OSError) else error.__context__
            why = cause.strerror if isinstance(cause, OSError) else None
            raise UserError(
                f"cannot write the checkpoint {path} ({why or str(error).splitlines()[0]}); those "
                "written before are as they were. Make room, or make the folder writable, and go "
                f"on with {pasted('resume', str(path.parent.parent))}"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path`, on the host; never runs code that it might contain.

        Wherever its tensors were saved: each process takes them to its own device, and none opens
        a context on another's GPU, or fails where there is none.
        """
        return load(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def load(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint file, on the host; they must be plain data (`weights_only`).

    UserError where the file is missing or damaged: torch.load itself compares no checksum, and
    most flipped bits would go unnoticed.
    """
    with _in_a_sentence(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The `state_dict` of a checkpoint file, or a file of weights alone (.safetensors), on the
    host; UserError as from `load`."""
    if path.suffix == SAFETENSORS:
        return _load_safetensors(path)
    checkpoint = load(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is no checkpoint of a run; name another one.")
    weights: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return weights


def save_weights(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a state dict as a .safetensors file, whole or not at all; `load_weights` reads it."""
    # Copies: the format wants each tensor contiguous and with memory of its own.
    alone = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    content = save(alone, metadata={"format": "pt", CHECKSUM: fingerprint(alone)})
    with replacing(path, "wb", durable=True) as file:
        file.write(content)


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """A SHA-256 of names, types, shapes and every bit of a state dict on the host."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the file; a checksum that stands in its metadata must be theirs."""
    with _in_a_sentence(path):
        with safe_open(path, framework="pt", device="cpu") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checksum = (file.metadata() or {}).get(CHECKSUM)
        if checksum not in (None, fingerprint(weights)):
            raise ValueError("wrong checksum")
    return weights


@contextmanager
def _in_a_sentence(path: str | Path) -> Iterator[None]:
    """What a file that is missing or damaged leads its readers to becomes a UserError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such checkpoint.") from error
    except Exception as error:  # whatever the bytes lead these readers to
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{path} is damaged, or no checkpoint of a run ({reason[0]}); name another one."
        ) from error


def newest(folder: RunFolder) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to resume from: last.ckpt, or, where that is damaged, the one before it.

    Returns:
        Its file and what it holds.

    Raises:
        UserError: there is none that is whole.
    """
    faults = []
    for path in (folder.last, folder.previous):
        try:
            checkpoint = load(path)
        except UserError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            log.warning(f"{fault.removesuffix('; name another one.')}; resuming from {path.name}")
        return path, checkpoint
    raise UserError(f"resume={folder}: nothing to resume from. " + " ".join(faults))

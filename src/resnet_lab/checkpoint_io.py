"""How checkpoints reach the disk."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO


class DurableCheckpointIO(CheckpointIO):
    """A checkpoint is there whole or not at all, and holds plain data only.

    Written beside its place and moved over it once it is on the disk: whatever happens during a
    save, the file of that name is the old one or the new one. (Lightning's own goes through the
    system's temporary folder, which may be another file system, where a move is a copy.)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path`; never runs code that it might contain."""
        return load(path, map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def load(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint file, which must be plain data (`weights_only`)."""
    checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    return checkpoint


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The `state_dict` of a checkpoint file, on the CPU; ValueError where the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load itself compares no checksum
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        weights: dict[str, torch.Tensor] = load(path)["state_dict"]
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such checkpoint.") from error
    except Exception as error:  # whatever the bytes lead torch's reader to
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path} is damaged, or no checkpoint of a run ({reason[0]}); name another one."
        ) from error
    return weights

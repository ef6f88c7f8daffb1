"""Checkpoint files: whole or not there, and never trusted before they are checked."""

import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from resnet_lab.run import checkpoint_io
from resnet_lab.run.folder import RunFolder

IO = checkpoint_io.DurableCheckpointIO()


def content(step: int, size: int = 1000) -> dict:
    weights = torch.randn(size, generator=torch.Generator().manual_seed(step))
    return {"step": step, "state_dict": {"weight": weights}}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run folder with two checkpoints, of steps 1 and 2."""
    for step in (1, 2):
        save(tmp_path, step)
    return tmp_path


def save(run_dir: Path, step: int, size: int = 1000) -> None:
    folder = run_dir / "checkpoints"
    options = {"previous": folder / "previous.ckpt"}
    IO.save_checkpoint(content(step, size), folder / "last.ckpt", options)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_the_one_before_is_kept(run_dir):
    assert names(run_dir) == ["last.ckpt", "previous.ckpt"]
    for name, step in (("last", 2), ("previous", 1)):
        assert checkpoint_io.load(run_dir / "checkpoints" / f"{name}.ckpt")["step"] == step
    assert checkpoint_io.newest(RunFolder(run_dir))[1]["step"] == 2


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(bytes(content(2)["state_dict"]["weight"].numpy().tobytes()[:8]))] ^= 1
    path.write_bytes(data)


def no_zip(path: Path) -> None:
    path.write_text("<html>not found</html>")


@pytest.mark.parametrize("damage", [empty, truncate, flip, no_zip, Path.unlink])
def test_a_damaged_one_is_said_and_the_one_before_is_used(run_dir, damage, caplog):
    damage(run_dir / "checkpoints" / "last.ckpt")
    path, checkpoint = checkpoint_io.newest(RunFolder(run_dir))
    assert path.name == "previous.ckpt"
    assert checkpoint["step"] == 1
    assert "last.ckpt" in caplog.text
    assert "resuming from previous.ckpt" in caplog.text
    if damage is not Path.unlink:
        with pytest.raises(ValueError, match="is damaged"):
            IO.load_checkpoint(run_dir / "checkpoints" / "last.ckpt")

    empty(run_dir / "checkpoints" / "previous.ckpt")
    with pytest.raises(ValueError, match="nothing to resume from"):
        checkpoint_io.newest(RunFolder(run_dir))


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ValueError, match=r"damaged, or no checkpoint"):
        checkpoint_io.load(tmp_path / "hostile.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_said_and_leaves_the_old_ones(run_dir):
    """A limit on the size of files makes every write beyond it fail, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"cannot write the checkpoint .*resume="):
            save(run_dir, 3, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(run_dir) == ["last.ckpt", "previous.ckpt"]
    assert checkpoint_io.newest(RunFolder(run_dir))[1]["step"] == 2


def test_a_folder_that_cannot_be_written_is_said(run_dir, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("resnet_lab.files.os.open", denied)
    with pytest.raises(ValueError, match=r"cannot write the checkpoint .*Permission denied"):
        save(run_dir, 3)
    monkeypatch.undo()
    assert checkpoint_io.newest(RunFolder(run_dir))[1]["step"] == 2


# ---------------------------------------------------------------------- long: make test-faults


def flips_caught(path: Path, wanted: int) -> tuple[int, int]:
    """Flip single bits at random until stock torch has accepted `wanted`: those, and of them the
    ones that `load` refused or that changed nothing that is read."""
    data = path.read_bytes()
    whole = torch.load(path, weights_only=True)["state_dict"]["weight"]
    rng, accepted, caught = random.Random(0), 0, 0
    flipped = path.with_name("flipped.ckpt")
    while accepted < wanted:
        position, bit = rng.randrange(len(data)), rng.randrange(8)
        flipped.write_bytes(
            data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]
        )
        try:
            stock = torch.load(flipped, weights_only=True)["state_dict"]["weight"]
        except Exception:
            continue
        accepted += 1
        try:
            checkpoint_io.load(flipped)
        except ValueError:
            caught += 1
        else:
            caught += torch.equal(stock, whole)
    return accepted, caught


def test_flipped_bits_are_caught(tmp_path):
    save(tmp_path, 1)
    accepted, caught = flips_caught(tmp_path / "checkpoints" / "last.ckpt", 30)
    assert caught == accepted


@pytest.mark.faults
def test_many_flipped_bits_are_caught(tmp_path, figure):
    save(tmp_path, 1)
    accepted, caught = flips_caught(tmp_path / "checkpoints" / "last.ckpt", 400)
    figure("single-bit flips that torch.load accepts: caught", f"{caught} of {accepted}")
    assert caught == accepted


def _save_for_ever(run_dir: Path) -> None:
    torch.set_num_threads(1)
    for step in range(3, 1_000_000):
        save(run_dir, step, size=500_000)


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_killed_while_saving(run_dir, figure, monkeypatch):
    """SIGKILL at random moments of a process that does nothing but save."""
    if Path("/dev/shm").is_dir():
        monkeypatch.setenv("TMPDIR", "/dev/shm")  # another file system
    rng, kills, loaded, midway, reached = random.Random(0), 100, 0, 0, 0
    for _ in range(kills):
        process = multiprocessing.get_context("fork").Process(
            target=_save_for_ever, args=(run_dir,)
        )
        process.start()
        time.sleep(0.02 + rng.random() * 0.1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        midway += ".last.ckpt.part" in names(run_dir)
        _, checkpoint = checkpoint_io.newest(RunFolder(run_dir))
        step = checkpoint["step"]
        assert step >= 2
        whole = content(step, 1000 if step < 3 else 500_000)["state_dict"]["weight"]
        loaded += torch.equal(checkpoint["state_dict"]["weight"], whole)
        reached = max(reached, step)
    figure("SIGKILLs during a save with a whole checkpoint after", f"{loaded} of {kills}")
    figure("  of them in the middle of writing a file", str(midway))
    assert loaded == kills
    assert reached > 3
    assert midway > kills / 4

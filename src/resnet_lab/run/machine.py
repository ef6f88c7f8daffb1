"""What the machine is and can do."""

import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from resnet_lab.config.errors import UserError
from resnet_lab.run import gpu


def keep_freed_memory() -> None:
    """Have the C library keep what a step frees for the next one (glibc only).

    It would give large blocks back to the system and fetch them again, page by page, in every
    step; on a CPU that took a fifth of the time and more, see docs/performance.md.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: blocks up to 1 GiB come from the heap
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: the heap shrinks by 2 GiB or not at all


def resolve_precision(precision: str | int, accelerator: str) -> str:
    """ "auto" becomes "bf16-mixed" where the device computes in it natively, else "32"."""
    if str(precision) != "auto":
        return str(precision)
    if on_cuda(accelerator):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        native = False
    else:
        native = bool({"avx512_bf16", "amx_bf16"} & cpu_flags())
    return "bf16-mixed" if native else "32"


class Usable(NamedTuple):
    """What torch can compute on.

    Attributes:
        n: CUDA devices.
        fault: why there are none although this machine has a GPU; None: it has none, or all is
            well.
        broken: whether somebody who has not said otherwise would expect them to work, so that a run
            on the CPU is not what was meant.
    """

    n: int
    fault: str | None = None
    broken: bool = False


def usable() -> Usable:
    """The CUDA devices of this process, once CUDA has been started on them.

    NVML, by which `torch.cuda.is_available()` goes in a Lightning program, counts devices whose
    driver is too old as well.
    """
    if n := torch.cuda.device_count():
        try:
            torch.cuda.init()
        except Exception as error:  # RuntimeError, AssertionError, AcceleratorError
            return Usable(0, gpu.first_sentence(error), broken=True)
        return Usable(n)
    if torch.version.hip or not gpu.present():
        return Usable(0)
    if torch.version.cuda is None:
        return Usable(0, f"this torch ({torch.__version__}) is built without CUDA")
    found = gpu.driver()
    if found.gpus:
        have, want = gpu.dotted(found.version), torch.version.cuda
        fault = f"torch finds none (the driver is for CUDA {have}, torch for {want})"
        return Usable(0, fault, broken=True)
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is not None and found.version is not None:
        return Usable(0, f"CUDA_VISIBLE_DEVICES={mask} names none that is there")
    return Usable(0, found.fault or "there is no CUDA driver (libcuda.so.1)")


def named(device: str) -> torch.device:
    """The device that a user names: auto, cpu, cuda, cuda:1.

    Raises:
        UserError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda", 0) if on_cuda("auto") else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device}: use auto, cpu, cuda or cuda:1.") from None
    if chosen.type == "cuda":
        on_cuda("cuda")
        chosen = torch.device("cuda", chosen.index or 0)
        if chosen.index >= (n := usable().n):
            raise UserError(f"--device {device}: there are {n} GPUs here.")
        claim(chosen)
    return chosen


def claim(device: torch.device) -> None:
    """Begin to use `device`: what keeps others out is found here, and not in mid-run.

    Raises:
        UserError: it is held by another process alone, full, or broken.
    """
    if device.type != "cuda":
        return
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:  # AcceleratorError, OutOfMemoryError are such
        why = gpu.first_sentence(error) + gpu.others(device.index or 0)
        raise UserError(
            f"{device} cannot be used ({why}); wait for it, take another one "
            "(trainer.devices=[1]), or compute on the CPU with trainer.accelerator=cpu."
        ) from error


def on_cuda(accelerator: str) -> bool:
    """Whether `trainer.accelerator` means CUDA devices here.

    Raises:
        UserError: there is a GPU that cannot be used (one that is hidden is not there, where
            nobody asks for it); or this process was given one, by its sweep, and finds none.
    """
    if accelerator not in ("auto", "gpu", "cuda"):
        return False
    found = usable()
    given = os.environ.get(gpu.GIVEN)
    if given and not found.n:
        raise gpu.cannot_start(found.fault or f"torch finds none, and this job was given {given}")
    if found.fault and (found.broken or accelerator != "auto"):
        raise gpu.cannot_start(found.fault)
    return found.n > 0


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA may round the factors of float32 products to 10 bits (TensorFloat-32).

    Several times as fast, on Ampere and newer. Not where figures are compared with a CPU's.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def arithmetic(precision: str, device: torch.device) -> str:
    """A precision for people, with what the device makes of it."""
    if device.type != "cuda" or precision not in ("32", "32-true"):
        return precision
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8:
        return f"{precision} (TensorFloat-32: products of 10 bits)"
    if major == 7:
        return f"{precision} (it has no bfloat16; trainer.precision=16-mixed is faster on it)"
    return precision


def count_devices(devices: Any, accelerator: str) -> int:
    """How many devices of this machine `trainer.devices` means."""
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return torch.cuda.device_count() if on_cuda(accelerator) else 1
    return int(devices)


def cpu_flags() -> set[str]:
    """The processor's instruction sets as Linux names them; elsewhere empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def device_name(device: torch.device) -> str:
    """The model of the GPU or processor, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
        except OSError:
            pass
    return platform.processor() or device.type

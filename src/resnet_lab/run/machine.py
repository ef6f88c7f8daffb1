"""What the machine is and can do."""

import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


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


def on_cuda(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


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

"""Which GPUs there are to be had, and why there are none: the one place that answers it.

Three authorities know of GPUs: the CUDA driver, which decides; NVML, which also counts those that
CUDA cannot start on; and nvidia-smi, which alone lists the slices of a MIG GPU and may be missing
in a container. What is here asks them without torch; `machine.usable` asks torch, in a process that
is going to compute.

    python -m resnet_lab.run.gpu        a note where torch and this machine's driver do not fit
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from resnet_lab.config.errors import UserError

GIVEN = "RESNET_LAB_GPUS"  # in the environment of a sweep's job: the GPUs that it was given
SECONDS = 20  # that a driver may take to answer
WAYS_OUT = (
    "Install a newer driver, or a torch built for this one (UV_TORCH_BACKEND=auto make install), "
    "or compute on the CPU with trainer.accelerator=cpu."
)

# Asks the driver as any CUDA program does, so that masks and containers count as they do for one.
# By ctypes alone, in a fresh process: a process that has started CUDA can no longer be forked.
_PROBE = """
import ctypes, json, uuid
from ctypes import byref, c_int, create_string_buffer
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError:
    print("{}")
    raise SystemExit
number = c_int()
cuda.cuDriverGetVersion(byref(number))
answer = {"version": number.value, "gpus": []}
status = cuda.cuInit(0)
if status:
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(status, byref(text))
    answer["fault"] = (text.value or b"error %d" % status).decode()
else:
    cuda.cuDeviceGetCount(byref(number))
    for n in range(number.value):
        device, identity, name = c_int(), create_string_buffer(16), create_string_buffer(256)
        cuda.cuDeviceGet(byref(device), n)
        cuda.cuDeviceGetUuid_v2(identity, device)
        cuda.cuDeviceGetName(name, 256, device)
        kind = "MIG" if b" MIG " in name.value else "GPU"
        answer["gpus"].append(f"{kind}-{uuid.UUID(bytes=identity.raw)}")
print(json.dumps(answer))
"""


class Driver(NamedTuple):
    """What the CUDA driver of this machine says.

    Attributes:
        version: the newest CUDA that it can run, as (13, 2); None: there is no driver.
        gpus: those that this process may use, by the names that CUDA_VISIBLE_DEVICES can give them.
        fault: why there are none, in the driver's own words.
    """

    version: tuple[int, int] | None = None
    gpus: tuple[str, ...] = ()
    fault: str | None = None


def driver() -> Driver:
    """Ask the driver, under the mask of this process's environment (CUDA_VISIBLE_DEVICES)."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return Driver(fault="it does not answer")
    version = answer.get("version")
    return Driver(
        None if version is None else (version // 1000, version % 1000 // 10),
        tuple(answer.get("gpus", ())),
        answer.get("fault"),
    )


def listed() -> dict[str, list[str]]:
    """The GPUs that nvidia-smi lists, whatever the mask: name -> the names of its MIG slices."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, list[str]] = {}
    for name in re.findall(r"UUID: ((?:GPU|MIG)-[\w/-]+)", done.stdout):
        if name.startswith("GPU-"):
            found[name] = []
        elif found:
            found[list(found)[-1]].append(name)
    return found


def slots() -> list[str]:
    """The GPUs that jobs can be given, one each, as CUDA_VISIBLE_DEVICES names them.

    A process sees one slice of a MIG GPU at most, and a job needs no more: every slice that the
    mask leaves is a slot.
    """
    seen = driver().gpus
    if not any(name.startswith("MIG-") for name in seen):
        return list(seen)
    cards = listed()
    slices = {name for inside in cards.values() for name in inside}
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is None:
        return [name for card, inside in cards.items() for name in inside or [card]] or list(seen)
    chosen: list[str] = []
    for entry in (part.strip() for part in mask.split(",")):
        if entry.isdigit() and int(entry) < len(cards):
            chosen += list(cards.values())[int(entry)]
        elif entry in slices:
            chosen.append(entry)
        else:
            break  # as CUDA reads it: what follows an invalid name is invisible
    return list(dict.fromkeys(chosen)) or list(seen)


def present() -> int:
    """How many GPUs of NVIDIA's this machine has, be they usable or not."""
    folder = Path("/proc/driver/nvidia/gpus")  # in a container: those of its host
    return len(list(folder.iterdir())) if folder.is_dir() else len(listed())


def others(index: int) -> str:
    """In words, which other processes hold memory of a CUDA device; "" where none is known."""
    mask = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    name = mask[index] if index < len(mask) and mask[index] else str(index)
    query = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--id={name}", *query], capture_output=True, text=True, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 1]
    held = [f"{pid} ({memory})" for pid, memory in rows if pid != str(os.getpid())]
    return f"; other processes on it: {', '.join(held)}" if held else ""


def first_sentence(error: BaseException) -> str:
    """The first line of an error up to its full stop, and the code that CUDA gives."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    first, _, more = line.partition(". ")
    code = re.search(r"Error \d+: .*", more)
    return f"{first.rstrip('.')}{f': {code[0]}' if code else ''}"


def dotted(version: tuple[int, int] | None) -> str:
    return "?" if version is None else ".".join(map(str, version))


def cannot_start(fault: str) -> UserError:
    return UserError(f"the GPU cannot be used: {fault}. {WAYS_OUT}")


def _note() -> str | None:
    """What to say after an installation; imports no torch, which takes seconds."""
    try:
        file = distribution("torch").locate_file("torch/version.py")
        text = Path(str(file)).read_text()
    except (PackageNotFoundError, OSError):
        return None
    built = re.search(r"^cuda[^=]*= '(\d+)\.(\d+)'", text, re.MULTILINE)
    found = driver()
    if found.version is None:
        return None
    if built is None:
        return "note: this machine has a GPU, and this torch is built without CUDA. " + WAYS_OUT
    needed = int(built[1]), int(built[2])
    if found.version[0] < needed[0]:  # within a major version, older drivers run newer builds
        have, want = dotted(found.version), dotted(needed)
        return (
            f"note: the driver is for CUDA {have}, and this torch is built for {want}. {WAYS_OUT}"
        )
    return None


if __name__ == "__main__":
    if note := _note():
        print(note)

"""`python tests/pretended.py SCRIPT ARGUMENTS`: the script where a GPU is pretended, or, where the
environment variable PRETENDED_GPUS says so, several; torchrun starts it for each of them. What the
host waited for goes into the file PRETENDED_WAITS, with the rank behind its name."""

import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from pretend_cuda import World

import resnet_lab.run.training  # noqa: F401 - what is imported must meet torch as it is

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    world = World(gpus=int(os.environ.get("PRETENDED_GPUS", "1")))
    world.counting = "PRETENDED_WAITS" in os.environ
    try:
        with world:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        if world.counting:
            file = os.environ["PRETENDED_WAITS"] + os.environ.get("RANK", "0")
            Path(file).write_text("\n".join(world.waits))

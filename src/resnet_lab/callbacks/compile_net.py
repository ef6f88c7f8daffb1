"""torch.compile for the net, where it pays."""

import logging
import os
import shutil
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger(__name__)

# Below this many steps the time that compiling takes is not won back; see docs/performance.md.
WORTHWHILE_STEPS = {"cpu": 1000, "cuda": 10000}


class CompileNet(Callback):
    """Compiles the net before the first step, and says what it decided and why.

    wish: "auto" compiles when enough steps are ahead and a compiler is there; True or False.

    Only the net is compiled, in place, so that checkpoints keep their names; every shape gets a
    graph of its own (training batches are all full, evaluation batches padded). One training and
    one evaluation batch of zeros are run to have it done before the clock starts; they leave no
    trace in weights, buffers or random numbers. Where anything fails, the net stays as it was. With
    "auto" a resumed run does what it did before: compiled nets round differently.
    """

    def __init__(self, wish: bool | str = "auto") -> None:
        self.wish = wish
        self.compiled = False
        self._before: bool | None = None  # what a run that is resumed did

    def state_dict(self) -> dict[str, Any]:
        return {"compiled": self.compiled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["compiled"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device.type
        steps = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        if self.wish == "auto" and self._before is not None:
            wanted, reason = self._before, "as before the stop (compile=auto)"
        else:
            wanted, reason = decide(self.wish, device, steps)
        log.info(f"{'compile':<12}{'yes' if wanted else 'no'}: {reason}")
        if not wanted:
            return
        net: nn.Module = pl_module.net  # type: ignore[assignment]
        began = time.monotonic()
        try:
            net.compile(dynamic=False)
            _run_zeros(trainer, pl_module, net)
        except Exception as error:
            net._compiled_call_impl = None  # as nn.Module has it before compile()
            log.warning(
                f"compile: failed, the net runs uncompiled ({type(error).__name__}: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'})"
            )
            return
        self.compiled = True
        log.info(f"{'':<12}done in {time.monotonic() - began:.0f} s")


def decide(wish: bool | str, device: str, steps: float) -> tuple[bool, str]:
    """Whether to compile for `steps` more training batches on `device`, and why."""
    if wish is not True and wish != "auto":
        return False, "compile=false"
    if wish is True:
        return True, "compile=true"
    if device not in WORTHWHILE_STEPS:
        return False, f"not for {device} (compile=true tries it)"
    worthwhile = WORTHWHILE_STEPS[device]
    if steps < worthwhile:
        return False, f"{steps:,} steps ahead, it pays from {worthwhile:,} on (compile=auto)"
    if missing := missing_compiler(device):
        return False, missing
    return True, f"{steps:,} steps ahead (compile=auto)"


def missing_compiler(device: str) -> str | None:
    """A sentence where what torch.compile needs is not installed, else None."""
    if sys.platform == "win32":
        return "Windows needs a compiler set up by hand (compile=true tries it)"
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not any(map(shutil.which, names)):
        return f"no C++ compiler ({' or '.join(names)})"
    if device == "cuda":
        import importlib.util

        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
    return None


def _run_zeros(trainer: Trainer, pl_module: LightningModule, net: nn.Module) -> None:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    device = pl_module.device

    def zeros(rows: int) -> tuple[Tensor, Tensor]:
        images = torch.zeros(rows, 3, data.image_size, data.image_size, device=device)
        labels = torch.zeros(rows, dtype=torch.long, device=device)
        return images.to(memory_format=torch.channels_last), labels

    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    training = net.training
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
        images, labels = zeros(data.batch_size // trainer.world_size)
        loss = F.cross_entropy(net.train()(images), labels)
        # Not backward(): gradients stay None, and no hook of DDP's takes this for a step.
        torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad])
        if data.n_val:
            with torch.no_grad():
                net.eval()(zeros(data.eval_batch_size)[0])
    net.train(training)
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            buffer.copy_(buffers[name])

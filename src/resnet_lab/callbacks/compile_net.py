"""torch.compile for the net, where it pays."""

import logging
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger(__name__)

# Compiling takes 42 s; the smallest of the gains measured in float32 on a CPU, 7.7 ms for a step
# of 128 images, wins that back in 5,500 steps. In bfloat16 there is none (docs/performance.md).
WORTHWHILE_STEPS = 5500


class CompileNet(Callback):
    """Compiles the net before the first step, and logs what it decided and why.

    Only the net is compiled, in place, so that checkpoints keep their names; every shape gets a
    graph of its own (training batches are all full, evaluation batches padded). One training and
    one evaluation batch of zeros are run to have it done before the clock starts; they leave no
    trace in weights, buffers or random numbers. Where anything fails, the net runs uncompiled.

    Args:
        compile: True, False, or "auto": where it is known to pay. With "auto" a resumed run does
            what it did before: compiled nets round differently.
    """

    def __init__(self, compile: bool | str = "auto") -> None:
        self.choice = compile
        self.compiled = False
        self._before: bool | None = None  # what a run that is resumed did

    def state_dict(self) -> dict[str, Any]:
        return {"compiled": self.compiled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["compiled"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.compiler.set_stance("default")  # another run in this process may have failed
        steps = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        if self.choice == "auto" and self._before is not None:
            chosen, reason = self._before, "as before the stop (compile=auto)"
        else:
            chosen, reason = decide(
                self.choice, pl_module.device.type, str(trainer.precision), steps
            )
        log.info(f"{'compile':<12}{'on' if chosen else 'off'}: {reason}")
        if not chosen:
            return
        net: nn.Module = pl_module.net  # type: ignore[assignment]
        began = time.monotonic()
        try:
            net.compile(dynamic=False)
            _run_zeros(trainer, pl_module, net)
        except Exception as error:
            torch.compiler.set_stance("force_eager")
            message = str(error).strip() or "no message"
            log.warning(
                "compile: failed, the net runs uncompiled "
                f"({type(error).__name__}: {message.splitlines()[0]})"
            )
            return
        self.compiled = True
        log.info(f"{'':<12}done in {time.monotonic() - began:.0f} s")


def decide(choice: bool | str, device: str, precision: str, steps: float) -> tuple[bool, str]:
    """Whether to compile for `steps` more training batches, and why."""
    if choice != "auto":
        return choice is True, f"compile={str(choice is True).lower()}"
    if device != "cpu" or not precision.startswith("32"):
        return False, f"no gain known on {device} in {precision} (compile=true tries it)"
    if steps < WORTHWHILE_STEPS:
        enough = f"pays off from about {WORTHWHILE_STEPS:,}"
        return False, f"{steps:,} steps; {enough} (compile=auto)"
    return True, f"{steps:,} steps in float32 (compile=auto)"


def _without_gradients(trainer: Trainer) -> Any:
    """As Lightning validates; a graph for one of the two is none for the other."""
    ranks = torch.distributed
    gloo = ranks.is_available() and ranks.is_initialized() and ranks.get_backend() == "gloo"
    inference = trainer.fit_loop.epoch_loop.val_loop.inference_mode and not gloo
    return torch.inference_mode() if inference else torch.no_grad()


def _run_zeros(trainer: Trainer, pl_module: LightningModule, net: nn.Module) -> None:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    device = pl_module.device

    def zeros(rows: int) -> tuple[Tensor, Tensor]:
        shape = rows, data.channels, data.image_size, data.image_size
        images = torch.zeros(shape, device=device, dtype=dtype)
        labels = torch.zeros(rows, dtype=torch.long, device=device)
        return images.to(memory_format=torch.channels_last), labels

    dtype = next(net.parameters()).dtype
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    training = net.training
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
        images, labels = zeros(data.batch_size // trainer.world_size)
        loss = F.cross_entropy(net.train()(images), labels)
        # Not backward(): gradients stay None, and no hook of DDP's takes this for a step.
        torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad])
        if data.n_val:
            with _without_gradients(trainer):
                net.eval()(zeros(data.eval_batch_size)[0])
    net.train(training)
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            buffer.copy_(buffers[name])

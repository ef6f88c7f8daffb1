"""An exponential moving average of the weights."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resnet_lab.config.errors import UserError


class EMA(Callback):
    """Averages the weights over the steps: average = decay * average + (1 - decay) * weights.

    Before step 10 / (1 - decay) or so the decay is smaller, (1 + step) / (10 + step), so that the
    average soon forgets the initial weights. BatchNorm's statistics are averaged as well.
    Validation and test see it, and it is the `state_dict` of every checkpoint; the weights that
    training goes on with stand beside it as `weights_in_training`.
    Source: Polyak and Juditsky 1992; as a moving average, Szegedy et al. 2015, arXiv 1512.00567,
    section 8.

    Lightning's EMAWeightAveraging is made before the net is on its device, so that from a GPU all
    weights go to the host in every step; and it asks the device for a number in every step.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay}: must be from 0 to below 1.")
        self.decay = decay
        self._weights: dict[str, Tensor] = {}  # those of the net itself, not copies
        self._average: dict[str, Tensor] = {}
        self._step = 0
        self._swapped = False  # whether the net holds the average, and `_average` the weights

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._average = _floating(checkpoint["state_dict"])
        pl_module.load_state_dict(checkpoint["weights_in_training"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._weights = _floating(pl_module.state_dict())
        start = self._average or self._weights  # as resumed, or new
        self._average = {
            name: start[name].to(weight.device, copy=True) for name, weight in self._weights.items()
        }
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._step:  # not while gradients are being accumulated
            self._step = trainer.global_step
            decay = min(self.decay, (1 + self._step) / (10 + self._step))
            update = get_ema_multi_avg_fn(decay)
            update(list(self._average.values()), list(self._weights.values()), None)

    def _swap(self) -> None:
        for name, weight in self._weights.items():
            trained = weight.clone()
            weight.copy_(self._average[name])
            self._average[name].copy_(trained)
        self._swapped = not self._swapped

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        in_net = checkpoint["state_dict"]
        other = {**in_net, **self._average}
        trained, average = (other, in_net) if self._swapped else (in_net, other)
        checkpoint["weights_in_training"] = trained
        checkpoint["state_dict"] = average

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()


def _floating(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without counters such as BatchNorm's number of batches, which no average makes sense of."""
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}

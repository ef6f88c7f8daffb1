"""An exponential moving average of the weights."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from resnet_lab.config.errors import UserError


class EMA(WeightAveraging):
    """Averages the weights over the steps: average = decay * average + (1 - decay) * weights.

    Before step 10 / (1 - decay) or so the decay is smaller, (1 + step) / (10 + step), so that the
    average soon forgets the initial weights. BatchNorm's statistics are averaged as well.
    Validation and test see it, and it is the `state_dict` of every checkpoint; the weights that
    training continues with stand beside it as `current_model_state`.
    Source: Polyak and Juditsky 1992; as a moving average, Szegedy et al. 2015, arXiv 1512.00567,
    section 8.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay}: must be from 0 to below 1.")
        super().__init__()
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            # Lightning's own name for what it swaps and saves; it offers no choice of its class.
            self._average_model: AveragedModel | None = _Average(pl_module, self.decay)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(self._average_model, _Average)
        self._average_model.follow(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not yet: the last checkpoint, saved in this hook, holds the weights as well."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)  # the net becomes the average


class _Average(AveragedModel):
    """torch's, but for its update, which asks the device several times for the number of updates
    so far, and so waits for it in every step. It also stays where the net was in `setup`, on the
    host, to which it takes the weights of a GPU each time."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay
        self.tensors: tuple[list[Tensor], list[Tensor]] = [], []  # averages, weights

    def follow(self, model: LightningModule) -> None:
        """Average the weights of `model`, on its device, from now on."""
        self.to(model.device)
        self.tensors = _floating(self.module), _floating(model)

    def update_parameters(self, model: Any) -> None:
        step = model.trainer.global_step
        update = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        update(*self.tensors, None)


def _floating(module: nn.Module) -> list[Tensor]:
    """Without counters such as BatchNorm's number of batches, which no average makes sense of."""
    return [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]

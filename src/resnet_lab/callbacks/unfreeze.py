"""Let a frozen trunk learn after some epochs."""

import logging

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from resnet_lab.config.errors import UserError

log = logging.getLogger(__name__)


class Unfreeze(Callback):
    """Unfreezes the net after `after_epochs` epochs, in which the head alone has learned.

    A new head's first gradients are large and of no use to the trunk: they would undo what it
    knows (Kumar et al., arXiv 2202.10054). Works on any net with a method `unfreeze`. A resumed
    run is in the state that belongs to its epoch.
    """

    def __init__(self, after_epochs: int) -> None:
        if after_epochs < 1:
            raise UserError(
                f"callbacks.unfreeze.after_epochs={after_epochs}: must be 1 or more; for a net "
                "that learns as a whole from the start use model.freeze=none."
            )
        self.after_epochs = after_epochs
        self._done = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module.net, "unfreeze"):
            raise UserError(
                "callbacks=unfreeze: this net has nothing frozen; use model=pretrained."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unfreeze_if_due(trainer, pl_module)  # in mid-epoch its start is over when resumed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unfreeze_if_due(trainer, pl_module)

    def _unfreeze_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._done or trainer.current_epoch < self.after_epochs:
            return
        self._done = True
        pl_module.net.unfreeze()  # type: ignore[operator,union-attr]
        for group in trainer.optimizers[0].param_groups:
            if group.get("fused") and group.get("momentum"):
                # Fused, torch's SGD takes all buffers or none; from zero they begin as its own do.
                for parameter in group["params"]:
                    state = trainer.optimizers[0].state[parameter]
                    state.setdefault("momentum_buffer", torch.zeros_like(parameter))
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy):
            # DDP sums the gradients of those parameters only that had some when it was made, so
            # that it must be made anew, around the bare module: public, but of Lightning's inside.
            strategy.model = pl_module
            strategy.configure_ddp()
        log.info(f"{'unfreeze':<12}everything learns from epoch {trainer.current_epoch + 1} on")

"""The LightningModule around any net that turns images into logits."""

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torchmetrics import Metric

from resnet_lab.batchnorm import learning_norms, refresh_statistics, statistics_kept
from resnet_lab.config.errors import UserError

Batch = tuple[Tensor, Tensor]


class Graphs(Protocol):
    """Takes a classifier's steps, backward pass and all, on batches as they are loaded."""

    def training_step(self, batch: Sequence[Tensor]) -> Tensor: ...

    def validation_step(self, batch: Sequence[Tensor]) -> None: ...


class Tally(Metric):
    """Mean loss and accuracy over an epoch and over all ranks, each image counted once.

    Sums stay on the device until `compute`, which gives `{"loss": [], "acc": []}`: updating it
    in a step does not wait for the device.

    Attributes:
        counted: the most images of one epoch so far, of all ranks.
    """

    full_state_update = False
    counted = 0
    loss_sum: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # In doubles the sum does not depend on the order of the batches; MPS has none.
        self._floats = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("loss_sum", torch.zeros((), dtype=self._floats), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        # Moved with the module, but not to its kind of numbers (trainer.precision=bf16-true).
        super()._apply(*args, **kwargs)
        self._defaults["loss_sum"] = torch.zeros_like(self.loss_sum, dtype=self._floats)
        self.loss_sum = self.loss_sum.to(self._floats)
        return self

    def update(self, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its summed loss [], logits [b, classes], labels [b] (-1: not counted)."""
        self.loss_sum += loss_sum
        self.correct += (logits.argmax(dim=1) == labels).sum()
        self.count += (labels >= 0).sum()

    @property
    def update_called(self) -> bool:
        """Always: where a CUDA graph adds to the sums, torchmetrics hears of no update."""
        return True

    def reset(self) -> None:
        """To zero, where they are, since a CUDA graph knows their place."""
        held = self.loss_sum, self.correct, self.count
        super().reset()
        self.loss_sum, self.correct, self.count = (state.zero_() for state in held)

    def states(self) -> list[Tensor]:
        """The tensors themselves that are added to."""
        return [self.loss_sum, self.correct, self.count]

    def sums(self) -> dict[str, Tensor]:
        """What has been added up so far."""
        return {name: getattr(self, name).clone() for name in ("loss_sum", "correct", "count")}

    def add(self, sums: dict[str, Tensor]) -> None:
        """Add the `sums` of another tally."""
        none = torch.empty(0, 1, device=self.device)
        self.update(sums["loss_sum"].to(self.device), none, none[:, 0])
        self.correct += sums["correct"].to(self.device)
        self.count += sums["count"].to(self.device)

    def compute(self) -> dict[str, Tensor]:
        self.counted = max(self.counted, int(self.count))
        return {"loss": self.loss_sum / self.count, "acc": self.correct / self.count}


def _at_least_float(logits: Tensor) -> Tensor:
    """In float32 or more: sums of losses in 16 bits would be wrong in the third digit."""
    return logits.float() if logits.element_size() < 4 else logits


STATISTICS_BATCHES = 50  # from which averaged weights get their running statistics
STEPPED_BY_BATCH = (CyclicLR, OneCycleLR)


def takes_length(scheduler: Callable[..., Any]) -> bool:
    """Whether a schedule is called with the run's length, as ours are and torch's are not."""
    made = getattr(scheduler, "func", scheduler)  # of a partial
    of_torch = isinstance(made, type) and issubclass(made, LRScheduler)
    return not of_torch and len(inspect.signature(scheduler).parameters) > 1


def cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None
) -> Tensor:
    """The mean over a batch, each image weighted by its class.

    Args:
        targets: labels int64 [b], or of each class a share, float [b, classes].
        weights: [classes]; None is 1 for each.
    """
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    # Not torch's mean, which divides by the batch's own weights: devices would not add up.
    total = F.cross_entropy(
        logits, targets, weights.to(logits.dtype), label_smoothing=smoothing, reduction="sum"
    )
    return total / len(logits)


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None, threshold: float
) -> Tensor:
    """Each class a question of its own, the mean over all of them: arXiv 2110.00476, Section 3.1.

    Args:
        threshold: a class with a larger share of the target is wholly right, every other wholly
            wrong; 0 leaves the shares as they are.
    """
    if targets.ndim == 1:
        targets = (targets[:, None] == torch.arange(logits.shape[1], device=logits.device)).float()
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / logits.shape[1]
    if threshold:
        targets = (targets > threshold).float()
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), weights)


def _untrainable(*_: Any) -> Any:
    raise UserError("this classifier was loaded without an optimizer and a scheduler; give both.")


class Classifier(LightningModule):
    """Trains `net` by cross-entropy and keeps the score.

    net: images [b, channels, height, width] -> logits [b, num_classes].
    optimizer: called with the parameter groups.
    scheduler: called with (optimizer, total_steps, steps_per_epoch), as those of `schedule.py`; or
        with the optimizer alone, as torch's are, which then take a step after each epoch
        (`CyclicLR` and `OneCycleLR` after each batch; `ReduceLROnPlateau` looks at the validation
        loss, or accuracy where its mode is max).
    label_smoothing: share of the target given to all classes alike, in training only
        (Szegedy et al. 2015, arXiv 1512.00567, section 7).
    loss: ce | bce, see `cross_entropy` and `binary_cross_entropy`; in training only.
    bce_threshold: see `binary_cross_entropy`.
    class_weights: in the training loss, one for each class; None weighs all alike.
    decay_norm_and_bias: whether weight decay also acts on parameters of one dimension.
    trunk_lr_scale: learning rate of all but the head, as a share of the optimizer's.
    layer_decay: the learning rate falls by this factor from part to part, from the head, which has
        the optimizer's, to the stem (Clark et al. 2020, ELECTRA, arXiv 2003.10555; Bao et al. 2021,
        BEiT, arXiv 2106.08254). Parts are the stem, each block, and the head, as timm has them; see
        `_parts`. Multiplies `trunk_lr_scale`.
    ends: options of the optimizer for the weights of the first and the last layer alone.

    An optimizer with methods `train` and `eval`, as those of the package schedulefree, has other
    weights for each. Its `eval` comes before a validation and at an epoch's end, and batch norms
    get running statistics of those weights, from the run's first training batches. One may call
    its closure several times in a step, as SAM does: the first pass alone is counted, moves the
    running statistics of batch norms, and gives the loss.

    Attributes:
        graphs: what takes the steps instead, while there is one; see `callbacks.cuda_graph`.
    """

    graphs: Graphs | None = None

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any],
        label_smoothing: float = 0.0,
        loss: str = "ce",
        bce_threshold: float = 0.0,
        class_weights: Sequence[float] | None = None,
        decay_norm_and_bias: bool = True,
        trunk_lr_scale: float = 1.0,
        layer_decay: float = 1.0,
        ends: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.label_smoothing = label_smoothing
        self.loss, self.bce_threshold = loss, bce_threshold
        weights = None if class_weights is None else torch.tensor(list(class_weights))
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)
        self.decay_norm_and_bias = decay_norm_and_bias
        self.trunk_lr_scale = trunk_lr_scale
        self.layer_decay = layer_decay
        self.ends = dict(ends or {})
        self._parts()  # says whether this net has them
        self._first_loss: Tensor | None = None  # of this batch, once it has been counted
        self._averaged = False  # whether the optimizer's `eval` was the last that it was told
        self._optimizer = optimizer
        self._scheduler = scheduler
        self.train_tally, self.val_tally, self.test_tally = Tally(), Tally(), Tally()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str = "cpu",
        net: nn.Module | None = None,
        strict: bool = True,
        **options: Any,
    ) -> "Classifier":
        """A classifier with the weights of a checkpoint, in evaluation mode.

        Args:
            checkpoint_path: of a run, in its folder, whose config says which net it is; or any
                checkpoint of a classifier, with `net` given.
            map_location: the device that it goes to.
            net: of the shapes of the weights.
            strict: whether `net` must have exactly the weights of the checkpoint.
            options: further arguments of `Classifier`; without an optimizer and a scheduler it
                predicts and is evaluated, and cannot be trained.

        Raises:
            UserError: no run folder is around the file, or the weights do not fit.
        """
        from resnet_lab.run.checkpoint_io import load_weights
        from resnet_lab.run.load import load_run

        path = Path(checkpoint_path).absolute()
        if net is None:
            if not (path.parents[1] / "config.yaml").is_file():
                raise UserError(
                    f"{path}: no run folder is around it that says which net it is; give net=..."
                )
            return load_run(path.parents[1], path).classifier.to(map_location)
        for name in ("optimizer", "scheduler"):
            options.setdefault(name, _untrainable)
        classifier = cls(net, **options)
        classifier.load_state_dict(load_weights(path), strict=strict)
        return classifier.to(map_location).eval()

    @property
    def tallies(self) -> dict[str, Tally]:
        return {"train": self.train_tally, "val": self.val_tally, "test": self.test_tally}

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._first_loss = None
        self._averaged = False
        for optimizer in self._averaging():
            optimizer.train()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.graphs is not None:
            return self.graphs.training_step(batch)
        if self._first_loss is not None:
            return self._loss_again(batch, self._first_loss)
        loss = self.loss_of(*batch)
        self._first_loss = loss.detach()
        return loss

    def _loss_again(self, batch: Batch, first: Tensor) -> Tensor:
        """The loss [] of a batch that has been counted: `first` as a number, for whoever reports
        it, with the gradient of where the weights are now."""
        states = self.train_tally.states()
        counted = [state.clone() for state in states]
        with statistics_kept(self.net):
            loss = self.loss_of(*batch)
        for state, value in zip(states, counted, strict=True):
            state.copy_(value)
        return first + (loss - loss.detach())

    def _averaging(self) -> list[Any]:
        """The optimizers that have other weights for evaluation."""
        return [o for o in self.trainer.optimizers if hasattr(o, "train") and hasattr(o, "eval")]

    def _average(self) -> None:
        """From here to the next step, the weights for evaluation."""
        if self._averaged or not (optimizers := self._averaging()):
            return
        self._averaged = True
        for optimizer in optimizers:
            optimizer.eval()
        if learning_norms(self.net):
            with self.trainer.precision_plugin.forward_context():
                refresh_statistics(self.net, self._first_images())

    def _first_images(self) -> Iterator[Tensor]:
        """Of the run's first training batches, this device's share."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        first = copy.copy(data)
        first.trainer = None  # wherever the trainer stands
        share = slice(self.global_rank, None, self.trainer.world_size)
        for batch in itertools.islice(first.train_dataloader(), STATISTICS_BATCHES):
            images, _ = data.prepare(data.transfer_batch_to_device(batch, self.device, 0))
            yield images[share]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.graphs is None:  # else it is done
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        if self.graphs is None:
            super().optimizer_zero_grad(*args, **kwargs)

    def on_validation_model_zero_grad(self) -> None:
        if self.graphs is None:
            super().on_validation_model_zero_grad()

    def loss_of(self, images: Tensor, targets: Tensor) -> Tensor:
        """The loss [] of a training batch, which is added to the epoch's score.

        targets: labels int64 [b], or shares of classes float [b, classes]; the largest is taken for
            the label in the accuracy.
        """
        logits = _at_least_float(self.net(images))
        options = logits, targets, self.label_smoothing, self.class_weights
        if self.loss == "bce":
            loss = binary_cross_entropy(*options, self.bce_threshold)
        else:
            loss = cross_entropy(*options)
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        self.train_tally.update(loss.detach() * len(labels), logits.detach(), labels)
        return loss

    def score(self, images: Tensor, labels: Tensor, split: str) -> Tensor:
        """The logits [b, classes] of a batch, which is added to the score of "val" or "test"."""
        logits = _at_least_float(self.net(images))
        loss_sum = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        self.tallies[split].update(loss_sum, logits, labels)
        return logits

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.graphs is not None:
            self.graphs.validation_step(batch)
        else:
            self.score(*batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.score(*batch, "test")  # logits, for the callbacks that look at them

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does, which refuses it to fused optimizers in bfloat16 as well, where
        nothing has scaled the gradients."""
        if gradient_clip_val is None or self.trainer.precision == "16-mixed":
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        with self.train_tally.sync_context(should_sync=self.trainer.world_size > 1):
            checkpoint["train_tally"] = self.train_tally.sums()
        figures = self.trainer.callback_metrics.items()  # of the validation just done
        checkpoint["validation"] = {k: float(v) for k, v in figures if k.startswith("val/")}
        checkpoint["counted"] = {split: tally.counted for split, tally in self.tallies.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.is_global_zero:  # the sums of all ranks; the others begin at zero
            self.train_tally.add(checkpoint["train_tally"])
        for split, counted in checkpoint.get("counted", {}).items():
            self.tallies[split].counted = counted

    def _close(self, split: str) -> None:
        """The epoch's scores, for callbacks and, at the step that is done, for the loggers."""
        tally = self.tallies[split]
        scores = {f"{split}/{name}": value.float() for name, value in tally.compute().items()}
        tally.reset()
        self.log_dict(scores, logger=False)  # which would give loggers the step before the last
        if not self.trainer.sanity_checking:
            figures = {name: float(value) for name, value in scores.items()}
            figures["epoch"] = self.current_epoch + (split != "test")  # epochs done, as metrics.csv
            for logger in self.trainer.loggers:
                logger.log_metrics(figures, self.global_step)

    def on_validation_model_eval(self) -> None:
        self._average()
        super().on_validation_model_eval()

    def on_train_epoch_end(self) -> None:
        self._close("train")
        self._average()  # where no validation has; the epoch's checkpoint may come next

    def on_validation_epoch_end(self) -> None:
        self._close("val")

    def on_test_epoch_end(self) -> None:
        self._close("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._optimizer(self.parameter_groups())
        # Where max_epochs is -1 the steps are known without them, and Lightning loads none.
        self.trainer.fit_loop.setup_data()
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
        total_steps = self.trainer.estimated_stepping_batches
        batches = self.trainer.num_training_batches
        steps_per_epoch = math.ceil(batches / self.trainer.accumulate_grad_batches)
        if takes_length(self._scheduler):
            scheduler = self._scheduler(optimizer, total_steps, steps_per_epoch)
            plan: Any = {"scheduler": scheduler, "interval": "step"}
        else:  # torch's own
            plan = {"scheduler": self._scheduler(optimizer), "interval": "epoch"}
            if isinstance(plan["scheduler"], STEPPED_BY_BATCH):
                plan["interval"] = "step"
            if isinstance(plan["scheduler"], ReduceLROnPlateau):
                split = "val" if self.trainer.limit_val_batches else "train"
                figure = "acc" if plan["scheduler"].mode == "max" else "loss"
                plan["monitor"] = f"{split}/{figure}"
        return {"optimizer": optimizer, "lr_scheduler": plan}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters: head and trunk apart, or each part, where their learning rates differ,
        the first and the last layer's weights where they have options of their own, and those of
        one dimension where they shall not decay.

        Frozen ones, too: optimizers pass over what has no gradient, and they may have one later.
        """
        groups: list[dict[str, Any]] = [{"params": list(self.net.parameters())}]
        if self.layer_decay != 1.0:
            scales = [self.layer_decay**k for k in range(len(self._parts()))]
            scales[1:] = [scale * self.trunk_lr_scale for scale in scales[1:]]
            groups = [
                {"params": part, "lr_scale": scale}
                for part, scale in zip(self._parts(), scales, strict=True)
            ]
        elif self.trunk_lr_scale != 1.0:
            head = list(self.net.head.parameters())  # type: ignore[union-attr]
            ids = {id(p) for p in head}
            trunk = [p for p in self.net.parameters() if id(p) not in ids]
            groups = [{"params": head}, {"params": trunk, "lr_scale": self.trunk_lr_scale}]
        if self.ends:
            weights = [p for p in self.net.parameters() if p.ndim > 1]
            ids = {id(weights[0]), id(weights[-1])}
            groups = [
                {**group, "params": chosen, **options}
                for group in groups
                for at_end, options in ((False, {}), (True, self.ends))
                if (chosen := [p for p in group["params"] if (id(p) in ids) == at_end])
            ]
        if self.decay_norm_and_bias:
            return groups
        return [
            {**group, "params": [p for p in group["params"] if (p.ndim > 1) == decays], **decay}
            for group in groups
            for decays, decay in ((True, {}), (False, {"weight_decay": 0.0}))
        ]

    def _parts(self) -> list[list[nn.Parameter]]:
        """The parameters of each part of the net that `layer_decay` tells apart, from the head to
        the stem: what its method `parts` says, or else stem, each block of its stages, and head.

        Raises:
            UserError: it has none, or parameters in none of them.
        """
        net: Any = self.net
        if self.layer_decay == 1.0:
            return []
        modules: list[nn.Module] = []
        if hasattr(net, "parts"):
            modules = net.parts()
        elif all(hasattr(net, name) for name in ("stem", "stages", "head")):
            modules = [net.stem, *(block for stage in net.stages for block in stage), net.head]
        parts = [list(module.parameters()) for module in reversed(modules)]
        found = {id(p) for part in parts for p in part}
        if {id(p) for p in net.parameters()} != found:
            raise UserError(
                f"classifier.layer_decay={self.layer_decay}: {type(net).__name__} is not made of "
                "stem, stages and head; leave it out."
            )
        return parts

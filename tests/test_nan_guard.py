"""Losses and gradients that are no numbers end a run before they reach the weights."""

from pathlib import Path

import pytest
import torch
from lab import QUICK
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from resnet_lab.callbacks.nan_guard import MOST_SKIPPED, NanGuard
from resnet_lab.classifier import Classifier
from resnet_lab.run import checkpoint_io, training

# Three epochs of four steps.
SHORT = (*QUICK, "data.train_size=128", "data.batch_size=32", "trainer.max_epochs=3")


def finite(path: Path) -> bool:
    return all(bool(v.isfinite().all()) for v in checkpoint_io.load_weights(path).values())


@pytest.mark.parametrize(("what", "bad"), [("loss", float("nan")), ("gradient", float("inf"))])
def test_a_bad_step_is_not_taken(config, monkeypatch, what, bad):
    """In the second epoch, so that there is a best checkpoint to be spoilt."""
    step = Classifier.training_step

    def training_step(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        if self.trainer.global_step == 6:
            if what == "loss":
                return loss * bad
            next(self.net.parameters()).register_hook(lambda gradient: gradient * bad)
        return loss

    monkeypatch.setattr(Classifier, "training_step", training_step)
    cfg = config(*SHORT)
    with pytest.raises(
        ValueError, match=rf"the {what} is nan or infinite at step 7, .*optimizer.lr"
    ):
        training.train(cfg)
    folder = Path(cfg.run_dir, "checkpoints")
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert all(finite(path) for path in folder.iterdir())
    assert checkpoint_io.load(folder / "last.ckpt")["global_step"] == 4


def test_a_learning_rate_that_explodes_is_named(config):
    with pytest.raises(ValueError, match=r"learning rate 1e\+0?6"):
        training.train(config(*SHORT, "optimizer.lr=1000000.0", "scheduler=constant"))


class Overflowing(LightningModule):
    """A weight whose gradients overflow from the third step on, for so many steps."""

    def __init__(self, times: int, loss: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.times, self.loss = times, loss
        self.steps: list[int] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.steps.append(batch_idx)
        if 2 <= batch_idx < 2 + self.times:
            weight = self.weight.clone()
            weight.register_hook(lambda gradient: gradient * float("inf"))
            return weight.sum() * self.loss
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.001, fused=True)


def fit(module: LightningModule, guard: NanGuard, steps: int = 60) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[guard],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(100, 1)))
    return trainer


class Float16(NanGuard):
    """On a CPU, as if its precision were float16 with a loss scale, which skips such steps."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.precision_plugin.precision = "16-mixed"

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        pl_module.weight.grad.nan_to_num_(0.0, 0.0, 0.0)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_float16_may_overflow_for_a_while():
    fit(Overflowing(MOST_SKIPPED - 1), Float16())
    with pytest.raises(ValueError, match=f"float16 overflows {MOST_SKIPPED} times"):
        fit(Overflowing(MOST_SKIPPED), Float16())
    with pytest.raises(ValueError, match="the loss is nan or infinite at step 3"):
        fit(Overflowing(1, loss=float("nan")), Float16())


class OnDevice(NanGuard):
    """The way that CUDA goes, on the CPU: the optimizer learns it at once, the host later."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch_on(torch.device("cpu"), trainer)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_a_fused_optimizer_skips_all_steps_until_the_host_hears():
    module = Overflowing(1)
    with pytest.raises(ValueError, match="at step 3,"):
        fit(module, OnDevice())
    assert module.steps[-1] >= 3  # it heard in a later step
    assert float(module.weight.detach()) == pytest.approx(1 - 2 * 0.001)  # two steps were taken


def test_out_of_memory_gets_advice(config, monkeypatch):
    def training_step(*_):
        torch.empty(2**60)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    with pytest.raises(ValueError, match=r"out of memory .*data\.batch_size is 32; try half"):
        training.train(config(*SHORT))


def test_two_trainings_in_one_folder_are_refused(config, monkeypatch):
    cfg = config(*SHORT)
    step = Classifier.training_step

    def training_step(self, batch, batch_idx):
        with pytest.raises(ValueError, match="another process is training in it"):
            training.train(cfg)
        monkeypatch.undo()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    assert training.train(cfg)["status"] == "finished"

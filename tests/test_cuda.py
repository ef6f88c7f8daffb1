"""What only a GPU shows. Skipped where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from resnet_lab.run import build, machine, training

pytestmark = pytest.mark.skipif(not machine.usable().n, reason="needs a CUDA device")

SHORT = ("model=resnet20", "data.train_size=1024", "trainer.max_epochs=2", "compile=false")


class NoSync(Callback):
    """Makes every wait for the device an error, from the third step of the second epoch to its
    last; in the first one the graphs are recorded and compared."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx == 2 and trainer.current_epoch:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            torch.cuda.set_sync_debug_mode("default")


def test_a_step_does_not_wait_for_the_device(config):
    everything = "callbacks=[default,pictures,ema,early_stopping]"
    parts = build.build(config(*SHORT, everything, "trainer.log_every_n_steps=1000"))
    Path(parts.cfg.run_dir).mkdir()
    parts.trainer.callbacks.insert(0, NoSync())  # an epoch's last step is saved after its end
    try:
        parts.trainer.fit(parts.classifier, datamodule=parts.datamodule)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert parts.trainer.global_step == 16


def test_a_run_on_the_gpu(config):
    result = training.train(config(*SHORT, "trainer.max_epochs=15"))
    assert result["precision"] in ("bf16-mixed", "32")
    assert result["test/acc"] > 0.9


@pytest.mark.slow
def test_a_compiled_run_on_the_gpu(config):
    result = training.train(config(*SHORT, "compile=true"))
    assert result["compiled"] is True

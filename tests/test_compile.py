"""Compiling: decided with a reason, never the end of a run, without a trace in the checkpoint."""

import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from resnet_lab.callbacks import compile_net
from resnet_lab.callbacks.compile_net import CompileNet, decide
from resnet_lab.run import build, checkpoint_io, training

SMALL = (
    "model=cifar_resnet",
    "model.depth=8",
    "model.width=0.25",
    "data.train_size=128",
    "data.batch_size=64",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "trainer.precision=32",
)


def test_auto_follows_the_steps_ahead_and_the_compiler(monkeypatch):
    assert decide("auto", "cpu", 999)[0] is False
    assert decide("auto", "mps", 10**6)[0] is False
    monkeypatch.setattr(compile_net, "missing_compiler", lambda device: None)
    assert decide("auto", "cpu", 10**6)[0] is True
    monkeypatch.setattr(compile_net, "missing_compiler", lambda device: "no C++ compiler")
    assert decide("auto", "cpu", 10**6) == (False, "no C++ compiler")
    assert decide(True, "cpu", 1)[0] is True
    assert decide(False, "cpu", 10**6)[0] is False


def test_the_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in (compile_net.missing_compiler("cpu") or "")


def test_a_compiled_run_trains_as_the_other_and_its_checkpoint_has_clean_names(config, tmp_path):
    results, weights = [], []
    for wish in ("true", "false"):
        cfg = config(*SMALL, f"compile={wish}", f"run_dir={tmp_path}/{wish}")
        results.append(training.train(cfg))
        weights.append(checkpoint_io.load(Path(cfg.run_dir, "checkpoints/last.ckpt"))["state_dict"])
    assert [r["compiled"] for r in results] == [True, False]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("where", ["compile", "run"])
def test_a_failing_compiler_costs_one_warning(config, monkeypatch, caplog, where):
    def fail(*_, **__):
        raise RuntimeError("no such target")

    if where == "compile":
        monkeypatch.setattr(torch.nn.Module, "compile", fail)
    else:
        monkeypatch.setattr(compile_net, "_run_zeros", fail)
    with caplog.at_level(logging.WARNING, logger="resnet_lab"):
        result = training.train(config(*SMALL, "compile=true"))
    assert result["status"] == "finished"
    assert result["compiled"] is False
    assert [m for m in caplog.messages if "no such target" in m] == caplog.messages


def test_the_trial_leaves_no_trace(config):
    parts = build.build(config(*SMALL))
    before = {key: value.clone() for key, value in parts.net.state_dict().items()}
    random = torch.get_rng_state()

    class Stop(CompileNet):
        def on_fit_start(self, trainer, pl_module):
            compile_net._run_zeros(trainer, pl_module, pl_module.net)
            for key, value in pl_module.net.state_dict().items():
                assert torch.equal(value, before[key]), key
            assert all(p.grad is None for p in pl_module.net.parameters())
            assert torch.equal(torch.get_rng_state(), random)
            assert pl_module.net.training
            trainer.limit_train_batches = 0

    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[Stop()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with training.known_warnings():
        trainer.fit(parts.classifier, datamodule=parts.datamodule)

"""Compiling: decided with a reason, never the end of a run, without a trace in the checkpoint."""

import logging

import pytest
import torch
from lab import QUICK, slow_except, weights
from lightning.pytorch import Trainer

from resnet_lab.callbacks import compile_net
from resnet_lab.callbacks.compile_net import CompileNet, decide
from resnet_lab.run import build, training

SMALL = (*QUICK, "data.train_size=128", "trainer.max_epochs=1")


@pytest.mark.parametrize(
    ("choice", "device", "precision", "steps", "expected"),
    [
        ("auto", "cpu", "32-true", 10**6, (True, "1,000,000 steps in float32")),
        ("auto", "cpu", "32-true", 5499, (False, "5,499 steps; pays off from about 5,500")),
        ("auto", "cpu", "bf16-mixed", 10**6, (False, "no gain known on cpu in bf16-mixed")),
        ("auto", "cuda", "32-true", 10**6, (False, "no gain known on cuda")),
        (True, "mps", "bf16-mixed", 1, (True, "compile=true")),
        (False, "cpu", "32-true", 10**6, (False, "compile=false")),
    ],
)
def test_auto_compiles_where_it_was_measured_to_pay(choice, device, precision, steps, expected):
    chosen, reason = decide(choice, device, precision, steps)
    assert chosen is expected[0]
    assert expected[1] in reason


@pytest.mark.slow
def test_a_compiled_run_trains_as_the_other_and_its_checkpoint_has_clean_names(config, tmp_path):
    results = []
    for choice in ("true", "false"):
        cfg = config(*SMALL, f"compile={choice}", f"run_dir={tmp_path}/{choice}")
        results.append(training.train(cfg))
    assert [r["compiled"] for r in results] == [True, False]
    torch.testing.assert_close(
        weights(tmp_path / "true"), weights(tmp_path / "false"), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("where", slow_except(("compile",), ("compile", "run")))
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

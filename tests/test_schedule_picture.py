"""The command `schedule`: rates are those of a training, drawn before it."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import CPU, SMALL_NET, read_csv
from omegaconf import DictConfig, OmegaConf

from resnet_lab.analysis.rates import batches_per_epoch, rates
from resnet_lab.analysis.schedule_picture import KOREAN, Line, draw
from resnet_lab.cli import main
from resnet_lab.config.errors import UserError
from resnet_lab.language import translator
from resnet_lab.run import build


@pytest.fixture
def of_torch(config: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """`of_torch("StepLR", epochs, step_size=2)`: a config with a scheduler of torch."""

    def made(name: str, epochs: int = 2, **options: float) -> DictConfig:
        cfg = config(f"trainer.max_epochs={epochs}")
        target = f"torch.optim.lr_scheduler.{name}"
        cfg.scheduler = OmegaConf.create({"_target_": target, "_partial_": True, **options})
        return cfg

    return made


def test_a_cosine_by_its_formula(config):
    found = rates(config("scheduler=cosine", "trainer.max_epochs=3", "optimizer.lr=0.2"), 10)
    assert found.steps_per_epoch == 10
    assert len(found.rate) == 30
    for step in (0, 1, 15, 29):
        assert found.rate[step] == pytest.approx(0.1 * (1 + math.cos(math.pi * step / 30)))
    assert set(found.momentum) == {0.9}
    assert found.groups == 1


def test_multistep_behind_a_warm_up(config):
    cfg = config(
        *("scheduler=multistep", "scheduler.unit=epoch", "scheduler.milestones=[2,3]"),
        *("scheduler.warmup=0.5", "scheduler.warmup_from=0.1", "scheduler.warmup_shape=constant"),
        "trainer.max_epochs=4",
    )
    expected = [0.01] * 5 + [0.1] * 15 + [0.01] * 10 + [0.001] * 10
    assert rates(cfg, 10).rate == pytest.approx(expected)


@pytest.mark.parametrize(
    ("overrides", "steps", "per_epoch"),
    [
        (["trainer.accumulate_grad_batches=4"], 2 * 3, 3),
        (["trainer.max_steps=7"], 7, 10),
        (["trainer.max_epochs=-1", "trainer.max_steps=25"], 25, 10),
        (["trainer.limit_train_batches=4"], 2 * 4, 4),
        (["trainer.limit_train_batches=0.5"], 2 * 5, 5),
        (["trainer.overfit_batches=1"], 2, 1),
    ],
    ids=str,
)
def test_the_length_is_that_of_lightning(config, overrides, steps, per_epoch):
    found = rates(config("trainer.max_epochs=2", *overrides), 10)
    assert len(found.rate) == steps
    assert found.steps_per_epoch == per_epoch


def test_a_schedule_of_torch_moves_once_an_epoch(of_torch):
    assert rates(of_torch("StepLR", 4, step_size=2), 3).rate == pytest.approx(
        [0.1] * 6 + [0.01] * 6
    )


def test_a_cycle_of_momentum_is_seen(config, of_torch):
    found = rates(of_torch("OneCycleLR", max_lr=0.1, total_steps=20), 10)
    assert found.momentum[0] == pytest.approx(0.95)
    assert min(found.momentum) == pytest.approx(0.85, abs=0.01)
    cfg = config("trainer.max_epochs=1")
    cfg.optimizer = OmegaConf.create({"_target_": "torch.optim.Adam", "_partial_": True})
    assert rates(cfg, 2).momentum == [0.9, 0.9]  # the first beta


def test_the_largest_of_several_rates_is_taken(config):
    found = rates(config("classifier.layer_decay=0.5", "trainer.max_epochs=10"), 1)
    assert max(found.rate) == pytest.approx(0.1)
    assert found.groups == 11  # stem, nine blocks and head of a ResNet-20


def test_what_follows_the_validation_is_refused(config, of_torch):
    with pytest.raises(UserError, match="it follows val/loss, so nobody knows"):
        rates(of_torch("ReduceLROnPlateau"), 10)
    with pytest.raises(UserError, match="5,000,000 are the most"):
        rates(config("trainer.max_epochs=1000000"), 10)
    with pytest.raises(UserError, match="fast_dev_run"):
        rates(config("trainer.fast_dev_run=true"), 10)


def test_steps_of_an_epoch_are_those_of_the_data(config, tmp_path):
    cfg = config("data.batch_size=100")
    data = build.build_data(cfg)
    data.setup("fit")
    assert batches_per_epoch(cfg) == (data.train_batches, "") == (12, "")
    # CIFAR is not downloaded for this: 50,000 less a tenth for validation.
    absent = config("data=cifar10", f"data.root={tmp_path}/none")
    batches, reason = batches_per_epoch(absent)
    assert batches == 45_000 // 128
    assert "holds neither" in reason
    assert not (tmp_path / "none").exists()
    some = config("data=cifar10", f"data.root={tmp_path}/none", "data.train_size=1000")
    assert batches_per_epoch(some)[0] == 7


def test_the_momentum_has_a_panel_where_it_changes():
    steady = Line("$\\frac{", [(0.0, 0.1, 0.9), (1.0, 0.0, 0.9)])
    cycling = Line("b\n", [(0.0, 0.1, 0.95), (1.0, 0.0, 0.85)])
    plain = Line("c", [(0.0, 0.1, None), (1.0, 0.0, None)])
    say = translator("ko", KOREAN)
    figure = draw([steady, cycling, plain], "$x", say, log=True)
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == ["$\\frac{", "b\\n", "c"]
    assert not any(text.get_parse_math() for text in (*texts, figure.texts[0]))
    assert [axes.get_ylabel() for axes in figure.axes] == ["학습률", "모멘텀"]
    assert [len(axes.lines) for axes in figure.axes] == [3, 2]
    assert figure.axes[0].get_yscale() == "log"
    assert len(draw([steady, plain], "x", say).axes) == 1


def test_the_command_writes_what_it_draws(tmp_path: Path, shared_cache: Path, capsys):
    out = tmp_path / "out"
    words = [*SMALL_NET, *CPU, f"data.cache_dir={shared_cache}", "scheduler=cosine,constant"]
    arguments = ["schedule", *words, "trainer.max_epochs=300", "--out", str(out)]
    assert main(arguments) == 0
    assert {path.name for path in out.iterdir()} == {"schedule.png", "schedule.csv"}
    rows = read_csv(out / "schedule.csv")
    assert len(rows) == 2 * 2000  # of 3,000 steps each
    assert (rows[0]["schedule"], rows[0]["step"], rows[0]["lr"]) == ("cosine", "0", "0.1")
    assert (rows[-1]["schedule"], rows[-1]["step"], rows[-1]["lr"]) == ("constant", "2999", "0.1")
    assert float(rows[1999]["epoch"]) == pytest.approx(299.9)
    printed = capsys.readouterr().out
    assert "cosine    3,000" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps-per-epoch", "0"], "--steps-per-epoch 0: must be 1 or more"),
        pytest.param(
            ["scheduler=cosine", "optimizer.nesterov=true", "optimizer.momentum=0.9,0"],
            "optimizer.momentum=0: optimizer.nesterov=true: needs optimizer.momentum above 0",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_mistakes_cost_no_time(refused, words, message):
    assert message in refused("schedule", *words)

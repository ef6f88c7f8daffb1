"""Optimizers beyond torch's own: each learns, resumes bit for bit, and does what its paper says."""

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lab import (
    CPU,
    SMALL_NET,
    WITHOUT_PICTURES,
    assert_same,
    read_csv,
    resumed,
    slow_except,
    weights,
)
from omegaconf import OmegaConf
from torch import Tensor, nn

from resnet_lab.batchnorm import refresh_statistics, statistics_kept
from resnet_lab.callbacks import cuda_graph
from resnet_lab.callbacks.epoch_log import EpochLog
from resnet_lab.classifier import Classifier
from resnet_lab.config.check import check
from resnet_lab.config.errors import UserError
from resnet_lab.config.untrusted import NAMES
from resnet_lab.models.pretrained import Pretrained
from resnet_lab.models.resnet import ResNet, cifar_resnet
from resnet_lab.optim import SAM
from resnet_lab.run import build, checkpoint_io, training
from resnet_lab.run.stop import Stopped

PACKAGES = {
    **dict.fromkeys(("lars", "lamb", "lion", "muon"), "timm"),
    "schedulefree_sgd": "schedulefree",
}
OPTIMIZERS = (*PACKAGES, "sam")
SLOWER = {"lars": ("optimizer.lr=1",)}  # what eight steps bear
# Two epochs of four steps.
TINY = (
    *(*SMALL_NET, *CPU, WITHOUT_PICTURES, "logger=[]", "trainer.max_epochs=2"),
    *("data.train_size=128", "data.val_size=32", "data.batch_size=32"),
)


def needs(optimizer: str) -> None:
    if optimizer in PACKAGES:
        pytest.importorskip(PACKAGES[optimizer], reason="the extra [optim] is not installed")


def classifier(net: nn.Module, **options: Any) -> Classifier:
    return Classifier(net, torch.optim.SGD, lambda optimizer: None, **options)


# ------------------------------------------------------------------ runs


# Steps 6 of 8, in the middle of an epoch; and 4, between the weights of training and those of
# validation.
@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("sam", 6),
        pytest.param("schedulefree_sgd", 4, marks=pytest.mark.slow),
        *(pytest.param(name, 6, marks=pytest.mark.slow) for name in OPTIMIZERS if name != "sam"),
    ],
)
def test_it_learns_and_resumes_bit_for_bit(config, tmp_path, monkeypatch, name, at):
    needs(name)
    options = (*TINY, f"optimizer={name}", *SLOWER.get(name, ()))
    cfg = config(*options, f"run_dir={tmp_path}/whole")
    check(cfg)
    training.train(cfg)
    first, last = read_csv(tmp_path / "whole" / "metrics.csv")
    assert float(last["train/loss"]) < float(first["train/loss"])

    before = EpochLog.on_train_batch_end

    def stop(self: EpochLog, trainer: Any, *args: Any) -> None:
        before(self, trainer, *args)
        if trainer.global_step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EpochLog, "on_train_batch_end", stop)
        with pytest.raises(Stopped):
            training.train(config(*options, f"run_dir={tmp_path}/stopped"))
    assert steps_of(tmp_path / "stopped") == at
    training.train(resumed(tmp_path / "stopped"))
    assert steps_of(tmp_path / "stopped") == 8
    whole, stopped = (end(tmp_path / run) for run in ("whole", "stopped"))
    assert whole["optimizer_states"][0]["state"]
    assert_same(whole, stopped)


def steps_of(run_dir: Path) -> int:
    return checkpoint_io.load(run_dir / "checkpoints" / "last.ckpt")["global_step"]


def end(run_dir: Path) -> dict[str, Any]:
    """What a run has come to: its weights, its optimizer and its figures."""
    last = checkpoint_io.load(run_dir / "checkpoints" / "last.ckpt")
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "train_tally")
    rows = [
        {k: v for k, v in row.items() if k not in ("train_seconds", "images_per_second")}
        for row in read_csv(run_dir / "metrics.csv")
    ]
    return {"rows": rows, "best": weights(run_dir, "best"), **{key: last[key] for key in kept}}


@pytest.mark.parametrize("name", slow_except(("sam",), OPTIMIZERS))
def test_it_takes_steps_in_bfloat16(config, name):
    needs(name)
    cfg = config(*TINY, f"optimizer={name}", "trainer.precision=bf16-mixed", "trainer.max_epochs=1")
    result = training.train(cfg)
    assert (result["precision"], result["steps"]) == ("bf16-mixed", 4)
    assert 0 < result["test/loss"] < 20


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_folder_may_name_it_and_a_gpu_gives_it_no_option_of_torchs(config, monkeypatch, name):
    needs(name)
    cfg = config(f"optimizer={name}", "trainer.precision=32")
    assert cfg.optimizer._target_ in NAMES
    monkeypatch.setattr(build, "on_cuda", lambda accelerator: True)
    made = build.build_classifier(cfg, nn.Linear(4, 4))._optimizer
    assert "fused" not in made.keywords
    make = build.build_classifier(config("trainer.precision=32"), nn.Linear(4, 4))._optimizer
    assert make.keywords["fused"]


def test_options_of_a_file_that_sets_more_than_its_optimizer_are_left_out_for_another(config):
    cfg = config("optimizer=lars", "optimizer._target_=torch.optim.RMSprop", "trainer.precision=32")
    made = build.build_classifier(cfg, nn.Linear(4, 4))._optimizer
    assert made.keywords == {"lr": 4.0, "momentum": 0.9, "weight_decay": 5e-4}


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_told_in_one_sentence(config, monkeypatch, name):
    package, found = PACKAGES[name], importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == package else found(n, *a)
    )
    cfg = config(f"optimizer={name}")
    expected = f"the package {package} is missing; pip install -e '.[optim]'."
    for refuse in (check, lambda cfg: build.build_classifier(cfg, nn.Linear(4, 4))):
        with pytest.raises(UserError) as error:
            refuse(cfg)
        assert str(error.value) == f"optimizer={cfg.optimizer._target_}: {expected}"
    check(config("optimizer=sgd"))


def test_the_sentence_names_the_choice_and_comes_without_torch(config, monkeypatch):
    cfg = config("optimizer=lars")
    OmegaConf.set_struct(cfg, False)
    cfg.hydra = {"runtime": {"choices": {"optimizer": "lars"}}, "overrides": {"task": []}}
    cfg.hydra.sweeper = {"params": None}
    cfg.run_dir = "${hydra:runtime.output_dir}"
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(UserError, match=r"^optimizer=lars: the package timm is missing; pip inst"):
        check(cfg)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("optimizer=sam", "trainer.precision=16-mixed"), "optimizer=resnet_lab.optim.SAM: takes"),
        (("optimizer=sam", "trainer.accumulate_grad_batches=2"), "set data.batch_size."),
        (("optimizer=sam", "optimizer.rho=0"), "optimizer.rho=0: must be a number above 0."),
        (("optimizer=schedulefree_sgd", "scheduler=cosine"), "use scheduler=constant."),
        (("optimizer=schedulefree_sgd", "optimizer.momentum=0.0"), "needs one above 0."),
        (("optimizer=lars", "optimizer.trust_coeff=-1"), "must be a number above 0."),
        (("optimizer=muon", "optimizer.ns_steps=0"), "must be a whole number of 1 or more."),
        (("classifier.layer_decay=0",), "must be a number above 0, at most 1."),
        (("classifier.layer_decay=1.5",), "must be a number above 0, at most 1."),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(config, overrides, words):
    if "=" in overrides[0]:
        needs(overrides[0].partition("=")[2])
    with pytest.raises(UserError) as error:
        check(config(*overrides))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_schedule_free_comes_with_a_constant_rate_and_what_is_typed_wins(config):
    constant, typed = "resnet_lab.schedule.constant", "resnet_lab.schedule.cosine"
    assert config("optimizer=schedulefree_sgd").scheduler._target_ == constant
    cfg = config("optimizer=schedulefree_sgd", "scheduler=cosine")
    assert cfg.scheduler._target_ == typed
    assert config("optimizer=lion").scheduler._target_ == "resnet_lab.schedule.onecycle"


# ------------------------------------------------------------------ SAM


def test_a_step_of_sam_by_hand():
    """On f(w) = a0 w0^2 / 2 + a1 w1^2 / 2, whose gradient is a * w."""
    a, w = torch.tensor([1.0, 10.0]), torch.tensor([3.0, 0.4])
    one, two = (nn.Parameter(w[i : i + 1].clone()) for i in range(2))  # one norm for both
    optimizer = SAM([{"params": [one]}, {"params": [two], "lr": 0.02}], lr=0.1, rho=0.5)
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (a * torch.cat([one, two]) ** 2).sum() / 2
        loss.backward()
        losses.append(loss.item())
        return loss

    loss = optimizer.step(closure)
    gradient = a * w  # [3, 4], of length 5
    up = w + 0.5 * gradient / 5
    expected = w - torch.tensor([0.1, 0.02]) * a * up
    torch.testing.assert_close(torch.cat([one, two]), expected)
    assert len(losses) == 2
    assert losses[1] == pytest.approx(float((a * up**2).sum() / 2))
    assert loss.item() == losses[0] < losses[1]


def test_sam_comes_down_to_the_very_bits_it_climbed_from():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(10_000) * 1e-3)
    before = weight.detach().clone()
    optimizer = SAM([weight], lr=0.0, momentum=0.9, weight_decay=0.1, rho=1e4)
    seen = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        seen.append(weight.detach().clone())
        loss = (weight**3).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (seen[1] - seen[0]).norm() == pytest.approx(1e4, rel=1e-3)
    assert torch.equal(weight, before)

    def broken() -> Tensor:
        if len(seen) == 3:
            raise UserError("the loss is nan")
        return closure()

    with pytest.raises(UserError):  # in the second pass
        optimizer.step(broken)
    assert torch.equal(weight, before)


def test_sam_where_nothing_slopes_stays():
    weight = nn.Parameter(torch.ones(3))

    def closure() -> Tensor:
        loss = (0 * weight).sum()
        loss.backward()
        return loss

    SAM([weight], lr=0.1).step(closure)
    assert torch.equal(weight, torch.ones(3))


def test_both_passes_of_sam_count_as_one(config, monkeypatch, tmp_path):
    """Score, reported loss and batch norm's statistics are those of a step of SGD, which begins at
    the same weights with the same images."""
    after: list[Any] = []

    def keep(self: EpochLog, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        if trainer.global_step == 1:
            state = {key: value.clone() for key, value in module.net.state_dict().items()}
            after.append((module.train_tally.sums(), outputs["loss"].clone(), state))

    monkeypatch.setattr(EpochLog, "on_train_batch_end", keep)
    for name in ("sgd", "sam"):
        run_dir = f"run_dir={tmp_path}/{name}"
        training.train(config(*TINY, f"optimizer={name}", "trainer.max_epochs=1", run_dir))
    (sgd, sam) = after
    assert_same(sgd[:2], sam[:2])
    assert sam[0]["count"] == 32
    statistics = [key for key in sam[2] if "running" in key or "num_batches" in key]
    assert len(statistics) > 10
    assert_same(*({key: state[key] for key in statistics} for (_, _, state) in after))
    others = sam[2].keys() - set(statistics)
    assert not all(torch.equal(sgd[2][key], sam[2][key]) for key in others)


def test_the_second_pass_has_the_gradient_of_where_it_is():
    torch.manual_seed(0)
    module = classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3)))
    batch = torch.randn(8, 3, 2, 2), torch.randint(3, (8,))
    first = module.training_step(batch, 0)
    with torch.no_grad():
        module.net[1].weight.add_(0.3)
    again = module.training_step(batch, 0)
    again.backward()
    found = module.net[1].weight.grad.clone()
    assert torch.equal(again.detach(), first.detach())
    module.zero_grad()
    module.loss_of(*batch).backward()
    assert torch.equal(module.net[1].weight.grad, found)


def test_graphs_are_off_for_sam_alone():
    def decision(optimizer: torch.optim.Optimizer) -> str:
        from types import SimpleNamespace

        from lightning.pytorch.profilers import PassThroughProfiler

        trainer: Any = SimpleNamespace(
            world_size=1,
            accumulate_grad_batches=1,
            precision="32",
            profiler=PassThroughProfiler(),
            optimizers=[optimizer],
        )
        module: Any = SimpleNamespace(device=torch.device("cuda"))
        return cuda_graph.decide("auto", trainer, module)[1]

    weight = [nn.Parameter(torch.zeros(1))]
    assert decision(SAM(weight)) == "not with optimizer=sam, of two passes a step"
    assert decision(torch.optim.SGD(weight, lr=0.1)) == "cuda_graph=auto"


# ------------------------------------------------------------------ schedule-free


def test_schedule_free_is_evaluated_at_its_average(config, tmp_path, monkeypatch):
    """At x of its paper, while gradients are taken at y = 0.1 z + 0.9 x."""
    needs("schedulefree_sgd")
    seen: dict[str, Tensor] = {}
    step = Classifier.validation_step

    def validation_step(self: Classifier, *args: Any) -> None:
        seen["x"] = first_weight(self.net).clone()
        state = self.trainer.optimizers[0].state
        seen["z"] = state[next(iter(self.net.parameters()))]["z"].clone()
        step(self, *args)

    def keep_y(self: EpochLog, trainer: Any, module: Any, *args: Any) -> None:
        seen["y"] = first_weight(module.net).clone()

    monkeypatch.setattr(Classifier, "validation_step", validation_step)
    monkeypatch.setattr(EpochLog, "on_train_batch_end", keep_y)
    cfg = config(*TINY, "optimizer=schedulefree_sgd", "trainer.max_epochs=1")
    training.train(cfg)
    x, y, z = seen["x"], seen["y"], seen["z"]
    assert (x - y).abs().max() > 1e-4
    torch.testing.assert_close(y, 0.1 * z + 0.9 * x)
    for name in ("best", "last"):
        assert torch.equal(next(iter(weights(tmp_path / "run", name).values())), x)


def first_weight(net: nn.Module) -> Tensor:
    return next(iter(net.parameters())).detach()


def test_schedule_free_saves_its_average_where_there_is_no_validation(config, tmp_path):
    needs("schedulefree_sgd")
    cfg = config(*TINY, "optimizer=schedulefree_sgd", "trainer.max_epochs=1", "data.val_size=0")
    training.train(cfg)
    for name in ("best", "last"):
        checkpoint = checkpoint_io.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt")
        assert not any(g["train_mode"] for g in checkpoint["optimizer_states"][0]["param_groups"])


def test_the_statistics_of_batch_norms_are_those_of_the_average(config, tmp_path):
    """Of the run's first batches, at the weights that best.ckpt holds."""
    needs("schedulefree_sgd")
    cfg = config(*TINY, "optimizer=schedulefree_sgd")
    training.train(cfg)
    saved = weights(tmp_path / "run", "best")
    parts = build.build(cfg)  # whose trainer has not begun
    parts.classifier.load_state_dict(saved)
    norm, seen = parts.net.stem[1], []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    parts.net.train()
    with torch.no_grad():
        for batch in parts.datamodule.train_dataloader():
            parts.net(parts.datamodule.prepare(batch)[0])
    assert len(seen) == 4
    mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen]).mean(dim=0)
    variance = torch.stack([x.var(dim=(0, 2, 3)) for x in seen]).mean(dim=0)
    torch.testing.assert_close(saved["net.stem.1.running_mean"], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(saved["net.stem.1.running_var"], variance, rtol=1e-4, atol=1e-5)


def test_refreshed_statistics_leave_all_else_as_it_was():
    torch.manual_seed(0)
    frozen, norm = nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=0.3)
    net = nn.Sequential(frozen, nn.Dropout(0.5), norm).train()
    frozen.eval()
    norm.running_mean.fill_(7.0)
    state, batches = torch.get_rng_state(), [torch.randn(8, 3), torch.randn(8, 3)]
    torch.set_rng_state(state)
    refresh_statistics(net, batches)
    assert torch.equal(torch.get_rng_state(), state)  # no dropout
    images = [batch / (1 + frozen.eps) ** 0.5 for batch in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack(images).mean(dim=(0, 1)))
    variances = torch.stack([x.var(dim=0) for x in images])
    torch.testing.assert_close(norm.running_var, variances.mean(dim=0))
    assert torch.equal(frozen.running_mean, torch.zeros(3))
    assert norm.momentum == 0.3
    assert [module.training for module in net.modules()] == [True, False, True, True]


def test_kept_statistics_stay_while_norms_work_as_in_training():
    norm = nn.BatchNorm1d(3).train()
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    with statistics_kept(norm):
        images = norm(torch.randn(16, 3) + 5)
    torch.testing.assert_close(images.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    assert_same(before, dict(norm.state_dict()))
    norm(torch.randn(16, 3) + 5)
    assert norm.num_batches_tracked == 1


def test_the_average_of_schedule_free_is_that_of_its_steps():
    """x is the mean of z over the steps, by hand on f(w) = w^2 / 2."""
    schedulefree = pytest.importorskip("schedulefree", reason="the extra [optim] is not installed")
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = schedulefree.SGDScheduleFree([weight], lr=0.5, momentum=0.9)
    x = z = 1.0
    for k in range(1, 5):
        optimizer.train()
        optimizer.zero_grad()
        (weight**2 / 2).sum().backward()
        optimizer.step()
        z -= 0.5 * (0.1 * z + 0.9 * x)
        x += (z - x) / k
        optimizer.eval()
        assert weight.item() == pytest.approx(x)


# ------------------------------------------------------------------ timm's


def made(config: Any, name: str, groups: Any) -> torch.optim.Optimizer:
    needs(name)
    return instantiate(config(f"optimizer={name}").optimizer, _convert_="all")(groups)


def stepped(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradient: Tensor) -> Tensor:
    """How far a step takes `weight`."""
    before = weight.detach().clone()
    weight.grad = gradient.clone()
    optimizer.step()
    return weight.detach() - before


WEIGHT = torch.linspace(-1, 2, 8 * 4 * 9).reshape(8, 4, 3, 3)
GRADIENT = torch.sin(torch.arange(8 * 4 * 9.0)).reshape(8, 4, 3, 3)


def test_lars_scales_a_layers_step_to_the_length_of_its_weights(config):
    weight, bias = nn.Parameter(WEIGHT.clone()), nn.Parameter(torch.ones(3))
    groups = [{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = made(config, "lars", groups)
    change = stepped(optimizer, weight, GRADIENT)
    decayed = GRADIENT + 5e-4 * WEIGHT
    ratio = 0.001 * WEIGHT.norm() / (GRADIENT.norm() + 5e-4 * WEIGHT.norm())
    torch.testing.assert_close(change, -4.0 * ratio * decayed)
    gradient = torch.tensor([0.1, 0.2, 0.3])  # what does not decay takes a plain step
    torch.testing.assert_close(stepped(optimizer, bias, gradient), -4.0 * gradient)


def test_lamb_scales_adams_step_to_the_length_of_the_weights(config):
    weight = nn.Parameter(WEIGHT.clone())
    change = stepped(made(config, "lamb", [weight]), weight, GRADIENT)
    cut = GRADIENT / GRADIENT.norm()  # max_grad_norm=1
    update = cut / (cut.abs() + 1e-6) + 0.02 * WEIGHT
    torch.testing.assert_close(change, -5e-3 * WEIGHT.norm() / update.norm() * update)


def test_lion_takes_the_sign(config):
    weight = nn.Parameter(WEIGHT.clone())
    optimizer = made(config, "lion", [weight])
    change = stepped(optimizer, weight, GRADIENT)
    torch.testing.assert_close(change, -3e-4 * (GRADIENT.sign() + 0.15 * WEIGHT))
    before = weight.detach().clone()
    change = stepped(optimizer, weight, -GRADIENT / 20)  # outweighed by 0.9 of the momentum 0.01 g
    blend = (0.9 * 0.01 - 0.1 / 20) * GRADIENT
    torch.testing.assert_close(change, -3e-4 * (blend.sign() + 0.15 * before))


def test_muon_makes_a_convolutions_step_orthogonal(config):
    weight = nn.Parameter(torch.zeros(8, 4, 3, 3))
    bias = nn.Parameter(torch.zeros(5))
    optimizer = made(config, "muon", [weight, bias])
    change = stepped(optimizer, weight, GRADIENT)
    scale = 0.02 * 0.2 * 36**0.5  # of [8, 36]
    values = torch.linalg.svdvals(change.reshape(8, 36)) / scale
    spread = torch.linalg.svdvals(GRADIENT.reshape(8, 36))
    assert spread.max() > 10 * spread[spread > 1e-3].min() or (spread < 1e-3).any()
    kept = values[: int((spread > 1e-3 * spread.max()).sum())]
    assert 0.6 < kept.min() <= kept.max() < 1.3  # what Jordan's coefficients come to
    gradient = torch.tensor([1.0, -2.0, 3.0, 0.5, -0.1])
    change = stepped(optimizer, bias, gradient)  # a first step of Adam is one of signs
    assert torch.equal(change.sign(), -gradient.sign())
    torch.testing.assert_close(change.abs(), change.abs()[0].expand(5), rtol=1e-3, atol=0)


def test_muon_leaves_the_first_and_the_last_layer_to_adam(config):
    needs("muon")
    cfg = config("optimizer=muon", "model=resnet20", "trainer.precision=32")
    net = cifar_resnet(8, num_classes=10)
    module = build.build_classifier(cfg, net)
    hidden, ends = module.parameter_groups()
    assert "use_fallback" not in hidden
    assert ends["use_fallback"] is True
    assert [id(p) for p in ends["params"]] == [id(net.stem[0].weight), id(net.head[-1].weight)]
    optimizer = module._optimizer([hidden, ends])
    net(torch.randn(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    by_muon = {id(p) for p, state in optimizer.state.items() if state["use_muon"]}
    convolutions = [m.weight for m in net.stages.modules() if isinstance(m, nn.Conv2d)]
    assert by_muon == {id(weight) for weight in convolutions}


# ------------------------------------------------------------------ learning rates by depth


def tiny(**options: Any) -> ResNet:
    options = {"depths": [2, 1], "widths": [4, 8], "image_size": 32, **options}
    return ResNet(block="basic", num_classes=10, **options)


def scales(module: Classifier) -> list[float]:
    return [group.get("lr_scale", 1.0) for group in module.parameter_groups()]


def ids(parameters: Any) -> list[int]:
    return [id(p) for p in parameters]


def test_groups_are_as_they_were_without_layer_decay():
    net = tiny()
    (group,) = classifier(net).parameter_groups()
    assert group.keys() == {"params"}
    assert ids(group["params"]) == ids(net.parameters())
    head, trunk = classifier(net, trunk_lr_scale=0.1).parameter_groups()
    assert ids(head["params"]) == ids(net.head.parameters())
    assert trunk["lr_scale"] == 0.1


def test_each_block_learns_slower_than_the_next():
    net = tiny()
    module = classifier(net, layer_decay=0.5)
    groups = module.parameter_groups()
    blocks = [net.head, net.stages[1][0], net.stages[0][1], net.stages[0][0], net.stem]
    assert [ids(group["params"]) for group in groups] == [ids(b.parameters()) for b in blocks]
    assert scales(module) == [1.0, 0.5, 0.25, 0.125, 0.0625]


def test_layer_decay_with_a_slower_trunk_and_no_decay_of_norms():
    net = tiny()
    options = {"layer_decay": 0.5, "trunk_lr_scale": 0.1, "decay_norm_and_bias": False}
    module = classifier(net, **options)
    expected = [1.0, 0.05, 0.025, 0.0125, 0.00625]
    assert scales(module) == pytest.approx([scale for scale in expected for _ in range(2)])
    groups = module.parameter_groups()
    assert [group.get("weight_decay") for group in groups] == [None, 0.0] * 5
    assert sorted(ids(p for g in groups for p in g["params"])) == sorted(ids(net.parameters()))


@pytest.mark.parametrize(("trunk", "parts"), [("resnet18", 1 + 8 + 1), ("vgg11", 5 + 1)])
def test_layer_decay_of_a_pretrained_net(trunk, parts):
    with torch.device("meta"):
        net = Pretrained(trunk=trunk, num_classes=10, freeze="none")
    module = classifier(net, layer_decay=0.5)
    assert scales(module) == [0.5**k for k in range(parts)]
    groups = module.parameter_groups()
    assert ids(groups[0]["params"]) == ids(net.head.parameters())
    assert id(groups[-1]["params"][0]) == id(next(net.trunk.parameters()))
    assert sorted(ids(p for g in groups for p in g["params"])) == sorted(ids(net.parameters()))


def test_layer_decay_of_a_trunk_of_our_own():
    net = Pretrained(trunk=tiny(), num_classes=3, freeze="none")
    assert scales(classifier(net, layer_decay=0.5)) == [1.0, 0.5, 0.25, 0.125, 0.0625]


def test_a_net_without_such_parts_has_no_layer_decay(config):
    cfg = config("model=textbook_cnn", "classifier.layer_decay=0.7", "trainer.precision=32")
    cfg.model.update(num_classes=10, image_size=32)
    check(cfg)
    with pytest.raises(InstantiationException) as error:  # which the command line looks into
        build.build_classifier(cfg, build.build_net(cfg))
    assert isinstance(error.value.__cause__, UserError)
    assert str(error.value.__cause__) == (
        "classifier.layer_decay=0.7: TextbookCNN is not made of stem, stages and head; "
        "leave it out."
    )


def test_a_run_has_the_rates_of_its_layers(config, monkeypatch):
    rates: list[list[float]] = []

    def keep(self: EpochLog, trainer: Any, *_: Any) -> None:
        rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    monkeypatch.setattr(EpochLog, "on_train_batch_end", keep)
    cfg = config(*TINY, "classifier.layer_decay=0.5", "scheduler=constant", "trainer.max_epochs=1")
    training.train(cfg)
    # ResNet-8: the stem, a block in each of three stages, and the head.
    assert rates[-1] == pytest.approx([0.1 * 0.5**k for k in range(5)])

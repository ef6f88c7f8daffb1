"""What runs on a GPU, on one that is pretended (`pretend_cuda`), and what a driver may say."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import ROOT, SMALL_NET, slow_except, without_torch
from lightning.pytorch import Callback, Trainer
from pretend_cuda import Tape, World
from torch.utils._pytree import tree_flatten

from resnet_lab.callbacks import cuda_graph
from resnet_lab.classifier import Classifier
from resnet_lab.config.errors import UserError
from resnet_lab.run import build, gpu, machine, training

pytestmark = pytest.mark.filterwarnings(
    "ignore:NotImplemented should not be used in a boolean context",  # torch, of a mode's answer
)

# Three epochs of eight steps.
TINY = (
    *(*SMALL_NET, "data.train_size=128", "data.val_size=64", "data.batch_size=16"),
    *("trainer.max_epochs=3", "trainer.precision=32", "trainer.limit_test_batches=1"),
    *("trainer.log_every_n_steps=1000", "callbacks.last.seconds=0"),
)
CHECKPOINTS = "callbacks=[checkpoints,nan_guard,epoch_log,cuda_graph]"
ALL = "callbacks=[default,pictures,ema,grad_norm,early_stopping]"
EAGER = "cuda_graph=false"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def slow(*values: Any) -> Any:
    return pytest.param(values, marks=pytest.mark.slow)


class Steps(Callback):
    """Has a world note what goes on in training steps, from the second of an epoch on."""

    def __init__(self, world: World, first: int = 1) -> None:
        self.world, self.first, self.n = world, first, 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.world.counting = trainer.fit_loop.epoch_loop.batch_idx >= self.first
        self.n += self.world.counting

    def on_train_batch_end(self, *_: Any) -> None:
        self.world.counting = False


@pytest.fixture
def train(config, tmp_path, monkeypatch) -> Callable[..., tuple[dict[str, Any], World]]:
    """`train("run", "seed=1", world=World(2))`: the result of a run, and the world after it."""

    def run(
        name: str, *overrides: str, world: World | None = None, add: tuple[Callback, ...] = ()
    ) -> tuple[dict[str, Any], World]:
        world = world or World()
        cfg = config(*TINY, *overrides, f"run_dir={tmp_path}/{name}")
        make = build.build

        def with_callbacks(cfg: Any) -> build.Parts:
            parts = make(cfg)
            parts.trainer.callbacks.extend(add)
            return parts

        monkeypatch.setattr(training, "build", with_callbacks)
        try:
            with world:
                return training.train(cfg), world
        finally:
            monkeypatch.setattr(training, "build", make)

    return run


def saved(folder: Path, name: str = "last") -> dict[str, list[Any]]:
    """What a checkpoint holds of the training: all its tensors and numbers, by part."""
    content = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "train_tally", "validation")
    return {part: tree_flatten(content[part])[0] for part in (*parts, "global_step")}


def assert_same(one: Path, other: Path) -> None:
    first, second = saved(one), saved(other)
    for part, values in first.items():
        assert len(values) == len(second[part]), part
        for a, b in zip(values, second[part], strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, part
    texts = [(folder / "metrics.csv").read_text().splitlines() for folder in (one, other)]
    rows = [list(csv.DictReader(lines)) for lines in texts]
    figures = ("epoch", "step", "lr", "train/loss", "train/acc", "val/loss", "val/acc")
    assert [[row[f] for f in figures] for row in rows[0]] == [
        [row[f] for f in figures] for row in rows[1]
    ]


# ---------------------------------------------------------------- a run


@pytest.mark.parametrize(
    ("overrides", "waits"),
    [
        ((ALL,), 0),
        pytest.param(
            (EAGER, "augment=[rand,mixup_cutmix,erasing,color]", "data.augment.blur=0.5"),
            0,
            marks=pytest.mark.slow,
        ),
        pytest.param((ALL, EAGER), 0, marks=pytest.mark.slow),
        pytest.param(
            (EAGER, "optimizer=adamw", "trainer.precision=bf16-mixed"), 0, marks=pytest.mark.slow
        ),
        pytest.param(
            (EAGER, "trainer.gradient_clip_val=1", "trainer.precision=bf16-mixed"),
            0,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (EAGER, "trainer.precision=16-mixed", "optimizer.lr=0.01"), 1, marks=pytest.mark.slow
        ),  # of its scaler
        pytest.param(
            (EAGER, "optimizer._target_=torch.optim.RMSprop", "optimizer.lr=0.001"),
            1,  # not fused
            marks=pytest.mark.slow,
        ),
    ],
)
def test_no_step_waits_for_the_device(train, overrides, waits):
    world = World()
    steps = Steps(world, first=7)  # graphs are recorded in the first seven, and compared
    train("run", "trainer.max_epochs=2", *overrides, world=world, add=(steps,))
    in_checkpoints = ("dump_checkpoint", "on_save_checkpoint")
    seen = {k: n for k, n in world.waits.items() if not any(w in k for w in in_checkpoints)}
    assert sum(seen.values()) == waits * steps.n, seen
    assert all("pinned" in kind for kind in world.copies), world.copies


@pytest.mark.slow
def test_a_run_computes_what_it_computes_on_the_host(train, config):
    run, world = train("gpu", EAGER, CHECKPOINTS)
    assert world.used == {torch.device("cuda:0")}
    on_host = (*TINY, CHECKPOINTS, "trainer.accelerator=cpu", "+optimizer.fused=true")
    host = training.train(config(*on_host))
    assert run["device_name"] == "Pretended GPU 0"
    assert run["test/loss"] == host["test/loss"]


@pytest.mark.slow
def test_a_second_gpu_leaves_the_first_alone(train):
    _, world = train("run", "trainer.devices=[1]", world=World(gpus=2))
    assert world.used == {torch.device("cuda:1")}


@pytest.mark.parametrize("precision", slow_except((), ("16-mixed", "bf16-true", "16-true", "64")))
def test_every_precision_trains_and_clips(train, precision):
    small = ("trainer.gradient_clip_val=1", "optimizer.lr=0.001", CHECKPOINTS)
    result, _ = train("run", f"trainer.precision={precision}", *small, "trainer.max_epochs=1")
    assert result["status"] == "finished"
    assert 2 < result["test/loss"] < 3


@pytest.mark.slow
def test_a_score_has_all_its_digits_whatever_the_weights_have(train):
    result, _ = train("run", CHECKPOINTS, "trainer.precision=bf16-true", "trainer.max_epochs=1")
    assert result["val/loss"] != float(torch.tensor(result["val/loss"]).bfloat16())


@pytest.mark.slow
def test_a_gpu_without_bfloat16_is_told_of_float16(train, caplog):
    with caplog.at_level(logging.INFO):
        result, _ = train("run", "trainer.precision=auto", CHECKPOINTS, world=World(major=7))
    assert result["precision"] == "32"
    assert "16-mixed is faster" in caplog.text


def test_tf32_is_said_and_not_used_where_figures_are_compared(train, caplog):
    with caplog.at_level(logging.INFO):
        train("run", CHECKPOINTS, "trainer.max_epochs=1")
    assert "TensorFloat-32" in caplog.text
    assert torch.backends.cudnn.allow_tf32
    machine.allow_tf32(False)
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


# ---------------------------------------------------------------- stopped and resumed


class Kick(Callback):
    """Sends this process SIGTERM in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["true", "false"])
def test_a_stopped_run_goes_on_bit_for_bit(train, tmp_path, graph):
    options = (f"cuda_graph={graph}", "callbacks=[default,ema,grad_norm]")
    train("whole", *options)
    with pytest.raises(SystemExit):
        train("stopped", *options, add=(Kick(13),))
    _, world = train("stopped", *options, f"resume={tmp_path}/stopped")
    assert set(world.loads) == {"cpu"}
    assert_same(tmp_path / "whole", tmp_path / "stopped")
    norms = [(tmp_path / name / "grad_norm.csv").read_text() for name in ("whole", "stopped")]
    assert norms[0] == norms[1]


@pytest.mark.slow
def test_a_run_of_a_gpu_goes_on_without_one(train, config, tmp_path):
    with pytest.raises(SystemExit):
        train("run", CHECKPOINTS, add=(Kick(13),), world=World(gpus=2))
    again = (*TINY, CHECKPOINTS, "trainer.accelerator=cpu")
    result = training.train(config(*again, f"resume={tmp_path}/run", f"run_dir={tmp_path}/run"))
    assert (result["status"], result["steps"]) == ("finished", 24)


@pytest.mark.slow
def test_two_gpus_are_resumed_and_waited_for_in_no_step(tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        pretended = (ROOT / "tests" / "pretended.py", ROOT / "train.py")
        env = {"PRETENDED_GPUS": "2", "PRETENDED_WAITS": str(tmp_path / "waits")}
        return subprocess.run(
            [*TORCHRUN, *map(str, pretended), *arguments],
            env=os.environ | env | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
        )

    folder = tmp_path / "run"
    options = (*TINY, "trainer.devices=2", "callbacks=[checkpoints,nan_guard,epoch_log,grad_norm]")
    run(*options, f"hydra.run.dir={folder}", "callbacks.last.pause_after=1")
    done = run(f"resume={folder}", "callbacks.last.pause_after=null")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"
    for rank in (0, 1):
        waits = (tmp_path / f"waits{rank}").read_text()
        assert "save_checkpoint" in waits  # something was noted at all
        assert "training_epoch_loop" not in waits, waits


@pytest.mark.slow
def test_short_epochs_are_not_all_saved_on_a_gpu(train, tmp_path):
    class Saves(Callback):
        n = 0

        def on_save_checkpoint(self, *_: Any) -> None:
            self.n += 1

    counts = []
    for seconds in ("0", "1000"):
        saves = Saves()
        train(seconds, "~callbacks.best", f"callbacks.last.seconds={seconds}", add=(saves,))
        counts.append(saves.n)
    assert counts == [6, 2]  # before each validation and after each epoch; the first and the last
    assert_same(tmp_path / "0", tmp_path / "1000")


@pytest.mark.slow
def test_a_stop_in_a_validation_that_was_not_saved_waits_for_its_end(train, tmp_path):
    class KickInValidation(Callback):
        def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    options = (CHECKPOINTS, "callbacks.last.seconds=1000")
    train("whole", *options)
    with pytest.raises(SystemExit):
        train("stopped", *options, add=(KickInValidation(),))
    assert saved(tmp_path / "stopped")["global_step"] == [16]
    train("stopped", *options, f"resume={tmp_path}/stopped")
    assert_same(tmp_path / "whole", tmp_path / "stopped")


# ---------------------------------------------------------------- what goes wrong


class Poison(Callback):
    """Makes a weight infinite in a step, and with it the loss."""

    def __init__(self, step: int) -> None:
        self.step, self.last = step, 0

    def on_train_batch_start(self, trainer: Trainer, module: Any, *_: Any) -> None:
        self.last = trainer.global_step
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(module.net.parameters()).fill_(float("inf"))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        slow(EAGER),
        slow(EAGER, "trainer.precision=16-mixed", "scheduler=constant"),
        slow("optimizer=adamw"),
    ],
)
def test_a_loss_that_is_no_number_ends_the_run_soon(train, tmp_path, overrides):
    poison = Poison(13)
    with pytest.raises(UserError, match=r"nan or infinite.* at step 14,"):
        train("run", CHECKPOINTS, *overrides, add=(poison,))
    assert poison.last <= 15
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
)
def test_out_of_memory_is_one_sentence_in_all_its_wordings(config, monkeypatch, error):
    monkeypatch.setattr(gpu, "others", lambda index: "; other processes on it: 7 (70 GiB)")
    sentence = r"out of memory .*7 \(70 GiB\).*data.batch_size is 16"
    with World(), pytest.raises(UserError, match=sentence), training.plain_errors(config(*TINY)):
        raise error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("CUDA error: all CUDA-capable devices are busy or unavailable", "busy or unavailable"),
        ("CUDA error: out of memory", "out of memory"),
    ],
)
def test_a_gpu_that_others_hold_is_named_before_anything_runs(
    train, tmp_path, monkeypatch, words, said
):
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(machine.torch, "zeros", refuse)
    with World(), pytest.raises(UserError, match=f"cuda:0 cannot be used .*{said}"):
        machine.claim(torch.device("cuda:0"))


# ---------------------------------------------------------------- the step as a graph


@pytest.mark.parametrize(
    "overrides",
    [
        ("callbacks=[default,ema,grad_norm]", "trainer.gradient_clip_val=0.5"),
        slow("augment=[trivial,mixup_cutmix,erasing,color]", "data.augment.blur=0.5"),
        slow("data.cutout=8", "classifier.label_smoothing=0.1", "scheduler=multistep"),
        slow("augment=auto_cifar10", "classifier.loss=bce", "classifier.class_weights=balanced"),
        slow("augment=rand", "data.augment.repeats=2", "trainer.precision=bf16-mixed"),
        slow("trainer.val_check_interval=0.5", "classifier.decay_norm_and_bias=false"),
        slow("trainer.precision=bf16-mixed", "model.norm=none", "model.zero_init_residual=true"),
    ],
)
@pytest.mark.slow
def test_a_replayed_run_equals_the_other_bit_for_bit(train, tmp_path, overrides):
    _, world = train("graph", "cuda_graph=true", *overrides)
    train("eager", "cuda_graph=false", *overrides)
    assert_same(tmp_path / "graph", tmp_path / "eager")
    assert [tape.replays for tape in world.graphs].count(21) >= 2  # of 24 steps
    norms = [tmp_path / name / "grad_norm.csv" for name in ("graph", "eager")]
    if norms[0].exists():
        assert norms[0].read_text() == norms[1].read_text()


@pytest.mark.slow
def test_images_of_another_size_are_recorded_anew(train, tmp_path):
    sizes = ("data.resize=[[0,16],[1,32]]", "augment=auto_imagenet")
    _, world = train("graph", "cuda_graph=true", *sizes)
    train("eager", "cuda_graph=false", *sizes)
    assert_same(tmp_path / "graph", tmp_path / "eager")
    assert len(world.graphs) == 2 * 3  # of each size: steps, updates, validation


@pytest.mark.slow
def test_adamw_replayed_differs_by_the_rounding_of_its_rate_alone(train):
    losses = [
        train(f"{graph}", f"cuda_graph={graph}", "optimizer=adamw", CHECKPOINTS)[0]["test/loss"]
        for graph in ("true", "false")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_a_step_of_a_deep_net_is_a_few_launches(train):
    launches = {}
    for graph in ("true", "false"):
        world = World()
        steps = Steps(world, first=7)
        long = ("data.train_size=256", "trainer.max_epochs=1", CHECKPOINTS)
        train(graph, f"cuda_graph={graph}", *long, world=world, add=(steps,))
        launches[graph] = world.launches() / steps.n
    assert launches["true"] < 40 < 100 < launches["false"]


@pytest.mark.slow
def test_a_changing_momentum_is_not_replayed(train, tmp_path):
    cycle = ("scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "+scheduler.max_lr=0.1")
    options = (*cycle, "+scheduler.total_steps=24", CHECKPOINTS)
    _, world = train("graph", "cuda_graph=true", *options)
    train("eager", "cuda_graph=false", *options)
    assert_same(tmp_path / "graph", tmp_path / "eager")
    assert [tape.replays for tape in world.graphs][:2] == [21, 1]


@pytest.mark.slow
def test_what_cuda_will_not_record_runs_kernel_by_kernel(train, tmp_path, caplog, monkeypatch):
    loss_of = Classifier.loss_of

    def asks_for_a_number(self: Classifier, *batch: torch.Tensor) -> torch.Tensor:
        loss = loss_of(self, *batch)
        float(loss.detach())
        return loss

    monkeypatch.setattr(Classifier, "loss_of", asks_for_a_number)
    with caplog.at_level(logging.WARNING, logger="resnet_lab"):
        train("graph", "cuda_graph=true", CHECKPOINTS)
    assert [m for m in caplog.messages if "the training step is not replayed" in m]
    assert len(caplog.messages) == 1
    train("eager", "cuda_graph=false", CHECKPOINTS)
    assert_same(tmp_path / "graph", tmp_path / "eager")


@pytest.mark.slow
def test_a_replay_that_does_something_else_is_found_out(train, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(Tape, "replay", lambda self: None)
    with caplog.at_level(logging.WARNING, logger="resnet_lab"):
        train("graph", "cuda_graph=true", CHECKPOINTS)
    assert any("Different" in message for message in caplog.messages)
    train("eager", "cuda_graph=false", CHECKPOINTS)
    assert_same(tmp_path / "graph", tmp_path / "eager")


@pytest.mark.slow
def test_a_batch_of_another_shape_is_taken_kernel_by_kernel(train, tmp_path, monkeypatch):
    fits, asked = cuda_graph._Replayed._fits, []

    def now_and_then(self: Any, batch: Any) -> bool:
        asked.append(self.training)
        return fits(self, batch) and len(asked) % 5 > 0

    monkeypatch.setattr(cuda_graph._Replayed, "_fits", now_and_then)
    _, world = train("graph", "cuda_graph=true", CHECKPOINTS)
    assert max(tape.replays for tape in world.graphs) < 21
    train("eager", "cuda_graph=false", CHECKPOINTS)
    assert_same(tmp_path / "graph", tmp_path / "eager")


@pytest.mark.slow
def test_what_learns_changes_and_is_recorded_anew(train, tmp_path):
    class Freeze(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
            module.net.stages.requires_grad_(trainer.current_epoch < 1)

    _, world = train("run", "cuda_graph=true", CHECKPOINTS, add=(Freeze(),))
    assert len(world.graphs) > 3
    train("other", "cuda_graph=false", CHECKPOINTS, add=(Freeze(),))
    assert_same(tmp_path / "run", tmp_path / "other")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("trainer.accumulate_grad_batches=2",), "accumulate"),
        pytest.param(("trainer.precision=16-mixed",), "16-mixed", marks=pytest.mark.slow),
        pytest.param(("trainer.profiler=simple",), "profiler", marks=pytest.mark.slow),
        pytest.param((EAGER,), "cuda_graph=false", marks=pytest.mark.slow),
    ],
)
def test_where_no_graph_can_be_the_reason_is_said(train, caplog, overrides, reason):
    with caplog.at_level(logging.INFO):
        _, world = train("run", CHECKPOINTS, "trainer.max_epochs=1", *overrides)
    (line,) = [m for m in caplog.messages if m.startswith("cuda graph")]
    assert "off" in line
    assert reason in line
    assert not world.graphs


def test_a_replay_is_compared_by_its_change():
    one = {"weights": [torch.ones(3)]}
    cuda_graph._compare(one, {"weights": [torch.ones(3) * 1.01]})
    with pytest.raises(cuda_graph.Different, match="another weights"):
        cuda_graph._compare(one, {"weights": [torch.zeros(3)]})
    with pytest.raises(cuda_graph.Different):
        cuda_graph._compare(
            {"weights": [torch.tensor([float("nan")])]}, {"weights": [one["weights"][0][:1]]}
        )


# ---------------------------------------------------------------- which GPUs there are

MASKS = (
    *(None, "", "-1", "0", "1", "0,1", "1,0", "0,7", "7", "0,0", "0,-1,1", "NoDevFiles", " 0 , 1 "),
    *("GPU-00000001", "GPU-0000000", "GPU-ffff", "0,GPU-00000002", "all", "none"),
    "GPU-00000001-0000-0000-0000-000000000000,GPU-00000002-0000-0000-0000-000000000000",
)
ASK = """
import ctypes, json, os, sys
from resnet_lab.run import gpu
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
import torch
answers = []
for n in (1, 2, 8):
    os.environ["FAKE_GPUS"] = str(n)
    ctypes.CDLL(None).setenv(b"FAKE_GPUS", str(n).encode(), 1)
    for mask in json.loads(sys.argv[1]):
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if mask is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = mask
        ours, torchs, each = gpu.slots(), torch.cuda._device_count_nvml(), []
        for name in ours:
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            each.append(torch.cuda._device_count_nvml())
        answers.append([n, mask, len(ours), torchs, each])
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
ctypes.CDLL(None).setenv(b"FAKE_DRIVER", b"12040", 1)
from resnet_lab.run import machine
print(json.dumps({"slots": answers, "old driver": machine.usable()}))
"""


@pytest.mark.slow
def test_jobs_are_given_the_gpus_that_torch_sees_and_an_old_driver_is_known(fake_cuda):
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(MASKS)],
        env=os.environ | fake_cuda,
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(done.stdout)
    n, fault, broken = said["old driver"]
    assert (n, broken) == (0, True)
    assert "NVIDIA driver on your system" in fault
    answers = said["slots"]
    assert len(answers) == 3 * len(MASKS)
    for n, mask, ours, torchs, each in answers:
        assert ours == torchs, (n, mask)
        assert each == [1] * ours, (n, mask)


@pytest.mark.parametrize(
    ("mask", "n", "first"),
    [
        (None, 6, "MIG-00000001-0000"),
        ("1", 3, "MIG-00000002-0000"),
        ("MIG-00000002-0001-0000-0000-000000000000", 1, "MIG-00000002-0001"),
        ("GPU-ffff", 0, ""),
    ],
)
def test_each_slice_of_a_mig_gpu_is_one(fake_cuda, monkeypatch, mask, n, first):
    for name, value in (fake_cuda | {"FAKE_GPUS": "2", "FAKE_MIG": "3"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    slots = gpu.slots()
    assert len(slots) == n
    assert all(slot.startswith("MIG-") for slot in slots)
    assert not slots or slots[0].startswith(first)


@pytest.mark.slow
def test_an_old_driver_is_one_sentence_with_the_ways_out(fake_cuda, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *SMALL_NET, f"hydra.run.dir={tmp_path}/run"],
        env=os.environ | fake_cuda | {"FAKE_DRIVER": "12040"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "driver on your system is too old" in line
    for way in ("newer driver", "UV_TORCH_BACKEND=auto make install", "accelerator=cpu"):
        assert way in line


def test_an_installation_compares_driver_and_torch(fake_cuda, monkeypatch):
    for name, value in fake_cuda.items():
        monkeypatch.setenv(name, value)
    assert gpu._note() is None
    monkeypatch.setenv("FAKE_DRIVER", "11080")
    built = torch.version.cuda
    assert built is None or f"for CUDA 11.8, and this torch is built for {built}" in str(
        gpu._note()
    )


def test_the_driver_is_asked_without_torch(tmp_path):
    done = without_torch(tmp_path, "-m", "seed=0,1", "model=resnet21")
    assert "there is no such choice" in done.stderr  # the sweep's part that knows of GPUs is loaded


def test_a_hidden_gpu_is_told_of_and_a_given_one_is_insisted_on(monkeypatch):
    monkeypatch.setattr(machine, "usable", lambda: machine.Usable(0, "the mask names none"))
    assert not machine.on_cuda("auto")
    with pytest.raises(UserError, match="the mask names none"):
        machine.on_cuda("gpu")
    monkeypatch.setenv(gpu.GIVEN, "GPU-1")
    with pytest.raises(UserError, match="the mask names none"):
        machine.on_cuda("auto")
    assert not machine.on_cuda("cpu")


def test_predict_takes_the_device_it_is_told(monkeypatch):
    assert machine.named("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="use auto, cpu"):
        machine.named("tpu2")
    with World(gpus=2):
        assert machine.named("auto").type == "cuda"
        assert machine.named("cuda:1").index == 1
        with pytest.raises(UserError, match="there are 2 GPUs"):
            machine.named("cuda:2")


def test_a_failed_jobs_reason_is_its_error(tmp_path):
    from resnet_lab.sweep.ledger import _said_last

    screen = """epoch 1
Error executing job with overrides: ['seed=0']
Traceback (most recent call last):
  File "train.py", line 20, in main
    train(cfg)
RuntimeError: CUDA error: an illegal memory access was encountered
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.

Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.
"""
    said = _said_last(screen.splitlines(keepends=True))
    assert said == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert _said_last(["error: one sentence\n", "\n"]) == "error: one sentence"


MPS = """#!/bin/sh
if [ "$1" = -d ]; then echo started >>"$NOTES"; else echo "$(cat)" >>"$NOTES"; fi
"""
SHARED = """
import sys, time
from pathlib import Path
from resnet_lab.sweep.devices import Devices
from resnet_lab.sweep.local import Local
local = Local(Path("train.py"), (), False, 1.0, Devices(None, 4, ["0"]))
with local._multi_process_service(sys.stderr.fileno()):
    print(sorted(local._environment), flush=True)
    time.sleep(60 if sys.argv[1] == "killed" else 0)
"""


@pytest.mark.parametrize("end", ["killed", "over"])
def test_a_gpus_multi_process_service_ends_with_the_sweep_that_started_it(tmp_path, end):
    control, notes = tmp_path / "nvidia-cuda-mps-control", tmp_path / "notes"
    control.write_text(MPS)
    control.chmod(0o755)
    places = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(notes)}
    sweep = subprocess.Popen(
        [sys.executable, "-c", SHARED, end],
        env=os.environ | places | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sweep.stdout is not None
    assert "CUDA_MPS_PIPE_DIRECTORY" in sweep.stdout.readline()
    if end == "killed":
        sweep.kill()
    sweep.communicate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and list(tmp_path.glob("mps-*")):
        time.sleep(0.05)
    assert notes.read_text().split() == ["started", "quit"]
    assert not list(tmp_path.glob("mps-*"))

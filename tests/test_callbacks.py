"""What the callbacks show is what happened: every figure is worked out again by hand."""

import io
import re
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import rich
import torch
from lab import (
    EXACT,
    QUICK,
    board,
    composed,
    read_csv,
    read_result,
    slow_except,
    train_here,
    train_py,
    weights,
)
from lightning.pytorch import Callback
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_lab import charts
from resnet_lab.board import Board
from resnet_lab.callbacks import confusion_matrix, live_bar, sample_grid, wrong_images
from resnet_lab.callbacks.confusion_matrix import Confusion
from resnet_lab.callbacks.ema import EMA
from resnet_lab.callbacks.epoch_log import seconds_left
from resnet_lab.callbacks.grad_norm import GradNorm, _mean, _norms
from resnet_lab.callbacks.tables import EpochTable
from resnet_lab.config.errors import UserError
from resnet_lab.data import pictures
from resnet_lab.models.parts import parts
from resnet_lab.models.resnet import cifar_resnet
from resnet_lab.report.runs import gradients
from resnet_lab.run import build, checkpoint_io, training

PICTURES = ("confusion_matrix", "samples", "wrong_images", "grad_norm", "curves")


class Shown(NamedTuple):
    """A run with all pictures, and what its grids were given to draw."""

    run_dir: Path
    result: dict[str, Any]
    grids: dict[str, tuple[Tensor, list[str]]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Shown:
    run_dir = tmp_path_factory.mktemp("pictures") / "run"
    grids: dict[str, tuple[Tensor, list[str]]] = {}
    folders = (f"run_dir={run_dir}", f"data.cache_dir={shared_cache}")
    cfg = composed(*QUICK, "callbacks=[default,pictures]", *folders)
    with pytest.MonkeyPatch.context() as patch:
        for module, named in ((sample_grid, "sample_grid"), (wrong_images, "wrong_images")):

            def watched(images, captions, *args, name=named):
                assert name not in grids, "drawn twice"
                grids[name] = images.clone(), captions
                return pictures.pictures(images, captions, *args)

            patch.setattr(module, "pictures", watched)
        return Shown(run_dir, training.train(cfg), grids)


@pytest.fixture
def by_hand(shown: Shown, config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Test images as the net gets them, labels, and the logits of the best checkpoint."""
    parts = build.build(config(*QUICK))
    parts.classifier.load_state_dict(weights(shown.run_dir, "best"))
    data = parts.datamodule
    pixels = torch.tensor(np.asarray(data.source.images("test", 32))).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (data.mean, data.std))
    images = (pixels - mean) / std
    with torch.no_grad():
        return images, torch.tensor(data.source.labels("test")), parts.net.eval()(images)


def test_every_picture_is_in_the_run_folder_and_on_the_board(shown):
    events = board(shown.run_dir / "tensorboard")
    assert set(events.Tags()["images"]) == set(PICTURES)
    for name in PICTURES:
        with Image.open(shown.run_dir / f"{name}.png") as image:
            assert min(image.size) > 300
            drawn = np.asarray(image.convert("RGB"))
        (event,) = events.Images(name)
        with Image.open(io.BytesIO(event.encoded_image_string)) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), drawn)
    stages = {f"grad_norm/{stage}" for stage in ("stem", "stage1", "stage2", "stage3", "head")}
    assert stages <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("grad_norm/stage1")] == [0, 4, 8]


def test_confusions_are_those_of_the_best_checkpoint(shown, by_hand):
    _, labels, logits = by_hand
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels.numpy(), logits.argmax(1).numpy()), 1)
    rows = read_csv(shown.run_dir / "confusion_matrix.csv")
    names = [row["true class"] for row in rows]
    assert names == [str(digit) for digit in range(10)]
    found = np.array([[int(row[name]) for name in names] for row in rows])
    assert (found == expected).all()
    accuracies = expected.diagonal() / expected.sum(axis=1)
    assert [float(row["accuracy"]) for row in rows] == accuracies.tolist()
    per_class = shown.result["test/acc_per_class"]
    assert per_class == dict(zip(names, accuracies.tolist(), strict=True))
    assert read_result(shown.run_dir)["test/acc_per_class"] == per_class
    assert found.trace() / 359 == pytest.approx(shown.result["test/acc"])


def test_a_class_without_test_images_has_no_accuracy(tmp_path):
    confusion = Confusion(["cat", "dog"])
    labels, predicted = torch.tensor([0, 0, -1, 0, 0]), torch.tensor([0, 0, 0, 1, 0])
    confusion.update(F.one_hot(predicted, 2).float(), labels)
    assert confusion.matrix.tolist() == [[3, 1], [0, 0]]
    assert confusion.accuracy_per_class() == {"cat": 0.75, "dog": None}
    confusion.write(tmp_path / "confusion_matrix.csv")
    assert [list(row.values()) for row in read_csv(tmp_path / "confusion_matrix.csv")] == [
        ["cat", "3", "1", "0.75"],
        ["dog", "0", "0", ""],
    ]


@pytest.mark.parametrize("n", [20, 101, *slow_except((), [21, 100])])
def test_a_confusion_matrix_can_be_read_at_any_size(n):
    names = [f"a class with a long name, {i}" for i in range(n)]
    figure = confusion_matrix.draw(np.full((n, n), 1234), names)
    pixels = charts.render(lambda: figure)
    assert 400 < pixels.shape[0] < 3500
    axes = figure.axes[0]
    assert len(axes.texts) == (n * n if n <= 20 else 0)
    labels = [text.get_text() for text in axes.get_yticklabels()]
    if n <= 100:
        assert len(labels) == n
        extents = [t.get_window_extent() for t in axes.get_yticklabels()]
        tops_and_bottoms = sorted((e.y0, e.y1) for e in extents)
        for (_, below), (above, _) in pairwise(tops_and_bottoms):
            assert below < above + 1, "names stand over each other"


def test_the_sample_grid_is_the_first_batch_augmented(shown, config):
    images, captions = shown.grids["sample_grid"]
    data = build.build(config(*QUICK)).datamodule
    batch, labels = data.on_after_batch_transfer(next(iter(data.train_dataloader())))
    assert torch.equal(images, batch[:32])
    assert captions == [str(label) for label in labels[:32].tolist()]


def test_a_grid_shows_the_pixels_that_came_in():
    """The normalisation is undone: colours in the picture are those of the file."""
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    colours = torch.tensor([[0.2, 0.4, 0.6], [1.0, 0.6, 0.0]])
    images = ((colours - torch.tensor(mean)) / torch.tensor(std)).view(2, 3, 1, 1)
    pixels = charts.render(
        lambda: pictures.pictures(images.expand(2, 3, 8, 8), ["one", "two"], "", mean, std)
    )
    for colour in (255 * colours).round().int().tolist():
        assert (abs(pixels.astype(int) - colour) <= 1).all(axis=2).sum() > 5000


def test_the_wrong_images_are_the_surest_mistakes(shown, by_hand):
    images, labels, logits = by_hand
    sure, said = logits.softmax(1).max(1)
    order = [i for i in sure.argsort(descending=True).tolist() if said[i] != labels[i]][:32]
    drawn, captions = shown.grids["wrong_images"]
    torch.testing.assert_close(drawn, images[order], atol=1e-5, rtol=1e-5)
    assert captions == [
        f"{labels[i]},\ntaken for {said[i]}\n({100 * sure[i]:.0f} %)" for i in order
    ]


def test_no_mistake_no_picture(config, monkeypatch):
    def right(self, batch, batch_idx):
        self.score(*batch, "test")
        return 9.0 * F.one_hot(batch[1].clamp(min=0), 10)

    monkeypatch.setattr("resnet_lab.classifier.Classifier.test_step", right)
    cfg = config(*QUICK, "callbacks=[confusion_matrix,wrong_images]", "trainer.max_epochs=1")
    result = training.train(cfg)
    assert not Path(cfg.run_dir, "wrong_images.png").exists()
    assert set(result["test/acc_per_class"].values()) == {1.0}


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("batches", slow_except((2,), (1, 2)))
def test_gradient_norms_before_training_are_those_of_the_first_batch(config, batches):
    cfg = config(
        *QUICK,
        "callbacks=[grad_norm]",
        "trainer.max_epochs=1",
        "trainer.gradient_clip_val=1e-3",
        f"trainer.accumulate_grad_batches={batches}",
    )
    parts = build.build(cfg)
    data, net = parts.datamodule, parts.net.train()
    loader = iter(data.train_dataloader())
    for _ in range(batches):  # the optimizer gets the mean over accumulated batches, not clipped
        images, labels = data.on_after_batch_transfer(next(loader))
        images = images.to(memory_format=torch.channels_last)
        (F.cross_entropy(net(images), labels) / batches).backward()
    expected = [net.stem, *(block for stage in net.stages for block in stage), net.head]

    training.train(cfg)
    rows = read_csv(Path(cfg.run_dir, "grad_norm.csv"))
    assert [row["epoch"] for row in rows] == ["0"] * 5 + ["1"] * 5
    assert [row["block"] for row in rows[:5]] == [
        "stem",
        "stage1.1",
        "stage2.1",
        "stage3.1",
        "head",
    ]
    for row, module in zip(rows[:5], expected, strict=True):
        by_hand = sum(p.grad.square().sum() for p in module.parameters()).sqrt()
        assert float(row["norm"]) == pytest.approx(float(by_hand), rel=1e-4)
        assert int(row["params"]) == sum(p.numel() for p in module.parameters())


def test_an_epoch_is_measured_at_evenly_spaced_steps(config):
    """10 steps, 4 samples: 0, 2, 5 and 7; the figure is their mean."""
    cfg = config(
        *QUICK,
        "callbacks=[grad_norm]",
        "callbacks.grad_norm.samples=4",
        "data.train_size=640",
        "trainer.max_epochs=1",
    )
    parts = build.build(cfg)
    seen = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradient = pl_module.net.head[2].weight.grad, pl_module.net.head[2].bias.grad
            seen.append(torch.cat([g.flatten() for g in gradient]).norm().item())

    parts.trainer.callbacks.append(Watch())
    Path(cfg.run_dir).mkdir()
    parts.trainer.fit(parts.classifier, datamodule=parts.datamodule)
    assert len(seen) == 10
    row = read_csv(Path(cfg.run_dir, "grad_norm.csv"))[-1]
    assert (row["epoch"], row["block"]) == ("1", "head")
    assert float(row["norm"]) == pytest.approx(np.mean([seen[i] for i in (0, 2, 5, 7)]), rel=1e-5)


def test_blocks_follow_depth_and_hold_every_parameter_once():
    net = cifar_resnet(20, num_classes=10, block="preact_basic")
    found = parts(net)
    assert [b.name for b in found] == [
        "stem",
        *(f"stage{s}.{b}" for s in (1, 2, 3) for b in (1, 2, 3)),
        "head",
    ]
    assert [b.stage for b in found[:5]] == ["stem", "stage1", "stage1", "stage1", "stage2"]
    together = [id(p) for b in found for p in b.module.parameters()]
    assert together == [id(p) for p in net.parameters()]


def test_a_net_without_stages_has_its_children_as_blocks():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    net = nn.ModuleDict(
        {"features": layers, "pool": nn.AdaptiveAvgPool2d(1), "fc": nn.Linear(4, 2)}
    )
    assert [(b.stage, b.name) for b in parts(net)] == [("features", "features"), ("fc", "fc")]


def test_frozen_blocks_have_no_gradient_and_overflown_steps_do_not_count(tmp_path):
    callback = GradNorm(str(tmp_path))
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    callback._parts = parts(net)
    net[0].requires_grad_(False)
    for value in (3.0, float("inf"), 5.0):
        net[1].weight.grad = torch.full((1, 1), value)
        callback._measured.append(_norms(callback._parts, torch.device("cpu")))
    assert _mean(torch.stack(callback._measured)) == [0.0, 4.0]


def test_gradients_are_read_back_by_epoch_though_a_line_is_cut_off(shown, tmp_path):
    shutil.copy(shown.run_dir / "grad_norm.csv", tmp_path)
    with (tmp_path / "grad_norm.csv").open("a") as file:
        file.write("3,1,stem")
    found = gradients(tmp_path)
    assert sorted(found) == [0, 1, 2]
    assert [stage for stage, _ in found[0]] == ["stem", "stage1", "stage2", "stage3", "head"]


def test_a_gradient_of_zero_can_be_drawn():
    run = {epoch: [("trunk", 0.0), ("head", 0.5)] for epoch in (0, 1)}
    line = charts.GradientLine("", "#000000", [run])
    figure = charts.gradients([line])
    charts.render(lambda: figure)
    low, high = figure.axes[0].get_ylim()
    assert 0 < low < 0.5 < high  # its axis is logarithmic


# ------------------------------------------------------------------ averages, stopping


class Watch(Callback):
    """The net's weights after every step, and those that each validation saw."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    @staticmethod
    def state(pl_module) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}

    def on_train_start(self, trainer, pl_module):
        self.steps.append(self.state(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == len(self.steps):
            self.steps.append(self.state(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validated.append(self.state(pl_module))


def test_ema_is_its_recurrence_and_is_what_is_validated_saved_and_tested(config):
    cfg = config(
        *QUICK,
        "callbacks=[default,ema]",
        "callbacks.ema.decay=0.4",
        "trainer.accumulate_grad_batches=2",
        "data.val_size=64",
    )
    parts = build.build(cfg)
    watch = Watch()
    parts.trainer.callbacks.append(watch)
    Path(cfg.run_dir).mkdir()
    parts.trainer.fit(parts.classifier, datamodule=parts.datamodule)
    assert len(watch.steps) == 1 + 4
    assert len(watch.validated) == 2  # one batch an epoch
    averages = []
    for name, average in watch.steps[0].items():
        if name.endswith("num_batches_tracked"):
            continue
        for step in range(1, 5):
            decay = min(0.4, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * watch.steps[step][name]
            averages.append((step, name, average))
    for step, name, average in averages:
        if step in (2, 4):
            torch.testing.assert_close(watch.validated[step // 2 - 1][name], average)
            assert not torch.equal(average, watch.steps[step][name])
        if step == 4:
            last = checkpoint_io.load(Path(cfg.run_dir, "checkpoints", "last.ckpt"))
            torch.testing.assert_close(last["state_dict"][name], average)
            assert torch.equal(last["current_model_state"][name], watch.steps[4][name])
            torch.testing.assert_close(parts.classifier.state_dict()[name], average)
    best = checkpoint_io.load(Path(cfg.run_dir, "checkpoints", "best.ckpt"))
    seen = watch.validated[best["epoch"]]
    for name, weight in best["state_dict"].items():
        assert torch.equal(weight, seen[name]) or name.endswith("num_batches_tracked")


def test_ema_wants_a_decay_below_one():
    with pytest.raises(ValueError, match="below 1"):
        EMA(1.0)


def test_early_stopping_needs_validation(config):
    with pytest.raises(ValueError, match=r"data\.val_size"):
        build.build(config(*QUICK, "callbacks=[default,early_stopping]", "data.val_size=0"))


# ------------------------------------------------------------------ terminal, board, tables


@pytest.mark.parametrize("terminal", slow_except((True,), (True, False)))
def test_the_bar_is_for_terminals_and_stays_below_the_log(
    tmp_path, shared_cache, terminal, monkeypatch
):
    for name, value in {
        "TTY_COMPATIBLE": str(int(terminal)),
        "COLUMNS": "150",
        "TERM": "xterm",
    }.items():
        monkeypatch.setenv(name, value)
    # As in a process of its own, where both consoles begin with this environment.
    fresh = Console(highlight=False, markup=False)
    monkeypatch.setattr(live_bar.console, "__dict__", fresh.__dict__)
    monkeypatch.setattr(rich, "_console", None)
    command = (*QUICK, "callbacks=[default]", f"data.cache_dir={shared_cache}")
    done = train_here(tmp_path, *command, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    for epoch in (1, 2):  # at the start of a line, or of one that has just been cleared
        assert re.search(rf"(\n|\x1b\[2K)epoch   {epoch}/2   train ", done.stdout)
    for shown in ("epoch 1/2", "loss: ", "val acc: ", "images/s: ", "left: ", "Testing"):
        assert (shown in done.stdout) is terminal, shown


def test_the_time_left_is_at_the_pace_of_this_process():
    trainer = SimpleNamespace(
        estimated_stepping_batches=20,
        accumulate_grad_batches=2,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=29)),
    )
    # 30 of 40 batches are done, 20 of them before this process resumed the run.
    assert seconds_left(trainer, seconds=50.0, batches=10) == 50.0
    assert seconds_left(trainer, seconds=0.0, batches=0) is None
    trainer.estimated_stepping_batches = float("inf")
    assert seconds_left(trainer, seconds=50.0, batches=10) is None


def test_the_bar_reads_no_loss_between_two_refreshes(config, monkeypatch):
    monkeypatch.setattr(live_bar, "REFRESH_SECONDS", 3600)
    terminal = Console(force_terminal=True, file=io.StringIO())
    monkeypatch.setattr(live_bar.console, "__dict__", terminal.__dict__)
    read = []

    class Loss(Tensor):
        def __float__(self):
            read.append(self)
            return 0.0

    step = live_bar.LiveBar.on_train_batch_end

    def on_train_batch_end(self, trainer, pl_module, outputs, *args):
        step(self, trainer, pl_module, {"loss": outputs["loss"].as_subclass(Loss)}, *args)

    monkeypatch.setattr(live_bar.LiveBar, "on_train_batch_end", on_train_batch_end)
    parts = build.build(config(*QUICK, "callbacks=[live_bar]", "data.val_size=0"))
    with training.known_warnings():
        parts.trainer.fit(parts.classifier, datamodule=parts.datamodule)
    assert parts.trainer.progress_bar_callback.progress is not None
    assert parts.trainer.global_step == 8
    assert len(read) == 1


def test_a_resumed_board_shows_what_is_written_again_once(tmp_path):
    for step, value in ((None, 1.0), (4, 2.0)):  # begun, and resumed from the fourth step
        logger = Board(str(tmp_path))
        if step is not None:
            logger.resume(step)
        for now in range((step or 0) + 1, 7):
            logger.log_metrics({"train/loss_step": value}, now)
        logger.finalize("success")
    points = [(event.step, event.value) for event in board(tmp_path).Scalars("train/loss_step")]
    assert points == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0)]


def test_a_table_is_replaced_and_no_link_followed(tmp_path, caplog):
    outside = tmp_path / "outside.csv"
    outside.write_text("epoch,figure\n1,one\n2,two\n3,three\n")
    table = EpochTable(tmp_path / "table.csv", ("epoch", "figure"))
    table.path.symlink_to(outside)
    table.resume(2)
    table.add([{"epoch": 3, "figure": "new"}])
    assert outside.read_text().endswith("3,three\n")
    assert not table.path.is_symlink()
    assert table.path.read_text().split() == ["epoch,figure", "1,one", "2,two", "3,new"]
    table.path.write_text("neither\n1\n")
    with pytest.raises(UserError, match="cannot be read"):
        table.resume(2)
    table.path.unlink()
    table.resume(2)
    assert "it lacks epochs 1, 2" in caplog.text
    table.resume(1, [{"epoch": 1, "figure": "known"}, {"epoch": 2, "figure": "later"}])
    assert table.path.read_text().split() == ["epoch,figure", "1,known"]


# ------------------------------------------------------------------ in any run


def test_a_picture_that_fails_costs_no_result(config, monkeypatch, caplog):
    def broken(_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(charts, "render", broken)
    cfg = config(*QUICK, "callbacks=[default,pictures]", "trainer.max_epochs=1")
    result = training.train(cfg)
    assert result["status"] == "finished"
    for name in PICTURES:
        assert f"{name}.png could not be drawn (RuntimeError: no fonts)" in caplog.messages
        assert not Path(cfg.run_dir, f"{name}.png").exists()


@pytest.mark.slow
def test_a_trial_of_one_batch_takes_all_callbacks(config):
    everything = "callbacks=[default,pictures,ema,early_stopping]"
    cfg = config(*QUICK, everything, "trainer.fast_dev_run=true")
    assert training.train(cfg)["status"] == "fast_dev_run"
    assert Path(cfg.run_dir, "samples.png").exists()


@pytest.mark.slow
def test_two_devices_show_what_one_shows(tmp_path, shared_cache):
    for devices in (1, 2):
        done = train_py(
            tmp_path,
            *(*QUICK, *EXACT, "callbacks=[default,pictures,ema,early_stopping]"),
            *(f"data.cache_dir={shared_cache}", f"trainer.devices={devices}"),
            f"hydra.run.dir={devices}",
        )
        assert done.returncode == 0, done.stderr
        assert "could not be drawn" not in done.stdout + done.stderr
    one, two = tmp_path / "1", tmp_path / "2"
    assert sorted(p.name for p in one.glob("*.png")) == sorted(f"{name}.png" for name in PICTURES)
    assert sorted(p.name for p in two.glob("*.png")) == sorted(f"{name}.png" for name in PICTURES)
    assert (one / "confusion_matrix.csv").read_text() == (two / "confusion_matrix.csv").read_text()
    of_one, of_two = (read_csv(folder / "grad_norm.csv") for folder in (one, two))
    assert len(of_one) == len(of_two) == 15
    for a, b in zip(of_one, of_two, strict=True):
        assert float(a["norm"]) == pytest.approx(float(b["norm"]), rel=1e-3)
    drawn = [np.asarray(Image.open(d / "wrong_images.png")).astype(int) for d in (one, two)]
    assert drawn[0].shape == drawn[1].shape
    assert (abs(drawn[0] - drawn[1]) > 8).mean() < 0.01

"""The command `look`: its pictures are the very images that a training sees."""

import importlib
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lab import slow_except
from PIL import Image

from resnet_lab.analysis import look
from resnet_lab.analysis.look import Look, Row
from resnet_lab.analysis.look_picture import KOREAN, Block, draw
from resnet_lab.cli import main
from resnet_lab.config.errors import UserError
from resnet_lab.data.plan import TrainPlan
from resnet_lab.language import translator
from resnet_lab.run import build

SMALL = ("data.train_size=40", "data.batch_size=16")
SPREAD = [index * 40 // 5 for index in range(5)]


def in_epoch(data: build.ImageDataModule, epoch: int) -> None:
    """Attach a trainer that stands at the start of an epoch, as Lightning's does."""
    progress = SimpleNamespace(current=SimpleNamespace(ready=0, processed=epoch))
    loop = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=progress), epoch_progress=progress
    )
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        training=True,
        fit_loop=loop,
        overfit_batches=0,
        global_rank=0,
        world_size=1,
        num_devices=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        lightning_module=None,
    )


def trained(data: build.ImageDataModule, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of an epoch in order, the normalisation undone, [n, h, w, 3], and targets."""
    in_epoch(data, epoch)
    batches = [data.prepare(batch) for batch in data.train_dataloader()]
    images, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1), targets


KINDS = [
    "augment=trivial data.cutout=8",
    "augment=mixup_cutmix data.augment.repeats=2",
    "augment=[rand,color,erasing] data.resize=[[0,16],[1,24],[2,32]]",
    "augment=trivial data.balance=true",
]


@pytest.mark.parametrize("overrides", slow_except(KINDS[:2], KINDS))
def test_columns_are_the_images_of_the_training(config, overrides):
    cfg = config(*SMALL, *overrides.split())
    found = look.rows(build.build_data(cfg), images=5, epochs=3)
    data = build.build_data(cfg)
    data.setup("fit")
    labels = data.train_dataloader().part.labels
    seen = 0
    for epoch in range(3):
        pixels, targets = trained(data, epoch)
        # The plan with other parameters visits the same images, but for those of the config.
        plan = TrainPlan(
            *(40, 16, cfg.seed, epoch),
            repeats=data.augment.repeats,
            labels=labels if data.balance else None,
        )
        order = list(itertools.chain(*(plan.batch(step) for step in range(len(plan)))))
        for index, row in zip(SPREAD, found, strict=True):
            shown = row.epochs[epoch]
            if index not in order:
                assert shown is None
                continue
            place = order.index(index)
            assert shown is not None
            np.testing.assert_allclose(shown.picture, pixels[place].numpy(), atol=1e-6)
            if targets.ndim == 1:
                assert shown.caption == str(int(targets[place])) == row.original.caption
            else:
                share, label = targets[place].max(0)
                assert shown.caption.startswith(f"{float(share):.0%} {int(label)}")
            seen += 1
    assert seen >= 3


def test_the_original_is_not_augmented(config):
    cfg = config(*SMALL, "augment=trivial")
    data = build.build_data(cfg)
    rows = look.rows(data, images=5, epochs=1)
    for index, row in zip(SPREAD, rows, strict=True):
        part = data.train_dataloader().part
        pixels = part.images[part.indices[index]] / 255
        np.testing.assert_allclose(row.original.picture, pixels, atol=1e-6)
        assert row.original.caption == str(part.labels[index])
    with pytest.raises(UserError, match="--images 41: there are 40 training images"):
        look.rows(build.build_data(cfg), images=41, epochs=1)


def test_an_image_of_one_channel_is_shown_in_gray(config):
    data = build.build_data(config(*SMALL, "data.channels=1"))
    (row,) = look.rows(data, images=1, epochs=1)
    assert row.original.picture.shape == (32, 32, 3)


def test_the_picture_says_what_it_shows():
    look_ = Look(np.zeros((4, 4, 3), np.float32), "$\\frac{")
    mixed = Look(look_.picture, "70% a, 30% b", mixed=True)
    blocks = [
        Block("augment=none", [Row(look_, [look_, None])]),
        Block("augment=mixup", [Row(look_, [mixed, mixed])]),
    ]
    figure = draw(blocks, "$x", translator("ko", KOREAN))
    shown = figure.axes[0].texts
    assert not any(text.get_parse_math() for text in shown if "$" in text.get_text())
    texts = [text.get_text() for text in shown]
    assert texts[:3] == ["원본", "1에폭", "2에폭"]
    assert [text for text in texts if text.startswith("augment=")] == [b.label for b in blocks]
    assert texts.count("$\\frac{") == 2  # below the originals alone
    assert texts.count("70% a, 30% b") == 2
    assert texts.count("이 에폭에는\n없음") == 1


def test_the_command_overwrites_nothing(tmp_path: Path, shared_cache: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cache = f"data.cache_dir={shared_cache}"
    arguments = ["look", *SMALL, cache, "augment=none,trivial", "--images", "1", "--versions", "1"]
    assert main([*arguments, "--out", "new/a.png"]) == 0
    with Image.open("new/a.png") as image:
        assert image.format == "PNG"
    assert "written     new/a.png" in capsys.readouterr().out
    command = importlib.import_module("resnet_lab.commands.look")
    first = command._new_file()
    first.parent.mkdir(parents=True)
    first.touch()
    assert command._new_file() != first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "look.jpg"], "--out look.jpg: the picture is a PNG"),
        (["--out", "there.png"], "there.png is there already"),
        (["--images", "0"], "--images 0: must be 1 or more"),
        (["--images", "100"], "These are 800 pictures, too many for one file"),
    ],
)
def test_mistakes_cost_no_time(refused, tmp_path, words, message):
    (tmp_path / "there.png").touch()
    assert message in refused("look", *words)

"""The datamodule under a real trainer: from memory, by workers, resumed, and what it refuses."""

import hashlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lab import QUICK
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from resnet_lab.config.check import check
from resnet_lab.config.errors import UserError
from resnet_lab.data.augment import gray
from resnet_lab.data.batches import InMemory, Streamed
from resnet_lab.data.datamodule import ImageDataModule, resolve
from resnet_lab.data.plan import NOT_COUNTED
from resnet_lab.data.sources import Digits, ImageFolder
from resnet_lab.data.statistics import channel_statistics
from resnet_lab.run import load, training


class Probe(pl.LightningModule):
    """A one-layer net that keeps a digest of every training batch and all evaluation labels."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, num_classes))
        self.seen: list[str] = []
        self.counted: dict[str, int] = {"val": 0, "test": 0}

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.min() >= 0
        data = images.numpy().tobytes() + labels.numpy().tobytes()
        self.seen.append(hashlib.sha256(data).hexdigest()[:8])
        return nn.functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        if not self.trainer.sanity_checking:
            self.counted["val"] += int((batch[1] >= 0).sum())

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.counted["test"] += int((batch[1] >= 0).sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(**options: Any) -> pl.Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**{**quiet, "max_epochs": 2, **options})


def make_folder(root: Path, sizes: list[tuple[int, int]], splits: str = "train test") -> Path:
    """A class "dark" and a class "light" in each split, with a noisy PNG file for each size."""
    rng = np.random.default_rng(0)
    for split in splits.split():
        for name, low in (("dark", 0), ("light", 128)):
            (root / split / name).mkdir(parents=True)
            for i, (width, height) in enumerate(sizes):
                noise = rng.integers(low, low + 128, (height, width, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / split / name / f"{i:02}.png")
    return root


def folder_data(root: Path, **options: Any) -> ImageDataModule:
    cache = str(root.parent / "cache")
    return ImageDataModule(source=ImageFolder(str(root), cache), cache_dir=cache, **options)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "small", [(8, 8)] * 11)


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "varied", [(70, 90), (100, 80), (75, 75), (80, 81), (99, 70)])


def test_digits_train_and_test(tmp_path: Path) -> None:
    data = ImageDataModule(
        source=Digits(str(tmp_path)), batch_size=128, cutout=4, cache_dir=str(tmp_path)
    )
    net = Probe(3 * 32 * 32, 10)
    run = trainer()
    run.fit(net, data)
    run.test(net, data, verbose=False)
    assert (data.n_train, data.n_val, data.n_test) == (1294, 144, 359)
    assert not data.streaming
    assert data.train_batches == 1294 // 128
    assert len(net.seen) == 2 * data.train_batches
    assert len(set(net.seen)) == len(net.seen)
    assert net.counted == {"val": 2 * 144, "test": 359}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on torch's workers
def test_streamed_batches_are_the_same_with_and_without_workers(varied: Path) -> None:
    probes = []
    for workers in (0, 2):
        data = folder_data(varied, batch_size=3, image_size=66, val_size=2, workers=workers)
        net = Probe(3 * 66 * 66, 2)
        run = trainer()
        torch.manual_seed(0)
        before = torch.get_rng_state()
        run.fit(net, data)
        assert torch.equal(torch.get_rng_state(), before)  # the loaders leave it alone
        run.test(net, data, verbose=False)
        assert data.streaming
        assert net.counted == {"val": 4, "test": 10}
        probes.append(net.seen)
    assert len(set(probes[0])) == 2 * (8 // 3)
    assert probes[0] == probes[1]


class SaveEverywhere(pl.Callback):
    """A checkpoint after every step but an epoch's last, and one at the end of every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def test_a_resumed_run_sees_the_rest_of_the_plan(small: Path, tmp_path: Path) -> None:
    def fit(saves: str, resume: Path | None = None, **options: Any) -> list[str]:
        net = Probe(3 * 8 * 8, 2)
        run = trainer(callbacks=[SaveEverywhere(tmp_path / saves)], **options)
        run.fit(net, folder_data(small, batch_size=4, val_size=2), ckpt_path=resume)
        return net.seen

    whole = fit("first")
    assert len(whole) == len(set(whole)) == 10
    for step in range(1, 10):
        assert fit(f"from-{step}", tmp_path / "first" / f"{step}.ckpt") == whole[step:], step
    for first, second in ((1, 2), (2, 5), (3, 7), (5, 6), (5, 8)):  # a resumed run resumed
        checkpoint = tmp_path / f"from-{first}" / f"{second}.ckpt"
        assert fit("again", checkpoint) == whole[second:], (first, second)


def test_another_batch_size_is_no_resume(small: Path, tmp_path: Path) -> None:
    run = trainer(callbacks=[SaveEverywhere(tmp_path)])
    run.fit(Probe(3 * 8 * 8, 2), folder_data(small, batch_size=4))
    with pytest.raises(ValueError, match="batch_size=4 and this run has 5"):
        trainer().fit(
            Probe(3 * 8 * 8, 2), folder_data(small, batch_size=5), ckpt_path=tmp_path / "3.ckpt"
        )


def test_overfitting_a_batch_sees_one_batch(small: Path) -> None:
    net = Probe(3 * 8 * 8, 2)
    trainer(overfit_batches=1, max_epochs=3).fit(net, folder_data(small, batch_size=4))
    assert len(net.seen) == 3
    assert len(set(net.seen)) == 1


class Rank:
    """What the datamodule reads of a trainer that is one of several."""

    training = False

    def __init__(self, global_rank: int, world_size: int) -> None:
        self.global_rank = global_rank
        self.world_size = world_size
        self.strategy = type("Strategy", (), {"root_device": torch.device("cpu")})


def rank_data(folder: Path, rank: int, world_size: int, **options: Any) -> ImageDataModule:
    data = folder_data(folder, **options)
    data.setup("fit")
    data.setup("test")
    data.trainer = Rank(rank, world_size)  # type: ignore[assignment]
    return data


def test_two_devices_see_the_batches_of_one(small: Path) -> None:
    def batches(rank: int, world_size: int) -> list[Any]:
        return list(rank_data(small, rank, world_size, batch_size=4).train_dataloader())

    alone = batches(0, 1)
    assert len(alone) == 5
    for whole, first, second in zip(alone, batches(0, 2), batches(1, 2), strict=True):
        for of_one, a, b in zip(whole, first, second, strict=True):
            assert torch.equal(of_one, torch.cat([a, b]))
    with pytest.raises(ValueError, match="must be a multiple of 3"):
        rank_data(small, 0, 3, batch_size=4).train_dataloader()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_devices_together_test_each_image_once(small: Path, world_size: int) -> None:
    ranks = [rank_data(small, rank, world_size, batch_size=6) for rank in range(world_size)]
    batches = [batch for data in ranks for batch in data.test_dataloader()]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert {len(batch[1]) for batch in batches} == {6}  # whatever the number of devices
    counted = labels != NOT_COUNTED
    assert len(torch.unique(images[counted], dim=0)) == 22
    assert torch.bincount(labels[counted]).tolist() == [11, 11]


def test_statistics_are_those_of_the_training_part(small: Path) -> None:
    data = folder_data(small, batch_size=4, val_size=6)
    data.setup("test")  # evaluation alone needs them, too
    mean, std = data.mean, data.std
    data.setup("fit")
    part = data.train_dataloader()
    assert len(part) == 4
    source = data.source
    pixels = np.array(source.images("train", 8))[data._indices["train"]] / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)))
    assert abs(pixels.mean() - np.array(source.images("train", 8)).mean() / 255) > 1e-6
    images, _ = data.on_after_batch_transfer(next(iter(data.val_dataloader())))
    assert images.shape == (4, 3, 8, 8)

    given = folder_data(small, mean=[0.1, 0.2, 0.3], std=[1, 1, 1], batch_size=4)
    given.setup("fit")
    assert given.mean == [0.1, 0.2, 0.3]


def test_images_kept_on_the_device_make_the_same_batches(small: Path) -> None:
    data = folder_data(small, batch_size=4)
    data.setup("fit")
    part = data._parts["train"]
    assert isinstance(part, InMemory)
    taken = [images for images, *_ in data.train_dataloader()]
    part.move_to(torch.device("cpu"))
    assert part.resident is not None
    kept = [images for images, *_ in data.train_dataloader()]
    assert len(kept) == len(taken) > 1
    assert all(torch.equal(one, other) for one, other in zip(kept, taken, strict=True))


def test_a_channel_without_contrast_does_not_divide_by_zero() -> None:
    mean, std = channel_statistics([np.full((2, 4, 4, 3), 255, np.uint8)])
    assert mean == [1, 1, 1]
    assert std == [1 / 255] * 3


def test_a_bad_test_image_is_known_before_training(small: Path) -> None:
    (small / "test" / "dark" / "00.png").write_bytes(b"damaged")
    data = folder_data(small, batch_size=4)
    with pytest.raises(ValueError, match=r"test/dark/00\.png"):
        data.setup("fit")
    data = folder_data(small, batch_size=4, on_bad_image="skip")
    data.setup("fit")
    assert set(data._parts) == {"train", "val"}
    data.setup("fit")  # again changes nothing
    assert (data.n_train + data.n_val, data.n_test) == (22, 21)


def test_validation_is_cut_or_brought_or_left_out(tmp_path: Path, small: Path) -> None:
    none = folder_data(small, batch_size=4, val_size=0)
    none.setup("fit")
    assert (none.n_train, none.n_val, none.val_dataloader()) == (22, 0, [])
    net = Probe(3 * 8 * 8, 2)
    trainer(max_epochs=1).fit(net, none)
    assert len(net.seen) == 5

    brought = folder_data(
        make_folder(tmp_path / "own", [(8, 8)] * 3, "train val test"), batch_size=4
    )
    brought.setup("fit")
    assert (brought.n_train, brought.n_val) == (6, 6)
    images, labels = next(iter(brought.val_dataloader()))
    assert np.array_equal(images, brought.source.images("val", 8)[:4])
    assert labels.tolist() == [0, 0, 0, 1]


def test_from_memory_or_by_workers_and_at_which_size(small: Path, varied: Path) -> None:
    def way(folder: Path, **options: Any) -> tuple[int, type]:
        data = folder_data(folder, batch_size=2, **options)
        data.setup("fit")
        return data.image_size, type(data._parts["train"])

    assert way(small) == (8, InMemory)
    assert way(small, image_size=64) == (64, InMemory)
    assert way(small, image_size=65) == (65, Streamed)
    assert way(small, memory_limit=22 * 8 * 8 * 3 / 1e9) == (8, InMemory)
    assert way(small, memory_limit=22 * 8 * 8 * 3 / 1e9 - 1e-9) == (8, Streamed)
    assert way(varied, mean=[0, 0, 0], std=[1, 1, 1]) == (224, Streamed)
    assert way(varied, image_size=16) == (16, InMemory)


def test_resolve_checks_and_fills_in(small: Path) -> None:
    source = ImageFolder(str(small), str(small.parent / "cache"))
    assert resolve(source, None, None) == (2, 8)
    assert resolve(source, 2, 48) == (2, 48)
    with pytest.raises(ValueError, match=r"num_classes=10, but the images have 2 classes"):
        resolve(source, 10, None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mean": [0, 0, 0]}, "given together"),
        ({"batch_size": 100}, "the largest possible is 20"),
        ({"train_size": 100}, "is more than the 20 images"),
    ],
)
def test_what_the_data_cannot_give_is_one_sentence(
    small: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        folder_data(small, **options).setup("fit")


# ---------------------------------------------------------------- channels and classes


def test_gray_is_to_the_bit_what_pillow_computes() -> None:
    images = torch.randint(0, 256, (4, 9, 7, 3), dtype=torch.uint8)
    expected = [np.asarray(Image.fromarray(image.numpy()).convert("L")) for image in images]
    assert torch.equal(gray(images)[..., 0], torch.from_numpy(np.stack(expected)))


def test_a_net_of_one_channel_gets_gray_images_with_statistics_of_their_own(config) -> None:
    cfg = config(*QUICK, "data.channels=1")
    assert OmegaConf.to_container(cfg.model, resolve=True)["in_channels"] == 1
    result = training.train(cfg)
    assert result["status"] == "finished"
    run = load.load_run(Path(cfg.run_dir))
    run.datamodule.setup("test")
    images, _ = run.datamodule.on_after_batch_transfer(next(iter(run.datamodule.test_dataloader())))
    assert images.shape[1:] == (1, 32, 32)
    assert abs(float(images.mean())) < 0.1
    assert float(images.std()) == pytest.approx(1, abs=0.1)


def test_channels_that_do_not_fit_and_a_single_class_are_one_sentence(config, tmp_path) -> None:
    with pytest.raises(UserError, match=r"model\.in_channels=1: the images have 3"):
        check(config("model.in_channels=1"))
    with pytest.raises(UserError, match=r"data\.channels=1: this net takes images of 3"):
        check(config("model=textbook_cnn", "data.channels=1"))
    with pytest.raises(UserError, match=r"data\.mean has 3 numbers for 1 channels"):
        check(config("data.channels=1", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5]"))
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(tmp_path / split / "cat" / f"{i}.png")
    source = ImageFolder(str(tmp_path), str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"of one class alone \(cat\)"):
        ImageDataModule(source=source, val_size=1).setup("fit")
    for split in ("train", "test"):
        (tmp_path / split / "dog").mkdir()
        for name, i in (("cat", 3), ("dog", 3), ("dog", 4), ("dog", 5)):
            Image.new("RGB", (1, 1)).save(tmp_path / split / name / f"{i}.png")
        for i in range(3):
            (tmp_path / split / "cat" / f"{i}.png").unlink()
    source = ImageFolder(str(tmp_path), str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"1 x 1 pixels, too few .* data\.image_size=32"):
        ImageDataModule(source=source, val_size=1).setup("fit")

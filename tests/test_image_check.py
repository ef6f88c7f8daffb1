"""What is wrong with an image folder is found before training, and nothing else is."""

import io
import logging
import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from resnet_lab.config.errors import UserError
from resnet_lab.data import decode
from resnet_lab.data.batches import Batches
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.data.inspect import Inspection, examine, inspect_folder
from resnet_lab.data.sources import ImageFolder
from resnet_lab.data.sources.protocol import Make
from resnet_lab.run import predict
from resnet_lab.run.training import plain_errors

CLASSES = ("ant", "cat", "dog")

rng = np.random.default_rng(0)


def noise(side: int = 24) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three splits of three classes with twelve files each, in the kinds that are common."""
    for split in ("train", "val", "test"):
        for name in CLASSES:
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(12):
                kind = ("png", "jpg", "webp", "bmp")[i % 4]
                noise().save(folder / f"{i:02}.{kind}")
    return tmp_path / "photos"


def inspect(root: Path, on_bad_image: str = "error", most: int | None = None) -> Inspection:
    return inspect_folder(ImageFolder(str(root), str(root.parent / "cache")), on_bad_image, most)


def listed(source: ImageFolder) -> set[str]:
    return {
        source.describe(split, i)
        for split in source.splits
        for i in range(len(source.labels(split)))
    }


def findings(root: Path) -> list[str]:
    (path,) = (root.parent / "cache").glob("imagefolder-findings-*.txt")
    return path.read_text().splitlines()


# ------------------------------------------------------------------ faults of every kind


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG (ISO 15948) whose header may declare what its data does not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def contents() -> dict[str, tuple[bytes, str]]:
    """Name of a file -> what is in it, and a word of the reason that it must be refused for."""
    of_png, of_jpeg = encoded(noise(), "PNG"), encoded(noise(200), "JPEG")
    of_webp, of_bmp = encoded(noise(), "WEBP"), encoded(noise(), "BMP")
    of_gif, of_tiff = encoded(noise(200), "GIF"), encoded(noise(), "TIFF")
    return {
        "zero.png": (b"", "the file is empty"),
        "half.png": (of_png[: len(of_png) // 2], "truncated"),
        "half.jpg": (of_jpeg[: len(of_jpeg) // 2], "truncated"),
        "half.webp": (of_webp[: len(of_webp) // 2], "decoder"),
        "half.bmp": (of_bmp[: len(of_bmp) // 2], "truncated"),
        "half.gif": (of_gif[: len(of_gif) // 2], "truncated"),
        "half.tif": (of_tiff[: len(of_tiff) // 2], "truncated"),
        "header.jpg": (of_jpeg[:20], "no image"),
        "crc.png": (flipped(of_png, len(of_png) // 2), "broken"),
        "page.jpg": (b"<!DOCTYPE html><html>404</html>", "no image"),
        "letter.png": (b"Dear dog, ...", "no image"),
        "zeros.jpg": (bytes(5000), "no image"),
        "bomb.png": (png(50_000, 50_000), "too many pixels (50000 x 50000"),
        "floats.tif": (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "floats of unknown range"),
        "deep.tif": (encoded(Image.new("I", (8, 8), 70_000), "TIFF"), "beyond 16 bits"),
        "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
    }


def plant(root: Path) -> dict[str, str]:
    """Put faults of every kind into a clean folder: path -> a word of the reason."""
    expected = {}
    for i, (name, (content, why)) in enumerate(contents().items()):
        path = f"{('train', 'val', 'test')[i % 3]}/{CLASSES[i % 2]}/{name}"
        (root / path).write_bytes(content)
        expected[path] = why
    cat = root / "train" / "cat"
    for name, target, why in (
        ("nothing.png", "gone.png", "a link to nothing"),
        ("circle.png", "circle.png", "a link that leads nowhere"),
        ("above.png", "..", "a link in a loop"),
    ):
        (cat / name).symlink_to(target)
        expected[f"train/cat/{name}"] = why
    os.mkfifo(cat / "pipe.png")
    expected["train/cat/pipe.png"] = "no regular file"
    return expected


def add_what_is_no_fault(root: Path) -> None:
    """Files that are good images, or that are not looked at."""
    dog = root / "train" / "dog"
    for mode in ("L", "LA", "1", "P", "RGBA", "I;16"):
        Image.new(mode, (9, 9)).save(dog / f"mode {mode[0]}{len(mode)}.PNG")
    Image.new("CMYK", (9, 9)).save(dog / "print.Jpeg")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(dog / "turned.jpg", exif=exif)
    noise().save(dog / "moving.gif", save_all=True, append_images=[noise()])
    noise(600).save(dog / "large.jpg")
    noise().save(dog / "ümlaut und Leerzeichen.png")
    (dog / "same root.png").symlink_to("../cat/00.png")
    for split in ("train", "test"):
        for name in ("._00.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg"):
            (root / split / "cat" / name).write_bytes(b"no image")
        for name in (".ipynb_checkpoints", "__MACOSX"):
            for folder in (root / split / name, root / split / "cat" / name):
                folder.mkdir()
                (folder / "00-checkpoint.png").write_bytes(b"no image")


def test_every_planted_fault_is_found_with_its_reason_and_nothing_else(photos: Path) -> None:
    add_what_is_no_fault(photos)
    good = listed(inspect(photos).source)
    assert len(good) == 3 * 36 + 12
    expected = plant(photos)
    assert len(expected) == 20
    with pytest.raises(ValueError, match=r"holds 20 bad images; remove .*on_bad_image=skip") as e:
        inspect(photos)
    lines = str(e.value).splitlines()
    assert len(lines) == 1 + 20
    found = dict(line.split(": ", 1) for line in findings(photos))
    assert set(found) == set(expected)
    for path, why in expected.items():
        assert why in found[path], path
    assert set(lines[1:]) == {f"  {path}: {why}" for path, why in found.items()}

    skipped = inspect(photos, "skip")
    assert listed(skipped.source) == good
    ((level, message),) = [m for m in skipped.messages if "bad images" in m[1]]
    assert level == logging.WARNING
    assert message.startswith("20 bad images left out (")
    assert "1: it is no regular file" in message
    assert "1: the file is empty" in message
    assert "imagefolder-findings-" in message


def test_other_kinds_than_the_names_say_are_reported_and_used(photos: Path) -> None:
    (photos / "train/cat/really.png").write_bytes(encoded(noise(), "JPEG"))
    (photos / "test/cat/really.jpg").write_bytes(encoded(noise(), "PNG"))
    checked = inspect(photos)
    assert {"train/cat/really.png", "test/cat/really.jpg"} <= listed(checked.source)
    ((_, message),) = checked.messages
    assert "2 images used under a wrong extension (train/cat/really.png: JPEG" in message
    assert findings(photos) == [
        "train/cat/really.png: JPEG and not PNG",
        "test/cat/really.jpg: PNG and not JPEG",
    ]


def test_files_that_two_splits_share_are_counted(photos: Path) -> None:
    for path, twin in (
        ("train/cat/00.png", "test/dog/twin.png"),
        ("train/cat/01.jpg", "test/cat/twin.jpg"),
        ("val/ant/02.webp", "test/ant/twin.webp"),
        ("train/cat/04.png", "train/cat/twin.png"),  # within a split it is no leak
    ):
        (photos / twin).write_bytes((photos / path).read_bytes())
    checked = inspect(photos)
    assert len(listed(checked.source)) == 112
    assert [level for level, _ in checked.messages] == [logging.WARNING] * 2
    of_train, of_val = (message for _, message in checked.messages)
    assert of_train.startswith("2 images of test found in train, too, byte for byte (test/")
    assert of_val.startswith("1 image of test found in val, too")
    assert sorted(findings(photos)) == [
        "test/ant/twin.webp = val/ant/02.webp",
        "test/cat/twin.jpg = train/cat/01.jpg",
        "test/dog/twin.png = train/cat/00.png",
    ]


# ------------------------------------------------------------------ folders at fault


def emptied(root: Path) -> None:
    for path in (root / "test" / "dog").iterdir():
        path.unlink()


def all_zero(root: Path) -> None:
    for path in (root / "test" / "dog").iterdir():
        path.write_bytes(b"")


def all_torn(root: Path) -> None:
    for path in (root / "test" / "dog").iterdir():
        path.write_bytes(b"torn")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda root: (root / "val/bee").symlink_to("gone"), r"val/bee: a link to nothing"),
        (lambda root: (root / "val/bee").symlink_to("bee"), r"val/bee: a link that leads nowhere"),
        (lambda root: (root / "train/bee").symlink_to("."), r"train/bee: a link in a loop"),
        (lambda root: (root / "test/bee").symlink_to(".."), r"test/bee: a link in a loop"),
        (emptied, r"test/dog: holds no image \(\.jpg"),
        (all_zero, r"test/dog: holds no good image \(12 bad\)"),
        (all_torn, r"test/dog: holds no good image \(12 bad\)"),
    ],
)
def test_a_folder_at_fault_is_named_and_never_skipped(
    photos: Path, harm: Callable[[Path], None], sentence: str
) -> None:
    harm(photos)
    with pytest.raises(UserError, match=sentence) as error:
        listed(inspect(photos, "skip").source)
    assert "\n" not in str(error.value)


def test_links_into_a_store_are_followed_and_folders_below_a_class_are_read(
    photos: Path,
) -> None:
    """As git-annex, DVC and `ln -s` leave them: files, classes, splits."""
    before = {
        split: np.array(inspect(photos).source.images(split, 24)) for split in ("train", "test")
    }
    store = photos.parent / "store"
    store.mkdir()
    for number, path in enumerate(sorted((photos / "train" / "cat").iterdir())):
        path.rename(store / f"{number}.object")
        path.symlink_to(store / f"{number}.object")
    (photos / "train" / "dog").rename(store / "dog")
    (photos / "train" / "dog").symlink_to(store / "dog")
    (photos / "test").rename(store / "test")
    (photos / "test").symlink_to(store / "test")
    (store / "test" / "ant" / "more").mkdir()
    (store / "test" / "ant" / "11.bmp").rename(store / "test" / "ant" / "more" / "11.bmp")
    for split, images in before.items():
        np.testing.assert_array_equal(inspect(photos).source.images(split, 24), images)
    (store / "dog" / "back").symlink_to(store / "other")
    (store / "other").mkdir()
    (store / "other" / "forth").symlink_to(store / "dog")
    (store / "dog" / "gone.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"2 bad images") as error:
        inspect(photos)
    assert "train/dog/back/forth: a link in a loop" in str(error.value)
    assert "train/dog/gone.png: a link to nothing" in str(error.value)


def test_imagenet_as_it_is_handed_out_and_folders_without_a_test(photos: Path) -> None:
    shutil.rmtree(photos / "test")
    cache = str(photos.parent / "cache")

    def data(test_split: str = "test", **options: Any) -> ImageDataModule:
        source = ImageFolder(str(photos), cache, test_split=test_split)
        made = ImageDataModule(source=source, cache_dir=cache, batch_size=4, **options)
        made.setup("fit")
        made.setup("test")
        return made

    imagenet = data("val", val_size=6)
    assert (imagenet.n_train, imagenet.n_val, imagenet.n_test) == (30, 6, 36)
    with pytest.raises(UserError, match=r"no test images .*test_size=0\.1.*test_split=val"):
        data()
    (photos / "test").mkdir()  # empty: as if it were not there
    cut, other = data(test_size=9, seed=1), data(test_size=9, seed=2, val_size=3)
    assert (cut.n_train, cut.n_val, cut.n_test) == (27, 36, 9)
    np.testing.assert_array_equal(cut._indices["test"], other._indices["test"])
    shutil.rmtree(photos / "val")
    (photos / "val").mkdir()
    three = data(test_size=9, val_size=6)
    assert (three.n_train, three.n_val, three.n_test) == (21, 6, 9)
    together = np.concatenate(list(three._indices.values()))
    assert sorted(together.tolist()) == list(range(36))
    labels = torch.cat([batch[1] for batch in three.test_dataloader()])
    assert sorted(labels[labels >= 0].tolist()) == [0] * 3 + [1] * 3 + [2] * 3


def test_every_kind_that_pillow_opens_by_its_content_is_taken(photos: Path, caplog: Any) -> None:
    dog = photos / "train" / "dog"
    for name, kind in (
        ("a.jpe", "JPEG"),
        ("a.jfif", "JPEG"),
        ("a.avif", "AVIF"),
        ("a.jp2", "JPEG2000"),
    ):
        (dog / name).write_bytes(encoded(noise(), kind))
    for name in ("notes.txt", "more.txt", "README"):
        (dog / name).write_text("no image")
    checked = inspect(photos)
    assert len(checked.source.labels("train")) == 36 + 4
    ((level, line),) = checked.messages
    assert level == logging.INFO
    assert line == "3 files of train are no images by their names (.txt 2, none 1)"


def test_the_root_may_be_a_link_and_names_may_differ_in_case_only(photos: Path) -> None:
    for split in ("train", "val", "test"):
        (photos / split / "Cat").mkdir()
        noise().save(photos / split / "Cat" / "00.png")
    link = photos.parent / "link"
    link.symlink_to(photos)
    checked = inspect(link)
    assert checked.source.class_names == ["Cat", "ant", "cat", "dog"]
    assert not checked.messages


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of a user whom permissions hold for; root, whom none does, becomes that user."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid():
            yield Path(folder)
            return
        os.chown(folder, 65534, 65534)
        os.setresuid(65534, 65534, 0)
        try:
            yield Path(folder)
        finally:
            os.setresuid(0, 0, 0)


def test_a_cache_of_somebody_else_is_used_or_refused_in_a_sentence(as_nobody: Path) -> None:
    root, cache = as_nobody / "photos", as_nobody / "cache"
    for split in ("train", "test"):
        for name in ("ant", "cat"):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                noise().save(root / split / name / f"{i}.png")
    (root / "train" / "cat" / "3.png").write_bytes(b"torn")
    before = np.array(inspect(root, "skip").source.images("train", 24))
    folders = [cache, *(path for path in cache.iterdir() if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    np.testing.assert_array_equal(inspect(root, "skip").source.images("train", 24), before)
    next(cache.glob("imagefolder-findings-*")).chmod(0o400)
    assert len(inspect(root, "skip").messages) == 1
    for allowed in (0o000, 0o500):  # the whole cache, or its entries
        for folder in folders[1:]:
            folder.chmod(0o000)
        cache.chmod(allowed)
        with pytest.raises(UserError, match=r"cannot write the image cache .*Permission denied"):
            inspect(root, "skip")
        cache.chmod(0o700)
    for folder in folders:
        folder.chmod(0o700)


def test_files_and_folders_that_may_not_be_read_are_named(as_nobody: Path) -> None:
    root = as_nobody / "photos"
    for split in ("train", "test"):
        for name in ("ant", "cat"):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                noise().save(root / split / name / f"{i}.png")
    secret = root / "train" / "cat" / "1.png"
    secret.chmod(0)
    with pytest.raises(
        ValueError, match=r"1 bad image;(.|\n)*train/cat/1\.png: it may not be read"
    ):
        inspect(root)
    assert len(listed(inspect(root, "skip").source)) == 11
    secret.chmod(0o600)  # neither size nor mtime changes, and yet:
    assert len(listed(inspect(root).source)) == 12
    for folder in (root / "test" / "cat", root / "test"):
        folder.chmod(0)
        with pytest.raises(ValueError, match=rf"{folder}: Permission denied"):
            inspect(root, "skip")
        folder.chmod(0o700)


# ------------------------------------------------------------------ remembered, and not twice


def count_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened = []

    def counting(path: str) -> Image.Image:
        opened.append(str(path))
        return decode.open_image(path)

    monkeypatch.setattr("resnet_lab.data.inspect.open_image", counting)
    monkeypatch.setattr("resnet_lab.data.sources.folder.open_image", counting)
    return opened


def test_a_split_is_read_once_and_again_when_a_file_changes(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = count_opened(monkeypatch)
    first = inspect(photos)
    assert len(opened) == 3 * (36 + 1)  # and one of each split for its size
    for split in first.source.splits:  # what the check decoded is not decoded again
        assert first.source.images(split, 24).shape == (36, 24, 24, 3)
    assert first.source.own_size == 24
    assert len(opened) == 3 * (36 + 1)
    pixels = np.array(first.source.images("test", 24))

    opened.clear()
    assert inspect(photos).messages == first.messages
    assert opened == []

    path = photos / "test" / "cat" / "04.png"
    noise().save(path)
    os.utime(path, ns=(0, 1))
    again = inspect(photos).source
    assert len(opened) == 36 + 1
    assert all("/test/" in name for name in opened)
    changed = np.array(again.images("test", 24)) != pixels
    assert np.flatnonzero(changed.any(axis=(1, 2, 3))).tolist() == [12 + 4]

    path.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"test/cat/04\.png: its content is no image"):
        inspect(photos)


def test_pixels_of_the_check_are_those_of_the_source(photos: Path) -> None:
    from_check = inspect(photos).source.images("train", 24)
    alone = ImageFolder(str(photos), str(photos.parent / "other")).images("train", 24)
    np.testing.assert_array_equal(from_check, alone)


def test_of_a_large_set_a_sample_is_read_whole(photos: Path) -> None:
    (photos / "train" / "cat" / "01.jpg").write_bytes(b"")  # known without opening it
    (photos / "train" / "cat" / "02.webp").write_bytes(b"torn")  # not in the sample
    with pytest.raises(
        ValueError, match=r"holds 1 bad image;(.|\n)*cat/01\.jpg: the file is empty"
    ):
        inspect(photos, most=7)
    checked = inspect(photos, "skip", most=7)
    assert "7 of the 35 images of train were checked" in checked.messages[0][1]
    assert "train/cat/02.webp" in listed(checked.source)
    assert "train/cat/02.webp" not in listed(inspect(photos, "skip").source)
    assert inspect(photos, "skip", most=0).source.fingerprint("val")


def test_the_datamodule_counts_what_is_left_and_says_so(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plant(photos)

    def data(**options: Any) -> ImageDataModule:
        cache = str(photos.parent / "cache")
        source = ImageFolder(str(photos), cache)
        return ImageDataModule(source=source, cache_dir=cache, batch_size=4, **options)

    with pytest.raises(ValueError, match="holds 20 bad images"):
        data().setup("fit")
    first, second = data(on_bad_image="skip"), data(on_bad_image="skip")
    with caplog.at_level(logging.INFO):
        first.setup("fit")
    lines = [record.getMessage() for record in caplog.records]
    assert sum("20 bad images left out" in line for line in lines) == 1
    second.setup("fit")
    assert (first.n_train, first.n_val, first.n_test) == (36, 36, 36)
    pairs = zip(first.train_dataloader(), second.train_dataloader(), strict=True)
    assert all(torch.equal(one[0], other[0]) for one, other in pairs)


# ------------------------------------------------------------------ bombs


def test_a_bomb_is_refused_by_its_header_whoever_opens_it(tmp_path: Path) -> None:
    side = int(decode.MOST_PIXELS**0.5) + 1
    for split in ("train", "test"):
        (tmp_path / "photos" / split / "cat").mkdir(parents=True)
        noise().save(tmp_path / "photos" / split / "cat" / "0.png")
    bomb = tmp_path / "photos" / "train" / "cat" / "bomb.png"
    bomb.write_bytes(png(side, side))
    source = ImageFolder(str(tmp_path / "photos"), str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"bomb\.png: it declares too many pixels"):
        source.read("train", 1)
    with pytest.raises(ValueError, match=r"bomb\.png: it declares too many pixels"):
        inspect_folder(source, "error", None)
    (broken,) = examine(source)["broken"]
    assert broken["reason"].startswith("it declares too many pixels")
    picture = predict._decode(bomb, 32, True)
    assert picture.error is not None
    assert picture.error.startswith("it declares too many pixels")
    bomb.write_bytes(png(side - 1, side - 1))  # at the limit it is opened, and is truncated
    with pytest.raises(ValueError, match="truncated"):
        source.read("train", 1)


def test_refusing_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    # A real one: 2.5 billion black pixels in 36 MB of zeros, each row deflated a thousandfold.
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(50_000, 50_000, bytes(150_001) * 300))
    assert bomb.stat().st_size < 100_000
    program = """
import resource, sys
from resnet_lab.data.decode import open_image, to_rgb
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try:
    to_rgb(open_image(sys.argv[1]))
except ValueError as error:
    assert "too many pixels" in str(error)
    print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(bomb)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 10_000  # KiB, where the picture would take 7.5 GB


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="no regular file"):
        decode.open_image(tmp_path / "pipe.png")


# ------------------------------------------------------------------ workers


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return batch[0].mean() * self.weight

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def streamed(root: Path, **options: Any) -> ImageDataModule:
    """The folder's images, decoded by workers."""
    cache = str(root.parent / "cache")
    grey = {"mean": [0.5] * 3, "std": [0.5] * 3}
    return ImageDataModule(
        source=ImageFolder(str(root), cache),
        cache_dir=cache,
        batch_size=4,
        image_size=65,
        **({"workers": 2} | grey | options),
    )


def stream(root: Path, net: pl.LightningModule | None = None, **options: Any) -> None:
    """An epoch of training on them."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net or Net(), streamed(root, **options))


FORK = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12
TREESPEC = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6
LOST = r"^a worker that decodes images died or hangs \(.*\); look at the memory left \(fewer"


@FORK
@TREESPEC
@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGKILL), id="killed"),
        pytest.param(lambda: os._exit(3), id="gone"),
        pytest.param(lambda: time.sleep(600), id="hanging", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_or_hangs_is_one_sentence(
    photos: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[], None]
) -> None:
    read = ImageFolder.read

    def harmful(self: ImageFolder, split: str, index: int, make: Make) -> Image.Image:
        if self.describe(split, index) == "train/cat/05.jpg":
            harm()
        return read(self, split, index, make)

    monkeypatch.setattr(ImageFolder, "read", harmful)  # workers are forks, and have it, too
    with pytest.raises(UserError, match=LOST) as error:
        stream(photos, worker_timeout=2)
    assert "\n" not in str(error.value)


class Executioner(Net):
    """A net in whose first step a worker is killed, while this process computes."""

    where = "nowhere"

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        children = multiprocessing.active_children()
        assert len(children) == 2
        assert children[0].pid is not None
        os.kill(children[0].pid, signal.SIGKILL)
        self.where = "in the step"
        time.sleep(20)
        self.where = "behind it"
        return super().training_step(batch)


@FORK
@TREESPEC
def test_a_worker_that_dies_in_the_middle_of_a_step_is_one_sentence(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch sets its signal handler once in a process, and Lightning takes it away after a fit: let
    # this be the first one.
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    net = Executioner()
    cfg = OmegaConf.create({"data": {"batch_size": 4}})
    with pytest.raises(UserError, match=LOST) as error, plain_errors(cfg):
        stream(photos, net)
    assert net.where == "in the step"
    assert "Killed" in str(error.value)
    assert "\n" not in str(error.value)
    assert multiprocessing.active_children() == []


@FORK
@TREESPEC
def test_a_bad_image_in_a_worker_is_one_sentence(photos: Path) -> None:
    (photos / "train" / "cat" / "05.jpg").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"^cannot read .*train/cat/05\.jpg: its content") as error:
        stream(photos, check=0)  # as of a sample that it is not in
    assert "\n" not in str(error.value)
    assert "data.check=null" in str(error.value)
    assert multiprocessing.active_children() == []


@FORK
@TREESPEC
def test_workers_are_gone_when_training_ends(photos: Path) -> None:
    stream(photos)
    assert multiprocessing.active_children() == []


@FORK
def test_an_error_of_a_sources_own_code_keeps_its_name_and_traceback(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*arguments: Any) -> Image.Image:
        raise OSError("no such shelf")

    monkeypatch.setattr(ImageFolder, "read", faulty)
    data = streamed(photos, workers=1)
    data.setup("fit")
    loader = data.train_dataloader()
    assert isinstance(loader, Batches)
    with pytest.raises(OSError, match=r"(?s)in faulty.*no such shelf"):
        next(iter(loader))
    loader.close()


# ------------------------------------------------------------------ names from anybody


def test_names_are_shown_without_what_acts_on_a_terminal(photos: Path) -> None:
    for split in ("train", "val", "test"):
        (photos / split / "cat").rename(photos / split / "c\x1b[31m")
    strange = photos / "train" / "c\x1b[31m" / "0\n0.png"
    strange.write_bytes(b"torn")
    os.rename(photos / "train" / "dog" / "00.png", os.fsencode(photos) + b"/train/dog/\xff.png")
    with pytest.raises(UserError, match=r"1 bad image") as error:
        inspect(photos)
    assert r"train/c\x1b[31m/0\n0.png: its content is no image" in str(error.value)
    assert "\x1b" not in str(error.value)
    assert findings(photos)[0].startswith(r"train/c\x1b[31m/0\n0.png: ")
    source = inspect(photos, "skip").source
    assert source.class_names == ["ant", r"c\x1b[31m", "dog"]
    assert len(source.labels("train")) == 36
    assert source.images("train", 24).shape == (36, 24, 24, 3)  # opened by their own names
    assert r"train/dog/\udcff.png" in listed(source)
    assert examine(source)["splits"]["train"]["broken"] == 1
    strange.unlink()
    strange.symlink_to("..")
    with pytest.raises(UserError, match=r"0\\n0\.png: a link in a loop"):
        inspect(photos)


def test_a_class_may_be_written_in_both_forms_of_unicode(photos: Path) -> None:
    """Hangul from macOS in one split, from Linux in the other."""
    for split, form in (("train", "NFD"), ("val", "NFC"), ("test", "NFC")):
        name = unicodedata.normalize(form, "강아지")
        (photos / split / "cat").rename(photos / split / name)
    source = inspect(photos).source
    assert source.class_names == ["ant", "dog", unicodedata.normalize("NFC", "강아지")]
    assert [len(source.labels(split)) for split in source.splits] == [36, 36, 36]
    assert examine(source)["splits"]["train"]["classes"]["강아지"] == 12


def test_class_folders_that_look_the_same_are_refused(photos: Path) -> None:
    for name in ("a\x07b", r"a\x07b"):
        for split in ("train", "val", "test"):
            (photos / split / name).mkdir()
            noise().save(photos / split / name / "0.png")
    with pytest.raises(UserError, match=r"2 folders of .*train are a\\x07b on a screen"):
        inspect(photos)


# ------------------------------------------------------------------ real photographs


@pytest.mark.faults
def test_sixty_thousand_real_files_give_no_alarm(
    cifar10_jpeg: Path, figure: Callable[[str, str], None]
) -> None:
    root = cifar10_jpeg / "cifar10-jpeg"

    def timed() -> float:
        began = time.monotonic()
        checked = inspect(root)
        assert checked.source.images("train", 32).shape == (50_000, 32, 32, 3)
        assert checked.source.images("test", 32).shape == (10_000, 32, 32, 3)
        assert checked.messages == []
        return time.monotonic() - began

    first, second = timed(), timed()
    figure("clean CIFAR-10 JPEG files", "60,000 checked, 0 called bad")
    figure("their check with decoding", f"{first:.1f} s; remembered, {second:.1f} s")

    expected = set()
    kinds = list(contents().items())
    for i in range(320):
        name, (content, _) = kinds[i % len(kinds)]
        path = f"train/{('cat', 'dog', 'ship', 'frog')[i % 4]}/planted {i} {name}"
        (root / path).write_bytes(content)
        expected.add(path)
    try:
        with pytest.raises(ValueError, match="holds 320 bad images"):
            inspect(root)
    finally:
        for path in expected:
            (root / path).unlink()
    assert {line.split(": ", 1)[0] for line in findings(root)} == expected
    figure("bad images planted among them", "320 of 320 found, 0 others")

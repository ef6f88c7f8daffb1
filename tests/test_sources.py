"""Sources: what they read, what they refuse, and the cache beneath them."""

import hashlib
import io
import json
import logging
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import urllib.error
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_lab.config.errors import UserError
from resnet_lab.data.cache import cached
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.data.decode import fit, open_image, random_resized_crop, to_rgb
from resnet_lab.data.sources import CIFAR10, CIFAR100, Digits, ImageFolder
from resnet_lab.data.sources.protocol import Make
from resnet_lab.files import CACHE_TAG, is_cache_folder


def make_folder(root: Path, splits: dict[str, dict[str, int]], side: int = 8) -> Path:
    """PNG files of one colour each: split -> class -> how many."""
    for s, (split, classes) in enumerate(splits.items()):
        for c, (name, count) in enumerate(classes.items()):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (side, side), (60 * s, 60 * c, 10 * i))
                image.save(root / split / name / f"{i:03}.png")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(
        tmp_path / "images", {"train": {"cat": 3, "ant": 2}, "test": {"cat": 1, "ant": 2}}
    )


def open_folder(folder: Path) -> ImageFolder:
    return ImageFolder(str(folder), str(folder.parent / "cache"))


# ---------------------------------------------------------------- decoding


def rgb(image: Image.Image) -> list[list[int]]:
    """The distinct colours, after a round trip that keeps mode and info, through `to_rgb`."""
    result = to_rgb(image)
    assert result.mode == "RGB"
    return np.unique(np.asarray(result).reshape(-1, 3), axis=0).tolist()


def through(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return Image.open(file)


def test_grey_bilevel_and_cmyk() -> None:
    assert rgb(through(Image.new("L", (4, 4), 77), "PNG")) == [[77, 77, 77]]
    assert rgb(through(Image.new("1", (4, 4), 1), "PNG")) == [[255, 255, 255]]
    for kind in ("TIFF", "JPEG"):
        red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
        assert rgb(through(red, kind)) == [[255, 0, 0]]


def test_transparency_lies_over_white() -> None:
    assert rgb(through(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG")) == [[255, 255, 255]]
    assert rgb(through(Image.new("RGBA", (4, 4), (10, 20, 30, 255)), "PNG")) == [[10, 20, 30]]
    assert rgb(through(Image.new("LA", (4, 4), (0, 0)), "PNG")) == [[255, 255, 255]]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([1, 2, 3, 40, 50, 60])
    assert rgb(through(palette, "PNG")) == [[40, 50, 60]]
    assert rgb(through(palette, "PNG", transparency=1)) == [[255, 255, 255]]
    assert rgb(through(palette, "PNG", transparency=bytes([0, 255]))) == [[40, 50, 60]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(kind: str) -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    image = to_rgb(through(Image.fromarray(values), kind))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 100, 255]


# Where an upright picture's top left corner is stored under each orientation, as (row, column) of
# corners, and whether its width and height are exchanged: EXIF 2.32, tag 0x0112.
@pytest.mark.parametrize(
    ("orientation", "corner", "exchanged"),
    [
        (1, (0, 0), False),
        (2, (0, -1), False),
        (3, (-1, -1), False),
        (4, (-1, 0), False),
        (5, (0, 0), True),
        (6, (-1, 0), True),
        (7, (-1, -1), True),
        (8, (0, -1), True),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_every_orientation_is_turned_upright(
    kind: str, orientation: int, corner: tuple[int, int], exchanged: bool
) -> None:
    stored = np.zeros((32, 64, 3), dtype=np.uint8)
    rows, columns = (slice(0, 16) if at == 0 else slice(-16, None) for at in corner)
    stored[rows, columns] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.asarray(to_rgb(through(Image.fromarray(stored), kind, exif=exif)))
    assert upright.shape == ((64, 32, 3) if exchanged else (32, 64, 3))
    assert upright[:15, :15].min() > 200
    assert upright[17:].max() < 50


def test_pixels_of_unknown_range_are_refused() -> None:
    with pytest.raises(ValueError, match="8 or 16 bits"):
        to_rgb(Image.new("F", (4, 4)))
    for value in (70_000, -1):
        with pytest.raises(ValueError, match="beyond 16 bits"):
            to_rgb(through(Image.new("I", (4, 4), value), "TIFF"))


def png16(colour: int, *values: int) -> Image.Image:
    """One pixel of 16 bits a channel, a kind that Pillow does not write: PNG (ISO 15948), 11.2.

    colour: 2 is RGB, 4 grey and alpha, 6 RGB and alpha.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunks))


def test_16_bit_colour_is_scaled() -> None:
    dark, middle, full = 257 * 3, 257 * 100, 65535
    assert rgb(png16(2, dark, middle, full)) == [[3, 100, 255]]
    assert rgb(png16(6, dark, middle, full, full)) == [[3, 100, 255]]
    assert rgb(png16(6, dark, middle, full, 0)) == [[255, 255, 255]]
    assert rgb(png16(4, middle, full)) == [[100, 100, 100]]
    ppm = b"P6 1 1 65535\n" + struct.pack(">3H", dark, middle, full)
    assert rgb(Image.open(io.BytesIO(ppm))) == [[3, 100, 255]]


def test_fit_takes_the_central_square() -> None:
    stripes = np.zeros((10, 30, 3), dtype=np.uint8)
    stripes[:, 10:20] = 200
    assert (np.asarray(fit(Image.fromarray(stripes), 10)) == 200).all()
    zoomed = fit(Image.fromarray(stripes[:, :, :]).crop((5, 0, 25, 10)), 4, zoom=0.4)
    assert (np.asarray(zoomed) == 200).all()
    image = Image.fromarray(stripes[:, :10])
    assert (np.asarray(fit(image, 10)) == stripes[:, :10]).all()
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    shrunk = np.asarray(fit(Image.fromarray(checks.astype(np.uint8)), 8))
    assert (np.abs(shrunk.astype(int) - 127) < 10).all()  # antialiased: grey, not black or white


def test_random_resized_crop_reaches_every_corner_and_stays_inside() -> None:
    ramp = np.zeros((40, 60, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(40)[:, None]
    ramp[..., 1] = np.arange(60)
    image = Image.fromarray(ramp)

    def crop(
        *draws: float, scale: tuple[float, float] = (0.25, 0.25), mirrored: bool = False
    ) -> np.ndarray:
        made = random_resized_crop(image, 30, scale, *draws, mirrored=mirrored)
        return np.asarray(made).astype(int)

    almost = 1 - 2**-31
    # A quarter of 2,400 pixels at aspect 1 is a square of 24.
    assert crop(0, 0, 0, 0.5)[0, 0].tolist() == [0, 0, 0]
    assert crop(almost, almost, 0, 0.5)[-1, -1].tolist() == [39, 59, 0]
    inside = crop(0.5, 0.5, 0, 0.5)
    assert inside[-1, 0, 0] - inside[0, 0, 0] == pytest.approx(23, abs=1)
    assert inside[0, -1, 1] - inside[0, 0, 1] == pytest.approx(23, abs=1)
    wide, tall = crop(0, 0, 0, almost), crop(0, 0, 0, 0)
    assert wide[0, -1, 1] == pytest.approx(27, abs=1)  # 24 * sqrt(4 / 3) columns
    assert tall[-1, 0, 0] == pytest.approx(27, abs=1)
    whole = crop(almost, almost, almost, almost, scale=(0.08, 1.0))
    assert whole[0, 0, 0] == 0  # taller than the image, so cut to its height
    assert whole[-1, 0, 0] == 39
    assert (crop(0.5, 0.2, 0, 0.5, mirrored=True) == crop(0.5, 0.2, 0, 0.5)[:, ::-1]).all()


# ---------------------------------------------------------------- image folders


def test_an_image_folder_is_read(folder: Path) -> None:
    (folder / "val" / "cat").mkdir(parents=True)
    (folder / "val" / "ant").mkdir(parents=True)
    Image.new("L", (20, 30), 5).save(folder / "val" / "cat" / "a.JPG")
    Image.new("L", (8, 8), 7).save(folder / "val" / "ant" / "b.Tiff")
    source = open_folder(folder)
    assert source.splits == ("train", "val", "test")
    assert source.class_names == ["ant", "cat"]
    assert source.num_classes == 2
    assert source.labels("train").tolist() == [0, 0, 1, 1, 1]
    assert source.labels("val").tolist() == [0, 1]
    assert source.own_size == 8  # of the training images
    images = source.images("train", 8)
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    assert images[:, 0, 0].tolist() == [[0, 60, 0], [0, 60, 10], [0, 0, 0], [0, 0, 10], [0, 0, 20]]
    assert source.describe("train", 2) == "train/cat/000.png"
    assert source.read("val", 1).size == (20, 30)
    assert source.images("val", 4).shape == (2, 4, 4, 3)


def test_unknown_files_in_a_folder_are_left_out(folder: Path) -> None:
    cat = folder / "train" / "cat"
    for name in (".hidden.png", "._000.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (cat / name).write_text("no image")
    for stray in (cat / ".ipynb_checkpoints", folder / "train/.ipynb_checkpoints"):
        stray.mkdir()
        Image.new("RGB", (8, 8)).save(stray / "000.png")
    (folder / "train" / "__MACOSX").mkdir()
    (folder / "train" / "__MACOSX" / "._000.png").write_text("no image")
    (cat / "more.png").mkdir()
    (folder / "train" / ".git").mkdir()
    (folder / "train" / "readme.md").write_text("about")
    source = open_folder(folder)
    assert source.class_names == ["ant", "cat"]
    assert len(source.labels("train")) == 5
    assert source.unknown_files("train").total() == 3  # what is hidden is not worth a word


@pytest.mark.parametrize("absent", ["images", "images/train"])
def test_a_wrong_layout_says_what_it_must_be(folder: Path, absent: str) -> None:
    (folder.parent / absent).rename(folder.parent / "gone")
    with pytest.raises(ValueError, match=r"must hold train/ and test/"):
        open_folder(folder).labels("train")


def test_a_split_with_other_classes_is_named(folder: Path) -> None:
    (folder / "test" / "cat").rename(folder / "test" / "dog")
    with pytest.raises(ValueError, match=r"test must have .* lacks cat and adds dog$"):
        open_folder(folder).labels("test")
    (folder / "test" / "dog").rename(folder / "test" / "cat")
    for name in ("ant", "bee", "cat"):
        (folder / "val" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"val must have .* adds bee$"):
        open_folder(folder).labels("train")


@pytest.mark.parametrize("content", [b"<html>not found</html>", "half"])
def test_an_unreadable_image_is_named(folder: Path, content: bytes | str) -> None:
    path = folder / "train" / "cat" / "001.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"cannot read .*001\.png.*remove or replace it"):
        open_folder(folder).images("train", 8)
    assert not list((folder.parent / "cache").glob("*.partial"))


def test_own_size_where_sizes_differ_or_are_no_squares(folder: Path) -> None:
    assert open_folder(folder).own_size == 8
    Image.new("RGB", (8, 9)).save(folder / "train" / "cat" / "000.png")
    assert open_folder(folder).own_size is None
    for path in folder.glob("train/*/*"):
        Image.new("RGB", (8, 9)).save(path)
    assert open_folder(folder).own_size is None


@pytest.mark.parametrize("mode", ["I;16", "I", "P", "RGBA", "LA", "RGB"])
def test_a_large_image_is_converted_in_strips_to_the_same_pixels(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    if mode in ("I;16", "I"):
        image = Image.fromarray(rng.integers(0, 65536, (23, 17)).astype(np.uint16))
        image = image.convert(mode) if mode == "I" else image
    else:
        image = Image.fromarray(rng.integers(0, 256, (23, 17, 4), dtype=np.uint8)).convert(mode)
        if mode == "P":
            image.info["transparency"] = 3
    whole = np.asarray(to_rgb(image.copy()))
    monkeypatch.setattr("resnet_lab.data.decode.LARGE", 10)
    monkeypatch.setattr("resnet_lab.data.decode.STRIP", 70)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), whole)
    assert len(np.unique(whole)) > 20


def test_a_file_of_a_terabyte_is_refused_by_its_size(folder: Path) -> None:
    path = folder / "train" / "cat" / "001.png"
    os.truncate(path, 2**40)
    with pytest.raises(ValueError, match=r"it has 1,099,511,627,776 bytes, and at most"):
        open_image(path)
    assert "1,099,511,627,776 bytes" in open_folder(folder).faults("train")["train/cat/001.png"]


def test_home_and_relative_paths_are_the_users(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    source = ImageFolder("~/images", "~/cache")
    assert source.images("train", 8).shape == (5, 8, 8, 3)
    assert list((folder.parent / "cache").glob("imagefolder-train-8-*"))


# ---------------------------------------------------------------- the cache


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads = []
    read = ImageFolder.read

    def counting(self: ImageFolder, split: str, index: int, make: Make = to_rgb) -> Image.Image:
        reads.append(self.describe(split, index))
        return read(self, split, index, make)

    monkeypatch.setattr(ImageFolder, "read", counting)
    return reads


def test_images_are_decoded_once_and_again_when_a_file_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count_reads(monkeypatch)
    open_folder(folder).images("train", 8)
    assert len(reads) == 5
    reads.clear()
    open_folder(folder).images("train", 8)
    assert reads == []
    open_folder(folder).images("train", 4)  # another size is another entry
    assert len(reads) == 5
    path = folder / "train" / "cat" / "001.png"
    stat = path.stat()

    reads.clear()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # only the time
    open_folder(folder).images("train", 8)
    assert len(reads) == 5

    reads.clear()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path)  # only the size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_folder(folder).images("train", 8)[3, 7, 7, 2] == 191
    assert len(reads) == 5

    reads.clear()
    path.rename(path.with_name("renamed.png"))
    open_folder(folder).images("train", 8)
    assert len(reads) == 5


def test_a_file_replaced_or_changed_in_place_with_its_time_kept_is_seen(folder: Path) -> None:
    """As `rsync -t`, `cp -p` and a restored backup leave it."""
    path = folder / "train" / "cat" / "001.png"
    before = np.array(open_folder(folder).images("train", 8))

    def write(shade: int, path: Path) -> None:
        """A picture of the same size in bytes, whatever its shade."""
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(path, compress_level=0)
        os.utime(path, ns=(0, 10**18))

    write(10, path)
    size = path.stat().st_size
    first = np.array(open_folder(folder).images("train", 8))
    write(20, path)  # in place
    second = np.array(open_folder(folder).images("train", 8))
    other = folder.parent / "other.png"
    write(30, other)
    os.replace(other, path)
    third = np.array(open_folder(folder).images("train", 8))
    assert path.stat().st_size == size
    assert [a[3, 0, 0, 0] for a in (first, second, third)] == [10, 20, 30]
    for images in (first, second, third):
        assert (images[[0, 1, 2, 4]] == before[[0, 1, 2, 4]]).all()


def test_two_folders_of_equal_names_sizes_and_times_share_nothing(folder: Path) -> None:
    """Not even where their files are hard links of one another, or moved after one another."""
    images = {}
    other = folder.parent / "other"
    for shade in (10, 20):
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(folder, other)
        for path in other.rglob("*.png"):
            Image.new("RGB", (8, 8), (shade, shade, shade)).save(path, compress_level=0)
            os.utime(path, ns=(0, 10**18))
        root = folder.parent / f"set{shade}"
        other.rename(root)
        images[shade] = np.array(
            ImageFolder(str(root), str(folder.parent / "cache")).images("train", 8)
        )
    assert (images[10] == 10).all()
    assert (images[20] == 20).all()


@pytest.mark.parametrize("harm", ["labels", "classes", "pixels", "flipped bit", "no checksums"])
def test_what_is_not_as_it_was_written_is_made_anew_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    cache = tmp_path / "cache"
    images, labels = Digits(str(cache)).images("train", 32), Digits(str(cache)).labels("train")
    images, labels = np.array(images), np.array(labels)
    (entry,) = cache.glob("digits-train-*/")
    if harm == "labels":
        np.save(entry / "labels.npy", np.roll(labels, 1))
    elif harm == "classes":
        names = json.loads((entry / "classes.json").read_text())
        (entry / "classes.json").write_text(json.dumps(names[::-1]))
    elif harm == "pixels":
        np.save(entry / "images.npy", np.zeros_like(images))
    elif harm == "flipped bit":
        content = bytearray((entry / "images.npy").read_bytes())
        content[-5] ^= 1
        (entry / "images.npy").write_bytes(content)
    else:
        (entry / "checksums.json").unlink()
    with caplog.at_level(logging.WARNING):
        again = Digits(str(cache))
        np.testing.assert_array_equal(again.images("train", 32), images)
    np.testing.assert_array_equal(again.labels("train"), labels)
    assert again.class_names == [str(digit) for digit in range(10)]
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.search(r"digits-train-\w+ is damaged \(.*\) and is made anew", line)


def test_null_statistics_are_computed_anew(tmp_path: Path) -> None:
    def statistics() -> list[float]:
        data = ImageDataModule(source=Digits(str(tmp_path)), cache_dir=str(tmp_path))
        data.setup("fit")
        return data.mean

    mean = statistics()
    (path,) = tmp_path.glob("statistics-*/value.json")
    path.write_text("[null, null]")
    assert statistics() == mean


@pytest.mark.parametrize("kib", [8, 40, 80])
def test_a_disk_too_small_for_the_cache_is_one_sentence_and_nothing_is_left(
    folder: Path, small_disk: Callable[[int], Path], kib: int
) -> None:
    cache = small_disk(kib) / "cache"
    with pytest.raises(UserError, match=r"cannot write the image cache .*No space left"):
        ImageFolder(str(folder), str(cache)).images("train", 200)  # 600 KB
    assert not [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.parametrize("harm", ["truncate", "empty", "foreign", "remove"])
def test_a_damaged_entry_is_rebuilt(folder: Path, harm: str) -> None:
    wanted = np.array(open_folder(folder).images("train", 8))
    (path,) = (folder.parent / "cache").glob("imagefolder-train-8-*/images.npy")
    if harm == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "foreign":
        np.save(path, np.zeros((5, 9, 9, 3), np.uint8))
    else:
        path.unlink()
    np.testing.assert_array_equal(open_folder(folder).images("train", 8), wanted)


def test_what_a_killed_process_left_is_no_obstacle(folder: Path) -> None:
    wanted = np.array(open_folder(folder).images("train", 8))
    (path,) = (folder.parent / "cache").glob("imagefolder-train-8-*/images.npy")
    path.parent.rename(f"{path.parent}.partial")
    np.testing.assert_array_equal(open_folder(folder).images("train", 8), wanted)
    assert not list((folder.parent / "cache").glob("*.partial"))


def test_two_processes_write_once(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from resnet_lab.data.cache import cached
folder = Path(sys.argv[1])
def write(partial):
    with open(folder.parent / "writes", "a") as log:
        log.write("x")
    time.sleep(0.3)
    (partial / "value").write_text("7")
print(cached(folder, write, lambda folder: (folder / "value").read_text()))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "entry")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["7\n", "7\n"]
    assert (tmp_path / "writes").read_text() == "x"


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"set data\.cache_dir"):
        cached(tmp_path / "file" / "entry", Path.touch, Path.read_text)


def test_a_cache_folder_of_ours_is_tagged_and_others_are_not(tmp_path: Path) -> None:
    def write(partial: Path) -> None:
        (partial / "value").write_text("7")

    def read(folder: Path) -> str:
        return (folder / "value").read_text()

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    for name in ("new/below", "full"):
        assert cached(tmp_path / name / "entry", write, read) == "7"
    tag = tmp_path / "new" / "below" / CACHE_TAG
    assert tag.read_text().splitlines()[0] == "Signature: 8a477f597d28d172789f06886806bc55"
    assert is_cache_folder(tag.parent)
    assert not is_cache_folder(tmp_path / "full")
    assert not is_cache_folder(tmp_path / "nowhere")
    (tmp_path / "full" / CACHE_TAG).symlink_to(tag)
    assert not is_cache_folder(tmp_path / "full")
    tag.write_text("Signature: 8a47")
    assert not is_cache_folder(tag.parent)


def test_no_entry_is_unpickled(folder: Path) -> None:
    """An entry from anybody, which is an array of objects, is damaged and made anew."""
    source = open_folder(folder)
    wanted = np.array(source.images("train", 8))
    path = source.entry("train", "train-8") / "images.npy"
    np.save(path, np.array([pytest.fail], dtype=object), allow_pickle=True)
    np.testing.assert_array_equal(open_folder(folder).images("train", 8), wanted)


# ---------------------------------------------------------------- digits and CIFAR


def test_digits(tmp_path: Path) -> None:
    source = Digits(str(tmp_path))
    assert source.class_names == [str(digit) for digit in range(10)]
    train, test = source.images("train", 32), source.images("test", 32)
    assert train.shape == (1438, 32, 32, 3)
    assert test.shape == (359, 32, 32, 3)
    counts = np.bincount(source.labels("test"))
    share = np.bincount(source.labels("train")) + counts
    assert (np.abs(counts - share * 359 / 1797) < 1).all()
    assert train.min() == 0
    assert train.max() == 255
    assert (train[..., 0] == train[..., 2]).all()
    assert source.describe("train", 17) == "train[17]"
    assert source.images("test", 16).shape == (359, 16, 16, 3)
    np.testing.assert_array_equal(np.asarray(source.read("test", 3)), test[3])
    again = Digits(str(tmp_path))
    np.testing.assert_array_equal(again.labels("test"), source.labels("test"))


def pickled(content: dict[str, Any]) -> bytes:
    """As the real archive: protocol 2, and 0 and 1 where NumPy now writes False and True."""
    data = pickle.dumps(content, protocol=2)
    return data.replace(b"\x89\x88", b"K\x00K\x01")


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a CIFAR-10 archive of 5 x 4 and 3 images, whose checksums torchvision knows."""
    import torchvision

    kind = torchvision.datasets.CIFAR10
    rng = np.random.default_rng(0)
    names = [name for name, _ in kind.train_list + kind.test_list]
    files = {kind.meta["filename"]: pickled({"label_names": [f"class {i}" for i in range(10)]})}
    for name in names:
        n = 3 if name == "test_batch" else 4
        data = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        files[name] = pickled({"data": data, "labels": rng.integers(0, 10, n).tolist()})
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / kind.filename, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

    def md5(content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    monkeypatch.setattr(kind, "tgz_md5", md5((root / kind.filename).read_bytes()))
    monkeypatch.setattr(kind, "train_list", [[name, md5(files[name])] for name in names[:-1]])
    monkeypatch.setattr(kind, "test_list", [[names[-1], md5(files[names[-1]])]])
    meta = {**kind.meta, "md5": md5(files[kind.meta["filename"]])}
    monkeypatch.setattr(kind, "meta", meta)

    def no_network(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    return root


def test_a_cifar_archive_in_root_needs_no_network(
    cifar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    cache = str(cifar.parent / "cache")
    source = CIFAR10(str(cifar), cache)
    assert source.images("train", 32).shape == (20, 32, 32, 3)
    assert source.images("test", 32).shape == (3, 32, 32, 3)
    assert source.class_names[3] == "class 3"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2.4.0 to 2.4.4 mind the old pickle, as in `_load`
        reference = torchvision.datasets.CIFAR10(cifar, train=True)
    np.testing.assert_array_equal(source.images("train", 32), reference.data)
    np.testing.assert_array_equal(source.labels("train"), reference.targets)
    # A later start reads the cache and unpickles nothing.
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: pytest.fail("unpickled again"))
    again = CIFAR10(str(cifar), cache)
    np.testing.assert_array_equal(again.images("train", 32), reference.data)
    assert again.class_names[3] == "class 3"
    assert again.images("test", 16).shape == (3, 16, 16, 3)


def test_tampered_cifar_files_are_refused_before_unpickling(
    cifar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(cifar.parent / "cache")
    fingerprint = CIFAR10(str(cifar), cache).fingerprint("train")  # unpacks
    with open(cifar / "cifar-10-batches-py" / "data_batch_3", "ab") as file:
        file.write(b"x")
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: pytest.fail("unpickled"))
    source = CIFAR10(str(cifar), cache)
    assert source.fingerprint("train") != fingerprint
    with pytest.raises(ValueError, match=r"wrong checksum; remove that folder"):
        source.images("train", 32)


def test_a_tampered_cifar_archive_is_not_unpacked(cifar: Path) -> None:
    archive = cifar / "cifar-10-python.tar.gz"
    with open(archive, "ab") as file:
        file.write(b"x")
    tampered = archive.read_bytes()
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz has the wrong checksum"):
        CIFAR10(str(cifar), str(cifar.parent / "cache")).images("train", 32)
    assert not (cifar / "cifar-10-batches-py").exists()
    assert archive.read_bytes() == tampered  # torchvision alone would overwrite it


def test_a_broken_download_takes_no_name_and_a_whole_one_does(
    cifar: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, archive = cifar.parent / "other", "cifar-10-python.tar.gz"
    whole = (cifar / archive).read_bytes()
    sent = whole[: len(whole) // 2]

    class Response(io.BytesIO):
        url, length = None, None

    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: Response(sent))
    source = CIFAR10(str(root), str(cifar.parent / "cache"))
    with pytest.raises(UserError, match=rf"cannot download .*put {archive} into {root}"):
        source.images("train", 32)
    assert {file.name for file in root.iterdir()} <= {f"{archive}.lock"}
    sent = whole
    assert source.images("train", 32).shape == (20, 32, 32, 3)
    assert (root / archive).read_bytes() == whole
    there = {file.name for file in root.iterdir()} - {f"{archive}.lock"}
    assert there == {archive, "cifar-10-batches-py"}


def test_without_leave_nothing_is_downloaded_or_made(
    cifar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("asked"))
    cache = str(cifar.parent / "cache")
    root = cifar.parent / "empty"
    with pytest.raises(UserError, match=r"holds neither .* give data\.root=\.\.\. where"):
        CIFAR10(str(root), cache, download=False).labels("train")
    assert not root.exists()
    assert len(CIFAR10(str(cifar), cache, download=False).labels("train")) == 20


def test_of_an_archive_a_half_unpacked_folder_is_completed(cifar: Path) -> None:
    source = CIFAR10(str(cifar), str(cifar.parent / "cache"))
    fingerprint = source.fingerprint("test")
    (cifar / "cifar-10-batches-py" / "test_batch").unlink()
    assert source.images("test", 32).shape == (3, 32, 32, 3)
    assert source.fingerprint("test") == fingerprint


@pytest.mark.parametrize(("kind", "name"), [(CIFAR10, "cifar-10"), (CIFAR100, "cifar-100")])
def test_without_network_the_sentence_says_where_to_put_the_archive(
    cifar: Path, kind: type[CIFAR10], name: str
) -> None:
    root = cifar.parent / "empty"
    with pytest.raises(ValueError, match=r"data=digits") as error:
        kind(str(root), str(cifar.parent / "cache")).images("train", 32)
    assert f"put {name}-python.tar.gz into {root}" in str(error.value)

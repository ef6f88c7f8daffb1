"""The command `make-folder`: every pixel, name and label of a data set in files."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lab import CLI, ROOT, without_torch
from PIL import Image
from test_sources import cifar  # noqa: F401 - a fixture

from resnet_lab.cli import main
from resnet_lab.commands import make_folder
from resnet_lab.data.sources import CIFAR10, ImageFolder


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`make("out", "data=digits")`: the folder that the command writes in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def command(out: str, *arguments: str) -> Path:
        assert main(["make-folder", *arguments, out]) == 0
        return tmp_path / out

    return command


def test_cifar_as_png_keeps_every_pixel_label_and_index(
    cifar: Path,  # noqa: F811
    make: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("data=cifar10", f"data.root={cifar}", "--format", "png")
    out = make("folder", *arguments)
    assert sorted(path.name for path in out.iterdir()) == ["test", "train"]
    source = CIFAR10(str(cifar), "data/cache")
    for split in ("train", "test"):
        labels, images = source.labels(split), source.images(split, 32)
        paths = sorted(out.glob(f"{split}/*/*"), key=lambda path: path.stem)
        assert [path.name for path in paths] == [f"{i:05d}.png" for i in range(len(labels))]
        assert [path.parent.name for path in paths] == [f"class {label}" for label in labels]
        for path, image in zip(paths, images, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    assert "resnet-lab train data=imagefolder data.root=folder" in capsys.readouterr().out


def test_jpeg_has_the_stated_quality_and_the_same_bytes_again(
    cifar: Path,  # noqa: F811
    make: Callable[..., Path],
) -> None:
    data = ("data=cifar10", f"data.root={cifar}")
    first, again, better = make("a", *data), make("b", *data), make("c", *data, "--quality", "90")
    paths = [path.relative_to(first) for path in first.rglob("*.jpg")]
    assert len(paths) == 23
    assert all((first / path).read_bytes() == (again / path).read_bytes() for path in paths)
    with Image.open(first / paths[0]) as image, Image.open(better / paths[0]) as other:
        assert list(image.quantization[0][:4]) == [8, 6, 5, 8]  # half of the standard's table
        assert [(h, v) for _, h, v, _ in image.layer] == [(2, 2), (1, 1), (1, 1)]  # 4:2:0
        assert other.quantization[0][0] < 8


def test_only_the_classes_that_are_asked_for(cifar: Path, make: Callable[..., Path]) -> None:  # noqa: F811
    data = ("data=cifar10", f"data.root={cifar}")
    everything, some = make("all", *data), make("some", *data, "--classes", "class 7, class 2")
    expected = {
        path.relative_to(everything)
        for path in everything.rglob("*.jpg")
        if path.parent.name in ("class 2", "class 7")
    }
    assert {path.relative_to(some) for path in some.rglob("*.jpg")} == expected
    assert len(expected) > 2


@pytest.mark.slow
def test_digits_become_an_image_folder_with_their_classes(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    source = ImageFolder(str(make("folder", "data=digits")), str(tmp_path / "cache"))
    assert source.class_names == [str(digit) for digit in range(10)]
    assert [len(source.labels(split)) for split in ("train", "test")] == [1438, 359]


def test_the_default_is_how_the_files_of_the_figures_were_made(tmp_path: Path) -> None:
    """CIFAR-10 itself is not here; but a file's header holds all that the encoder was told."""
    archive = ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.gz"
    if not archive.is_file():
        pytest.skip("needs shared/data/cifar10-jpeg.tar.gz beside the checkout")
    with tarfile.open(archive, "r|gz") as files:
        member = next(member for member in files if member.name.endswith(".jpg"))
        content = files.extractfile(member).read()
    again = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        how = {"quality": make_folder.QUALITY, "subsampling": make_folder.SUBSAMPLING}
        image.convert("RGB").save(again, "JPEG", **how)
    header, header_again = (c.partition(b"\xff\xda")[0] for c in (content, again.getvalue()))
    assert header == header_again


def test_refusals_write_nothing(
    tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["make-folder", *arguments])
        return str(end.value)

    (tmp_path / "there").mkdir()
    assert "there is there already" in refused("data=digits", "there")
    assert "give one folder" in refused("data=digits")
    assert "give one folder" in refused("data=digits", "a", "b")
    assert "from 1 to 100" in refused("data=digits", "a", "--quality", "0")
    assert "PNG keeps every pixel" in refused("data=digits", "a", "--format=png", "--quality=9")
    assert "no such class; Possible: 0" in refused("data=digits", "a", "--classes", "1,cat")
    assert "two classes or more" in refused("data=digits", "a", "--classes", "1")
    for split in ("train", "test"):
        (tmp_path / "there" / split / "cat").mkdir(parents=True)
    assert "is a folder of images" in refused("data=imagefolder", "data.root=there", "a")

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(make_folder, "write", interrupted)
    assert main(["make-folder", "data=digits", "a"]) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"there", "data"}  # data/cache


def test_help_needs_no_torch(tmp_path: Path) -> None:
    done = without_torch(tmp_path, "make-folder", "--help", script=CLI)
    assert done.returncode == 0, done.stderr
    assert "quality 75" in done.stdout


def test_names_of_folders() -> None:
    names = make_folder._folder_names(["a/b", ".hidden", "fish", "end.", "호랑이"])
    assert names == ["a_b", "_hidden", "fish", "end_", "호랑이"]
    with pytest.raises(ValueError, match="two classes would share a folder"):
        make_folder._folder_names(["a/b", "A:b"])

"""The command `stats`: every figure against one known beforehand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_lab.cli import main
from resnet_lab.commands.stats import show
from resnet_lab.data.inspect import examine
from resnet_lab.data.sources import Digits, ImageFolder
from resnet_lab.data.statistics import channel_statistics

RED, BLUE = (255, 0, 0), (0, 0, 255)


def save(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def plain(colour, width=8, height=8) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


@pytest.fixture
def messy(tmp_path) -> Path:
    """Two classes with every fault that stats looks for."""
    root = tmp_path / "photos"
    red = save(root / "train/cat/red.png", plain(RED))
    shutil.copy(red, root / "train/cat/red_again.png")
    save(root / "train/cat/wide.jpg", plain((9, 9, 9), width=20))
    save(root / "train/dog/grey.png", Image.new("L", (8, 12), 77))
    (root / "train/dog/empty.jpg").touch()
    (root / "train/dog/letter.png").write_text("Dear dog, ...")
    save(root / "test/cat/blue.png", plain(BLUE))
    save(root / "test/dog/red.bmp", plain(RED))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = save(root / "test/dog/cut.jpg", Image.fromarray(noise))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return root


def source(root: Path, tmp_path: Path) -> ImageFolder:
    return ImageFolder(str(root), str(tmp_path / "cache"))


def test_counts_sizes_and_formats(messy, tmp_path):
    result = examine(source(messy, tmp_path))
    train, test = result["splits"]["train"], result["splits"]["test"]
    assert train["classes"] == {"cat": 3, "dog": 3}
    assert test["classes"] == {"cat": 1, "dog": 2}
    assert (train["imbalance"], test["imbalance"]) == (1.0, 2.0)
    assert (train["images"], train["broken"], test["images"], test["broken"]) == (6, 2, 3, 1)
    assert result["formats"] == {"PNG": 4, "JPEG": 1, "BMP": 1}
    assert result["modes"] == {"RGB": 5, "L": 1}
    assert result["sizes"] == {
        "different": 3,
        "width": {"min": 8, "median": 8.0, "max": 20},
        "height": {"min": 8, "median": 8.0, "max": 12},
        "most_common": [
            {"width": 8, "height": 8, "images": 4},
            {"width": 20, "height": 8, "images": 1},
            {"width": 8, "height": 12, "images": 1},
        ],
    }


def test_duplicates_within_and_across(messy, tmp_path):
    duplicates = examine(source(messy, tmp_path))["duplicates"]
    assert {key: duplicates[key] for key in duplicates if key != "images"} == {
        "groups": 1,
        "surplus": 2,
        "across_splits": 1,
        "across_classes": 1,
    }
    (group,) = duplicates["images"]
    assert group == [
        {"image": "train/cat/red.png", "split": "train", "class": "cat"},
        {"image": "train/cat/red_again.png", "split": "train", "class": "cat"},
        {"image": "test/dog/red.bmp", "split": "test", "class": "dog"},
    ]


def test_same_pixels_in_another_shape_are_no_duplicate(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / f"photos/{split}/cat/{split}.png", plain(RED, 2, 8))
    save(tmp_path / "photos/train/cat/turned.png", plain(RED, 8, 2))
    duplicates = examine(source(tmp_path / "photos", tmp_path))["duplicates"]
    assert [len(group) for group in duplicates["images"]] == [2]


def test_near_duplicates_across_splits(tmp_path, capsys):
    """A copy that was compressed, made smaller or brighter is one; another picture is none."""
    rng = np.random.default_rng(0)
    blots = rng.integers(0, 220, (12, 6, 6, 3), dtype=np.uint8)
    pictures = [Image.fromarray(b).resize((48, 48), Image.Resampling.BICUBIC) for b in blots]
    root = tmp_path / "photos"
    for number, picture in enumerate(pictures[:8]):
        save(root / f"train/cat/{number}.png", picture)
    save(root / "test/cat/same.png", pictures[0])
    save(root / "test/cat/compressed.jpg", pictures[1])
    save(root / "test/cat/small.png", pictures[2].resize((30, 30)))
    save(root / "test/cat/bright.png", pictures[3].point(lambda level: level + 25))
    save(root / "test/cat/mirrored.png", pictures[4].transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    for number, picture in enumerate(pictures[8:]):
        save(root / f"test/cat/other{number}.png", picture)
    save(root / "train/cat/black.png", plain("black"))
    save(root / "test/cat/step.png", Image.fromarray(np.uint8([[0] * 8, [255] * 8] * 4)))
    save(root / "train/cat/again.jpg", pictures[5])  # within a split it is none
    result = examine(source(root, tmp_path))
    pairs = {tuple(d["image"] for d in pair["images"]) for pair in result["near_duplicates"]}
    assert pairs == {
        ("train/cat/1.png", "test/cat/compressed.jpg"),
        ("train/cat/2.png", "test/cat/small.png"),
        ("train/cat/3.png", "test/cat/bright.png"),
    }
    assert result["duplicates"]["groups"] == 1  # same.png has the same pixels, and is listed there
    show({"data": "imagefolder", **result})
    out = capsys.readouterr().out
    assert "near        3 images look almost like one of another split (3 pairs)" in out
    assert "train/cat/2.png ~ test/cat/small.png" in out


def test_broken_files_are_listed_with_their_reason(messy, tmp_path):
    broken = {b["image"]: b["reason"] for b in examine(source(messy, tmp_path))["broken"]}
    assert set(broken) == {"train/dog/empty.jpg", "train/dog/letter.png", "test/dog/cut.jpg"}
    assert broken["train/dog/empty.jpg"] == "the file is empty"
    assert broken["train/dog/letter.png"].startswith("its content is no image")
    assert "truncated" in broken["test/dog/cut.jpg"]


def test_every_training_image_has_the_same_weight(tmp_path):
    root = tmp_path / "photos"
    save(root / "train/cat/black.png", plain("black", 100, 100))
    save(root / "train/cat/white.png", plain("white", 2, 2))
    save(root / "test/cat/white.png", plain("white", 2, 2))
    result = examine(source(root, tmp_path))
    assert result["mean"] == pytest.approx([0.5] * 3)
    assert result["std"] == pytest.approx([0.5] * 3)


def test_statistics_are_those_that_training_computes(shared_cache):
    digits = Digits(str(shared_cache))
    mean, std = channel_statistics([np.asarray(digits.images("train", 32))])
    result = examine(digits)
    assert result["mean"] == pytest.approx(mean, abs=1e-12)
    assert result["std"] == pytest.approx(std, abs=1e-12)
    assert result["splits"]["train"]["images"] == 1438
    assert result["splits"]["test"]["images"] == 359
    assert result["duplicates"]["groups"] == 0


class Twins:
    """Four images as arrays, of which one in train and one in test are the same."""

    splits = ("train", "test")
    class_names = ("one", "two")

    def labels(self, split):
        return np.array([0, 1])

    def describe(self, split, index):
        return f"{split}[{index}]"

    def read(self, split, index):
        shades = {"train": (10, 20), "test": (20, 30)}
        return Image.new("RGB", (4, 4), (shades[split][index],) * 3)


def test_duplicates_among_arrays():
    result = examine(Twins())
    assert result["formats"] == {"array": 4}
    (group,) = result["duplicates"]["images"]
    assert [member["image"] for member in group] == ["train[1]", "test[0]"]
    assert result["mean"] == pytest.approx([15 / 255] * 3)


def test_command_writes_into_the_cache_and_nothing_else(messy, tmp_path, capsys):
    def listing():
        paths = sorted(messy.rglob("*"))
        return [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]

    before, cache = listing(), tmp_path / "cache"
    overrides = ["data=imagefolder", f"data.root={messy}", f"data.cache_dir={cache}"]
    assert main(["stats", *overrides]) == 0
    assert listing() == before
    (path,) = cache.glob("stats-imagefolder-*.json")
    result = json.loads(path.read_text())
    assert result["root"] == str(messy)
    assert len(result["broken"]) == 3
    out = capsys.readouterr().out
    assert "train/dog/letter.png: its content is no image" in out
    assert "train/cat/red.png = train/cat/red_again.png = test/dog/red.bmp" in out
    assert str(path) in out


def test_long_lists_are_cut_on_the_screen_only(tmp_path, capsys):
    root = tmp_path / "photos"
    for i in range(24):
        for n in range(i + 1):
            save(root / f"train/class{i:02}/{n}.png", plain((i, n, 0), 2, 2))
        save(root / f"test/class{i:02}/0.png", plain((i, 0, 0), 2, 2))
    result = examine(source(root, tmp_path))
    show({"data": "imagefolder", "root": str(root), **result})
    out = capsys.readouterr().out
    assert "... 4 more" in out
    assert "class23" in out  # the most
    assert "class00" in out  # the fewest
    assert "class13" not in out
    assert "24 groups" in out
    assert "... and 14 more groups" in out
    assert len(result["duplicates"]["images"]) == 24


def test_mistakes_are_one_sentence_before_torch(refused, tmp_path):
    assert refused("stats", "data=imagefolder") == (
        "data.root has no default: give data.root=...\n"
    )
    assert "did you mean data=imagefolder?" in refused("stats", "data=imagefoldr")
    assert "there is no folder" in refused("stats", "data=imagefolder", f"data.root={tmp_path}")
    assert "give one value" in refused("stats", "data=digits,cifar10")


def test_an_unwritable_cache_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"set data\.cache_dir to a writable folder"):
        main(["stats", "data=digits", f"data.cache_dir={tmp_path}/file/cache"])

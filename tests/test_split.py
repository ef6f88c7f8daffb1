"""The command `split`: shares, duplicates, links, and that the original folder stays as it is."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lab import CLI, without_torch
from PIL import Image

from resnet_lab.cli import main
from resnet_lab.commands import split

COUNTS = {"고양이": 20, "dog": 10, "owl": 5}


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def draw(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes, with names in Hangul and folders below a class; no two images are alike."""
    folder, number = tmp_path / "photos", 0
    for name, n in COUNTS.items():
        for i in range(n):
            draw(folder / name / ("2024/여름" if i % 3 == 0 else ".") / f"그림 {i}.png", number)
            number += 1
    return folder


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`resnet-lab split ARGUMENTS` in `folder`, in a process without torch; it must succeed."""
    done = without_torch(folder, "split", *arguments, script=CLI)
    assert done.returncode == 0, done.stderr
    return done


def files(folder: Path) -> dict[str, os.stat_result]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat() for path in found}


def counts(out: Path) -> dict[str, dict[str, int]]:
    """Images by side and class."""
    of_side = {side.name: Counter[str]() for side in out.iterdir()}
    for path in files(out):
        side, name, *_ = Path(path).parts
        of_side[side][name] += 1
    return {side: dict(some) for side, some in of_side.items()}


def sides(out: Path) -> dict[bytes, set[str]]:
    """The sides of every file, by its bytes."""
    found: dict[bytes, set[str]] = {}
    for path in files(out):
        found.setdefault((out / path).read_bytes(), set()).add(Path(path).parts[0])
    return found


def test_every_class_is_divided_alike_and_the_original_stays(tmp_path: Path, photos: Path):
    before = {path: (s.st_size, s.st_mtime_ns, s.st_mode) for path, s in files(photos).items()}
    printed = command(tmp_path, "photos").stdout
    out = tmp_path / "photos-split"
    assert counts(out) == {
        "train": {"고양이": 14, "dog": 7, "owl": 3},
        "val": {"고양이": 2, "dog": 1, "owl": 1},
        "test": {"고양이": 4, "dog": 2, "owl": 1},
    }
    after = {path: (s.st_size, s.st_mtime_ns, s.st_mode) for path, s in files(photos).items()}
    assert after == before
    originals = files(photos)
    placed = {path.partition("/")[2]: status for path, status in files(out).items()}
    assert placed.keys() == originals.keys()
    assert all(status.st_ino == originals[path].st_ino for path, status in placed.items())
    assert "photos-split: hard links" in printed
    assert "resnet-lab train data=imagefolder data.root=photos-split model=resnet18" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "photos-split"]


def test_names_and_order_decide_nothing_and_the_seed_does(tmp_path: Path, photos: Path):
    for number, path in enumerate(sorted(photos.rglob("*.png"), reverse=True)):
        other = tmp_path / "renamed" / path.relative_to(photos).parts[0] / f"{number}.png"
        other.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, other)
    command(tmp_path, "photos")
    command(tmp_path, "renamed", "--copy")
    command(tmp_path, "photos", "--seed", "1", "--out", "other")
    first, renamed, other = (
        sides(tmp_path / f) for f in ("photos-split", "renamed-split", "other")
    )
    assert first == renamed
    assert first.keys() == other.keys()
    assert first != other


def test_images_with_the_same_pixels_stay_on_one_side(tmp_path: Path, photos: Path):
    for number in range(20, 26):  # of the dogs; among them images of val/ and test/
        picture(number).save(photos / "dog" / f"{number} again.bmp")
        picture(number).save(photos / "dog" / f"{number} once more.tiff")
    picture(20).save(photos / "owl" / "a dog.png")
    printed = command(tmp_path, "photos").stdout
    out = tmp_path / "photos-split"
    where: dict[bytes, set[str]] = {}
    for path in files(out):
        with Image.open(out / path) as image:
            where.setdefault(image.convert("RGB").tobytes(), set()).add(Path(path).parts[0])
    assert len(where) == sum(COUNTS.values())
    assert all(len(some) == 1 for some in where.values())
    assert all(set(of_side) == set(COUNTS) for of_side in counts(out).values())
    assert "13 images have the same pixels as another one" in printed
    assert "the same pixels under two classes, look at them: 1" in printed


def test_bad_images_stop_it_or_are_left_out_and_other_files_are_counted(
    tmp_path: Path, photos: Path, refused: Callable[..., str]
):
    (photos / "dog" / "cut.jpg").write_bytes(b"\xff\xd8 no picture")
    (photos / "dog" / "empty.png").touch()
    (photos / "dog" / "nowhere.png").symlink_to("nothing")
    (photos / "dog" / ".hidden.png").touch()
    (photos / "dog" / "notes.txt").touch()
    (photos / "list.csv").touch()
    message = refused("split", "photos")
    assert message.startswith("photos holds 3 bad images; ")
    assert "--on-bad-image skip" in message
    assert "photos/dog/nowhere.png: a link to nothing" in message
    assert not (tmp_path / "photos-split").exists()
    printed = command(tmp_path, "photos", "--on-bad-image", "skip").stdout
    assert "photos/dog/empty.png: the file is empty" in printed
    assert ".csv beside the classes (1), .txt (1)" in printed
    assert len(files(tmp_path / "photos-split")) == sum(COUNTS.values())


def test_copies_where_links_are_not_wanted_or_not_to_be_had(
    tmp_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(["split", "photos", "--copy", "--out", "a"]) == 0

    def no_links(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    assert main(["split", "photos", "--out", "b"]) == 0
    printed = capsys.readouterr().out
    originals = {status.st_ino for status in files(photos).values()}
    for out in ("a", "b"):
        assert f"{out}: 35 copies" in printed
        assert not originals & {status.st_ino for status in files(tmp_path / out).values()}
    assert sides(tmp_path / "a") == sides(tmp_path / "b")


def test_of_a_link_the_file_is_taken_so_the_new_folder_can_be_moved(tmp_path: Path, photos: Path):
    (photos / "dog" / "link.png").symlink_to(draw(tmp_path / "elsewhere.png", 99))
    command(tmp_path, "photos")
    (link,) = (tmp_path / "photos-split").rglob("link.png")
    assert not link.is_symlink()
    assert link.read_bytes() == (tmp_path / "elsewhere.png").read_bytes()


def test_interrupted_it_leaves_nothing(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    place, placed = split._place, 0

    def interrupted(origin: Path, target: Path, copy: bool) -> bool:
        nonlocal placed
        placed += 1
        if placed == 20:
            raise KeyboardInterrupt
        return place(origin, target, copy)

    monkeypatch.setattr(split, "_place", interrupted)
    assert main(["split", "photos"]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_without_val_there_is_no_val(tmp_path: Path, photos: Path):
    command(tmp_path, "photos", "--val", "0", "--test", "0.4", "--out", "new/one")
    assert counts(tmp_path / "new/one") == {
        "train": {"고양이": 12, "dog": 6, "owl": 3},
        "test": {"고양이": 8, "dog": 4, "owl": 2},
    }


def test_refusals(tmp_path: Path, photos: Path, refused: Callable[..., str]):
    (tmp_path / "there").mkdir()
    assert refused("split", "photos", "--out", "there").startswith("there is there already")
    assert "lies in photos, which stays" in refused("split", "photos", "--out", "photos/new")
    assert refused("split", "nothing").startswith("nothing is no folder")
    assert "between 0 and 1" in refused("split", "photos", "--test", "0")
    assert "below 1, or 0" in refused("split", "photos", "--val", "nan")
    assert "nothing for train/" in refused("split", "photos", "--val", "0.5", "--test", "0.5")
    assert "no folder per class" in refused("split", "photos/dog/2024/여름", "--out", "x")
    draw(tmp_path / "alone/dog/1.png", 1)
    assert "one class alone (dog)" in refused("split", "alone")
    for number in (2, 3):
        draw(tmp_path / f"alone/owl/{number}.png", number)
    few = refused("split", "alone")
    assert few.startswith("class dog has 1 different image, and each of train/, val/, test/ needs")
    command(tmp_path, "photos")
    ready = refused("split", "photos-split")
    assert "has train/ already" in ready
    assert "data=imagefolder data.root=photos-split" in ready
    made = {"photos", "there", "alone", "photos-split"}
    assert {path.name for path in tmp_path.iterdir()} == made

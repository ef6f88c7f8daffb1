"""What is done with a finished run folder: evaluate, predict, export, and what they refuse."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lab import (
    CLI,
    CPU,
    QUICK,
    SMALL_NET,
    composed,
    read_csv,
    read_result,
    refused,
    slow_except,
    without_torch,
)
from omegaconf import OmegaConf
from PIL import Image

from resnet_lab.classifier import Classifier
from resnet_lab.cli import FOLDER, main
from resnet_lab.commands import export
from resnet_lab.config.errors import UserError
from resnet_lab.data.decode import fit
from resnet_lab.run import load, predict, training


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, shared_cache):
    """A finished run on digits, good enough to get most of them right."""
    folder = tmp_path_factory.mktemp("run")
    folders = (f"run_dir={folder}", f"data.cache_dir={shared_cache}")
    small = ("data.batch_size=32", "trainer.max_epochs=3")
    training.train(composed(*folders, *SMALL_NET, *CPU, *small))
    return folder


@pytest.fixture(scope="module")
def digits(run_dir):
    """The test images, uint8 [359, 32, 32, 3], and their labels."""
    source = load.load_run(run_dir).datamodule.source
    return np.asarray(source.images("test", 32)), source.labels("test")


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """The test images once more, as an image folder: data.root with train/ and test/."""
    root = tmp_path_factory.mktemp("digits")
    for number, (image, label) in enumerate(zip(*digits, strict=True)):
        for split in ("train", "test"):
            path = root / split / str(label) / f"{number:03}.png"
            if split == "test" or number < 60:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
    return root


@pytest.fixture(scope="module")
def probabilities(run_dir, digits):
    """Of the test images and of their mirror images, computed here: float32 [2, 359, 10]."""
    run = load.load_run(run_dir)
    mean, std = (torch.tensor(run.cfg.data[name]).view(3, 1, 1) for name in ("mean", "std"))
    images = (torch.tensor(digits[0]).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        return torch.stack([run.net(i).softmax(1) for i in (images, images.flip(3))])


def evaluated(run_dir: Path, *arguments: str) -> tuple[dict[str, Any], Path]:
    """What `evaluate` writes: evaluation.json, and its folder."""
    before = set((run_dir / "evaluation").glob("*"))
    assert main(["evaluate", str(run_dir), "trainer.accelerator=cpu", *arguments]) == 0
    (folder,) = set((run_dir / "evaluation").iterdir()) - before
    return json.loads((folder / "evaluation.json").read_text()), folder


# ------------------------------------------------------------------ evaluate


def test_evaluate_finds_what_training_found(run_dir, digits, probabilities, capsys):
    before = (run_dir / "result.json").read_bytes()
    result = json.loads(before)
    written, folder = evaluated(run_dir, "--tta", "flip")
    assert written["acc"] == result["test/acc"]
    assert written["loss"] == result["test/loss"]
    assert written["images"] == result["n_test"] == 359
    assert (run_dir / "result.json").read_bytes() == before

    labels = torch.tensor(digits[1])
    plain, mean = probabilities[0], probabilities.mean(0)
    for scores, expected in ((written, plain), (written["flip"], mean)):
        right = (expected.argmax(1) == labels).float().mean()
        top5 = (expected.argsort(1, descending=True)[:, :5] == labels[:, None]).any(1)
        assert scores["acc"] == pytest.approx(float(right))
        assert scores["top5"] == pytest.approx(float(top5.float().mean()))
        loss = -expected[range(359), labels].log().mean()
        assert scores["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert written["acc"] > 0.5
    assert written["flip"]["acc"] != written["acc"]

    rows = read_csv(folder / "confusion_matrix.csv")
    names = [str(i) for i in range(10)]
    assert list(rows[0]) == ["true class", *names, "accuracy"]
    assert [row["true class"] for row in rows] == names
    matrix = np.zeros((10, 10), dtype=int)
    np.add.at(matrix, (digits[1], plain.argmax(1).numpy()), 1)
    assert [[int(row[name]) for name in names] for row in rows] == matrix.tolist()
    per_class = {str(i): matrix[i, i] / matrix[i].sum() for i in range(10)}
    assert [float(row["accuracy"]) for row in rows] == pytest.approx(list(per_class.values()))
    assert written["acc_per_class"] == pytest.approx(per_class)
    # The callback of a training writes the same file.
    assert read_csv(run_dir / "confusion_matrix.csv") == rows
    screen = capsys.readouterr().out
    assert f"{result['test/acc']:.4f}" in screen
    assert f"{written['flip']['acc']:.4f}" in screen


@pytest.mark.parametrize(
    "wish",
    [
        ["callbacks.best.save_top_k=3", "callbacks.best.filename=mine"],
        *slow_except(
            (),
            (
                ["trainer.val_check_interval=0.5", "callbacks.best.save_top_k=-1"],
                ["callbacks=[nan_guard,epoch_log]"],  # without any checkpoint: the last weights
                ["callbacks.best.monitor=val/loss", "callbacks.best.mode=min"],
            ),
        ),
    ],
)
def test_what_is_tested_and_evaluated_is_what_the_monitor_chose(
    wish, tmp_path, shared_cache, monkeypatch
):
    seen = []
    close = Classifier.on_validation_epoch_end

    def spy(self):
        close(self)
        if not self.trainer.sanity_checking:
            figures = self.trainer.callback_metrics
            seen.append((float(figures["val/acc"]), float(figures["val/loss"])))

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", spy)
    run = tmp_path / "run"
    # A rate at which the figures go up and down.
    quick = (*QUICK, "trainer.max_epochs=6", "optimizer.lr=0.5", "scheduler=constant")
    folders = (f"run_dir={run}", f"data.cache_dir={shared_cache}")
    result = training.train(composed(*quick, *folders, *wish))
    if "monitor" in wish[0]:
        best = min(seen, key=lambda figures: figures[1])
    elif "best" in str(wish):
        best = max(seen, key=lambda figures: figures[0])
    else:
        best = seen[-1]
    assert (result["val/acc"], result["val/loss"]) == best
    assert len(set(seen)) > 1
    if "best" in str(wish):
        assert seen[-1] != best  # else this test shows nothing
        for split in ("val", "test"):
            written, _ = evaluated(run, "--split", split)
            assert written["acc"] == result[f"{split}/acc"]


def test_evaluate_scores_other_splits_and_never_overwrites(run_dir):
    result = read_result(run_dir)
    for split in ("val", "train"):
        written, _ = evaluated(run_dir, "--split", split)
        assert written["images"] == {"val": result["n_val"], "train": 1438 - result["n_val"]}[split]
        if split == "val":
            # metrics.csv and result.json have the epoch's own figures, on the same images.
            assert written["acc"] == result["val/acc"]
            assert written["loss"] == pytest.approx(result["val/loss"], rel=1e-6)


def test_evaluate_prints_how_many_images_it_counted(run_dir, capsys):
    written, _ = evaluated(run_dir, "trainer.limit_test_batches=2")
    assert written["images"] == 2 * 32
    assert capsys.readouterr().out.startswith("64 test images")


def test_evaluate_takes_other_data(run_dir, folder, tmp_path, capsys):
    """The same images as PNG files, for which the run's config knows no source."""
    other = ["data=imagefolder", f"data.root={folder}", "data.workers=0"]
    written, _ = evaluated(run_dir, *other)
    assert written["acc"] == read_result(run_dir)["test/acc"]
    assert written["root"] == str(folder)

    capsys.readouterr()
    renamed = tmp_path / "renamed"
    shutil.copytree(folder, renamed)
    for split in ("train", "test"):
        (renamed / split / "9").rename(renamed / split / "nine")
    sentence = refused(capsys, "evaluate", run_dir, "data=imagefolder", f"data.root={renamed}")
    assert "the run knows the classes 0, 1, 2" in sentence


@pytest.mark.slow
def test_of_an_image_folder_only_the_split_that_is_scored_is_needed(
    run_dir, folder, tmp_path, capsys
):
    root = tmp_path / "digits"
    asked = ("data=imagefolder", f"data.root={root}", "data.workers=0")
    shutil.copytree(folder / "test", root / "test")
    test, _ = evaluated(run_dir, *asked)
    assert test["acc"] == read_result(run_dir)["test/acc"]
    for split in ("train", "val"):
        sentence = refused(capsys, "evaluate", run_dir, *asked, "--split", split)
        assert f"{root}/train is no folder" in sentence

    (root / "test").rename(root / "val")
    val, _ = evaluated(run_dir, *asked, "--split", "val")
    assert (val["images"], val["acc"]) == (test["images"], test["acc"])
    assert f"{root}/test is no folder" in refused(capsys, "evaluate", run_dir, *asked)

    (root / "val").rename(root / "train")  # of which a tenth is cut off for validation
    train, _ = evaluated(run_dir, *asked, "--split", "train")
    val, _ = evaluated(run_dir, *asked, "--split", "val")
    assert (train["images"], val["images"]) == (323, 36)

    (root / "train" / "9").rename(root / "train" / "nine")
    sentence = refused(capsys, "evaluate", run_dir, *asked, "--split", "val")
    assert "the run knows the classes 0, 1, 2" in sentence


def test_what_is_cut_for_the_test_is_what_training_has_cut(run_dir, folder, tmp_path):
    """And where there is a test/, nothing is, whatever data.test_size says."""
    root = tmp_path / "digits"
    asked = ["data=imagefolder", f"data.root={root}", "data.workers=0", "data.test_size=100"]
    shutil.copytree(folder / "test", root / "train")
    assert evaluated(run_dir, *asked)[0]["images"] == 100
    assert evaluated(run_dir, *asked, "--split", "train")[0]["images"] == 233  # and 26 for val
    shutil.copytree(folder / "test", root / "test")
    assert evaluated(run_dir, *asked)[0]["acc"] == read_result(run_dir)["test/acc"]
    assert evaluated(run_dir, *asked, "--split", "train")[0]["images"] == 323


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.batch=8", "data.batch: there is no such key; did you mean batch_size?"),
        ("data.source.nothing.there=1", "data.source.nothing.there: there is no such key"),
        ("optimizer.lr=1", "optimizer.lr: cannot be changed here, only what lies below data and"),
        ("seed=1", "seed: cannot be changed here"),
        ("+data.more=1", "only key=value can be given here"),
        ("data.batch_size=1,2", "only key=value can be given here"),
        ("data.batch_size=0", "data.batch_size=0: must be a whole number of 1 or more"),
        ("data=imagefoldr", "data=imagefoldr: there is no such choice; did you mean imagefolder?"),
        ("trainer.devices=[0,1]", "trainer.devices=[0, 1]: one device evaluates"),
        ("trainer.devices=[99]", "trainer: "),
        ("trainer.devices=2", "trainer.devices=2: one device evaluates"),
        ("data.image_size", "cannot be read; write key=value"),
    ],
)
def test_wrong_overrides_are_named(run_dir, capsys, override, sentence):
    assert sentence in refused(capsys, "evaluate", run_dir, override)


# ------------------------------------------------------------------ predict


def predicted(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_predict_labels_a_folder_as_evaluate_scores_it(run_dir, folder, probabilities, capsys):
    test = folder / "test"
    assert main(["predict", str(run_dir), str(test), "--top-k", "3"]) == 0
    rows = predicted(capsys.readouterr().out)
    assert [row["file"] for row in rows] == sorted(str(path) for path in test.rglob("*.png"))
    result = read_result(run_dir)
    right = sum(Path(row["file"]).parent.name == row["label_1"] for row in rows)
    assert right / len(rows) == pytest.approx(result["test/acc"])
    for row in rows[::40]:
        expected = probabilities[0][int(Path(row["file"]).stem)].topk(3)
        assert [row[f"label_{k}"] for k in (1, 2, 3)] == [str(i) for i in expected.indices.tolist()]
        found = [float(row[f"probability_{k}"]) for k in (1, 2, 3)]
        assert found == pytest.approx(expected.values.tolist(), abs=2e-6)
    assert "label_4" not in rows[0]


def test_the_grid_says_what_is_right_where_folders_have_the_names_of_classes(tmp_path):
    image = Image.new("RGB", (8, 8))
    likeliest = [("cat", 0.75), ("dog", 0.25)]
    for folder, verdict in (("cat", "\nright"), ("dog", "\nwrong, it is dog"), ("photos", "")):
        picture = predict.Picture(tmp_path / folder / "1.png", thumbnail=image)
        tile = predict.tile(picture, likeliest, ["cat", "dog"])
        assert (tile.below, tile.above) == (f"cat  75%{verdict}", "1.png")


def test_predict_reads_every_kind_of_picture_and_survives_broken_ones(
    run_dir, digits, tmp_path, capsys
):
    photos = tmp_path / "photos"
    photos.mkdir()
    image = Image.fromarray(digits[0][0])
    grey = image.convert("L")
    same = ["alpha.png", "bmp.bmp", "grey.png", "grey16.png", "rgb.png", "turned.png", "webp.webp"]
    image.save(photos / "rgb.png")
    grey.save(photos / "grey.png")
    image.save(photos / "bmp.bmp")
    image.save(photos / "webp.webp", lossless=True)
    opaque = image.copy()
    opaque.putalpha(255)
    opaque.save(photos / "alpha.png")
    Image.fromarray(np.asarray(grey, dtype=np.uint16) * 257).save(photos / "grey16.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(photos / "turned.png", exif=exif)
    image.convert("CMYK").resize((900, 30)).save(photos / "wide.JPG")
    image.convert("P").resize((1, 1)).save(photos / "one.gif")
    grey.resize((40, 700)).save(photos / "tall.jpeg")
    (photos / "empty.png").touch()
    (photos / "half.png").write_bytes((photos / "rgb.png").read_bytes()[:200])
    (photos / "page.jpg").write_text("<html>not found</html>")
    (photos / ".hidden.png").touch()
    (photos / "notes.txt").touch()

    out, grid = tmp_path / "new" / "labels.json", tmp_path / "grid.png"
    asked = ["predict", str(run_dir), str(photos), str(tmp_path / "absent.jpg"), "--format", "json"]
    assert main([*asked, "--out", str(out), "--grid", str(grid)]) == 1
    rows = {Path(row["file"]).name: row for row in json.loads(out.read_text())}
    broken = ["absent.jpg", "empty.png", "half.png", "page.jpg"]
    assert sorted(rows) == sorted([*same, *broken, "one.gif", "tall.jpeg", "wide.JPG"])
    for name in same:
        for found, expected in zip(rows[name]["labels"], rows["rgb.png"]["labels"], strict=True):
            assert found["label"] == expected["label"], name
            assert found["probability"] == pytest.approx(expected["probability"], abs=2e-6), name
    assert len(rows["wide.JPG"]["labels"]) == 5
    screen = capsys.readouterr()
    assert screen.out == ""
    assert "10 of 14 images labelled" in screen.err
    for name in broken:
        assert rows[name]["error"]
        assert "labels" not in rows[name]
        assert f"{name}: " in screen.err
    with Image.open(grid) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400

    assert "labels.json is there already" in refused(capsys, *asked, "--out", out)
    assert "grid.png is there already" in refused(capsys, *asked, "--grid", grid)

    nothing = tmp_path / "nothing.png"  # a picture of nothing would be in the way of the next try
    assert main(["predict", str(run_dir), str(tmp_path / "absent"), "--grid", str(nothing)]) == 1
    assert not nothing.exists()


def test_predict_sees_what_evaluation_sees_of_a_large_picture(tmp_path):
    """Above 64 pixels: the central 224/256, resized in one step."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    for size, zoom in ((224, 0.875), (32, 1.0)):
        (picture,) = predict.decoded([tmp_path / "photo.png"], size, set())
        assert picture.thumbnail is None
        expected = fit(Image.fromarray(pixels), size, zoom)
        np.testing.assert_array_equal(picture.pixels, np.asarray(expected))


@pytest.mark.slow
def test_predict_agrees_with_the_test_of_a_run_on_large_pictures(config, folder, capsys):
    """Decoded by workers, 224/256 of the shorter side: the other way into a net."""
    cfg = config(
        *("data=imagefolder", f"data.root={folder}", "data.image_size=72", "data.workers=0"),
        *("data.batch_size=20", "data.val_size=0", "data.random_resized_crop=[0.9,1.0]"),
        *(*SMALL_NET, *CPU, "trainer.max_epochs=2"),
    )
    result = training.train(cfg)
    capsys.readouterr()
    assert main(["predict", cfg.run_dir, f"{folder}/test", "--top-k=1"]) == 0
    rows = predicted(capsys.readouterr().out)
    right = sum(Path(row["file"]).parent.name == row["label_1"] for row in rows)
    assert right == round(result["test/acc"] * 359)
    written, _ = evaluated(Path(cfg.run_dir))
    assert (written["acc"], written["loss"]) == (result["test/acc"], result["test/loss"])


def test_predict_is_never_far_ahead(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(predict, "_decode", lambda path, *_: opened.append(path))
    pictures = predict.decoded([tmp_path / str(n) for n in range(1000)], 32, set())
    next(pictures)
    assert 1 <= len(opened) <= 2 * predict.BATCH + 1
    pictures.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--top-k", "0"], "--top-k 0: must be 1 or more"),
        (["--grid", "grid.jpg"], "its name must end in .png"),
        ([], "holds no image"),
    ],
)
def test_predict_says_what_it_cannot_do(run_dir, tmp_path, capsys, arguments, sentence):
    assert sentence in refused(capsys, "predict", run_dir, tmp_path, *arguments)


# ------------------------------------------------------------------ export


@pytest.mark.parametrize("kind", ["torch_export", "onnx"])
def test_an_export_and_its_description_are_enough(run_dir, digits, probabilities, kind, tmp_path):
    if kind == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
        pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
    suffix = {"onnx": ".onnx", "torch_export": ".pt2"}[kind]
    out = tmp_path / f"net{suffix}"
    assert main(["export", str(run_dir), "--format", kind, "--out", str(out)]) == 0
    description = json.loads(out.with_name(out.name + ".json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, out.name + ".json"]
    assert description["class_names"] == [str(n) for n in range(10)]
    assert description["input"]["shape"] == ["batch", 3, 32, 32]
    assert len(description["checkpoint_sha256"]) == 64

    pixels = digits[0].astype(np.float32).transpose(0, 3, 1, 2) / 255
    mean, std = (np.array(description[name], np.float32)[:, None, None] for name in ("mean", "std"))
    images = (pixels - mean) / std
    for n in (1, 5, 359):
        if kind == "onnx":
            session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
            (logits,) = session.run(
                [description["output"]["name"]], {description["input"]["name"]: images[:n]}
            )
        else:
            logits = torch.export.load(out).module()(torch.from_numpy(images[:n])).detach()
        found = torch.as_tensor(logits).softmax(1)
        torch.testing.assert_close(found, probabilities[0][:n], rtol=1e-4, atol=1e-5)


def test_an_export_that_differs_leaves_no_file(run_dir, monkeypatch, capsys):
    def broken(program, path):
        torch.export.save(program, path)
        module = program.module()
        return lambda images: module(images) + (0.01 if len(images) == 7 else 0)

    monkeypatch.setitem(export.SAVE_AND_OPEN, "torch_export", broken)
    asked = ("export", run_dir, "--format", "torch_export")
    assert "gives other logits than the run's" in refused(capsys, *asked)
    assert list((run_dir / "export").iterdir()) == []


def test_export_overwrites_nothing_and_names_what_is_missing(
    run_dir, tmp_path, monkeypatch, capsys
):
    asked = ("export", run_dir, "--format", "torch_export", "--out")
    (tmp_path / "net.pt2").touch()
    assert "net.pt2 is there already" in refused(capsys, *asked, tmp_path / "net.pt2")
    assert "must end in .pt2" in refused(capsys, *asked, tmp_path / "net.onnx")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    sentence = refused(capsys, "export", run_dir, "--format", "onnx")
    assert "needs the package onnx; pip install" in sentence


# ------------------------------------------------------------------ the run folder


@pytest.fixture
def copy(run_dir, tmp_path):
    """A copy that a test may damage; it is all there is: the data is out of reach."""
    folder = tmp_path / "copy"
    shutil.copytree(run_dir, folder, ignore=shutil.ignore_patterns("tensorboard", "evaluation"))
    text = (folder / "config.yaml").read_text()
    cfg = OmegaConf.create(text)
    cfg.data.cache_dir = cfg.data.source.cache_dir = str(tmp_path / "file" / "nowhere")
    (tmp_path / "file").touch()  # no folder can be made below it
    OmegaConf.save(cfg, folder / "config.yaml")
    return folder


def test_a_run_folder_alone_is_enough_to_predict(copy, folder, capsys):
    image = folder / "test" / "3"
    assert main(["predict", str(copy), str(image)]) == 0
    assert {row["label_1"] for row in predicted(capsys.readouterr().out)} <= set("0123456789")


def test_a_folder_that_is_no_finished_run_is_named(copy, tmp_path, capsys):
    asked = ("predict", copy, tmp_path)

    assert "no run in it" in refused(capsys, "predict", tmp_path / "x", tmp_path)
    result = copy / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"status": "interrupted"}))
    (tmp_path / "a.png").touch()
    sentence = refused(capsys, *asked)
    assert "this run is interrupted, not finished" in sentence
    best = copy / "checkpoints" / "best.ckpt"
    assert str(best) in sentence
    assert load.load_run(copy, best).checkpoint == best
    absent = copy / "absent.ckpt"
    assert "no such checkpoint" in refused(capsys, *asked, "--checkpoint", absent)
    shutil.rmtree(copy / "checkpoints")
    assert "it has no checkpoint (the run is interrupted)" in refused(capsys, *asked)
    (copy / "config.yaml").write_text("model: [")
    assert "config.yaml is damaged" in refused(capsys, *asked)
    (copy / "config.yaml").write_text("model: {}")
    assert "is not the config of a run" in refused(capsys, *asked)


def test_without_the_best_checkpoint_the_last_one_is_used_where_none_was_chosen(copy):
    (copy / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match=r"its best checkpoint .*best\.ckpt is not there"):
        load.load_run(copy)
    result = read_result(copy)
    del result["best_checkpoint"]
    (copy / "result.json").write_text(json.dumps(result))
    assert load.load_run(copy).checkpoint.name == "last.ckpt"


def test_a_damaged_checkpoint_is_never_used(copy, capsys, tmp_path):
    (tmp_path / "a.png").touch()
    best = copy / "checkpoints" / "best.ckpt"
    whole = best.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (bytes(flipped), whole[: len(whole) // 2], b"", b"<html>"):
        best.write_bytes(damaged)
        sentence = refused(capsys, "predict", copy, tmp_path / "a.png")
        assert "best.ckpt is damaged, or no checkpoint of a run" in sentence
    torch.save({"weights": Path("x")}, best)  # an object: loading it would run its code
    assert "best.ckpt is damaged" in refused(capsys, "predict", copy, tmp_path / "a.png")


def test_a_damaged_description_of_the_net_is_one_sentence(copy, capsys, tmp_path):
    (tmp_path / "a.png").touch()
    cfg = OmegaConf.load(copy / "config.yaml")
    cfg.model.shortcut = "E"
    OmegaConf.save(cfg, copy / "config.yaml")
    assert "model.shortcut=E: must be" in refused(capsys, "predict", copy, tmp_path / "a.png")


def test_weights_of_another_net_are_refused(copy, capsys, tmp_path):
    (tmp_path / "a.png").touch()
    cfg = OmegaConf.load(copy / "config.yaml")
    for key, value in (("width", 0.5), ("depth", 14)):
        other = cfg.copy()
        other.model[key] = value
        OmegaConf.save(other, copy / "config.yaml")
        assert "does not fit the net of" in refused(capsys, "predict", copy, tmp_path / "a.png")


def test_own_code_is_run_where_the_user_trusts_it(copy, capsys, tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n\n\n"
        "class Mine(nn.Sequential):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = OmegaConf.load(copy / "config.yaml")
    cfg.model = {"_target_": "my_nets.Mine", "num_classes": 10}
    OmegaConf.save(cfg, copy / "config.yaml")
    from my_nets import Mine

    net = {f"net.{name}": weight for name, weight in Mine(10).state_dict().items()}
    torch.save({"state_dict": net}, copy / "checkpoints" / "best.ckpt")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    asked = ["predict", str(copy), str(tmp_path / "a.png")]
    assert "--trust PACKAGE" in refused(capsys, *asked)
    assert main([*asked, "--trust", "my_nets"]) == 0


# ------------------------------------------------------------------ the command line


def test_predict_needs_no_data_of_the_run(copy, tmp_path):
    cfg = OmegaConf.load(copy / "config.yaml")
    cfg.data.root = cfg.data.source.root = str(tmp_path / "moved")
    cfg.data.source._target_ = "resnet_lab.data.sources.ImageFolder"
    OmegaConf.save(cfg, copy / "config.yaml")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert main(["predict", str(copy), str(tmp_path / "a.png"), "--device", "cpu"]) == 0


def test_foreign_code_is_refused_before_torch_is_imported(copy, tmp_path):
    cfg = OmegaConf.load(copy / "config.yaml")
    cfg.model = {"_target_": "my_nets.Mine", "num_classes": 10}
    OmegaConf.save(cfg, copy / "config.yaml")
    for command in (["evaluate", copy], ["predict", copy, "a.png"]):
        done = without_torch(tmp_path, *map(str, command), script=CLI)
        assert done.returncode == 1
        assert "my_nets.Mine is none of the names" in done.stderr


def test_help_and_mistakes_need_no_torch(tmp_path):
    """Of every command: an example in its --help; and a wrong option ends with status 2."""
    names = [path.stem.replace("_", "-") for path in FOLDER.glob("[!_]*.py")]
    listed = without_torch(tmp_path, "--help", script=CLI).stdout
    assert sorted(re.findall(r"^  ([a-z-]+) +[a-z]", listed, re.MULTILINE)) == sorted(names)
    for name in names:
        if name != "train":  # whose help is Hydra's
            done = without_torch(tmp_path, name, "--help", script=CLI)
            assert done.returncode == 0
            assert f"\n  resnet-lab {name} " in done.stdout
    for words in ("no-such", "", "evaluate", "summary --no-such", "export RUN_DIR"):
        done = without_torch(tmp_path, *words.split(), script=CLI)
        assert (done.returncode, done.stdout) == (2, "")
        assert "usage: resnet-lab" in done.stderr
    assert (
        "unrecognized arguments: --no-such"
        in without_torch(tmp_path, "summary", "--no-such", script=CLI).stderr
    )


def test_a_file_in_the_folder_is_a_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "say_hello.py").write_text(
        '"""Say hello."""\n\ndef add(parser):\n    parser.add_argument("name")\n'
        "    parser.add_argument('overrides', nargs='*')\n\n"
        "def run(options):\n    print('hello', options.name, options.overrides)\n    return 3\n"
    )
    monkeypatch.setattr("resnet_lab.cli.FOLDER", tmp_path)
    monkeypatch.setattr("resnet_lab.commands.__path__", [str(tmp_path)])
    assert main(["say-hello", "you", "a=1"]) == 3
    assert capsys.readouterr().out == "hello you ['a=1']\n"
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "say-hello say hello" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_ctrl_c_and_a_closed_pipe_end_quietly(monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("resnet_lab.commands.report.run", interrupted)
    assert main(["report", "nowhere"]) == 130
    program = """
from resnet_lab.classifier import Classifier
from resnet_lab.cli import FOLDER, main
from resnet_lab.commands import report
report.run = lambda options: print("x" * 1_000_000)
raise SystemExit(main(["report", "nowhere"]))
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1

"""What is done with a finished run folder: evaluate, predict, export, and what they refuse."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from resnet_lab.cli import main
from resnet_lab.commands import export as export_room
from resnet_lab.commands import predict as predict_room
from resnet_lab.config.compose import VERSION_BASE
from resnet_lab.data.decode import fit
from resnet_lab.run import load, training

CONF = Path(__file__).resolve().parents[1] / "conf"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, shared_cache):
    """A finished run on digits, good enough to get most of them right."""
    folder = tmp_path_factory.mktemp("run")
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        cfg = compose(
            "train",
            overrides=[
                f"run_dir={folder}",
                f"data.cache_dir={shared_cache}",
                *("model=cifar_resnet", "model.depth=8", "model.width=0.25"),
                *(
                    "data.batch_size=32",
                    "trainer.max_epochs=3",
                    "trainer.accelerator=cpu",
                    "trainer.precision=32",
                ),
            ],
        )
    training.train(cfg)
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


def refused(capsys, *arguments: object) -> str:
    """The sentence with which the command ends, having done nothing."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    message = end.value.code
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert "\n" not in message
    assert capsys.readouterr().out == ""
    return message


def newest(run_dir: Path) -> Path:
    return max((run_dir / "evaluation").iterdir(), key=lambda path: path.stat().st_mtime_ns)


# ------------------------------------------------------------------ evaluate


def test_evaluate_finds_what_training_found(run_dir, digits, probabilities, capsys):
    before = (run_dir / "result.json").read_bytes()
    result = json.loads(before)
    assert main(["evaluate", str(run_dir), "trainer.accelerator=cpu", "--tta", "flip"]) == 0
    written = json.loads((newest(run_dir) / "evaluation.json").read_text())
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

    with (newest(run_dir) / "confusion_matrix.csv").open(newline="") as file:
        titles, *rows = csv.reader(file)
    assert titles == ["true class", *map(str, range(10)), "accuracy"]
    matrix = np.zeros((10, 10), dtype=int)
    np.add.at(matrix, (digits[1], plain.argmax(1).numpy()), 1)
    assert [row[0] for row in rows] == titles[1:-1]
    assert [[int(n) for n in row[1:-1]] for row in rows] == matrix.tolist()
    per_class = {str(i): matrix[i, i] / matrix[i].sum() for i in range(10)}
    assert [float(row[-1]) for row in rows] == pytest.approx(list(per_class.values()))
    assert written["acc_per_class"] == pytest.approx(per_class)
    screen = capsys.readouterr().out
    assert f"{result['test/acc']:.4f}" in screen
    assert f"{written['flip']['acc']:.4f}" in screen


def test_evaluate_scores_other_splits_and_never_overwrites(run_dir):
    result = json.loads((run_dir / "result.json").read_text())
    before = set((run_dir / "evaluation").glob("*"))
    for split in ("val", "train"):
        assert main(["evaluate", str(run_dir), "trainer.accelerator=cpu", "--split", split]) == 0
        written = json.loads((newest(run_dir) / "evaluation.json").read_text())
        assert written["images"] == result[f"n_{split}"]
        if split == "val":
            # metrics.csv and result.json have the epoch's own figures, on the same images.
            assert written["acc"] == result["val/acc"]
            assert written["loss"] == pytest.approx(result["val/loss"], rel=1e-6)
    assert len(set((run_dir / "evaluation").glob("*")) - before) == 2


def test_evaluate_takes_other_data(run_dir, folder, tmp_path, capsys):
    """The same images as PNG files, for which the run's config knows no source."""
    asked = ["evaluate", str(run_dir), "data=imagefolder", f"data.root={folder}"]
    assert main([*asked, "--split", "test", "trainer.accelerator=cpu", "data.workers=0"]) == 0
    written = json.loads((newest(run_dir) / "evaluation.json").read_text())
    result = json.loads((run_dir / "result.json").read_text())
    assert written["acc"] == result["test/acc"]
    assert written["root"] == str(folder)

    capsys.readouterr()
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for split in ("train", "test"):
        (other / split / "9").rename(other / split / "nine")
    sentence = refused(capsys, *asked[:3], f"data.root={other}")
    assert "the run knows the classes 0, 1, 2" in sentence


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
        ("data=imagenet", "data=imagenet: there is no such choice; did you mean imagefolder?"),
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
    result = json.loads((run_dir / "result.json").read_text())
    right = sum(Path(row["file"]).parent.name == row["label_1"] for row in rows)
    assert right / len(rows) == pytest.approx(result["test/acc"])
    for row in rows[::40]:
        expected = probabilities[0][int(Path(row["file"]).stem)].topk(3)
        assert [row[f"label_{k}"] for k in (1, 2, 3)] == [str(i) for i in expected.indices.tolist()]
        found = [float(row[f"probability_{k}"]) for k in (1, 2, 3)]
        assert found == pytest.approx(expected.values.tolist(), abs=2e-6)
    assert "label_4" not in rows[0]


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


def test_predict_sees_what_evaluation_sees_of_a_large_picture(tmp_path):
    """Above 64 pixels: the central 224/256, resized in one step."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    for size, zoom in ((224, 0.875), (32, 1.0)):
        (picture,) = predict_room.decoded([tmp_path / "photo.png"], size, set())
        assert picture.thumbnail is None
        expected = fit(Image.fromarray(pixels), size, zoom)
        np.testing.assert_array_equal(picture.pixels, np.asarray(expected))


def test_predict_agrees_with_the_test_of_a_run_on_large_pictures(config, folder, capsys):
    """Decoded by workers, 224/256 of the shorter side: the other way into a net."""
    cfg = config(
        *("data=imagefolder", f"data.root={folder}", "data.image_size=72", "data.workers=0"),
        *("data.batch_size=20", "data.val_size=0", "data.random_resized_crop=[0.9,1.0]"),
        *("model=cifar_resnet", "model.depth=8", "model.width=0.25", "trainer.max_epochs=2"),
        *("trainer.accelerator=cpu", "trainer.precision=32"),
    )
    result = training.train(cfg)
    capsys.readouterr()
    assert main(["predict", cfg.run_dir, f"{folder}/test", "--top-k=1"]) == 0
    rows = predicted(capsys.readouterr().out)
    right = sum(Path(row["file"]).parent.name == row["label_1"] for row in rows)
    assert right == round(result["test/acc"] * 359)
    assert main(["evaluate", cfg.run_dir, "trainer.accelerator=cpu"]) == 0
    written = json.loads((newest(Path(cfg.run_dir)) / "evaluation.json").read_text())
    assert (written["acc"], written["loss"]) == (result["test/acc"], result["test/loss"])


def test_predict_is_never_far_ahead(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(predict_room, "_decode", lambda path, *_: opened.append(path))
    pictures = predict_room.decoded([tmp_path / str(n) for n in range(1000)], 32, set())
    next(pictures)
    assert 1 <= len(opened) <= 2 * predict_room.BATCH + 1
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
    told = json.loads(out.with_name(out.name + ".json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, out.name + ".json"]
    assert told["class_names"] == [str(n) for n in range(10)]
    assert told["input"]["shape"] == ["batch", 3, 32, 32]
    assert len(told["checkpoint_sha256"]) == 64

    pixels = digits[0].astype(np.float32).transpose(0, 3, 1, 2) / 255
    mean, std = (np.array(told[name], np.float32)[:, None, None] for name in ("mean", "std"))
    images = (pixels - mean) / std
    for n in (1, 5, 359):
        if kind == "onnx":
            session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
            (logits,) = session.run([told["output"]["name"]], {told["input"]["name"]: images[:n]})
        else:
            logits = torch.export.load(out).module()(torch.from_numpy(images[:n])).detach()
        found = torch.as_tensor(logits).softmax(1)
        torch.testing.assert_close(found, probabilities[0][:n], rtol=1e-4, atol=1e-5)


def test_an_export_that_differs_leaves_no_file(run_dir, monkeypatch, capsys):
    def broken(program, path):
        torch.export.save(program, path)
        module = program.module()
        return lambda images: module(images) + (0.01 if len(images) == 7 else 0)

    monkeypatch.setitem(export_room.SAVE_AND_OPEN, "torch_export", broken)
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
    monkeypatch.setattr(export_room.importlib.util, "find_spec", lambda name: None)
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


def test_without_the_best_epoch_the_last_one_speaks(copy):
    (copy / "checkpoints" / "best.ckpt").unlink()
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
    cfg.model.shortcut = "D"
    OmegaConf.save(cfg, copy / "config.yaml")
    assert "model.shortcut=D: must be" in refused(capsys, "predict", copy, tmp_path / "a.png")


def test_weights_of_another_net_are_refused(copy, capsys, tmp_path):
    (tmp_path / "a.png").touch()
    cfg = OmegaConf.load(copy / "config.yaml")
    for key, value in (("width", 0.5), ("depth", 14)):
        other = cfg.copy()
        other.model[key] = value
        OmegaConf.save(other, copy / "config.yaml")
        assert "does not fit the net of" in refused(capsys, "predict", copy, tmp_path / "a.png")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "torch.load",
        "torch.hub.load",
        "resnet_lab.run.record.subprocess.run",
        "resnet_lab.data.sources.os.remove",
        "resnet_lab.data.sources.cached",  # defined elsewhere: only what a source is, is trusted
        "resnet_lab.callbacks.compile_net.shutil.rmtree",
        "torch.nn.functional.torch.load",
        "torch.nnx.Linear",
        "torch.nn.NoSuchThing",
        "torchvision.models._api.load_state_dict_from_url",
    ],
)
def test_a_config_cannot_run_code(copy, capsys, tmp_path, target):
    cfg = OmegaConf.load(copy / "config.yaml")
    cfg.data.source = {"deep": [{"_target_": target}]}
    OmegaConf.save(cfg, copy / "config.yaml")
    sentence = refused(capsys, "predict", copy, tmp_path)
    key = "data.source.deep.0._target_"
    assert f"{key}: {target} is " in sentence or f"{key}: there is no {target} " in sentence


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

"""The Python door: train, sweep, load and tabulate from a script or a notebook."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from lab import QUICK, SMALL_NET, assert_same, read_csv, weights
from PIL import Image

import resnet_lab as lab
from resnet_lab import api, charts
from resnet_lab.cli import main
from resnet_lab.data import pictures
from resnet_lab.run import training
from resnet_lab.run.folder import SECTIONS
from resnet_lab.run.stop import TIME_IS_OVER, Stopped


@pytest.fixture(scope="module")
def twice(
    tmp_path_factory: pytest.TempPathFactory, shared_cache: Path
) -> tuple[lab.Run, lab.Run, str]:
    """One run, made twice in a row in this process, and what the second printed."""
    folder = tmp_path_factory.mktemp("twice")
    before = sys.argv, list(logging.getLogger().handlers)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        place = f"data.cache_dir={shared_cache}"
        first, second = (
            lab.run(*QUICK, place, "callbacks=[default]", seed=3, trainer={"max_epochs": n})
            for n in (1, 1)
        )
    assert (sys.argv, logging.getLogger().handlers) == before
    assert not HydraConfig.initialized()
    make = lambda run: lab.Run(folder / run.folder)  # noqa: E731 - the folder is relative
    return make(first), make(second), (folder / second.folder / "run.log").read_text()


@pytest.fixture
def run(twice) -> lab.Run:
    return twice[0]


def test_the_import_alone_is_light(finished, tmp_path):
    program = (
        "import sys, resnet_lab as lab\n"
        "assert not {'hydra', 'pandas', 'torch'} & set(sys.modules)\n"
        "run = lab.Run(sys.argv[1])\n"
        "print(run, len(run.metrics), lab.compose('model=resnet32', seed=4).seed)\n"
        "print(lab.table(sys.argv[1])['state'].item())\n"
        "try: lab.run('data.batch_size=-1')\n"
        "except lab.UserError: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, str(finished)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, state = done.stdout.splitlines()
    assert "state finished" in first
    assert first.endswith(" 2 4")
    assert state == "finished"


def test_two_runs_in_one_process_do_not_know_of_each_other(twice):
    first, second, log = twice
    assert first.folder != second.folder
    assert first.result["status"] == second.result["status"] == "finished"
    assert_same(weights(first.folder), weights(second.folder))
    assert log.count("run folder") == 1  # nor is one's log in the other's file
    assert "model.depth=8" in second.result["command"]


def test_a_run_tells_its_figures(run):
    written = read_csv(run.folder / "metrics.csv")
    assert run.metrics.index.tolist() == [1]
    assert run.metrics.loc[1, "val/acc"] == pytest.approx(float(written[0]["val/acc"]))
    assert run.config["seed"] == 3
    assert set(run.pictures) >= {"curves", "confusion_matrix"}
    assert f"test accuracy {100 * run.result['test/acc']:.2f} %" in repr(run)


def test_a_notebook_shows_a_run_and_nothing_that_its_folder_makes_up(run, tmp_path):
    (tmp_path / "result.json").write_text('{"status": "<script>alert(1)</script>", "model": 1}')
    (tmp_path / "curves.png").symlink_to(run.folder / "curves.png")
    shown = lab.Run(tmp_path)._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown
    assert "<img" not in shown
    assert 'src="data:image/png;base64,iVBOR' in run._repr_html_()


def test_images_of_every_kind_get_the_same_labels_as_from_the_command(run, tmp_path, capsys):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 20, 28, 3), dtype=np.uint8)
    files = [tmp_path / "photos" / f"{n}.png" for n in range(3)]
    files[0].parent.mkdir()
    for file, picture in zip(files, pixels, strict=True):
        Image.fromarray(picture).save(file)
    assert main(["predict", str(run.folder), str(files[0].parent)]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    expected = [line.split(",")[1] for line in rows]

    pictures = [Image.fromarray(picture) for picture in pixels]
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    before = run.predict(files)
    for images in (files[0].parent, pixels, list(pixels), tensor, list(tensor), pictures):
        found = run.predict(images, top_k=2)
        assert found["label"].tolist() == expected
        np.testing.assert_allclose(found["probability"], before["probability"], rtol=1e-5)
        assert (found["probability"] >= found["probability_2"]).all()
    assert before.index.tolist() == [str(file) for file in files]
    assert run.predict(pixels[0])["label"].tolist() == expected[:1]
    assert run.predict(tmp_path / "absent.png")["error"].item().startswith("No such file")


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([], "no images"),
        ([1, 2], "not int"),
        (np.zeros((2, 8, 8, 3)), "must be uint8"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"not \[2, 8, 8, 4\]"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"must be \[n, 3, height, width\]"),
    ],
)
def test_what_is_no_image_is_refused(run, images, sentence):
    with pytest.raises(lab.UserError, match=sentence):
        run.predict(images)


def test_a_picture_shows_what_is_right(run, monkeypatch):
    drawn, grid = [], charts.grid

    def watched(tiles: Any, *args: Any, **options: Any) -> Any:
        drawn[:] = tiles
        return grid(tiles, *args, **options)

    monkeypatch.setattr(charts, "grid", watched)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    label = run.predict(images)["label"].iloc[0]
    assert run.show(images, [label, (int(label) + 1) % 10]).width > 100
    verdicts = [tile.below.split("\n")[1] for tile in drawn]
    assert verdicts == ["right", f"wrong, it is {(int(label) + 1) % 10}"]
    with pytest.raises(lab.UserError, match="1 labels for 2 images"):
        run.show(images, [label])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("model=resnet2",), "did you mean model=resnet20"),
        (("optimizer.lr=fast",), "optimizer.lr=fast"),
        (("data.batch_size=-1",), "must be a whole number"),
        (("seed=0,1",), "one value"),
        (("--help",), "only key=value"),
        ((3,), "write it as a text"),
        (("resume=nowhere",), "there is no run in it"),
    ],
)
def test_a_mistake_is_a_sentence_and_no_exit(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(lab.UserError, match=sentence):
        lab.run(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value",
    [True, None, 3, 0.25, "text", "two words", "a,b", "고양이", [1, 2], ["a b", None], 'say "so"'],
)
def test_python_values_arrive_as_they_are(value):
    (word,) = api.command_line([], {"key": value})
    (override,) = OverridesParser.create().parse_overrides([word])
    assert override.value() == value
    assert not override.is_sweep_override()


def test_settings_in_words():
    words = api.command_line(["a=1"], {"b": {"c": {"d": np.float32(0.5)}, "e": Path("x/y")}})
    assert words == ["a=1", "b.c.d=0.5", "b.e=x/y"]
    assert api.command_line([], {"seed": range(3)}, swept=True) == ["seed=0,1,2"]
    with pytest.raises(lab.UserError, match="at least one value"):
        api.command_line([], {"seed": []}, swept=True)


def test_how_a_run_ends_that_was_stopped(monkeypatch, tmp_path):
    def stopped(code: int) -> Any:
        def train(cfg: Any) -> None:
            config = "".join(f"{section}: {{}}\n" for section in SECTIONS)
            Path(cfg.run_dir, "config.yaml").write_text(config)
            raise Stopped("told to", code)

        return train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "train", stopped(130))
    with pytest.raises(KeyboardInterrupt, match=r"told to; resume it with run\(resume="):
        lab.run(*SMALL_NET)
    monkeypatch.setattr(training, "train", stopped(TIME_IS_OVER))
    assert lab.run(*SMALL_NET).folder.is_dir()


def test_a_finished_run_is_not_trained_again(run, capsys):
    before = (run.folder / "result.json").read_bytes()
    assert lab.run(resume=str(run.folder)).folder == run.folder
    assert "this run is finished" in capsys.readouterr().out
    assert (run.folder / "result.json").read_bytes() == before


def test_a_table_of_runs(twice):
    folder = twice[0].folder.parents[2]
    table = lab.table(folder, columns=["optimizer.lr", "model.shortcut"])
    assert table["seed"].tolist() == [3, 3]
    assert table["model.depth"].tolist() == [8, 8]
    assert set(table["model.shortcut"]) == {twice[0].config["model"]["shortcut"]}
    assert table["test/acc"].tolist() == [run.result["test/acc"] for run in twice[:2]]
    with pytest.raises(lab.UserError, match="no such folder"):
        lab.table(folder / "absent")


def test_a_checkpoint_finds_its_net(run, tmp_path):
    path = run.folder / "checkpoints" / "best.ckpt"
    found = lab.Classifier.load_from_checkpoint(path)
    assert not found.training
    assert_same(found.net.state_dict(), run.net.state_dict())

    alone = tmp_path / "a" / "best.ckpt"
    alone.parent.mkdir()
    alone.write_bytes(path.read_bytes())
    with pytest.raises(lab.UserError, match="give net="):
        lab.Classifier.load_from_checkpoint(alone)
    net = lab.build_net(lab.compose(*SMALL_NET, data={"num_classes": 10}))
    again = lab.Classifier.load_from_checkpoint(alone, net=net, map_location="cpu")
    assert_same(again.net.state_dict(), run.net.state_dict())


def test_a_plain_trainer_takes_the_parts(tmp_path, shared_cache):
    cfg = lab.compose(
        *QUICK, "trainer.max_epochs=1", f"data.cache_dir={shared_cache}", "data.num_classes=10"
    )
    data, net = lab.build_data(cfg), lab.build_net(cfg)
    classifier = lab.Classifier(
        net,
        lambda groups: torch.optim.SGD(groups, lr=0.05),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1),
    )
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with training.known_warnings():
        trainer.fit(classifier, datamodule=data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005)
    (path,) = tmp_path.rglob("*.ckpt")
    again = lab.Classifier.load_from_checkpoint(path, net=lab.build_net(cfg))
    assert_same(again.net.state_dict(), net.state_dict())


def test_a_batch_is_drawn_as_the_net_sees_it(config, monkeypatch):
    seen = []
    monkeypatch.setattr(
        pictures, "pictures", lambda images, captions, *rest: seen.append((images, captions))
    )
    monkeypatch.setattr(charts, "render", lambda draw: draw() or np.zeros((1, 1, 3), np.uint8))
    data = lab.build_data(config(*QUICK, "augment=mixup"))
    for split, count in (("train", 5), ("val", 3), ("test", 4)):
        data.show(split, count)
        images, captions = seen.pop()
        assert len(images) == len(captions) == count
        batch = data.train_dataloader() if split == "train" else data.eval_dataloader(split)
        expected, _ = data.prepare(next(iter(batch)))
        assert torch.equal(images, expected[:count])
    with pytest.raises(lab.UserError, match="no split all"):
        data.show("all")


# ------------------------------------------------------------------ processes of their own


@pytest.mark.slow
def test_a_sweep_continues_and_gives_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = {"sweep": {"name": "first"}, "trainer": {"max_epochs": 1}}
    asked = (*QUICK[:-1], "data.train_size=64")
    sweep = lab.sweep(*asked, "model.shortcut=A,none", seed=[0, 1], **options)
    table = sweep.table()
    assert table["state"].tolist() == ["finished"] * 4
    assert sorted(set(zip(table["model.shortcut"], table["seed"], strict=True))) == [
        *(("A", 0), ("A", 1), ("none", 0), ("none", 1))
    ]
    assert "4 jobs" in capsys.readouterr().out
    lab.sweep(*asked, "model.shortcut=A,none", seed=[0, 1], **options)
    assert "4 finished before" in capsys.readouterr().out
    assert len(sweep.runs) == 4
    assert sweep.report().is_file()
    assert "shortcut" in sweep._repr_html_()
    with pytest.raises(lab.UserError, match="is a sweep"):
        lab.load(sweep.folder)
    with pytest.raises(lab.UserError, match="did you mean model=resnet20"):
        lab.sweep("model=resnet2", "seed=0,1")
    assert lab.sweep(*asked, "seed=0,1", sweep={"plan": True}) is None


@pytest.mark.slow
def test_two_devices_train_in_processes_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = lab.run(*QUICK, "trainer.max_epochs=1", trainer={"devices": 2})
    assert found.result["status"] == "finished"
    assert found.result["devices"] == 2
    assert "run folder" in capsys.readouterr().out

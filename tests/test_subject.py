"""A finished run under study: its images, its figures, the names of several."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lab import read_result
from omegaconf import OmegaConf
from torch import nn

from resnet_lab.analysis.subject import Subject, open_subject, recording, titles
from resnet_lab.commands import _analysis
from resnet_lab.config.errors import UserError
from resnet_lab.language import translator


@pytest.fixture(scope="module")
def subject(finished: Path) -> Subject:
    return open_subject(finished, device="cpu")


def test_the_accuracy_is_that_of_the_run(subject, finished):
    assert subject.accuracy() == pytest.approx(read_result(finished)["test/acc"], abs=1e-6)
    assert subject.pixels.dtype == torch.uint8
    assert len(subject.pixels) == len(subject.labels) == 359
    batches = list(subject.batches(100))
    assert [len(labels) for _, labels in batches] == [100, 100, 100, 59]
    with torch.inference_mode():
        one = subject.net(batches[3][0])
    torch.testing.assert_close(one, subject.logits()[300:])
    torch.testing.assert_close(subject.logits(subject.pixels[300:]), subject.logits()[300:])


def test_some_images_are_spread_over_all_of_them(subject, finished):
    some = open_subject(finished, images=10, device="cpu")
    rows = [n * 359 // 10 for n in range(10)]
    assert torch.equal(some.pixels, subject.pixels[rows])
    assert torch.equal(some.labels, subject.labels[rows])
    assert len(open_subject(finished, images=10**6, device="cpu").labels) == 359


def test_validation_images_are_those_of_training(finished):
    held_out = open_subject(finished, split="val", device="cpu")
    assert held_out.accuracy() == pytest.approx(read_result(finished)["val/acc"], abs=1e-6)


def named(model: str, shortcut: str | None, seed: int) -> SimpleNamespace:
    config = {"model": {} if shortcut is None else {"shortcut": shortcut}, "seed": seed}
    return SimpleNamespace(
        result={"model": model}, cfg=OmegaConf.create(config), run_dir=Path("run")
    )


def test_no_two_nets_have_one_name():
    english, korean = translator("en"), translator("ko")
    pair = [named("resnet56", "A", 0), named("resnet56", "none", 0)]
    assert titles(pair, english) == ["resnet56, shortcut A", "resnet56, plain"]
    assert titles(pair, korean) == ["resnet56, 숏컷 A", "resnet56, 스킵 커넥션 없음"]
    seeds = [named("vgg", None, 0), named("vgg", None, 7)]
    assert titles(seeds, english) == ["vgg, seed 0", "vgg, seed 7"]
    assert titles([seeds[0], seeds[0]], english) == ["vgg, seed 0 (1)", "vgg, seed 0 (2)"]


def test_a_recording_ends():
    net, seen = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), []
    with recording(list(net), lambda number, output: seen.append((number, tuple(output.shape)))):
        net(torch.ones(4, 2))
    net(torch.ones(4, 2))
    assert seen == [(0, (4, 3)), (1, (4, 3))]


def test_results_overwrite_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (_analysis.result_folder(Namespace(out=None), "lesion") for _ in range(2))
    assert first != second
    assert first.parent == Path("outputs/analysis")
    named = _analysis.result_folder(Namespace(out=tmp_path / "a" / "b"), "lesion")
    (named / "file").touch()
    with pytest.raises(UserError, match="there is something already"):
        _analysis.result_folder(Namespace(out=named), "lesion")
    with pytest.raises(UserError, match="there is something already"):
        _analysis.refuse_filled(named / "file")
    with pytest.raises(UserError, match="--images 0: must be 1 or more"):
        _analysis.subjects(Namespace(images=0))

"""The pages of lessons: what they quote, show and ask the reader to type is there and works."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from lab import CONF, ROOT
from omegaconf import OmegaConf

from resnet_lab import cli
from resnet_lab.config.check import check
from resnet_lab.config.compose import VERSION_BASE, compose
from resnet_lab.sweep.grid import points

PAGES = [ROOT / "docs" / name for name in ("lessons.md", "lessons.ko.md")]
TEXTS = {page: page.read_text() for page in PAGES}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(TEXTS[page]) if name == language]


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """The words behind `program` in each command of a page that starts with it."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(program):
                yield shlex.split(line.removeprefix(program), comments=True)


def on_the_pages(program: str) -> list[tuple[str, ...]]:
    """The commands of both pages, each once."""
    return sorted({tuple(words) for page in PAGES for words in commands(page, program)})


def test_every_training_command_composes():
    found = on_the_pages("python train.py")
    assert len(found) >= 8
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        for words in found:
            overrides = [word for word in words if word != "-m"]
            first = points(overrides, loader)[0]
            cfg, _ = compose(first)
            swept = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
            given = {word.partition("=")[0] for word in overrides}
            own = [f"{key}={values}" for key, values in swept.items() if key not in given]
            assert bool(own) <= ("-m" in words), words
            if own:
                cfg, _ = compose(points([*first, *own], loader)[0])
            cfg.data.root = None  # folders that the reader makes
            if str(cfg.data.source._target_).endswith("ImageFolder"):
                cfg.data.source = {"_target_": "resnet_lab.data.sources.Digits"}
            if str(cfg.model.get("trunk")).startswith("outputs/"):
                cfg.model.trunk = "resnet18"
            check(cfg)


def test_every_other_command_is_understood(monkeypatch):
    found = on_the_pages("resnet-lab")
    assert len(found) >= 12
    for command, *words in found:
        module = importlib.import_module(f"resnet_lab.commands.{command.replace('-', '_')}")
        called = []
        monkeypatch.setattr(module, "run", lambda options, called=called: called.append(options))
        cli.main([command, *words])
        assert len(called) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_line_of_code_is_one_of_ours(page):
    ours = {
        line.strip()
        for path in (ROOT / "src").rglob("*.py")
        for line in path.read_text().splitlines()
    }
    for block in blocks(page, "python"):
        if "import torch" in block:  # a program for the reader
            continue
        missing = [line for line in block.splitlines() if line.strip() not in {*ours, "", "..."}]
        assert not missing


def test_every_picture_is_there_and_every_picture_is_shown():
    there = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    shown = {name for text in TEXTS.values() for name in re.findall(r"\]\(images/([^)]+)\)", text)}
    assert shown <= there
    assert {name for name in there if name.startswith("lesson-")} <= shown


def test_the_korean_page_asks_for_all_that_the_english_one_does():
    asked = []
    for page in PAGES:
        words = [
            w for program in ("python train.py", "resnet-lab") for w in commands(page, program)
        ]
        asked.append({tuple(word for word in w if word not in ("--language", "ko")) for w in words})
    assert asked[0] <= asked[1]


def test_every_lesson_of_conf_stands_on_the_page():
    for path in (CONF / "experiment" / "lessons").glob("*.yaml"):
        assert f"experiment=lessons/{path.stem}" in TEXTS[PAGES[0]]

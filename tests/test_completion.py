"""The Tab key: what a word may become, and the scripts in real shells."""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from lab import CLI, ROOT, without_torch

from resnet_lab.commands.completion import SCRIPTS
from resnet_lab.complete.__main__ import for_bash, split
from resnet_lab.complete.candidates import HYDRA_OPTIONS, complete, values_of
from resnet_lab.complete.sources import arguments, commands
from resnet_lab.config import options

pytestmark = pytest.mark.usefixtures("fresh_options")

BREAKS = " \t\n\"'><=;|&(:"  # bash's COMP_WORDBREAKS
HOSTILE = "$(touch broken) `x`;"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current folder with runs, a sweep and files, one of them named to do harm."""
    for folder in (
        "outputs/runs/2026-01-31/12-00-00-resnet20",
        f"outputs/runs/2026-01-31/{HOSTILE}",
        "outputs/runs/2026-01-31/two\nlines",
        "outputs/sweeps/first/seed=0",
        "outputs/sweeps/first/report",
        "photos",
        ".hidden",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "image.png").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(line: str) -> list[str]:
    words, current, _ = split(line)
    return [word for word, _ in complete(words, current)]


TRAIN = f"python {ROOT}/train.py"


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("resnet-lab ", ["evaluate", "summary", "completion", "find-lr"]),
        ("resnet-lab find", ["find-lr"]),
        ("resnet-lab completion ", ["bash", "fish"]),
        ("resnet-lab evaluate --", ["--split", "--checkpoint", "--trust", "--help"]),
        ("resnet-lab evaluate x --split ", ["test", "val", "train"]),
        ("resnet-lab evaluate ", ["outputs/runs/2026-01-31/12-00-00-resnet20", "photos/"]),
        ("resnet-lab evaluate outputs/s", ["outputs/sweeps/first/seed=0"]),
        ("resnet-lab evaluate x da", ["data=", "data."]),
        ("resnet-lab predict x ", ["image.png", "photos/"]),
        ("resnet-lab predict x --out im", ["image.png"]),
        ("resnet-lab report outputs/sweeps/", ["outputs/sweeps/first"]),
        ("resnet-lab ui --no", ["--no-open"]),
        ("resnet-lab summary model=wrn", ["model=wrn28_10"]),
        ("resnet-lab find-lr sched", ["scheduler=", "scheduler."]),
        ("resnet-lab train experiment=abl", ["experiment=ablation/depth"]),
        (f"{TRAIN} se", ["seed="]),
        (f"{TRAIN} -m experiment=he2015/res", ["experiment=he2015/resnet20"]),
        (f"{ROOT}/train.py --cf", ["--cfg"]),
        (f"{TRAIN} --cfg ", ["job", "all"]),
        (f"{TRAIN} optimizer=adam optimizer.", ["optimizer.betas=", "optimizer.lr="]),
        (f"{TRAIN} data.augment.mi", ["data.augment.mixup=", "data.augment.mix="]),
        (
            f"{TRAIN} model=resnet20,resnet1",
            ["model=resnet20,resnet18", "model=resnet20,resnet110"],
        ),
        (f"{TRAIN} callbacks=[default,em", ["callbacks=[default,ema"]),
        (f"{TRAIN} +callbacks=em", ["+callbacks=ema"]),
        (f"{TRAIN} ~callbacks.live", ["~callbacks.live_bar"]),
        (f"{TRAIN} trainer.accelerator=", ["trainer.accelerator=gpu", "trainer.accelerator=mps"]),
        (f"{TRAIN} model.shortcut=", ["model.shortcut=A", "model.shortcut=none"]),
        (f"{TRAIN} data.flip=", ["data.flip=true", "data.flip=false"]),
        (f"{TRAIN} model=pretrained model.trunk=vgg16", ["model.trunk=vgg16_bn"]),
        (f"{TRAIN} hydra/la", ["hydra/launcher="]),
        (f"{TRAIN} hydra.run.dir=pho", ["hydra.run.dir=photos/"]),
        (f"{TRAIN} data=imagefolder data.root=ph", ["data.root=photos/"]),
        (f"{TRAIN} resume=outputs/r", ["resume=outputs/runs/2026-01-31/12-00-00-resnet20"]),
    ],
)
def test_what_a_word_may_become(place, line, some):
    words = found(line)
    assert set(some) <= set(words)
    assert len(words) == len(set(words))
    assert all(word.startswith(split(line)[1]) for word in words)


@pytest.mark.parametrize(
    "line",
    [
        "python ",
        "python other.py mod",
        "python elsewhere/train.py mod",
        "ls ",
        "resnet-lab no-such ",
        f"{TRAIN} optimizer=adam optimizer.mom",
        f"{TRAIN} no_such=",
        "resnet-lab evaluate .h/",
    ],
)
def test_where_nothing_fits(place, line):
    assert found(line) == []


def test_a_report_and_hidden_files_are_no_runs(place):
    words = found("resnet-lab evaluate ")
    assert not [word for word in words if "report" in word or "hidden" in word or "image" in word]
    assert found("resnet-lab evaluate .h") == [".hidden/"]


def test_the_configs_of_a_project_are_completed_too(tmp_path):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("# My net.\nblocks: 3 # of them\n")
    assert found(f"python {tmp_path}/train.py model=mi") == ["model=mine"]
    assert found(f"python {tmp_path}/train.py model=mine model.bl") == ["model.blocks="]
    assert "model=resnet20" in found(f"python {tmp_path}/train.py model=res")


def test_bash_gets_the_part_of_the_word_that_it_replaces(place):
    assert list(for_bash("resnet-lab summary model=wrn", BREAKS)) == ["wrn28_10 "]
    assert list(for_bash("resnet-lab summary model=wrn", " ")) == ["model=wrn28_10 "]
    assert list(for_bash("resnet-lab summary 'model=wrn", BREAKS)) == ["model=wrn28_10"]
    assert list(for_bash(f"{TRAIN} optimizer.l", BREAKS)) == ["optimizer.lr="]


def test_names_of_files_do_no_harm(place):
    """What a shell would run is quoted, or left out within quotes; a name is one line."""
    lines = list(for_bash("resnet-lab evaluate outputs/runs/2026-01-31/$", BREAKS))
    assert lines == ["outputs/runs/2026-01-31/\\$\\(touch\\ broken\\)\\ \\`x\\`\\; "]
    assert list(for_bash('resnet-lab evaluate "outputs/runs/2026-01-31/', BREAKS)) == [
        "outputs/runs/2026-01-31/12-00-00-resnet20"
    ]
    assert not [word for word in found("resnet-lab evaluate ") if "two" in word]


def test_values_are_those_of_the_comment():
    key = options.Key("auto", "ours; 32 | bf16-mixed | 16-mixed ...; auto: where hardware has it")
    assert values_of(key) == ["auto", "32", "bf16-mixed", "16-mixed"]
    key = options.Key("A", "A (zero-pad) | B (project, 1x1) | none | scale, gate (a paper)")
    assert values_of(key) == ["A", "B", "none", "scale", "gate"]
    assert values_of(options.Key("${data.seed}", "")) == []
    assert values_of(options.Key("[default]", "a list")) == ["[default]"]


def test_options_of_train_are_those_of_hydra():
    there = {text for action in get_args_parser()._actions for text in action.option_strings}
    assert set(HYDRA_OPTIONS) <= there
    assert {text for text in there if text.startswith("--")} <= set(HYDRA_OPTIONS)


def test_nothing_heavy_is_imported(tmp_path):
    program = (
        "import sys; from resnet_lab.complete.__main__ import main; "
        "main(['fish', 'model=wr', 'resnet-lab', 'summary']); "
        "print({'torch', 'hydra', 'omegaconf', 'yaml', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    word, empty = done.stdout.splitlines()
    assert word.startswith("model=wrn28_10\tWide ResNet 28-10")
    assert empty == "set()"


@pytest.mark.slow
def test_the_source_of_each_command_says_what_argparse_knows():
    for name, path in commands().items():
        if name == "train":
            continue
        parser = argparse.ArgumentParser()
        importlib.import_module(f"resnet_lab.commands.{path.stem}").add(parser)
        there = {text for action in parser._actions for text in action.option_strings}
        takes = arguments(path)
        assert set(takes.options) == there - {"-h"}, name
        for action in parser._actions:
            for text in action.option_strings:
                if action.choices:
                    assert takes.options[text] == tuple(action.choices), (name, text)
                elif text in takes.options:
                    assert (takes.options[text] is None) == (action.nargs == 0), (name, text)


# ------------------------------------------------------------------ the shells

NAMES = {"bash": "COMPREPLY", "zsh": "compadd", "fish": "complete -c"}


def test_every_script_is_printed_without_torch(tmp_path):
    for shell in SCRIPTS:
        done = without_torch(tmp_path, "completion", shell, script=CLI)
        assert done.returncode == 0
        assert NAMES[shell] in done.stdout
        assert f"{sys.executable} -P -m resnet_lab.complete" in done.stdout
    assert without_torch(tmp_path, "completion", "tcsh", script=CLI).returncode == 2


def script(shell: str) -> str:
    return SCRIPTS[shell].replace("PYTHON", sys.executable)


def needs(shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")


def run(shell: list[str], place: Path) -> list[str]:
    """The lines that a shell prints, in a folder with modules that must not be imported."""
    for name in ("resnet_lab", "shlex"):
        (place / f"{name}.py").write_text("open('imported', 'w')\n")
    done = subprocess.run(
        shell,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"HOME": str(place), "XDG_CONFIG_HOME": str(place), "TERM": "dumb"},
    )
    assert done.returncode == 0, done.stderr
    assert not (place / "imported").exists()
    assert not (place / "broken").exists()
    return done.stdout.splitlines()


def test_bash(place):
    needs("bash")
    program = script("bash") + (
        "try() {\n"
        "  COMP_LINE=$1 COMP_POINT=${#1}; _resnet_lab; printf '%s\\n' \"${COMPREPLY[@]}\"\n"
        "}\n"
        "try 'resnet-lab summary model=wrn'\n"
        f"try '{TRAIN} experiment=ablation/d'\n"
        "try 'resnet-lab evaluate outputs/runs/2026-01-31/$'\n"
        "complete -p resnet-lab python\n"
    )
    lines = run(["bash", "--norc", "-c", program], place)
    assert lines[:2] == ["wrn28_10 ", "ablation/depth "]
    assert lines[2].startswith("outputs/runs/2026-01-31/\\$\\(touch")
    assert [line.split()[-1] for line in lines[3:]] == ["resnet-lab", "python"]


def test_fish(place):
    needs("fish")
    program = script("fish") + (
        "complete -C 'resnet-lab summary model=wrn'\n"
        f"complete -C '{TRAIN} experiment=ablation/d'\n"
        "complete -C 'resnet-lab completion z'\n"
    )
    lines = run(["fish", "--no-config", "-c", program], place)
    words = [line.partition("\t")[0] for line in lines]
    assert words == ["model=wrn28_10", "experiment=ablation/depth", "zsh"]
    assert "Wide ResNet" in lines[0]


def test_zsh(place):
    """Its completion system is replaced by functions that print what they are given."""
    needs("zsh")
    program = (
        "compdef() { : }\n_files() { print files }\n"
        'compadd() { while [[ $1 != -a ]]; do shift; done; print -l -- "${(P@)2}" }\n'
        + script("zsh")
        + "words=(resnet-lab summary model=wrn) CURRENT=3 PREFIX=model=wrn; _resnet_lab\n"
        f"words=({TRAIN} optimizer.l) CURRENT=3 PREFIX=optimizer.l; _resnet_lab_python\n"
        "words=(resnet-lab no-such x) CURRENT=3 PREFIX=x; _resnet_lab\n"
    )
    assert run(["zsh", "-f", "-c", program], place) == ["model=wrn28_10", "optimizer.lr=", "files"]

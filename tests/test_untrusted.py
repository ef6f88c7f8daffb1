"""What comes with a run folder is data from anybody; what the user types is hers.

Each attack here worked once, on one of the ways by which such a folder is read: evaluate, predict,
export, resume, a trunk, a report.
"""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from lab import CONF, CPU, QUICK, resumed_by_command, train_here, train_py
from omegaconf import OmegaConf
from PIL import Image

from resnet_lab.cli import main
from resnet_lab.config import compose as compose_module
from resnet_lab.config import untrusted
from resnet_lab.config.check import check
from resnet_lab.config.compose import compose, from_environment
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable, read_json, read_rows, replacing, write_text
from resnet_lab.report.runs import read
from resnet_lab.run import build, load, training
from resnet_lab.run.folder import RunFolder

SECRET = "do-not-tell-5d0f"


@pytest.fixture
def sent(finished, tmp_path):
    """A copy of it, as somebody could have sent it."""
    return Path(shutil.copytree(finished, tmp_path / "sent"))


def edit(folder: Path, /, **changes):
    """Set dotted keys (with __ for the dots) in the run's config.yaml, as plain YAML."""
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = config
        for name in parents:
            node = node[name]
        node[last] = value
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")


def resumed_by_its_command(run_dir: Path):
    """As if the command that began the run had been `python train.py` alone."""
    (run_dir / ".hydra" / "overrides.yaml").write_text("[]\n")
    return resumed(run_dir)


def resumed(run_dir: Path, *overrides: str):
    (run_dir / "result.json").write_text('{"status": "interrupted"}')
    return resumed_by_command(run_dir, *overrides)


def used_as_trunk(run_dir: Path):
    cfg, _ = compose(["model=pretrained", f"model.trunk={run_dir}"])
    check(cfg)


WAYS = [load.load_run, resumed, resumed_by_its_command, used_as_trunk]


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_parts_of_an_interpolation_are_not_put_together(sent, way, tmp_path):
    """`$` beside `{...}`, joined by a third, became a call when it was resolved once more."""
    call = "{oc.create:'{_target_: pathlib.Path.touch, self: " + f"{tmp_path}/canary" + "}'}"
    edit(sent, model__k1="$", model__k2=call, model__extra="${model.k1}${model.k2}")
    with pytest.raises(UserError, match=r"asks for something outside this config"):
        way(sent)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("way", "text"),
    [
        *((way, "${oc.env:LAB_CANARY}") for way in WAYS),
        *((load.load_run, text) for text in ("x ${seed}", "${hydra:job.name}", "${")),
    ],
)
def test_no_value_refers_to_anything(sent, way, text, monkeypatch):
    monkeypatch.setenv("LAB_CANARY", SECRET)
    write_text(
        sent / "config.yaml",
        (sent / "config.yaml").read_text().replace("shortcut: A", f"shortcut: '{text}'"),
    )
    with pytest.raises(UserError, match=r"model\.shortcut: .* asks for something outside") as error:
        way(sent)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("name", ["config.yaml", ".hydra/overrides.yaml"])
def test_aliases_do_not_stand_for_millions_of_values(sent, name):
    """Three kilobytes of them kept `report` and `predict` busy for ever."""
    lines = ["z0: &z0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"z{i}: &z{i} [{','.join([f'*z{i - 1}'] * 9)}]" for i in range(1, 9)]
    path = sent / name
    path.write_text(path.read_text() + "\n".join(lines) + "\n")
    began = time.monotonic()
    if name == "config.yaml":
        for way in WAYS:
            with pytest.raises(UserError, match=r"config\.yaml is damaged: it has an alias"):
                way(sent)
    (study,) = read([sent])
    assert len(study.runs) == 1
    assert time.monotonic() - began < 60  # it took hours


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("a: " + "x" * 2**20, "bytes, more than"),
        ("[" * 100_000, "nested too deeply"),  # libyaml itself would end the process
        ('model: "a\\nb"', "control characters"),
        ('model: "\\x1b[2J"', "control characters"),
        ("a: [", "is damaged"),
        ("!!python/object/apply:os.mkdir [x]", "is damaged"),
    ],
)
def test_what_no_run_writes_is_refused(tmp_path, content, fault):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=fault):
        RunFolder(tmp_path).read_config()


def test_a_pipe_or_a_device_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    (tmp_path / "result.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="no regular file"):
        RunFolder(tmp_path).read_config()
    assert RunFolder(tmp_path).read_result() == {}


# ------------------------------------------------------------------ names


NOT_LISTED = "is none of the names that a run folder may give"


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "subprocess.run", "builtins.eval", "pathlib.Path.unlink", "torch.load"),
        *("torch.hub.load", "torch.utils.cpp_extension.load_inline", "torch.nn.Module.__init__"),
        *("resnet_lab.run.record.subprocess.run", "resnet_lab.data.sources.folder.os.remove"),
        *("resnet_lab.models.resnet.ResNet.__subclasses__", "resnet_lab.run.training.train"),
        *("resnet_lab.callbacks.prune.Prune", "lightning.pytorch.loggers.WandbLogger"),
        *("torch.optim.SGD.", " torch.optim.SGD", "torch.optim", "torch.optim.sgd.SGD"),
        *("lightning.pytorch.callbacks.LambdaCallback", "torchvision.models.get_model"),
    ],
)
def test_only_names_of_the_list_are_named(sent, target):
    edit(sent, data__source={"a": {"b": {"_target_": target, "_partial_": True, "path": "x"}}})
    with pytest.raises(UserError, match=NOT_LISTED):
        load.load_run(sent)


@pytest.mark.parametrize(
    ("place", "ways"),
    [
        ("model__deep", WAYS),
        ("data__source", WAYS[:3]),
        ("trainer__strategy", WAYS[1:3]),
        ("callbacks__evil", WAYS[1:3]),
    ],
)
def test_no_other_name_is_named_anywhere(sent, place, ways):
    edit(sent, **{place: {"a": [{"_target_": "os.system", "_partial_": True, "path": "x"}]}})
    for way in ways:
        with pytest.raises(UserError, match=NOT_LISTED):
            way(sent)


@pytest.mark.slow
def test_every_name_of_the_list_is_there():
    from hydra.utils import get_object

    absent = {"torch.optim.Muon"}  # newer than torch 2.11 has it
    for name in untrusted.NAMES - absent:
        assert callable(get_object(name)), name


def test_what_the_user_adds_is_hers_and_no_more():
    config = {"model": {"_target_": "my_nets.deep.Net"}}
    for trusted in (["my_nets."], ["my_nets.deep."], ["my_nets.deep.Net"]):
        untrusted.check_names(config, Path("x"), trusted, "")
    for trusted in ([], ["my_net."], ["my_nets"], ["my_nets.deep.Net."], ["my_nets.other."]):
        with pytest.raises(UserError, match="none of the names"):
            untrusted.check_names(config, Path("x"), trusted, "")
    for name in ("my_nets.a b", "my_nets..x", "my_nets.x()", "my_nets."):
        with pytest.raises(UserError, match="none of the names"):
            untrusted.check_names({"_target_": name}, Path("x"), ["my_nets."], "")


# ------------------------------------------------------------------ places


@pytest.mark.parametrize(
    "changes",
    [
        {"callbacks__best__dirpath": "/elsewhere"},
        {"callbacks__best__dirpath": "relative"},
        {"callbacks__best__filename": "../../x"},
        {"callbacks__epoch_log__run_dir": "/elsewhere"},
        {"callbacks__learning_curves__run_dir": "{run}/../x"},
        {"callbacks__last__dirpath": "{run}x"},
        {"logger__tensorboard__save_dir": "/elsewhere"},
        {"trainer__default_root_dir": "/elsewhere"},
        {
            "trainer__profiler": {
                "_target_": "lightning.pytorch.profilers.PyTorchProfiler",
                "dirpath": "/elsewhere",
            }
        },
    ],
)
def test_a_resumed_run_writes_into_its_folder_alone(sent, changes):
    changes = {
        key: value.replace("{run}", str(sent)) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    edit(sent, run_dir=str(sent), **changes)
    with pytest.raises(UserError, match="lies outside the run's folder"):
        resumed(sent)


def test_a_place_that_the_user_types_is_hers(sent, tmp_path):
    typed = f"callbacks.best.dirpath={tmp_path}/mine"
    overrides = [*QUICK, typed]
    edit(sent, callbacks__best__dirpath=f"{tmp_path}/mine")
    OmegaConf.save(overrides, sent / ".hydra" / "overrides.yaml")
    assert resumed(sent, *overrides).callbacks.best.dirpath == f"{tmp_path}/mine"
    with pytest.raises(UserError, match="lies outside"):
        resumed(sent)


def test_nothing_is_cached_or_downloaded_where_a_run_folder_says(sent, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    source = {
        "_target_": "resnet_lab.data.sources.CIFAR10",
        "root": str(elsewhere),
        "cache_dir": str(elsewhere),
    }
    edit(sent, data__cache_dir=str(elsewhere), data__root=str(elsewhere), data__source=source)
    for cfg in (load.load_run(sent).cfg, resumed(sent)):
        assert cfg.data.cache_dir == cfg.data.source.cache_dir == "data/cache"
        assert cfg.data.source.download is False
    (sent / "result.json").write_text('{"status": "finished"}')
    cfg = load.load_run(sent, overrides=[f"data.cache_dir={elsewhere}", "data.root=mine"]).cfg
    assert (cfg.data.source.cache_dir, cfg.data.source.root) == (str(elsewhere), "mine")
    assert "download" not in cfg.data.source
    assert not elsewhere.exists()


def test_the_cache_that_a_run_has_used_is_used_again(finished):
    cfg = load.load_run(finished).cfg
    assert Path(cfg.data.cache_dir) == finished.parent / "data" / "cache"


def test_a_logger_that_could_send_something_is_made_only_when_typed(sent):
    wandb = {"_target_": "lightning.pytorch.loggers.WandbLogger", "save_dir": str(sent)}
    mlflow = {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "http://x"}
    edit(sent, logger__a=wandb, logger__b=mlflow)
    assert list(resumed(sent).logger) == ["tensorboard"]
    typed = resumed(sent, "logger=[csv]").logger
    assert list(typed) == ["csv"]


# ------------------------------------------------------------------ links

LINKS = [
    *("run.log", "curves.png", "confusion_matrix.csv", "checkpoints/.last.ckpt.part"),
    *("metrics.csv", "result.json", "tensorboard", "evaluation", "export"),
]


@pytest.mark.parametrize("name", LINKS)
def test_a_link_out_of_a_run_folder_is_not_followed(sent, tmp_path, capsys, name):
    target = tmp_path / "precious"
    target.write_text("precious")
    link = sent / name
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    if name != "result.json":  # which `resumed` itself writes, in place of the link
        with pytest.raises(UserError, match="is a link out of this folder"):
            resumed(sent)
    with pytest.raises(SystemExit, match="is a link out of this folder"):
        main(["evaluate", str(sent)])
    assert target.read_text() == "precious"


def test_links_inside_a_run_folder_do_no_harm(sent):
    """Such as wandb makes."""
    (sent / "wandb").mkdir()
    (sent / "wandb" / "latest-run").symlink_to("run-1")
    RunFolder(sent).refuse_links()


@pytest.mark.parametrize("name", [".lock", ".server.log", "multirun.yaml", "seed=0/console.log"])
def test_a_link_out_of_a_sweep_folder_is_not_followed(tmp_path, name):
    target = tmp_path / "precious"
    target.write_text("precious")
    folder = tmp_path / "outputs" / "sweeps" / "s"
    (folder / "seed=0").mkdir(parents=True)
    (folder / "sweep.json").write_text('{"keys": ["seed"], "jobs": [], "started": "x"}')
    (folder / name).symlink_to(target)
    done = train_here(tmp_path, "-m", *QUICK, "sweep.name=s", "seed=0,1")
    assert done.returncode == 1
    assert "is a link out of this folder" in done.stderr
    assert target.read_text() == "precious"


def test_a_file_takes_the_place_of_a_link(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    for name in ("file", ".file.part"):
        (tmp_path / name).symlink_to(target)
    with replacing(tmp_path / "file", part=".file.part") as file:
        file.write("new")
    assert not (tmp_path / "file").is_symlink()
    assert ((tmp_path / "file").read_text(), target.read_text()) == ("new", "precious")


# ------------------------------------------------------------------ control characters


def test_what_a_folder_says_cannot_write_to_the_terminal(sent, tmp_path, capsys):
    path = sent / "result.json"
    result = json.loads(path.read_text())
    evil = "resnet20\n\x1b[31mrun folder  /somewhere\u202e"
    result |= {"model": evil, "class_names": [f"{i}\n\x1b]0;x\x07" for i in range(10)]}
    path.write_text(json.dumps(result))
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert main(["predict", str(sent), str(tmp_path / "a.png")]) == 0
    assert main(["report", str(sent)]) == 0
    shown = capsys.readouterr()
    page = (sent / "report" / "report.html").read_text()
    rows = (sent / "report" / "results.csv").read_text()
    for text in (shown.out, shown.err, page, rows):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert len(rows.splitlines()) == 2  # a header and a row


def test_printable_is_one_line_and_keeps_what_people_write():
    assert printable("a\nb\x1b[0m\u2028\udc80") == r"a\nb\x1b[0m\u2028\udc80"
    for text in ("고양이", "größer 10 %", "👩‍🔬", "a b", "x=1,y=[2]"):
        assert printable(text) == text


def test_json_and_csv_are_read_as_printable(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a\n": ["b\x1b", {"c": 1.5}]}))
    assert read_json(tmp_path / "a.json") == {r"a\n": [r"b\x1b", {"c": 1.5}]}
    (tmp_path / "a.csv").write_text('stage,norm\n"a\nb",1\nc\nd,2,3\n')
    assert read_rows(tmp_path / "a.csv") == [
        {"stage": r"a\nb", "norm": "1"},
        {"stage": "c", "norm": ""},
        {"stage": "d", "norm": "2", "": "3"},
    ]
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "a.json")


# ------------------------------------------------------------------ the current folder, secrets


@pytest.mark.slow
def test_a_plan_imports_nothing_from_the_current_folder(tmp_path):
    for package in ("resnet_lab", "torch"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"open('{tmp_path}/canary', 'w')\n")
    done = train_py(tmp_path, "-m", *QUICK, "sweep.plan=true", "seed=0,1")
    assert not (tmp_path / "canary").exists()
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs to run" in done.stdout


def test_no_value_of_the_environment_lands_in_a_file(tmp_path):
    run_dir = tmp_path / "run"
    done = train_here(
        tmp_path,
        *QUICK,
        "data.cache_dir='cache-${oc.env:LAB_CANARY}'",
        "+secret='${oc.env:LAB_CANARY}'",
        "+chain='it is ${secret}'",
        f"hydra.run.dir={run_dir}",
        LAB_CANARY=SECRET,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"cache-{SECRET}").is_dir()  # it was used
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in done.stdout + done.stderr
    saved = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    assert saved["secret"] == "${oc.env:LAB_CANARY}"
    assert saved["data"]["cache_dir"] == "cache-${oc.env:LAB_CANARY}"
    assert load.load_run(run_dir).cfg.data.cache_dir == "data/cache"


def test_whoever_gets_a_folder_says_what_its_environment_said(sent, tmp_path):
    edit(sent, optimizer__lr="${oc.env:LAB_LR}")
    with pytest.raises(UserError, match=r"give it on the command line: optimizer\.lr=\.\.\."):
        load.load_run(sent)
    assert load.load_run(sent, overrides=["optimizer.lr=0.5"]).cfg.optimizer.lr == 0.5


def test_what_the_environment_says_is_found_by_any_way(monkeypatch):
    monkeypatch.setenv("LAB_CANARY", "7")
    monkeypatch.delenv("LAB_ABSENT", raising=False)
    config = {
        "plain": "${oc.env:LAB_CANARY}",
        "part": "a/${oc.env:LAB_CANARY}/b",
        "chain": {"of": ["${part}", "${plain}"], "none": "${fixed}", "near": "${..plain}"},
        "number": "${oc.decode:${oc.env:LAB_CANARY}}",
        "chosen": "${choice.${oc.env:LAB_CANARY}}",
        "selected": "${oc.select:choice.${plain}}",
        "named": "${oc.env:${fixed_name}}",
        "fixed_name": "LAB_CANARY",
        "choice": {"7": "x"},
        "fixed": "7",
        "default": "${oc.env:LAB_ABSENT,7}",
        "unknown": "${hydra:runtime.output_dir}",
    }
    assert from_environment(config).keys() == {
        *("plain", "part", "chain.of.0", "chain.of.1", "chain.near"),
        *("number", "chosen", "selected", "named"),
    }


# ------------------------------------------------------------------ what the user types is hers

MINE = """
from pathlib import Path

import torch
from lightning.pytorch import Callback
from resnet_lab.data.sources import Digits


class Net(torch.nn.Sequential):
    def __init__(self, num_classes, image_size):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * image_size**2, num_classes))


class Data(Digits):
    def labels(self, split):
        return 9 - super().labels(split)


class Sgd(torch.optim.SGD):
    pass


class Seen(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        optimizer = type(trainer.optimizers[0]).__module__
        Path(self.path).write_text(f"{type(pl_module.net).__module__} {optimizer}")
"""


@pytest.mark.parametrize("where", ["file", pytest.param("command line", marks=pytest.mark.slow)])
def test_a_net_data_callback_and_optimizer_of_ones_own(tmp_path, where):
    """By `_target_` alone, from a config file as from the command line."""
    (tmp_path / "mine.py").write_text(MINE)
    model = {"_target_": "mine.Net", "num_classes": "${data.num_classes}", "image_size": 32}
    overrides = ["data.train_size=64", "data.batch_size=32", "trainer.max_epochs=1", *CPU]
    if where == "file":
        (tmp_path / "conf" / "experiment").mkdir(parents=True)
        (tmp_path / "conf" / "model").mkdir()
        (tmp_path / "conf" / "model" / "mine.yaml").write_text(
            OmegaConf.to_yaml(OmegaConf.create(model))
        )
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
            "# @package _global_\n"
            "defaults:\n  - override /model: mine\n"
            "data: {source: {_target_: mine.Data}}\n"
            "optimizer: {_target_: mine.Sgd}\n"
            "callbacks: {seen: {_target_: mine.Seen, path: seen.txt}}\n"
        )
        overrides = ["--config-dir=conf", *overrides, "experiment=mine"]
    else:
        overrides += [
            *("model=textbook_cnn", "model._target_=mine.Net", "data.source._target_=mine.Data"),
            *("optimizer._target_=mine.Sgd", "+callbacks.seen._target_=mine.Seen"),
            "+callbacks.seen.path=seen.txt",
        ]
    done = train_here(tmp_path, *overrides, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "seen.txt").read_text() == "mine mine"
    if where == "command line":
        return
    # The same command resumes it; a sent config of that content alone does not name it.
    (tmp_path / "run" / "result.json").write_text('{"status": "interrupted"}')
    done = train_here(tmp_path, "resume=run")
    assert done.returncode == 1
    assert "Resume it with the very command that began it" in done.stderr
    done = train_here(tmp_path, *overrides, "resume=run")
    assert done.returncode == 0, done.stderr


def test_a_target_that_is_not_there_is_one_sentence(tmp_path):
    done = train_here(tmp_path, "model._target_=nowhere.Net", *CPU)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: model._target_=nowhere.Net: there is no such thing to import")
    assert "Traceback" not in done.stderr


def test_a_fault_of_ones_own_code_keeps_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("def make(**_):\n    raise ValueError('of mine')\n")
    done = train_here(tmp_path, "model._target_=mine.make", *CPU)
    assert done.returncode == 1
    assert "of mine" in done.stderr
    assert not done.stderr.startswith("error: of mine")


def test_a_config_file_is_code_and_hydras_block_list_stays(config):
    for target in ("os.system", "subprocess.run", "builtins.eval"):
        cfg = config("model=textbook_cnn", f"model._target_={target}")
        with pytest.raises(Exception, match=target.rpartition(".")[0]):
            build.build(cfg)


def test_training_leaves_its_config_as_it_was(config):
    cfg = config(*QUICK)
    before = OmegaConf.to_container(cfg)
    training.train(cfg)
    assert OmegaConf.to_container(cfg) == before
    assert compose_module.CONF == CONF

"""Nothing in a file that somebody sent runs code: targets, Hydra's own part, the environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from resnet_lab.config.check import check
from resnet_lab.config.compose import composed
from resnet_lab.run import build, load
from resnet_lab.sweep import ledger
from resnet_lab.sweep.grid import Job
from resnet_lab.trust import (
    check_definitions,
    check_hydra,
    check_targets,
    from_environment,
)

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"

# Refused by their names, before anything is imported.
BY_NAME = [
    *("os.system", "os.mkdir", "os.popen", "posix.system", "nt.system", "os.execv", "pty.spawn"),
    *("subprocess.run", "subprocess.Popen", "subprocess.check_output", "commands.getoutput"),
    *("builtins.eval", "builtins.exec", "builtins.open", "builtins.__import__", "eval", "open"),
    *("importlib.import_module", "runpy.run_path", "runpy.run_module", "code.interact"),
    *(
        "pickle.load",
        "pickle.loads",
        "joblib.load",
        "yaml.unsafe_load",
        "numpy.load",
        "shelve.open",
    ),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    *("torch.utils.cpp_extension.load_inline", "torch.ops.load_library", "torch._dynamo.optimize"),
    *("torch.utils.data.DataLoader", "torch.multiprocessing.spawn", "torch.classes.load_library"),
    *("pathlib.Path.unlink", "shutil.rmtree", "shutil.copy", "tempfile.mktemp", "tarfile.open"),
    *("urllib.request.urlretrieve", "urllib.request.urlopen", "socket.create_connection"),
    *("hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_method", "hydra.compose"),
    *("functools.partial", "operator.attrgetter", "ctypes.CDLL", "webbrowser.open"),
    *("lightning.fabric.plugins.io.TorchCheckpointIO", "lightning.pytorch.cli.LightningCLI"),
    *("lightning.pytorch.core.module.LightningModule.load_from_checkpoint",),
    *("lightning.pytorch.Trainers", "torch.nnx.Linear", "torchvision.modelsx.a"),
    *("torchmetrics.text.BERTScore", "torchmetrics.multimodal.CLIPScore"),
    *("resnet_lab.run.training.train", "resnet_lab.config.compose.composed", "resnet_lab.cli.main"),
    *("resnet_lab.data.cache.cached", "resnet_lab.run.checkpoint_io.load", "resnet_lab"),
    *("resnet_lab.models._hidden.Net", "torch.nn.Module.__subclasses__", "torch.nn.__builtins__"),
    *("torchvision.models._api.load_state_dict_from_url", "torch.nn.modules.__loader__.load"),
    *(".os.system", "torch.nn..Linear", "torch.nn.Linear ", "torch.nn.", "", " os.system"),
    *("torch.nn.Linear;os.system", "torch.nn/../os.system", "${oc.env:HOME}", "${x}"),
    *("torch.nn.${x}", "${oc.decode:os.system}", 3, None, True, ["os.system"], {"_target_": "os"}),
]
# Reached through modules of ours, so that only the object behind the name gives them away.
BY_DEFINITION = [
    "lightning.pytorch.callbacks.model_checkpoint.os.remove",
    "lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree",
    "lightning.pytorch.loggers.csv_logs.os.system",
    "lightning.pytorch.loggers.wandb.os.execv",
    "lightning.pytorch.profilers.profiler.os.system",
    "resnet_lab.bench.noise.Path",
    "resnet_lab.bench.training.training.train",
    "resnet_lab.callbacks.compile_net.shutil.rmtree",
    "resnet_lab.callbacks.confusion_matrix.Path.unlink",
    "resnet_lab.classifier.Tally.update",
    "resnet_lab.data.sources.cached",
    "resnet_lab.data.sources.os.remove",
    "resnet_lab.data.sources.tarfile.open",
    "resnet_lab.data.sources.digest",
    "resnet_lab.models.pretrained.torch.hub.load",
    "resnet_lab.models.pretrained.Path.unlink",
    "torch.nn.functional.torch.load",
    "torch.nn.functional.linear",
    "torch.nn.init.normal_",
    "torch.nn.Module.load_state_dict",
    "torch.nn.modules.module.torch.load",
    "torch.nn.NoSuchThing",
    "torch.nn.no_such_module.Thing",
    "torch.nn",
    "torch.optim.lr_scheduler.types.FunctionType",
    "torchmetrics.classification.accuracy.Any",
    "torchvision.models.get_model",
    "torchvision.models.get_weight",
    "torchvision.models.resnet.load_state_dict_from_url",
]


def choices(group: str) -> list[str]:
    folder = CONF / group
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


@pytest.fixture(scope="module")
def plain():
    """The content of a whole run's config, as text."""
    cfg, _ = composed([])
    return OmegaConf.to_container(cfg)


def places(content, node):
    """`content` with `node` at a place where a config may have one, again and again."""
    yield {**content, "model": node}
    yield {**content, "extra": [[1, {"deep": [node]}]]}
    yield {**content, "trainer": {**content["trainer"], "profiler": node}}
    yield {**content, "callbacks": {"a": {"_target_": "torch.nn.Sequential", "_args_": [node]}}}


@pytest.mark.parametrize("target", BY_NAME, ids=str)
def test_a_name_that_is_not_trusted_is_refused_unseen(plain, target):
    node = {"_target_": target, "_partial_": True, "_recursive_": False, "path": "x"}
    for content in places(plain, node):
        with pytest.raises(ValueError, match="is not among the things that a config may ask for"):
            check_targets(OmegaConf.create(content))


@pytest.mark.parametrize("target", BY_DEFINITION)
def test_what_others_define_is_refused_where_it_is_reached_through_ours(target):
    cfg = OmegaConf.create({"a": [{"_target_": target, "_partial_": True}]})
    check_targets(cfg)  # or this test would be of the names
    with pytest.raises(ValueError, match=r"^a\.0\._target_: (there is no|.*nothing was run)"):
        check_definitions(cfg)


def test_at_least_fifty_hostile_targets_are_tried():
    assert len(BY_NAME) + len(BY_DEFINITION) >= 50


@pytest.mark.parametrize(
    "written",
    [
        "${oc.create:'{_target_: os.system, command: x}'}",
        "${oc.decode:'{_target_: os.system}'}",
        "${oc.decode:${text}}",
        "${oc.create:${text}}",
        "${oc.select:hidden}",
        "${oc.dict.values:holder}",
        "${hidden}",
    ],
)
def test_an_interpolation_cannot_bring_a_target(config, written):
    cfg = config(f"+extra={OmegaConf.create({'a': 0}).a}")
    OmegaConf.set_struct(cfg, False)
    cfg.text = "{_target_: os.system}"
    cfg.holder = {"a": "${oc.decode:${text}}"}
    cfg.hidden = "${oc.decode:${text}}"
    cfg.callbacks = {"evil": written}
    with pytest.raises(ValueError, match=r"os\.system is not among the things"):
        build.build(cfg)
    if written != "${hidden}":  # in a run folder not even asked
        with pytest.raises(ValueError, match="asks for something outside this config"):
            check_targets(OmegaConf.create({"a": written}), foreign=True)


def test_a_target_that_waits_for_the_data_is_seen_in_time(config):
    """Harmless until the number of classes is known, and resolved again after that."""
    cfg = config("data.num_classes=null")
    OmegaConf.set_struct(cfg, False)
    cfg.when = {"kNone": "{_target_: torch.nn.Identity}", "k10": "{_target_: os.system}"}
    cfg.callbacks = {"late": "${oc.create:${oc.select:'when.k${data.num_classes}'}}"}
    check_definitions(cfg)
    with pytest.raises(ValueError, match=r"os\.system is not among the things"):
        build.build(cfg)


GROUPS = ["model", "data", "optimizer", "scheduler", "callbacks", "logger", "trainer", "experiment"]


@pytest.mark.parametrize("group", GROUPS)
def test_every_shipped_config_is_accepted(group, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
    for choice in choices(group):
        as_list = group in ("callbacks", "logger")
        overrides = [f"{group}=[{choice}]" if as_list else f"{group}={choice}"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(
                "train",
                [*overrides, f"run_dir={tmp_path}", f"++data.root={tmp_path}"],
                return_hydra_config=True,
            )
        check_hydra(cfg)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        check_targets(cfg)
        check_definitions(cfg)


# ------------------------------------------------------------------ what the user trusts


def test_own_code_is_trusted_by_its_package_and_no_further(monkeypatch, tmp_path):
    (tmp_path / "my_package.py").write_text(
        "import os\nimport torch\n\n\nclass Net(torch.nn.Identity):\n    pass\n\n\n"
        "def make():\n    return Net()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("my_package.Net", "my_package.make"):
        cfg = OmegaConf.create({"model": {"_target_": target}})
        check_targets(cfg, ["my_package"])
        check_definitions(cfg, ["my_package"])
        for other in ([], ["my_pack"], ["my_package.other"], ["os"]):
            with pytest.raises(ValueError, match=r"say so on the command line: trust=\[PACKAGE\]"):
                check_targets(cfg, other)
    cfg = OmegaConf.create({"model": {"_target_": "my_package.os.system"}})
    with pytest.raises(ValueError, match=r"is posix\.system, which is not among|is nt\.system"):
        check_definitions(cfg, ["my_package"])


def hydra_config(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    OmegaConf.set_readonly(cfg.hydra, False)
    OmegaConf.set_struct(cfg, False)
    return cfg


def test_a_file_cannot_move_the_run_folder_from_where_the_user_put_it(tmp_path):
    (tmp_path / "experiment").mkdir()
    sent = tmp_path / "experiment" / "sent.yaml"
    sent.write_text("# @package _global_\nhydra: {run: {dir: elsewhere}}\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    assert hydra_config(search, "experiment=sent").hydra.run.dir == "elsewhere"
    cfg = hydra_config(search, "experiment=sent", "hydra.run.dir=mine")
    assert cfg.hydra.run.dir == "mine"
    sent.write_text("# @package _global_\nrun_dir: elsewhere\n")
    with pytest.raises(ValueError, match=r"run_dir=elsewhere: .*give hydra\.run\.dir=\.\.\."):
        check(hydra_config(search, "experiment=sent", "hydra.run.dir=mine"))


def test_trust_is_said_on_the_command_line_alone():
    check(hydra_config("trust=[my_package,other.part]"))
    cfg = hydra_config()
    cfg.trust = ["os"]  # as a file would
    with pytest.raises(ValueError, match="said on the command line alone"):
        check(cfg)
    cfg = hydra_config("trust=[my_package]")
    cfg.trust = ["my_package", "os"]
    with pytest.raises(ValueError, match="said on the command line alone"):
        check(cfg)
    for wrong in ("trust=my_package", "trust=['os.']", "trust=['a b']", "trust=[1]"):
        with pytest.raises(ValueError, match=r"must be a list of packages or modules, such as"):
            check(hydra_config(wrong))


@pytest.mark.parametrize("command", ["summary", "stats", "find-lr"])
def test_commands_that_take_a_config_refuse_as_training_does(refused, command):
    sentence = refused(command, "model._target_=os.mkdir")
    assert sentence.startswith("model._target_: os.mkdir is not among the things")
    assert len(sentence.splitlines()) == 1


def test_a_job_of_a_sweep_is_resumed_with_the_same_trust(tmp_path):
    job = Job(
        folder=tmp_path / "seed=0",
        overrides=["seed=0", "trust=[my_package]", "model=mine"],
        swept={"seed": "0"},
        config={},
        devices=1,
        on_cpu=True,
        max_epochs=1,
    )
    assert "trust=[my_package]" in ledger.begin(job)
    job.resume = True
    assert ledger.begin(job)[1:] == ["trust=[my_package]"]


# ------------------------------------------------------------------ what Hydra makes by itself

HANDLERS = "hydra.job_logging.handlers"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hydra.callbacks.evil", {"_target_": "os.mkdir", "path": "x"}),
        ("hydra.callbacks.check._target_", "subprocess.run"),
        ("hydra.callbacks.check.deep", [{"_target_": "os.mkdir"}]),
        ("hydra.callbacks.check._target_", "${evil}"),
        ("hydra.callbacks.evil", "${hidden}"),
        ("hydra.callbacks", "${holder}"),
        ("hydra.callbacks.evil", "${oc.create:'{_target_: os.mkdir}'}"),
        ("hydra.callbacks.evil", "${oc.decode:${text}}"),
        ("hydra.callbacks.evil", "${oc.${part}:'{_target_: os.mkdir}'}"),
        ("hydra.launcher._target_", "os.mkdir"),
        ("hydra.launcher.preload", ["antigravity"]),
        ("hydra.sweeper.more", {"_target_": "os.mkdir"}),
        (f"{HANDLERS}.evil", {"class": "subprocess.Popen", "args": "x"}),
        (f"{HANDLERS}.evil", {"()": "os.mkdir", "path": "x"}),
        (f"{HANDLERS}.evil", {"class": "logging.handlers.SocketHandler", "host": "x"}),
        (f"{HANDLERS}.evil", {"class": "logging.os.system"}),
        (f"{HANDLERS}.screen.stream", "ext://antigravity"),
        (f"{HANDLERS}.screen.stream", "ext:/${hydra.job.name}"),
        (f"{HANDLERS}.screen.stream", "${text}"),
        (f"{HANDLERS}.file.filename", "/home/somebody/.bashrc"),
        (f"{HANDLERS}.file.filename", "${hydra.runtime.output_dir}/../../x.log"),
        ("hydra.job.name", "../../x"),
        ("hydra.job_logging", "${hidden}"),
        ("hydra.hydra_logging.handlers.evil", {"class": "os.mkdir"}),
        ("hydra.hydra_logging.filters", {"evil": {"()": "os.mkdir"}}),
        ("hydra.job.env_set", {"LD_PRELOAD": "x.so"}),
    ],
)
def test_hydras_own_part_is_looked_at_as_well(key, value):
    cfg = hydra_config()
    check_hydra(cfg)
    cfg.text, cfg.evil, cfg.part = "{_target_: os.mkdir}", "os.mkdir", "create"
    cfg.hidden = {"_target_": "os.mkdir"}
    cfg.holder = {"evil": cfg.hidden}
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    with pytest.raises(ValueError, match=r"^hydra\."):
        check_hydra(cfg)


def train_py(folder: Path, *overrides: str, **env: str) -> subprocess.CompletedProcess[str]:
    """train.py with the configs of `folder` besides ours; a canary file tells that code was run."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--config-dir", str(folder), *overrides],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{folder}"} | env,
        timeout=120,
    )


@pytest.mark.parametrize(
    "lines",
    [
        "hydra: {callbacks: {evil: {_target_: canary.sing}}}",
        "hydra: {job_logging: {handlers: {evil: {class: canary.sing}}}}",
        "hydra: {hydra_logging: {handlers: {evil: {(): canary.sing}}}}",
        "model: {_target_: canary.sing}",
        "callbacks: {evil: {_target_: canary.sing}}",
        "trust: [canary]\nmodel: {_target_: canary.sing}",
    ],
)
def test_an_experiment_file_that_somebody_sent_runs_no_code(tmp_path, lines):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "sent.yaml").write_text(f"# @package _global_\n{lines}\n")
    (tmp_path / "canary.py").write_text("open('sung', 'w')\n\n\ndef sing(**_):\n    pass\n")
    done = train_py(tmp_path, "experiment=sent")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    if "callbacks" in lines:  # with tracebacks nothing else is run either
        done = train_py(tmp_path, "experiment=sent", HYDRA_FULL_ERROR="1")
        assert (done.returncode, "Traceback" in done.stderr) == (1, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["canary.py", "experiment"]


# ------------------------------------------------------------------ the environment


def test_what_the_environment_says_is_found_by_any_way(monkeypatch):
    monkeypatch.setenv("LAB_CANARY", "7")
    monkeypatch.delenv("LAB_ABSENT", raising=False)
    cfg = OmegaConf.create(
        {
            "plain": "${oc.env:LAB_CANARY}",
            "part": "a/${oc.env:LAB_CANARY}/b",
            "chain": {"of": ["${part}", "${plain}"], "none": "${fixed}"},
            "number": "${oc.decode:${oc.env:LAB_CANARY}}",
            "chosen": "${choice.${oc.env:LAB_CANARY}}",
            "choice": {"7": "x"},
            "fixed": "7",
            "default": "${oc.env:LAB_ABSENT,7}",
            "unknown": "${hydra:runtime.output_dir}",
        }
    )
    found = from_environment(cfg)
    raw = OmegaConf.to_container(cfg)
    assert found.keys() == {"plain", "part", "chain.of.0", "chain.of.1", "number", "chosen"}
    assert found["number"] == raw["number"]
    assert cfg.plain == "7"  # and afterwards all is as it was


def test_no_value_of_the_environment_lands_in_a_file(tmp_path):
    canary = "do-not-tell-5d0f"
    run_dir = tmp_path / "run"
    done = train_py(
        tmp_path,
        *("model=cifar_resnet", "model.depth=8", "model.width=0.25", "data.train_size=64"),
        *("data.batch_size=32", "trainer.max_epochs=1", "trainer.accelerator=cpu"),
        "data.cache_dir='cache-${oc.env:LAB_CANARY}'",
        "+secret='${oc.env:LAB_CANARY}'",
        "+chain='told: ${secret}'",
        f"hydra.run.dir={run_dir}",
        LAB_CANARY=canary,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"cache-{canary}").is_dir()  # it was used
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if canary.encode() in path.read_bytes()] == []
    assert canary not in done.stdout + done.stderr
    saved = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    assert saved["secret"] == "${oc.env:LAB_CANARY}"
    assert saved["chain"] == "told: ${secret}"
    assert saved["data"]["cache_dir"] == "cache-${oc.env:LAB_CANARY}"
    assert saved["data"]["source"]["cache_dir"] == "${data.cache_dir}"
    assert "trust" not in saved

    # Whoever gets the folder is asked for it, and nothing of theirs is read.
    given: list[str] = []
    for key in ("data.cache_dir", "secret"):
        with pytest.raises(ValueError, match=rf"give it on the command line: {key}=\.\.\."):
            load.load_run(run_dir, overrides=given)
        given.append(f"{key}={tmp_path}")
    run = load.load_run(run_dir, overrides=given)
    assert run.cfg.data.source.cache_dir == str(tmp_path)

"""Words of a beginner: what was meant is named, and everything that is named works."""

import itertools
import re
from collections.abc import Iterator, Mapping

import pytest
from lab import CONF, choices, composed, without_torch
from omegaconf import OmegaConf

from resnet_lab.config import options, suggest
from resnet_lab.config.arguments import mistaken_options, unreadable
from resnet_lab.config.check import check
from resnet_lab.config.compose import compose
from resnet_lab.config.usage import usage
from resnet_lab.config.words import CHOICES, KEYS, TRUNKS

pytestmark = pytest.mark.usefixtures("fresh_options")

# ------------------------------------------------------------------ what is meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr=0.001", "optimizer.lr=0.001"),
        ("lr=0.1,0.01", "optimizer.lr=0.1,0.01"),
        ("learning_rate=0.1", "optimizer.lr=0.1"),
        ("optimizer.learning_rate=0.1", "optimizer.lr=0.1"),
        ("model.lr=0.1", "optimizer.lr=0.1"),
        ("batch_size=5", "data.batch_size=5"),
        ("model.batch_size=5", "data.batch_size=5"),
        ("data.batchsize=5", "data.batch_size=5"),
        ("epochs=3", "trainer.max_epochs=3"),
        ("epcohs=3", "trainer.max_epochs=3"),
        ("max_epochs=3", "trainer.max_epochs=3"),
        ("trainer.epochs=3", "trainer.max_epochs=3"),
        ("num_workers=4", "data.workers=4"),
        ("num_classes=5", "data.num_classes=5"),
        ("weight_decay=0", "optimizer.weight_decay=0"),
        ("momentom=0.5", "optimizer.momentum=0.5"),
        ("gpus=2", "trainer.accelerator=gpu trainer.devices=2"),
        ("device=cuda", "trainer.accelerator=cuda"),
        ("device=cuda:1", "trainer.accelerator=cuda 'trainer.devices=[1]'"),
        ("fp16=true", "trainer.precision=16-mixed"),
        ("amp=false", "trainer.precision=32"),
        ("ddp=true", "trainer.strategy=ddp trainer.devices=auto"),
        ("loss=CrossEntropyLoss", "classifier.loss=ce"),
        ("dropout=0.5", "model.dropout=0.5"),
        ("dataset=cifar10", "data=cifar10"),
        ("modle=resnet20", "model=resnet20"),
        ("optimiser.lr=1", "optimizer.lr=1"),
        ("optim=adam", "optimizer=adam"),
        ("pretrained=true", "model=pretrained model.trunk=resnet50"),
        ("gamma=0.2", "scheduler=multistep scheduler.gamma=0.2"),
        ("betas=[0.9,0.99]", "optimizer=adam 'optimizer.betas=[0.9,0.99]'"),
        ("callbacks.ema.decay=0.9", "'callbacks=[default,ema]' callbacks.ema.decay=0.9"),
        ("experiment/ablation=batchnorm", "experiment=ablation/batchnorm"),
    ],
)
def test_a_key_that_is_not_there(typed, meant):
    key = typed.partition("=")[0]
    said = suggest.unknown_key(key, ["seed=1", typed, "-m"])
    assert said == f"{typed}: there is no such key; did you mean {meant}?"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("model=vgg16", "model=pretrained model.trunk=vgg16"),
        ("model=resnet-18", "model=resnet18"),
        ("model=ResNet18", "model=resnet18"),
        ("model=resnet14", "model=cifar_resnet model.depth=14"),
        ("data=CIFAR10", "data=cifar10"),
        ("data=mnist", "data=digits"),
        ("data=/tmp/my photos", "data=imagefolder 'data.root=/tmp/my photos'"),
        ("scheduler=StepLR", "scheduler=multistep"),
        ("experiment=depth", "experiment=ablation/depth"),
        ("experiment=ablation/Depth", "experiment=ablation/depth"),
        (
            "optimizer=RMSprop",
            "optimizer=adam optimizer._target_=torch.optim.RMSprop '~optimizer.betas'",
        ),
        ("hydra/launcher=local", "hydra/launcher=lab"),
    ],
)
def test_a_choice_that_is_not_there(typed, meant):
    group, _, name = typed.partition("=")
    said = suggest.unknown_choice(group, name, [typed])
    assert said == f"{typed}: there is no such choice; did you mean {meant}?"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["foo=3"], "foo=3: there is no such key; Possible: callbacks, classifier, "),
        (["wandb=false"], "wandb=false: there is no such key; leave it out, "),
        (["model.trunk=vgg16"], "no such key with model=resnet20, only with model=pretrained."),
        (["momentum=0", "optimizer=adam"], "(and leave out optimizer=adam)?"),
        (["pretrained=True", "model=resnet18"], "model.trunk=resnet18 (and leave out model=res"),
        (["root=x", "data=imagefolder"], "did you mean data.root=x?"),
        (["hydra.swep.dir=x"], "python train.py --cfg hydra lists Hydra's."),
        (["model.foo=3"], "Possible: activation, block, "),
        (["l\x1br=3"], "l?r=3: there is no such key"),
    ],
)
def test_other_sentences_on_keys(words, said):
    sentence = suggest.unknown_key(words[0].partition("=")[0], words)
    assert said in sentence
    assert "\n" not in sentence


def test_a_choice_in_a_list_is_put_right_in_its_list():
    said = suggest.unknown_choice("callbacks", "emma", ["callbacks=[default,emma]"])
    assert "did you mean 'callbacks=[default,ema]'? Possible: " in said
    assert suggest.unknown_choice("experiment", "None", ["experiment=None"]).endswith(
        "leave it out."
    )


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("--lr 0.1", "optimizer.lr=0.1"),
        ("--epochs=3", "trainer.max_epochs=3"),
        ("seed=1 --lr 0.1 --amp", "optimizer.lr=0.1 trainer.precision=16-mixed"),
        ("--model resnet50 data=cifar10", "model=resnet50"),
        ("--model vgg16", "model=pretrained model.trunk=vgg16"),
        ("--seed 3", "seed=3"),
        ("--no-such 3", None),
        ("--lr 0.1 --no-such 3", None),
    ],
)
def test_options_that_mean_a_setting(line, meant):
    words = line.split()
    said = mistaken_options(words, [word for word in words if word.startswith("--")])
    assert said is None if meant is None else str(said).endswith(f"did you mean {meant}?")


def test_words_without_a_value():
    assert unreadable("resnet50", ["resnet50"]) == "model=resnet50"
    assert unreadable("lr", ["lr", "0.1"]) == "optimizer.lr=0.1"
    assert unreadable("optimizer.lr", ["optimizer.lr", "=", "0.1"]) == "optimizer.lr=0.1"
    assert unreadable("xyzzy", ["xyzzy", "seed=1"]) is None


def test_on_the_command_line(tmp_path):
    """Without torch, with status 1, in one line, and nothing is written."""
    for line, said in {
        "lr=0.001": "did you mean optimizer.lr=0.001?",
        "model=resnet20 -m lr=0.1,0.01": "did you mean optimizer.lr=0.1,0.01?",
        "--lr 0.1": "did you mean optimizer.lr=0.1?",
        "resnet50": "did you mean model=resnet50?",
        "seed=0,1": "several values make a sweep, so add -m",
        "experiment=null": "experiment=null: a group needs a choice; leave it out.",
    }.items():
        done = without_torch(tmp_path, *line.split())
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ what is named works

# A value that a key may have; of others the default.
VALUES = {
    "data": "digits",
    "model": "resnet20",
    "optimizer": "adam",
    "scheduler": "cosine",
    "augment": "trivial",
    "experiment": "textbook_cnn",
    "data.num_classes": "10",
    "data.eval_batch_size": "64",
    "data.image_size": "32",
    "data.test_size": "0.1",
    "data.val_size": "0.1",
    "data.workers": "2",
    "model.trunk": "resnet50",
    "model.depth": "20",
    "trainer.max_steps": "100",
    "trainer.gradient_clip_val": "1.0",
    "trainer.strategy": "auto",
    "hydra.run.dir": "run",
    "resume": "run",
}


def replacements() -> Iterator[str]:
    """What words.py writes in place of other words, with values."""
    tables = [*KEYS.values(), *(choice for table in CHOICES.values() for choice in table.values())]
    for entry in tables:
        for text in entry.values() if isinstance(entry, Mapping) else [entry]:
            words = text.format("{}", trunk="resnet50").split()
            pairs = [word.partition("=") for word in words]
            yield " ".join(
                word.replace("{}", VALUES.get(key) or default(key, words)) if "{}" in word else word
                for word, (key, _, _) in zip(words, pairs, strict=True)
            )


def default(key: str, words: list[str]) -> str:
    return options.keys(options.selection(words))[key].value


def works(line: str, images: str) -> None:
    words = [word.replace("FOLDER", images) for word in line.split()]
    words = [f"data.root={images}" if w.startswith("data.root=") else w for w in words]
    if any(word.startswith(("hydra", "resume")) for word in words):
        return  # they are no settings of the run
    cfg, _ = compose(words)
    cfg.run_dir = "."
    check(cfg)


@pytest.fixture
def images(tmp_path):
    for split in ("train", "test", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
    return str(tmp_path / "images")


def test_replacements_by_values_work(images):
    """Those that choose no other files; the rest is a slow test."""
    lines = {line for line in replacements() if not re.search(r"(^| )[\w/]+=|~|_target_", line)}
    assert len(lines) > 30
    for line in lines - {""}:
        words = [word for word in line.split() if not word.startswith("hydra")]
        check(composed(*words, "run_dir=."))


@pytest.mark.slow
def test_every_replacement_works(images):
    for line in sorted({*replacements()} - {""}):
        try:
            works(line, images)
        except Exception as error:
            if "is missing; pip install" not in str(error):  # an extra that is not installed
                raise AssertionError(line) from error


def test_words_are_written_plainly_and_hide_no_key():
    """In small letters alone; and a word that is a choice already needs no replacement."""
    for word in itertools.chain(KEYS, *CHOICES.values()):
        assert re.fullmatch(r"[a-z0-9]+", word), word
    for group, table in CHOICES.items():
        there = {re.sub(r"[^a-z0-9]", "", choice.lower()) for choice in choices(group)}
        assert not there & set(table), group


def test_trunks_are_those_that_the_net_takes():
    source = (CONF.parent / "src/resnet_lab/models/pretrained.py").read_text()
    assert all(f'"{trunk}"' in source for trunk in TRUNKS)


# ------------------------------------------------------------------ conf/ read without YAML


def flat_keys(node: object, key: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield from (f"{key}{name}", *flat_keys(child, f"{key}{name}."))


def test_each_file_is_read_as_yaml_reads_it():
    for path in sorted(CONF.rglob("*.yaml")):
        name = path.relative_to(CONF).with_suffix("").as_posix()
        content = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(content, dict)
        content.pop("defaults", None)
        file = options.read(name)
        start = f"{file.package}." if file.package else ""
        inline = [f"{key}." for key, found in file.keys.items() if found.value.startswith("{")]
        expected = {
            key
            for key in flat_keys(content, start)
            if not key.endswith("_partial_") and not key.startswith(tuple(inline))
        }
        assert set(file.keys) == expected, name


@pytest.mark.parametrize(
    "line",
    ["", "model=pretrained optimizer=adam callbacks=[default,ema]", "experiment=transfer_vgg16"],
)
def test_keys_are_those_that_hydra_composes(line):
    cfg, chosen = compose(line.split())
    content = OmegaConf.to_container(cfg)
    found = options.keys(options.selection(line.split()))
    mine = {key for key in found if not key.startswith("hydra.")}
    theirs = {key for key in flat_keys(content, "") if not key.endswith("_partial_")}
    groups = {"model", "scheduler", "optimizer", "trainer", "callbacks", "logger", "sweep"}
    assert theirs - groups == mine - groups
    assert options.selection(line.split())["model"] == (chosen["model"],)


# ------------------------------------------------------------------ --help


@pytest.mark.parametrize("width", [80, 100])
def test_help_explains_every_choice_and_every_key(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    cfg, chosen = compose(["model=resnet32"])
    content = OmegaConf.to_container(cfg)
    text = usage(content, chosen)
    lines = text.splitlines()
    assert max(len(line) for line in lines if " " in line.strip()) <= width
    for group, names in options.groups().items():
        for name in names if len(names) > 1 else ():
            found = [i for i, line in enumerate(lines) if re.match(rf"[* ] {name}( |$)", line)]
            assert found, f"{group}={name}"
            assert all(lines[i][26:].strip() or lines[i + 1][:26].isspace() for i in found)
    assert re.search(r"\n\* resnet32 +ResNet-32", text)
    assert re.search(r"\ndata\.batch_size=128 +the GLOBAL batch", text)
    assert "_target_" not in text


def test_help_on_the_command_line_shows_the_config_of_other_choices(tmp_path):
    done = without_torch(tmp_path, "--help", "model=pretrained")
    assert done.returncode == 0
    assert "\nmodel.trunk=resnet18 " in done.stdout
    assert "\n* pretrained " in done.stdout
    assert "$" not in done.stdout.replace("${", "")

"""Transfer: trunks, torchvision's or a run's, loaded, frozen and unfrozen."""

import os
import re
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from lab import (
    CPU,
    EXACT,
    QUICK,
    WITHOUT_PICTURES,
    assert_same,
    composed,
    read_result,
    resumed,
    slow_except,
    train_py,
    weights,
)
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from torch import nn
from torchvision import models

from resnet_lab.callbacks.unfreeze import Unfreeze
from resnet_lab.config.check import check
from resnet_lab.config.errors import UserError
from resnet_lab.models.pretrained import TORCHVISION, Pretrained, preprocessing, stages
from resnet_lab.models.resnet import cifar_resnet
from resnet_lab.run import build, checkpoint_io, training

# A trunk brings its own net.
SHORT = (
    *("data.train_size=256", "data.batch_size=64", "trainer.max_epochs=2"),
    *(*CPU, WITHOUT_PICTURES),
)


def small() -> nn.Module:
    return cifar_resnet(8, num_classes=10, width=0.25)


@pytest.fixture(scope="session")
def trunk_run(tmp_path_factory, shared_cache):
    """The folder of a small finished run."""
    folder = tmp_path_factory.mktemp("runs") / "trunk"
    cfg = composed(*QUICK, "seed=3", f"run_dir={folder}", f"data.cache_dir={shared_cache}")
    training.train(cfg)
    return folder


# ---------------------------------------------------------------------- the net


def test_resnet18_gets_one_linear_layer_on_its_512_features():
    with torch.device("meta"):
        net = Pretrained(trunk="resnet18", num_classes=10)
        (layer,) = net.head
        assert (layer.in_features, layer.out_features) == (512, 10)
        # 11,689,512 with its own head of 512 to 1000.
        assert sum(p.numel() for p in net.parameters()) == 11_689_512 - 513_000 + 5_130
        assert net(torch.empty(2, 3, 64, 64)).shape == (2, 10)


def test_vgg16_gets_a_new_classifier():
    with torch.device("meta"):
        net = Pretrained(trunk="vgg16", num_classes=10, head=[4096, 4096])
    widths = [(m.in_features, m.out_features) for m in net.head if isinstance(m, nn.Linear)]
    assert widths == [(25088, 4096), (4096, 4096), (4096, 10)]
    assert [m.p for m in net.head if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert not any(isinstance(m, nn.Linear) for m in net.trunk.modules())


@pytest.mark.parametrize("trunk", slow_except(("resnet18", "resnet50", "vgg16_bn"), TORCHVISION))
def test_every_torchvision_trunk_has_five_stages_and_takes_a_head(trunk):
    with torch.device("meta"):
        net = Pretrained(trunk=trunk, num_classes=7, freeze=1)
        assert len(stages(net.trunk)) == 5
        assert net(torch.empty(2, 3, 224, 224)).shape == (2, 7)
    assert not any(isinstance(m, nn.Linear) for m in net.trunk.modules())
    assert preprocessing(trunk).image_size == 224


def test_the_trunks_are_torchvisions_resnets_and_vggs():
    theirs = models.list_models(models, include=["*resn*", "vgg*"])
    assert sorted(TORCHVISION) == sorted(theirs)


def test_a_stage_of_a_vgg_ends_in_its_pooling():
    with torch.device("meta"):
        net = models.vgg11()
    convolutions = [[0], [3], [6, 8], [11, 13], [16, 18]]  # their places in `features`
    found = stages(net)[:5]
    for stage, places in zip(found, convolutions, strict=True):
        modules = {name: net.get_submodule(name) for name in stage}
        assert [n for n, m in modules.items() if isinstance(m, nn.Conv2d)] == [
            f"features.{place}" for place in places
        ]
        assert isinstance(list(modules.values())[-1], nn.MaxPool2d)


def test_the_stages_of_our_nets_are_stem_and_stages():
    assert stages(small()) == [["stem"], ["stages.0"], ["stages.1"], ["stages.2"], ["head"]]
    net = Pretrained(trunk=small(), num_classes=10)
    assert stages(net.trunk) == [["stem"], ["stages.0"], ["stages.1"], ["stages.2"]]


@pytest.mark.parametrize("freeze", [6, 0])
def test_freezing_more_than_there_is(freeze):
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=f"freeze={freeze}: use .* from 1 to 5"),
    ):
        Pretrained(trunk="resnet18", num_classes=10, freeze=freeze)


@pytest.mark.parametrize("trunk", ["resnet81", "densenet121"])
def test_another_trunk_is_refused_with_the_names_there_are(config, trunk):
    with pytest.raises(UserError, match=f"^model.trunk={trunk}: neither .*resnet18, .*vgg19_bn.$"):
        build.build(config("model=pretrained", f"model.trunk={trunk}"))


def test_a_trunk_needs_a_linear_layer_to_be_cut_at():
    with pytest.raises(UserError, match="trunk=Sequential: its last part has no linear layer"):
        Pretrained(trunk=nn.Sequential(nn.Conv2d(3, 4, 3)), num_classes=10)


# ---------------------------------------------------------------------- frozen


def tensors(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_freezing_n_stages_leaves_them_as_they_are_and_trains_the_rest():
    net = Pretrained(trunk=small(), num_classes=10, freeze=2)
    net.eval().train()
    before = tensors(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 3
    for _ in range(2):
        optimizer.zero_grad()
        net(images).square().sum().backward()
        optimizer.step()
    moved = {name for name, tensor in net.state_dict().items() if not tensor.equal(before[name])}
    still = {name for name in before if re.match(r"trunk\.(stem|stages\.0)\.", name)}
    assert moved == before.keys() - still
    assert any("running_mean" in name for name in still)
    assert any("running_mean" in name for name in moved)


def test_a_frozen_trunk_gives_the_same_features_in_training_and_evaluation():
    net = Pretrained(trunk=small(), num_classes=10)
    images = torch.randn(8, 3, 32, 32)
    net.train()
    first = net.trunk(images * 5)
    assert torch.equal(net.trunk(images * 5), first)
    assert torch.equal(net.eval().trunk(images * 5), first)
    assert not first.requires_grad


def test_the_whole_trunk_learns_once_it_is_unfrozen():
    net = Pretrained(trunk=small(), num_classes=10)
    net.unfreeze()
    assert all(p.requires_grad for p in net.parameters())
    assert all(module.training for module in net.train().modules())
    assert not any(module.training for module in net.eval().modules())


def test_frozen_batch_norm_stays_frozen_when_it_becomes_sync_batch_norm():
    net = Pretrained(trunk="resnet18", num_classes=2, freeze=1)
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net).train()
    assert isinstance(net.trunk.bn1, nn.SyncBatchNorm)
    assert not net.trunk.bn1.training
    assert net.trunk.layer1[0].bn1.training


# ---------------------------------------------------------------------- weights


class Code:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_weights_file",)


def published(name: str, folder: Path) -> tuple[nn.Module, Path]:
    """A net of torchvision's and a file of its weights as torchvision publishes them."""
    net = getattr(models, name)(weights=None)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.5)
    file = folder / models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), file)
    return net, file


def test_default_weights_come_from_the_cache_of_torch_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs, _ = published("resnet18", tmp_path / "hub" / "checkpoints")
    net = Pretrained(trunk="resnet18", num_classes=10, weights="DEFAULT")
    net.load_weights()
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(net.eval().trunk(images), theirs.eval()(images))


def test_without_network_one_sentence_says_which_file_goes_where(tmp_path, monkeypatch):
    def no_network(url, *_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with torch.device("meta"):
        net = Pretrained(trunk="resnet18", num_classes=10, weights="DEFAULT")
    with pytest.raises(ValueError, match="cannot download") as error:
        net.load_weights()
    url = models.ResNet18_Weights.DEFAULT.url
    assert url in str(error.value)
    file = url.rpartition("/")[2]
    assert f"put {file} into {tmp_path / 'hub' / 'checkpoints'}" in str(error.value)


def test_a_damaged_download_is_one_sentence_and_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    _, file = published("resnet18", tmp_path / "hub" / "checkpoints")
    with torch.device("meta"):
        net = Pretrained(trunk="resnet18", num_classes=10, weights="DEFAULT")
    torch.save({"conv1.weight": Code()}, file)
    with pytest.raises(UserError, match=r"DEFAULT: cannot read .*\.pth \(.*; put") as error:
        net.load_weights()
    assert "\n" not in str(error.value)
    assert not Path("made_by_a_weights_file").exists()


def test_files_older_than_the_counter_of_batches_will_do(tmp_path):
    theirs, file = published("resnet18", tmp_path)
    old = {k: v for k, v in theirs.state_dict().items() if "num_batches_tracked" not in k}
    torch.save(old, file)
    net = Pretrained(trunk="resnet18", num_classes=10, weights=str(file))
    net.load_weights()
    assert torch.equal(net.trunk.layer4[1].bn2.running_var, theirs.layer4[1].bn2.running_var)


def test_weights_of_another_net_no_weights_and_no_file(tmp_path):
    _, file = published("resnet18", tmp_path)
    net = Pretrained(trunk="resnet34", num_classes=10, weights=str(file))
    with pytest.raises(ValueError, match=r"not weights of the trunk resnet34; \d+ of its \d+"):
        net.load_weights()
    for content in (b"", b"<html>not found</html>"):
        (tmp_path / "broken.pth").write_bytes(content)
        net.weights = str(tmp_path / "broken.pth")
        with pytest.raises(ValueError, match="cannot be read"):
            net.load_weights()
    net.weights = str(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match=r"cannot be read .*No such file"):
        net.load_weights()


def test_a_weights_file_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Code()}, tmp_path / "evil.pth")
    net = Pretrained(trunk=small(), num_classes=10, weights=str(tmp_path / "evil.pth"))
    with pytest.raises(ValueError, match="cannot be read"):
        net.load_weights()
    assert not Path("made_by_a_weights_file").exists()


# ---------------------------------------------------------------------- runs


def test_images_come_as_the_weights_know_them_unless_told_otherwise(config):
    wanted = ("model=pretrained", "model.weights=null", *SHORT, "data.workers=0")
    size, mean, std = preprocessing("resnet18")
    assert (size, mean) == (224, [0.485, 0.456, 0.406])
    cfg = build.build(config(*wanted)).cfg
    assert (cfg.data.image_size, cfg.data.mean, cfg.data.std) == (size, mean, std)

    parts = build.build(
        config(*wanted, "data.image_size=80", "data.mean=[0,0,0]", "data.std=[1,1,1]")
    )
    assert (parts.cfg.data.image_size, parts.cfg.data.mean) == (80, [0, 0, 0])
    images, labels, _ = next(iter(parts.datamodule.train_dataloader()))  # digits, made larger
    assert images.shape == (64, 80, 80, 3)
    assert labels.shape == (64,)


def test_a_run_is_a_trunk_and_the_new_run_needs_it_no_more(config, trunk_run, tmp_path):
    theirs = shutil.copytree(trunk_run, tmp_path / "theirs")
    overrides = (
        "model=pretrained",
        f"model.trunk={theirs}",
        *SHORT,
        "optimizer=adam",
        "optimizer.weight_decay=0.1",
    )
    cfg = config(*overrides, f"run_dir={tmp_path}/new")
    check(cfg)
    result = training.train(cfg)

    given = weights(theirs, "best")
    last = checkpoint_io.load(tmp_path / "new" / "checkpoints" / "last.ckpt")
    trained = last["state_dict"]
    trunk = {name: tensor for name, tensor in trained.items() if name.startswith("net.trunk.")}
    assert len(trunk) == len(given) - 2  # all but the weight and the bias of the head
    for name, tensor in trunk.items():
        assert torch.equal(tensor, given[name.replace("net.trunk.", "net.")]), name
    (optimizer,) = last["optimizer_states"]
    assert len(optimizer["state"]) == 2  # of the head's; nothing is kept for what is frozen
    then, now = (OmegaConf.load(run / "config.yaml") for run in (theirs, tmp_path / "new"))
    assert now.data.mean == then.data.mean
    assert now.data.image_size == then.data.image_size == 32

    shutil.rmtree(theirs)
    now.resume = str(tmp_path / "new")
    parts = build.build(now)
    parts.classifier.load_state_dict(trained)
    assert parts.complexity == (result["params"], result["macs"])

    # Its trunk is a trunk again.
    again = config("model=pretrained", f"model.trunk={tmp_path}/new", *SHORT)
    trunk_again = build.build(again).net.trunk.state_dict()
    for name, tensor in trunk.items():
        assert torch.equal(tensor, trunk_again[name.removeprefix("net.trunk.")])


def test_a_random_trunk_is_the_same_net_with_other_weights(config, trunk_run):
    asked = ("model=pretrained", f"model.trunk={trunk_run}", *SHORT)
    trained, random = (
        build.build(config(*asked, weights)).net
        for weights in ("model.weights=DEFAULT", "model.weights=null")
    )
    assert torch.equal(trained.head[0].weight, random.head[0].weight)
    stem = trained.trunk.stem[0].weight, random.trunk.stem[0].weight
    assert stem[0].shape == stem[1].shape
    assert not torch.equal(*stem)


def test_trunks_that_cannot_be(config, tmp_path):
    with pytest.raises(ValueError, match="no run in it"):
        check(config("model=pretrained", f"model.trunk={tmp_path}/nowhere"))
    (tmp_path / "config.yaml").write_text("lr: 1")
    with pytest.raises(ValueError, match="not the config of a run"):
        check(config("model=pretrained", f"model.trunk={tmp_path}"))
    # Only exact names of a list: what a folder says is data of anybody.
    for target in ("os.mkdir", "torch.nn.Sequential"):
        model = {"_target_": target, "_args_": [{"_target_": "os.mkdir"}]}
        OmegaConf.save({"model": model, "data": {}}, tmp_path / "config.yaml")
        with pytest.raises(UserError, match=f"{target} is none of the names that a run folder may"):
            check(config("model=pretrained", f"model.trunk={tmp_path}"))
    model = {"_target_": "resnet_lab.models.pretrained.torch.hub.load"}
    images = {"image_size": 32, "mean": [0.5] * 3, "std": [0.2] * 3}
    OmegaConf.save({"model": model, "data": images}, tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"torch\.hub\.load is none of the names that a run"):
        build.build(config("model=pretrained", f"model.trunk={tmp_path}"))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.freeze=some", "model.freeze=some: must be all, none or a number of stages"),
        ("model.freeze=0", "model.freeze=0: must be"),
        ("model.head=[0]", r"model.head=\[0\]: must be a list of whole numbers"),
        ("model.dropout=1", "model.dropout=1: must be a number from 0 to below 1"),
        ("+model.width=2", "model.width: Pretrained has no such option; it has dropout, "),
        ("classifier.trunk_lr_scale=0", "trunk_lr_scale=0: must be a number above 0"),
    ],
)
def test_values_that_cannot_be(config, override, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(config("model=pretrained", override))


@pytest.mark.parametrize("decay_all", [True, False])
def test_the_trunk_learns_at_a_rate_of_its_own_all_along_the_schedule(config, trunk_run, decay_all):
    parts = build.build(
        config(
            "model=pretrained",
            f"model.trunk={trunk_run}",
            "model.freeze=none",
            "classifier.trunk_lr_scale=0.1",
            f"classifier.decay_norm_and_bias={decay_all}",
            "scheduler=cosine",
            *SHORT,
        )
    )
    head = {id(p) for p in parts.net.head.parameters()}
    seen: list[list[float]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *_):
            (optimizer,) = trainer.optimizers
            groups = optimizer.param_groups
            rates = {id(p): group["lr"] for group in groups for p in group["params"]}
            assert len(rates) == len(list(parts.net.parameters()))
            (head_rate,) = {rate for key, rate in rates.items() if key in head}
            (trunk_rate,) = {rate for key, rate in rates.items() if key not in head}
            seen.append([head_rate, trunk_rate])
            spared = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
            small = {id(p) for p in parts.net.parameters() if p.ndim <= 1}
            assert spared == (set() if decay_all else small)

    parts.trainer.callbacks = [Watch()]
    with training.known_warnings():
        parts.trainer.fit(parts.classifier, datamodule=parts.datamodule)
    heads, trunks = zip(*seen, strict=True)
    assert len(set(heads)) == 8  # each step another
    assert trunks == pytest.approx([0.1 * rate for rate in heads])


# ---------------------------------------------------------------------- unfreezing

UNFREEZE = ("callbacks=[checkpoints,epoch_log,unfreeze]", "callbacks.unfreeze.after_epochs=1")


# An epoch has 4 steps. Resumed from within the second epoch, and from the end of the others.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop_at", "saves"),
    [
        (7, ("callbacks.last.minutes=0",)),
        pytest.param(5, (), marks=pytest.mark.slow),
        pytest.param(9, (), marks=pytest.mark.slow),
    ],
)
def test_unfreezing_at_an_epoch_also_after_a_resume(config, trunk_run, tmp_path, stop_at, saves):
    asked = ("model=pretrained", f"model.trunk={trunk_run}", *SHORT, *UNFREEZE, "optimizer=adam")
    asked = (*asked, *saves, "trainer.max_epochs=3", "classifier.trunk_lr_scale=0.1")
    given = weights(trunk_run, "best")
    stem = "stem.0.weight"
    seen: list[bool] = []

    class Stop(Exception):
        pass

    def watch(self, trainer, pl_module, *_):
        seen.append(torch.equal(pl_module.net.trunk.get_parameter(stem), given[f"net.{stem}"]))

    def stop(self, trainer, *_):
        if trainer.global_step == stop_at:
            raise Stop

    hook = "resnet_lab.callbacks.epoch_log.EpochLog.on_train_batch_end"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hook, watch)
        training.train(config(*asked, f"run_dir={tmp_path}/whole"))
    assert seen == [True] * 4 + [False] * 8

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hook, stop)
        with pytest.raises(Stop):
            training.train(config(*asked, f"run_dir={tmp_path}/stopped"))
    training.train(resumed(tmp_path / "stopped"))
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


@pytest.mark.slow
def test_a_fused_optimizer_unfreezes_as_another(config, trunk_run, tmp_path):
    asked = ("model=pretrained", f"model.trunk={trunk_run}", *SHORT, *UNFREEZE)
    asked = (*asked, "trainer.max_epochs=2", "optimizer.lr=0.01")
    for fused in ("true", "false"):
        training.train(config(*asked, f"+optimizer.fused={fused}", f"run_dir={tmp_path}/{fused}"))
    torch.testing.assert_close(
        weights(tmp_path / "true"), weights(tmp_path / "false"), rtol=1e-3, atol=1e-4
    )


def test_only_a_net_with_something_frozen_can_be_unfrozen(config):
    with pytest.raises(ValueError, match="use model=pretrained"):
        training.train(config(*QUICK, *UNFREEZE))
    with pytest.raises(ValueError, match=r"use model\.freeze=none"):
        Unfreeze(after_epochs=0)


@pytest.mark.slow
def test_two_devices_unfreeze_as_one(tmp_path, shared_cache, config):
    """DDP gathers the gradients of the trunk, too, once there are some."""
    trunk = config(*QUICK, *EXACT, f"run_dir={tmp_path}/trunk", "trainer.max_epochs=1")
    training.train(trunk)
    shared = ("model=pretrained", f"model.trunk={tmp_path}/trunk", *SHORT, *UNFREEZE)
    shared = (*shared, "optimizer.lr=0.01", f"data.cache_dir={shared_cache}")
    one = training.train(config(*shared, f"run_dir={tmp_path}/one"))
    done = train_py(tmp_path, *shared, "trainer.devices=2", "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    two = read_result(tmp_path / "two")
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["test/loss"] == pytest.approx(two["test/loss"], rel=1e-4)
    torch.testing.assert_close(
        weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-3, atol=1e-5
    )

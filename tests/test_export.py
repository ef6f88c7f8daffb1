"""A run as a folder for others: `export --format safetensors`, and the published nets by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lab import read_result, refused, resumed_by_command
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

import resnet_lab as lab
from resnet_lab import api
from resnet_lab.cli import main
from resnet_lab.commands import _publish
from resnet_lab.run import build, checkpoint_io

FILES = ["README.md", "config.yaml", "metrics.csv", "model.safetensors", "result.json"]


def export(run: Path, *arguments: object) -> int:
    return main(["export", str(run), "--format", "safetensors", *map(str, arguments)])


@pytest.fixture(scope="module")
def published(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    assert export(finished, "--out", folder) == 0
    return folder


@pytest.fixture
def copy(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


@pytest.fixture
def shelf(published, monkeypatch) -> Path:
    """The folder of `published` stands for docs/models."""
    monkeypatch.setattr(api, "PUBLISHED", published.parent)
    return published.parent


# ------------------------------------------------------------------ the folder


def test_a_published_net_is_the_net_of_its_run(published, finished, shelf):
    assert sorted(path.name for path in published.iterdir()) == FILES
    images = torch.randint(0, 256, (8, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    pixels = images.to(torch.uint8).numpy()
    run, given, named = lab.load(finished), lab.load(published), lab.load("small")
    assert named.folder == published
    batch = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = run.net(batch)
        assert torch.equal(given.net(batch), logits)
        assert torch.equal(named.net(batch), logits)
    assert given.predict(pixels, top_k=3).equals(run.predict(pixels, top_k=3))
    assert given.result["status"] == "finished"
    for figure in ("val/acc", "test/acc", "best_epoch", "params"):
        assert given.result[figure] == run.result[figure]
    assert given.metrics.equals(run.metrics)


def test_the_weights_are_a_plain_file(published, finished):
    weights = load_file(published / "model.safetensors")
    assert all(name.startswith("net.") for name in weights)
    net = lab.load(finished).net
    state = {name.removeprefix("net."): tensor for name, tensor in weights.items()}
    net.load_state_dict(state)
    best = checkpoint_io.load_weights(finished / "checkpoints" / "best.ckpt")
    assert checkpoint_io.fingerprint(best) == checkpoint_io.fingerprint(weights)


def test_no_path_of_this_machine_is_published(published, finished):
    for place in (str(finished.parent), str(Path.home()), str(Path.cwd()), "/tmp/"):
        for file in published.iterdir():
            assert place.encode() not in file.read_bytes(), (place, file.name)
    config = OmegaConf.to_container(OmegaConf.load(published / "config.yaml"))
    assert config["logger"] == {}
    assert config["run_dir"] == "."
    assert config["callbacks"]["best"]["dirpath"] == "./checkpoints"


def test_what_a_config_says_of_this_machine():
    own = {
        "run_dir": "/home/me/out/run 1",
        "callbacks": {"best": {"dirpath": "/home/me/out/run 1/checkpoints"}},
        "logger": {"wandb": {"entity": "me"}},
        "data": {"root": "/data/My photos", "cache_dir": "/var/cache", "flip": True},
        "trainer": {"default_root_dir": "C:\\Users\\me\\x", "plugins": ["see /home/me/x.py"]},
        "reference": {"source": "someone, https://host.org/a/b, Table 1/2"},
    }
    assert _publish.public_config(own) == {
        "run_dir": ".",
        "callbacks": {"best": {"dirpath": "./checkpoints"}},
        "logger": {},
        "data": {"root": "data/My photos", "cache_dir": None, "flip": True},
        "trainer": {"default_root_dir": None, "plugins": ["see x.py"]},
        "reference": {"source": "someone, https://host.org/a/b, Table 1/2"},
    }


@pytest.mark.parametrize(
    ("command", "public"),
    [
        ("python /home/me/lab/train.py seed=0", "python train.py seed=0"),
        (
            "python train.py data=imagefolder data.root=/a/b data.cache_dir=/a/c logger=wandb",
            "python train.py data=imagefolder data.root=data/b",
        ),
        ("python train.py 'data.root=\"/a/my b\"'", "python train.py 'data.root=\"data/my b\"'"),
        ("resnet-lab train data.root=/data hydra.run.dir=x", "resnet-lab train data.root=data"),
        ("python train.py --config-dir /home/me/conf a=1", "python train.py --config-dir conf a=1"),
        ("python train.py 'data={root:/a/b}'", "python train.py 'data={root:b}'"),
        ("python train.py 'not closed", ""),
    ],
)
def test_what_a_command_says_of_this_machine(command, public):
    assert _publish.public_command(command) == public


def test_the_readme_tells_what_was_recorded(published, finished):
    text, result = (published / "README.md").read_text(), read_result(finished)
    assert text.startswith("# small\n")
    for figure in (
        f"| parameters | {result['params']:,} |",
        f"| test accuracy | {100 * result['test/acc']:.2f} % |",
        f"| seed | {result['seed']} |",
        "SGD: lr ",
        'lab.load("small")',
        "resnet-lab predict small photo.jpg",
    ):
        assert figure in text, figure


def test_other_weights_have_no_figures(finished, tmp_path):
    last = finished / "checkpoints" / "last.ckpt"
    other = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.copy(last, other / "checkpoints" / "other.ckpt")
    assert export(other, "--checkpoint", other / "checkpoints" / "other.ckpt") == 0
    out = other / "export" / "run"
    assert not {"val/acc", "test/acc", "best_epoch"} & read_result(out).keys()
    assert "| test accuracy | not measured" in (out / "README.md").read_text()
    assert lab.load(out).checkpoint == out / "model.safetensors"


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    finished, copy, tmp_path, monkeypatch, capsys
):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    asked = ("export", finished, "--format", "safetensors", "--out")
    assert "is there already" in refused(capsys, *asked, copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before

    def wrong(weights, path):
        save({name: tensor + 1 for name, tensor in weights.items()}, path)

    save = checkpoint_io.save_weights
    monkeypatch.setattr(checkpoint_io, "save_weights", wrong)
    out = tmp_path / "new"
    assert "not those written" in refused(capsys, *asked, out)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_only_a_finished_run_is_published(finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    result = read_result(run) | {"status": "interrupted"}
    (run / "result.json").write_text(json.dumps(result))
    message = refused(capsys, "export", run, "--format", "safetensors")
    assert "this run is interrupted; only a finished one" in message
    assert not (run / "export").exists()


# ------------------------------------------------------------------ as a run


def test_commands_take_it_as_a_run(copy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), "red").save(image)
    assert main(["predict", str(copy), str(image)]) == 0
    assert main(["evaluate", str(copy), "trainer.accelerator=cpu"]) == 0
    (written,) = copy.glob("evaluation/*/evaluation.json")
    assert json.loads(written.read_text())["acc"] == read_result(copy)["test/acc"]
    shutil.rmtree(copy / "evaluation")
    assert main(["runs", str(copy)]) == 0
    assert main(["rerun", str(copy)]) == 0
    assert main(["report", str(copy), "--out", str(tmp_path / "report")]) == 0
    assert "train.py" in capsys.readouterr().out
    assert sorted(path.name for path in copy.iterdir()) == FILES


def test_there_is_nothing_to_resume(copy, capsys):
    with pytest.raises(SystemExit) as end:
        resumed_by_command(copy)
    assert end.value.code == 0
    assert "this run is finished" in capsys.readouterr().out
    (copy / "result.json").write_text('{"status": "interrupted"}')
    with pytest.raises(lab.UserError, match="no checkpoint to resume from"):
        resumed_by_command(copy)


def test_a_damaged_file_is_a_sentence(copy):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = bytes([whole[middle] ^ 1])  # in a weight: the format itself would not notice
    for content in (
        b"",
        whole[:20],
        whole[:-1],
        whole + b"x",
        b"\xff" * len(whole),
        whole[:middle] + flipped + whole[middle + 1 :],
    ):
        path.write_bytes(content)
        with pytest.raises(lab.UserError, match=r"model.safetensors is damaged, or no checkpoint"):
            lab.load(copy).net  # noqa: B018
    path.unlink()
    with pytest.raises(lab.UserError, match="has no checkpoint"):
        lab.load(copy).net  # noqa: B018


def test_weights_of_other_programs_need_no_checksum(tmp_path):
    from safetensors.torch import save_file

    weights = {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    save_file(weights, tmp_path / "w.safetensors")
    found = checkpoint_io.load_weights(tmp_path / "w.safetensors")
    assert checkpoint_io.fingerprint(found) == checkpoint_io.fingerprint(weights)
    odd = {"t": torch.randn(3, 4).t(), "half": torch.randn(2, 2).bfloat16(), "one": torch.ones(5)}
    odd["same"] = odd["one"]
    checkpoint_io.save_weights(odd, tmp_path / "odd.safetensors")
    again = checkpoint_io.load_weights(tmp_path / "odd.safetensors")
    assert checkpoint_io.fingerprint(again) == checkpoint_io.fingerprint(odd)


# ------------------------------------------------------------------ by name


def test_published_nets_have_names(shelf, tmp_path, monkeypatch):
    import resnet_lab.models.resnet  # noqa: F401 - its package has the same name

    assert lab.models() == ["small"]
    with pytest.raises(lab.UserError, match="did you mean small"):
        lab.load("smal")
    with pytest.raises(lab.UserError, match=r"no run in it"):
        lab.load("no/such").net  # noqa: B018 - a path is no name
    monkeypatch.setattr(api, "PUBLISHED", tmp_path / "docs" / "models")
    assert lab.models() == []
    with pytest.raises(lab.UserError, match="come with the repository"):
        lab.load("small")
    monkeypatch.chdir(shelf)
    assert lab.load("small").folder == Path("small")  # a folder comes first


@pytest.mark.parametrize("name", lab.models())
def test_what_is_published_here(name, tmp_path):
    folder = api.PUBLISHED / name
    assert {*FILES} <= {path.name for path in folder.iterdir()}
    assert sum((folder / file).stat().st_size for file in FILES) < 4e6
    run = lab.load(name)
    assert run.checkpoint == folder / "model.safetensors"
    assert sum(p.numel() for p in run.net.parameters()) == run.result["params"]
    accuracy = f"{100 * run.result['test/acc']:.2f}"
    assert f"| test accuracy | {accuracy} % |" in (folder / "README.md").read_text()
    lines = (api.PUBLISHED / "README.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith(f"| [{name}]({name}/README.md) |")]
    assert f"| {accuracy} |" in row
    config, command = (folder / "config.yaml").read_text(), run.result["command"]
    assert yaml.safe_load(config) == _publish.public_config(yaml.safe_load(config))
    assert command == _publish.public_command(command)


def test_a_published_net_is_a_trunk(published, config):
    trunk = build.build(config("model=pretrained", f"model.trunk={published}")).net.trunk
    given = load_file(published / "model.safetensors")
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, given[f"net.{name}"]), name

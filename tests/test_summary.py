"""The command `summary`: figures to the unit, the grammar, and what it refuses."""

import pytest
import torch
import torchvision
from torch import nn

from resnet_lab.cli import main
from resnet_lab.commands.summary import measure
from resnet_lab.models.complexity import Complexity, breakdown, count


@pytest.mark.parametrize(
    ("model", "size", "classes", "params", "mega_macs"),
    [
        ("resnet20", 32, 10, 269_722, 40.55),
        ("resnet56", 32, 10, 853_018, 125.49),
        ("resnet18", 224, 1000, 11_689_512, 1814.07),
        ("resnet50", 224, 1000, 25_557_032, 4089.18),
    ],
)
def test_nets_cost_what_the_paper_says(model, size, classes, params, mega_macs):
    (net,) = measure([f"model={model}"], size, classes)
    counted, macs = net.costs()["total"]
    assert counted == params
    assert round(macs / 1e6, 2) == mega_macs


def test_sections_of_resnet20_by_hand():
    (net,) = measure(["model=resnet20"])
    norm = 2  # parameters a channel
    params = {
        "stem": 3 * 16 * 9 + norm * 16,
        "stage 1": 6 * (16 * 16 * 9 + norm * 16),
        "stage 2": 16 * 32 * 9 + 5 * 32 * 32 * 9 + 6 * norm * 32,
        "stage 3": 32 * 64 * 9 + 5 * 64 * 64 * 9 + 6 * norm * 64,
        "head": 64 * 10 + 10,
    }
    macs = {
        "stem": 3 * 16 * 9 * 32**2,
        "stage 1": 6 * 16 * 16 * 9 * 32**2,
        "stage 2": (16 * 32 + 5 * 32 * 32) * 9 * 16**2,
        "stage 3": (32 * 64 + 5 * 64 * 64) * 9 * 8**2,
        "head": 64 * 10,
    }
    assert {s.name: s.params for s in net.sections} == params
    assert {s.name: s.macs for s in net.sections} == macs
    assert [s.blocks for s in net.sections] == [None, 3, 3, 3, None]
    assert [s.output for s in net.sections] == [
        (16, 32, 32),
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
        (10,),
    ]


class Odd(nn.Module):
    """No stages; a parameter of its own, a layer that two children share, and one that rests."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Conv2d(3, 3, 1, bias=False)  # 9 parameters
        self.first = nn.Sequential(shared)
        self.second = nn.Sequential(shared, nn.Conv2d(3, 2, 1, bias=False))  # 6 more
        self.resting = nn.Linear(4, 4, bias=False)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, images):
        return self.second(self.first(images)) * self.scale.sum()


def test_any_net_is_counted_whole_and_once():
    sections = {s.name: s for s in breakdown(Odd(), 8)}
    assert list(sections) == ["first", "second", "resting", "rest"]
    assert {n: s.params for n, s in sections.items()} == {
        "first": 9,
        "second": 6,
        "resting": 16,
        "rest": 5,
    }
    # The shared layer runs twice; both times it is the first child's.
    assert {n: s.macs for n, s in sections.items()} == {
        "first": 2 * 9 * 64,
        "second": 6 * 64,
        "resting": 0,
        "rest": 0,
    }
    assert sections["second"].output == (2, 8, 8)
    assert sections["resting"].output is None
    assert count(Odd(), 8) == Complexity(36, 24 * 64)


@pytest.mark.parametrize(("name", "giga_macs"), [("vit_b_16", 17.56), ("swin_t", 4.49)])
def test_transformers_cost_what_torchvision_says(name, giga_macs):
    with torch.device("meta"):
        net = torchvision.models.get_model(name)
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]
    cost = count(net, 224)
    assert round(cost.macs / 1e9, 2) == giga_macs == round(published, 2)
    assert cost.params == sum(parameter.numel() for parameter in net.parameters())


class Attention(nn.Module):
    """Pixels as tokens, through torch's encoder layer and then its bare attention function."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=12, batch_first=True)

    def forward(self, images):
        tokens = self.encoder(images.flatten(2).transpose(1, 2))
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_attention_is_counted_whichever_kernel_would_run_it():
    tokens, width, hidden = 6 * 6, 8, 12
    attention = 2 * tokens * tokens * width  # scores, and their sums of values
    encoder, rest = breakdown(Attention(), 6, in_channels=width)
    assert (encoder.name, rest.name) == ("encoder", "rest")
    # Query, key, value and output projection; two layers of the perceptron.
    assert encoder.macs == 4 * tokens * width**2 + attention + 2 * tokens * width * hidden
    assert (rest.params, rest.macs) == (0, attention)


def test_a_stage_of_bare_layers_has_no_blocks():
    net = nn.Sequential()
    net.stages = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)))
    assert [(s.name, s.blocks) for s in breakdown(net, 8)] == [("stage 1", None)]


@pytest.mark.slow
def test_several_values_give_all_combinations_in_the_order_of_a_sweep():
    nets = measure(["model=resnet20,resnet32", "model.shortcut=A,B"])
    assert [net.label for net in nets] == [
        "resnet20, shortcut=A",
        "resnet20, shortcut=B",
        "resnet32, shortcut=A",
        "resnet32, shortcut=B",
    ]
    labels = [net.label for net in measure(["++model.width=0.5,1"])]
    assert labels == ["resnet20, width=0.5", "resnet20, width=1"]
    # B adds two projections: 16 to 32 and 32 to 64 channels, each with its norm.
    one, other = (net.costs()["total"][0] for net in nets[:2])
    assert other - one == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


@pytest.mark.slow
def test_a_glob_stands_for_all_names_that_it_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a shell would find no such files
    labels = [net.label for net in measure(["model=glob(resnet*0)"], 224, 10)]
    assert {"resnet20", "resnet50", "resnet110"} <= set(labels)
    assert "resnet18" not in labels


def test_size_and_classes_follow_the_data_or_the_options():
    (net,) = measure(["model=resnet20", "data=cifar100"])
    assert net.sections[-1].output == (100,)
    (net,) = measure(["model=resnet18", "data=imagefolder"], image_size=64, num_classes=7)
    assert net.image == (3, 64, 64)
    assert net.sections[-1].output == (7,)


def test_overrides_and_options_mix_in_any_order(capsys):
    arguments = ["--classes", "100", "model=resnet20", "--image-size", "64", "model.shortcut=B"]
    assert main(["summary", *arguments]) == 0
    out = capsys.readouterr().out
    assert "3 x 64 x 64" in out
    (net,) = measure(["model=resnet20", "model.shortcut=B"], 64, 100)
    assert f"{net.costs()['total'][0]:,}" in out


def test_nets_stand_side_by_side_section_by_section(capsys):
    assert main(["summary", "model=resnet20,resnet56,resnet18"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["total", "resnet20", "269,722", "1.00", "40.55", "M", "1.00"] in rows
    assert ["resnet56", "853,018", "3.16", "125.49", "M", "3.09"] in rows
    (stage,) = (i for i, row in enumerate(rows) if row[:2] == ["stage", "4"])
    assert rows[stage][2] == "resnet18"  # the only one that has it
    assert rows[stage + 1] == []


def test_mistakes_are_one_sentence_before_torch(refused):
    assert "did you mean model=resnet20?" in refused("summary", "model=resnet2")
    assert refused("summary", "model=glob(x*)") == "model=glob(x*): no name fits this pattern.\n"
    assert refused("summary", "--classes", "0") == "--classes 0: must be 1 or more.\n"
    assert "did you mean model.shortcut=B?" in refused("summary", "model.shortcu=B")
    assert refused("summary", "model=resnet20", "model.depth=21").startswith("model.depth=21: a")
    assert refused("summary", "data=imagefolder") == (
        "data=imagefolder does not say what only its images can: give --image-size 224 and "
        "--classes 1000 (or what it is).\n"
    )


def test_a_pretrained_trunk_says_how_large_its_images_are():
    (net,) = measure(["model=pretrained", "model.trunk=resnet18"])
    assert net.image == (3, 224, 224)
    assert (
        net.costs()["total"][0] == 11_689_512 - 513_000 + 512 * 10 + 10
    )  # FACTS: with 1000 classes

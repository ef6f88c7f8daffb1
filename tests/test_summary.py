"""The command `summary`: figures to the unit, the grammar, and what it refuses."""

import pytest
import torch
import torchvision
from torch import nn

from resnet_lab.cli import main
from resnet_lab.commands.summary import measure, pages
from resnet_lab.models.complexity import Complexity, breakdown, count
from resnet_lab.screen import console


@pytest.mark.parametrize(
    ("model", "params", "mega_macs"),
    [
        ("resnet20", 269_722, 40.55),
        ("resnet56", 853_018, 125.49),
        ("resnet1202", 19_421_274, None),
    ],
)
def test_small_nets_cost_what_the_paper_says(model, params, mega_macs):
    (net,) = measure([f"model={model}"], image_size=32, num_classes=10)
    assert net.params == params
    assert mega_macs is None or round(net.macs / 1e6, 2) == mega_macs


@pytest.mark.parametrize(
    ("model", "params", "giga_macs"),
    [
        ("resnet18", 11_689_512, 1.814),
        ("resnet34", 21_797_672, 3.664),
        ("resnet50", 25_557_032, 4.089),
    ],
)
def test_large_nets_cost_what_the_paper_says(model, params, giga_macs):
    (net,) = measure([f"model={model}"], image_size=224, num_classes=1000)
    assert net.params == params
    assert round(net.macs / 1e9, 3) == giga_macs


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
    assert {s.name: s.blocks for s in net.sections} == {
        "stem": None,
        "stage 1": 3,
        "stage 2": 3,
        "stage 3": 3,
        "head": None,
    }
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


def test_several_values_give_all_combinations_in_the_order_of_a_sweep():
    nets = measure(["model=resnet20,resnet32", "model.shortcut=A,B"])
    assert [net.label.split("\n") for net in nets] == [
        ["resnet20", "shortcut=A"],
        ["resnet20", "shortcut=B"],
        ["resnet32", "shortcut=A"],
        ["resnet32", "shortcut=B"],
    ]
    labels = [net.label for net in measure(["++model.width=0.5,1"])]
    assert labels == ["resnet20\nwidth=0.5", "resnet20\nwidth=1"]
    # B adds two projections: 16 to 32 and 32 to 64 channels, each with its norm.
    assert nets[1].params - nets[0].params == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


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
    assert f"{net.params:,}" in out


def test_side_by_side_as_many_as_fit(capsys, monkeypatch):
    names = ["resnet20", "resnet32", "resnet44", "resnet56"]
    assert main(["summary", f"model={','.join(names)}"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["section", *names] in rows
    totals = [row for row in rows if row and row[0] == "total"]
    assert totals[0][1::2] == ["269,722", "464,154", "658,586", "853,018"]
    assert ["resnet56", "853,018", "3.16", "125.49", "M", "3.09"] in rows

    nets = measure([f"model={','.join(names)}"])
    monkeypatch.setattr(console, "width", 80)
    tables = list(pages(nets))
    assert len(tables) == 2
    shown = [str(column.header) for table in tables for column in table.columns]
    assert [name for name in shown if name in names] == names
    for table in tables:
        console.print(table)
    assert "…" not in capsys.readouterr().out  # nothing is cut off


def test_mistakes_are_one_sentence_before_torch(refused):
    assert "did you mean resnet20?" in refused("summary", "model=resnet2")
    assert refused("summary", "model.shortcu=B").startswith("model.shortcu: there is no such key")
    assert refused("summary", "model=resnet20", "model.depth=21").startswith("model.depth=21: a")
    assert refused("summary", "data=imagefolder") == (
        "data=imagefolder does not say what only its images can: give --image-size 224 and "
        "--classes 1000 (or what it is).\n"
    )


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["summary", "--help"])
    assert (
        "resnet-lab summary model=resnet20,resnet56 model.shortcut=A,B" in capsys.readouterr().out
    )


def test_a_pretrained_trunk_says_how_large_its_images_are():
    (net,) = measure(["model=pretrained", "model.trunk=resnet18"])
    assert net.image == (3, 224, 224)
    assert net.params == 11_689_512 - 513_000 + 512 * 10 + 10  # FACTS: with 1000 classes

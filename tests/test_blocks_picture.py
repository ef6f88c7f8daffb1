"""`summary --blocks`: the steps of a net with their shapes, as text and as pictures."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch
import torch.nn.functional as F
from lab import choices, slow_except
from torch import nn

from resnet_lab.analysis import blocks_layout, blocks_picture, blocks_text, tracing
from resnet_lab.analysis.blocks_sections import arrange
from resnet_lab.analysis.blocks_steps import Fork, Outline, Step
from resnet_lab.cli import main
from resnet_lab.commands.summary import measure
from resnet_lab.config.errors import UserError
from resnet_lab.language import translator
from resnet_lab.models.classic import TextbookCNN, TextbookResNet
from resnet_lab.models.resnet import ResNet, cifar_resnet

ENGLISH = translator("en")
KOREAN = translator("ko", blocks_picture.KOREAN)
IMAGE = (32, 3, 32, 32)


def outline(make, image=IMAGE, label="net") -> Outline:
    with torch.device("meta"):
        net = make() if callable(make) and not isinstance(make, nn.Module) else make
    params = sum(parameter.numel() for parameter in net.parameters())
    return arrange(label, image, *tracing.trace(net, image), params)


def cifar(**options) -> Outline:
    return outline(lambda: cifar_resnet(14, num_classes=10, **options))


def text(of: Outline, width=400, say=ENGLISH) -> list[str]:
    """Its lines, each with single spaces."""
    return [" ".join(line.split()) for line in blocks_text.lines(of, say, width)]


def svg_texts(drawing) -> list[str]:
    root = ElementTree.fromstring(blocks_picture.svg(drawing))
    return [element.text or "" for element in root.iter() if element.tag.endswith("text")]


def test_the_text_of_a_net_with_shortcut_a_by_hand():
    assert text(cifar(shortcut="A")) == [
        "net: 172,506 parameters",
        "",
        "image [32, 3, 32, 32]",
        "stem [32, 3, 32, 32] -> conv 3x3, 16 -> [32, 16, 32, 32] -> BatchNorm -> ReLU "
        "-> [32, 16, 32, 32]",
        "stage 1 [32, 16, 32, 32] -> block 1 x 2 -> [32, 16, 32, 32]",
        "stage 2 [32, 16, 32, 32] -> block 2 -> block 1 -> [32, 32, 16, 16]",
        "stage 3 [32, 32, 16, 16] -> block 2 -> block 1 -> [32, 64, 8, 8]",
        "head [32, 64, 8, 8] -> global average pool -> [32, 64, 1, 1] -> flatten -> [32, 64] "
        "-> linear, 10 -> [32, 10]",
        "",
        "block 1, BasicBlock: 4 times, in stage 1 (2), stage 2 (1), stage 3 (1); shown: stage1.1",
        "branch [32, 16, 32, 32] -> conv 3x3, 16 -> BatchNorm -> ReLU -> conv 3x3, 16 "
        "-> BatchNorm -> add",
        "shortcut [32, 16, 32, 32] -> identity -> add",
        "after [32, 16, 32, 32] -> ReLU -> [32, 16, 32, 32]",
        "",
        "block 2, BasicBlock: 2 times, in stage 2 (1), stage 3 (1); shown: stage2.1",
        "branch [32, 16, 32, 32] -> conv 3x3, 32, stride 2 -> [32, 32, 16, 16] -> BatchNorm "
        "-> ReLU -> conv 3x3, 32 -> BatchNorm -> add",
        "shortcut [32, 16, 32, 32] -> every 2nd pixel -> [32, 16, 16, 16] "
        "-> 16 channels of zeros -> [32, 32, 16, 16] -> add",
        "after [32, 32, 16, 16] -> ReLU -> [32, 32, 16, 16]",
    ]


@pytest.mark.parametrize(
    ("shortcut", "line"),
    [
        ("B", "-> conv 1x1, 32, stride 2 -> [32, 32, 16, 16] -> BatchNorm -> add"),
        (
            "D",
            "-> average pool 2x2, stride 2 -> [32, 16, 16, 16] -> conv 1x1, 32 "
            "-> [32, 32, 16, 16] -> BatchNorm -> add",
        ),
        (
            "scale",
            "-> every 2nd pixel -> [32, 16, 16, 16] -> 16 channels of zeros -> [32, 32, 16, 16] "
            "-> times 0.5 -> add",
        ),
        (
            "shortcut_gate",
            "-> every 2nd pixel -> [32, 16, 16, 16] -> 16 channels of zeros -> [32, 32, 16, 16] "
            "-> times a gate for each value (conv 1x1, 32 -> sigmoid -> 1 minus this) -> add",
        ),
        (
            "learned",
            "-> every 2nd pixel -> [32, 16, 16, 16] -> 16 channels of zeros -> [32, 32, 16, 16] "
            "-> times a learned number -> add",
        ),
    ],
)
def test_other_shortcuts_where_the_shape_changes(shortcut, line):
    lines = text(cifar(shortcut=shortcut))
    start = lines.index(next(line for line in lines if line.startswith("block 2,")))
    (found,) = (line for line in lines[start:] if line.startswith("shortcut"))
    assert found == f"shortcut [32, 16, 32, 32] {line}"


def test_a_plain_block_has_no_fork():
    net = cifar(shortcut="none")
    assert not any(isinstance(item, Fork) for kind in net.kinds for item in kind.example.chain)
    assert "shortcut" not in " ".join(text(net))


def test_a_bottleneck_by_hand():
    net = outline(
        lambda: ResNet(
            block="bottleneck",
            depths=[2, 1],
            widths=[8, 16],
            num_classes=5,
            image_size=64,
            stem="imagenet",
            se=16,
            drop_path=0.1,
        ),
        (4, 3, 64, 64),
    )
    assert (
        "stem [4, 3, 64, 64] -> conv 7x7, 8, stride 2 -> [4, 8, 32, 32] -> BatchNorm -> ReLU "
        "-> max pool 3x3, stride 2 -> [4, 8, 16, 16]"
    ) in text(net)
    assert (
        "branch [4, 32, 16, 16] -> conv 1x1, 16 -> [4, 16, 16, 16] -> BatchNorm -> ReLU "
        "-> conv 3x3, 16, stride 2 -> [4, 16, 8, 8] -> BatchNorm -> ReLU -> conv 1x1, 64 "
        "-> [4, 64, 8, 8] -> BatchNorm -> times a gate for each channel (global average pool "
        "-> conv 1x1, 4 -> ReLU -> conv 1x1, 64 -> sigmoid) -> drop path, 10% -> add"
    ) in text(net)
    assert [kind.places for kind in net.kinds] == [["stage1.1"], ["stage1.2"], ["stage2.1"]]


def test_the_first_activation_of_a_preact_block_stands_where_the_net_has_it():
    net = outline(
        lambda: ResNet(block="preact_basic", depths=[2, 1], widths=[8, 16], num_classes=5)
    )
    chains = [kind.example.chain for kind in net.kinds]
    assert [type(chain[0]) for chain in chains] == [Fork, Fork, Step]
    inside = chains[1][0]  # an identity carries x itself, ahead of the activation
    assert isinstance(inside, Fork)
    assert inside.paths[0][0].kind[0] == (("BatchNorm",),)
    assert inside.paths[1] == ()


def test_stages_of_the_teaching_nets():
    blocks = text(outline(lambda: TextbookResNet(num_classes=10)))
    assert (
        "stage 2 [32, 64, 16, 16] -> block 1 -> [32, 128, 16, 16] -> average pool 2x2, stride 2 "
        "-> [32, 128, 8, 8]"
    ) in blocks
    plain = outline(lambda: TextbookCNN(num_classes=10))
    assert [section.name for section in plain.sections] == ["stage 1", "stage 2", "stage 3", "head"]
    assert plain.sections[0].params == 16 * 28 + 32 * (16 * 9 + 1)
    assert list(blocks_layout.drawings(plain, ENGLISH)) == [
        "net",
        "stage1",
        "stage2",
        "stage3",
        "head",
    ]


def test_lines_go_on_at_an_arrow():
    lines = blocks_text.lines(cifar(), ENGLISH, width=70)
    assert max(map(len, lines[1:])) <= 95  # titles are not folded
    assert all(line.startswith("  ") for line in lines if line.lstrip().startswith("->"))
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(text(cifar())).split())


class Own(nn.Module):
    """A net of a user's: a block in no Sequential, and one whose forward reads values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.rest = nn.Sequential(Reads())

    def forward(self, images):
        x = F.relu(self.first(images))
        return self.rest(x + self.first(images)).flatten(1)


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 2, 3, stride=2))

    def forward(self, x):
        return self.layers(x) if x.shape[1] > 2 else x


class Crossing(nn.Module):
    def forward(self, x):
        one = x.relu()
        two = one + x
        return (two * one).flatten(1)


def test_what_cannot_be_followed_is_one_box_or_refused():
    net = outline(Own(), (1, 3, 8, 8))
    (kind,) = net.kinds
    assert text(net)[-1] == "layers [1, 4, 8, 8] -> Reads -> [1, 2, 3, 3]"
    assert kind.example.params == 4 * 2 * 9 + 2
    with pytest.raises(UserError, match="Crossing cannot be drawn: its forward has paths that"):
        tracing.trace(Crossing(), (1, 3, 8, 8))


def test_an_svg_holds_the_texts_in_the_readers_language():
    drawings = blocks_layout.drawings(cifar(shortcut="A"), ENGLISH)
    texts = svg_texts(drawings["block-2"])
    for expected in ("conv 3x3, 32, stride 2", "every 2nd pixel", "16 channels of zeros", "F(x)"):
        assert expected in texts
    assert texts.count("[32, 16, 16, 16]") == 1
    assert "identity" in svg_texts(drawings["block-1"])
    korean = blocks_layout.drawings(cifar(shortcut="A"), KOREAN)["block-2"]
    assert {"픽셀 2개마다 1개", "배치 정규화", "숏컷"} <= set(svg_texts(korean))
    assert "Malgun Gothic" in blocks_picture.svg(korean)


def test_every_text_has_its_korean():
    asked = []

    def say(text, **values):
        asked.append(text)
        return text.format(**values)

    for of in (cifar(shortcut="gate", drop_path=0.1), cifar(shortcut="D", norm="group")):
        blocks_text.lines(of, say, 100)
        blocks_layout.drawings(of, say)
    assert len(asked) > 100
    same = {"ReLU", "{n}"}
    assert {text for text in asked if KOREAN(text) == text} == same


def test_nothing_is_drawn_outside_the_picture_or_over_another_box():
    for name, drawing in blocks_layout.drawings(cifar(shortcut="gate"), ENGLISH).items():
        boxes = [b for b in drawing.shown if isinstance(b, blocks_layout.Box) and b.role != "frame"]
        for number, box in enumerate(boxes):
            assert box.x - box.width / 2 >= 0, name
            assert box.x + box.width / 2 <= drawing.width
            assert 0 <= box.y < box.y + box.height <= drawing.height
            for other in boxes[:number]:
                across = abs(box.x - other.x) < (box.width + other.width) / 2
                down = box.y < other.y + other.height and other.y < box.y + box.height
                assert not (across and down), (name, box, other)


def test_names_of_nets_cannot_leave_the_folder():
    names = blocks_picture.file_names(["../../a", "a/b, c=1", "A-B-C=1", "..", "한글", "resnet20"])
    assert names == ["a", "a-b-c=1", "A-B-C=1-2", "net", "net-2", "resnet20"]
    net = cifar()
    net.label = '<b>&"\x1b[31m'
    drawing = blocks_layout.drawings(net, ENGLISH)["net"]
    assert svg_texts(drawing)[0].startswith('<b>&"\\x1b[31m:')
    assert text(net)[0].startswith('<b>&"\\x1b[31m:')


def test_the_command_draws_into_a_new_folder(tmp_path, capsys):
    out = tmp_path / "drawings"
    arguments = ["summary", "model=textbook_cnn", "--blocks", "--batch", "7", "--out", str(out)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "total" in said  # the table is still there
    assert "head     [7, 256, 4, 4] -> flatten -> [7, 4096] -> linear, 2048" in said
    assert said.splitlines()[-1] == f"written     {out}"
    names = {"net", "stage1", "stage2", "stage3", "head"}
    assert {path.stem for path in out.glob("*.svg")} == names
    assert {path.stem for path in out.glob("*.png")} == names
    with pytest.raises(SystemExit, match="there is something already"):
        main(arguments)


def test_mistakes_are_one_sentence_before_torch(refused):
    wrong = refused("summary", "model=resnet20", "--batch", "5")
    assert wrong == "--batch 5: this is for drawings; add --blocks.\n"
    wrong = refused("summary", "model=resnet20", "--blocks", "--batch", "0")
    assert wrong == "--batch 0: must be 1 or more.\n"


@pytest.mark.parametrize("model", slow_except(("resnet20", "pretrained"), choices("model")))
def test_every_model_can_be_drawn(model):
    sizes = () if model == "pretrained" else (64, 10)
    (net,) = measure([f"model={model}"], *sizes)
    image = (1, *net.image)
    params = net.costs()["total"][0]
    drawn = arrange(net.label, image, *tracing.trace(net.module, image), params)
    assert sum(section.params for section in drawn.sections) == params
    assert len(drawn.kinds) >= (0 if model == "textbook_cnn" else 1)
    assert (
        sum(len(kind.places) for kind in drawn.kinds)
        == sum(section.blocks or 0 for section in net.sections if section.name.startswith("stage"))
        or model == "pretrained"
    )
    assert drawn.sections[-1].output == (1, 10)
    for drawing in blocks_layout.drawings(drawn, ENGLISH).values():
        ElementTree.fromstring(blocks_picture.svg(drawing))
    # A name of Python's would show that a function is not known.
    assert "_" not in "".join(
        line for line in blocks_text.lines(drawn, ENGLISH, 400) if model not in line
    )

"""Nets with blocks left out or swapped, and the gradient along single paths."""

import itertools
import math
import random
from argparse import Namespace

import pytest
import torch
from lab import read_csv
from torch import nn

from resnet_lab import cli
from resnet_lab.analysis import lesion, lesion_picture, paths
from resnet_lab.analysis.lesion import Draw, Lesions, Single, Step
from resnet_lab.analysis.paths import Length, Paths
from resnet_lab.commands import lesion as command
from resnet_lab.config.errors import UserError
from resnet_lab.language import translator
from resnet_lab.models.classic import TextbookCNN, TextbookResNet
from resnet_lab.models.resnet import BasicBlock, Design, PadShortcut, ResNet

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def tiny(shortcut: str = "A", block: str = "basic", depths=(3, 2), **options) -> ResNet:
    """A net of two stages whose batch norms have run."""
    torch.manual_seed(1)
    net = ResNet(
        block=block,
        depths=depths,
        widths=(4, 8),
        num_classes=3,
        shortcut=shortcut,
        image_size=8,
        **options,
    )
    with torch.no_grad():
        for _ in range(5):
            net(IMAGES)
    return net.eval()


def links_of(net: nn.Module) -> list[lesion.Link]:
    return lesion.chain(net, IMAGES[:1])


def logits(net: nn.Module, *variants: lesion.Variant) -> list[torch.Tensor]:
    with torch.inference_mode():
        found = dict(lesion.outputs(links_of(net), IMAGES, variants))
    return [found[number] for number in range(len(variants))]


# ------------------------------------------------------------------ the chain


def test_a_net_is_a_chain_of_named_parts():
    links = links_of(tiny())
    assert [link.name for link in links] == [
        *("stem", "stage1.1", "stage1.2", "stage1.3", "stage2.1", "stage2.2", "head")
    ]
    assert lesion.blocks(links) == [1, 2, 3, 4, 5]
    assert [link.keeps_shape for link in links[1:6]] == [True, True, True, False, True]
    assert (links[4].before, links[4].behind) == ((4, 8, 8), (8, 4, 4))
    assert [link.name for link in links_of(TextbookResNet(num_classes=3, image_size=8).eval())] == [
        *("stage1.1", "stage1.2", "stage2.1", "stage2.2", "stage3.1", "stage3.2", "head")
    ]


class Twice(nn.Module):
    """Stem, stages and head, but not one after the other."""

    def __init__(self) -> None:
        super().__init__()
        net = tiny()
        self.stem, self.stages, self.head = net.stem, net.stages, net.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * self.head(self.stages(self.stem(images)))


@pytest.mark.parametrize("net", [TextbookCNN(num_classes=3, image_size=8), Twice(), nn.Flatten()])
def test_other_nets_are_refused(net):
    with pytest.raises(UserError, match="lesions need a net of"):
        links_of(net.eval())


# ------------------------------------------------------------------ blocks left out


@pytest.mark.parametrize(
    ("shortcut", "block"), [("A", "basic"), ("B", "preact_bottleneck"), ("gate", "basic")]
)
def test_without_a_branch_of_zeros_nothing_changes(block, shortcut):
    net = tiny(shortcut, block)
    with torch.no_grad():
        for parameter in [p for stage in net.stages for b in stage for p in b.branch.parameters()]:
            parameter.zero_()
    links = links_of(net)
    whole, *rest = logits(
        net, lesion.without(links, ()), *(lesion.without(links, {n}) for n in range(1, 6))
    )
    for other in rest:
        torch.testing.assert_close(other, whole)


@pytest.mark.parametrize(("shortcut", "block"), [("A", "basic"), ("A", "preact_basic")])
def test_a_lesion_is_the_net_built_without_the_block(shortcut, block):
    net = tiny(shortcut, block)
    links = links_of(net)
    lacking, whole = logits(net, lesion.without(links, {2}), lesion.without(links, ()))
    shorter = tiny(shortcut, block)
    del shorter.stages[0][1]
    with torch.inference_mode():
        torch.testing.assert_close(lacking, shorter(IMAGES))  # relu of a relu's output is itself
        torch.testing.assert_close(whole, net(IMAGES))
    assert not torch.equal(lacking, whole)


def test_a_plain_net_keeps_what_it_can():
    net = tiny("none")
    links = links_of(net)
    shorter = tiny("none")
    del shorter.stages[0][1]
    resized = tiny("none")
    resized.stages[1][0] = PadShortcut(4, 8, 2)
    lacking, padded = logits(net, lesion.without(links, {2}), lesion.without(links, {4}))
    with torch.inference_mode():
        torch.testing.assert_close(lacking, shorter(IMAGES))
        torch.testing.assert_close(padded, resized(IMAGES))


def test_shared_prefixes_change_no_error():
    net = tiny(depths=(3, 3))
    links = links_of(net)
    rng = random.Random(3)
    places = lesion.blocks(links)
    variants = [lesion.without(links, set(rng.sample(places, k))) for k in (0, 1, 1, 2, 3, 6)]
    variants.append(tuple(Step(n) for n in [0, 2, 1, 3, 4, 6, 5, 7]))
    together = logits(net, *variants)
    calls = []
    for link in links:
        link.module.register_forward_hook(lambda module, *_: calls.append(module))
    for variant, found in zip(variants, together, strict=True):
        x = IMAGES
        with torch.inference_mode():
            for place, left_out in variant:  # one net at a time
                x = lesion.leave_out(links[place], x) if left_out else links[place].module(x)
        assert torch.equal(found, x)
    naive = len(calls)
    calls.clear()
    batches = [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])]
    errors = lesion.errors(links, batches, variants)
    assert len(calls) / 2 < 0.85 * naive  # of two batches
    assert errors == [float((x.argmax(1) != LABELS).sum()) / 6 for x in together]
    assert all(not isinstance(link.module.branch, lesion.Zero) for link in links[1:-1])


# ------------------------------------------------------------------ random choices


def test_swaps_are_of_blocks_of_one_shape():
    links = links_of(tiny(depths=(3, 3)))  # places 1 2 3 | 4 (changes the shape) 5 6
    pairs = lesion.swappable(links)
    assert pairs == [(1, 2), (1, 3), (2, 3), (5, 6)]
    rng = random.Random(0)
    orders = {tuple(lesion.swapped(8, pairs, 1, rng)) for _ in range(100)}
    assert orders == {
        *((0, 2, 1, 3, 4, 5, 6, 7), (0, 3, 2, 1, 4, 5, 6, 7)),
        *((0, 1, 3, 2, 4, 5, 6, 7), (0, 1, 2, 3, 4, 6, 5, 7)),
    }
    for order in (lesion.swapped(8, pairs, 9, rng) for _ in range(20)):
        assert order[0] == 0
        assert order[4] == 4
        assert sorted(order[1:4]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("order", "tau"),
    [((0, 1, 2, 3), 1), ((3, 2, 1, 0), -1), ((1, 0, 2, 3), 2 / 3), ((2, 1, 0, 3), 0), ((0,), 1)],
)
def test_kendall_tau(order, tau):
    assert lesion.kendall_tau(order) == pytest.approx(tau)


def test_random_choices_are_different_and_no_more_than_there_are():
    rng = random.Random(0)
    assert len(lesion.subsets([1, 2, 3], 2, 10, rng)) == 3
    found = lesion.subsets(range(20), 5, 10, rng)
    assert len({tuple(sorted(subset)) for subset in found}) == 10
    assert {len(subset) for subset in found} == {5}
    assert lesion.counts(27) == [3, 5, 8, 11, 14, 16, 19, 22, 24, 27]
    assert lesion.counts(3) == [1, 2, 3]


def test_a_study_depends_on_its_seed_alone():
    links = links_of(tiny(depths=(2, 2)))
    batches = [(IMAGES, LABELS)]
    one, same, other = (lesion.study(links, batches, 2, seed) for seed in (0, 0, 1))
    assert one == same
    assert one.single == other.single
    assert [single.name for single in one.single] == [
        "stage1.1",
        "stage1.2",
        "stage2.1",
        "stage2.2",
    ]
    assert [single.keeps_shape for single in one.single] == [True, True, False, True]
    assert [draw.size for draw in one.several] == [1, 1, 2, 2, 3, 3, 4]
    # One pair alone can be swapped: blocks 1 and 2 of 4.
    assert [(draw.size, draw.tau) for draw in one.swaps] == [(1, pytest.approx(2 / 3))] * 2


# ------------------------------------------------------------------ paths


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def linear_blocks(factors: list[float]) -> nn.Sequential:
    """y = (1 + w_1) (1 + w_2) ... x."""
    blocks = []
    for factor in factors:
        block = BasicBlock(1, 1, 1, Design("A"))
        block.branch, block.after = nn.Sequential(Times(factor)), nn.Identity()
        blocks.append(block)
    return nn.Sequential(*blocks)


def test_the_gradient_by_length_is_the_elementary_symmetric_polynomial():
    factors = [0.5, 2.0, 3.0, 0.25]
    blocks = linear_blocks(factors)
    through = torch.tensor(list(itertools.product([False, True], repeat=4)))  # all 16 paths
    images = torch.ones(16, 1, 1, 1, requires_grad=True)
    with paths.one_path(list(blocks), through):
        out = blocks(images)
        (gradient,) = torch.autograd.grad(out.sum(), images)
    assert torch.allclose(out, torch.tensor(1.5 * 3 * 4 * 1.25))  # the forward pass is the whole
    for k in range(5):
        by_hand = sum(math.prod(chosen) for chosen in itertools.combinations(factors, k))
        assert gradient.flatten()[through.sum(1) == k].sum().item() == pytest.approx(by_hand)
    assert gradient.sum().item() == pytest.approx(1.5 * 3 * 4 * 1.25)  # all paths: the gradient


def test_the_paths_of_a_real_net_add_up_to_its_gradient():
    net = tiny("gate", depths=(1, 1))
    blocks = [block for stage in net.stages for block in stage]

    def gradient() -> torch.Tensor:
        image = IMAGES[:1].clone().requires_grad_()
        return torch.autograd.grad(net(image)[0, 0], image)[0]

    whole = gradient()
    parts = []
    for through in itertools.product([False, True], repeat=2):
        with paths.one_path(blocks, torch.tensor([through])):
            parts.append(gradient())
    torch.testing.assert_close(sum(parts), whole)
    assert torch.equal(gradient(), whole)  # no hook is left behind


def test_lengths_of_paths():
    factors = [2.0, 2.0, 2.0]
    net = nn.Sequential(linear_blocks(factors), nn.Flatten())
    images = torch.zeros(4, 1, 1, 2)  # logits 0 and 0: a gradient of 1/2 and -1/2
    batches = [(images[:3], torch.zeros(3).long()), (images[3:], torch.ones(1).long())]
    found = paths.by_length(net, list(net[0]), batches)
    assert [(one.branches, one.paths) for one in found.lengths] == [(0, 1), (1, 3), (2, 3), (3, 1)]
    for length in found.lengths:
        assert length.gradient == pytest.approx(2**length.branches * math.sqrt(0.5))
    assert found.share_of_paths == [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    assert found.share_of_gradient == pytest.approx([1 / 27, 6 / 27, 12 / 27, 8 / 27])


def test_random_paths_have_their_length():
    through = paths.random_paths(50, 7, 3, torch.Generator().manual_seed(0))
    assert through.shape == (50, 7)
    assert through.sum(dim=1).tolist() == [3] * 50
    assert through.any(dim=0).all()


def test_the_middle_of_the_paths():
    found = Paths([Length(0, 1, 1.0), Length(1, 4, 10.0), Length(2, 6, 9.0), Length(3, 4, 0.75)])
    # carried: 1, 40, 54, 3 of 98
    assert found.middle(0.9) == (1, 2)
    assert found.middle(0.99) == (0, 3)
    assert Paths([Length(0, 1, 0.0), Length(1, 1, 0.0)]).middle() == (0, 1)
    deep = Paths([Length(k, math.comb(1200, k), 1.0) for k in range(1201)])  # beyond any float
    assert sum(deep.share_of_gradient) == pytest.approx(1)


# ------------------------------------------------------------------ the command


def nets(*kinds: bool) -> list[lesion_picture.Net]:
    """What is drawn of nets, each with or without paths."""
    single = [Single("stage1", f"stage1.{n}", n > 1, 0.25 + n / 10) for n in (1, 2)]
    lesions = Lesions(0.25, single, [Draw(1, 1.0, 0.5), Draw(2, 1.0, 0.9)], [Draw(1, 0.5, 0.6)])
    lengths = Paths([Length(0, 1, 0.5), Length(1, 2, 0.1), Length(2, 1, 0.0)])
    return [
        lesion_picture.Net(f"net $ {n}\x1b", lesions, lengths if kind else None)
        for n, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_picture_has_a_row_for_paths_where_there_are_some(language):
    say = translator(language, lesion_picture.KOREAN)
    drawn = [lesion_picture.draw(some, 10, 500, say) for some in (nets(True, False), nets(False))]
    assert [len(figure.axes) for figure in drawn] == [6, 3]
    lines = drawn[0].axes[0].get_lines()
    assert lines[0].get_ydata() == pytest.approx([35, 45])
    texts = {text.get_text() for legend in drawn[0].legends for text in legend.get_texts()}
    assert "net $ 0\\x1b" in texts
    assert (say("whole net") == "whole net") == (language == "en")


def test_tables_and_files(tmp_path, capsys):
    some = nets(True, False)
    command._write(tmp_path, ["a\x1b", "b"], some)
    blocks = read_csv(tmp_path / "blocks.csv")
    assert blocks[0] == {
        **{"run": "a\\x1b", "block": "stage1.1", "changes_shape": "True"},
        **{"error": "0.35", "whole_net_error": "0.25"},
    }
    assert len(blocks) == 4
    assert [row["run"] for row in read_csv(tmp_path / "paths.csv")] == ["a\\x1b"] * 3
    assert read_csv(tmp_path / "swaps.csv")[0]["kendall_tau"] == "0.5"
    command._show(some, 500, "test")
    shown = capsys.readouterr().out
    assert "+15.0" in shown  # the median of 10 and 20 points
    assert "+20.0 (stage1.2)" in shown
    assert "paths through 0 to 1 of the 2 branches carry 95% of the gradient" in shown
    assert "one path, through all blocks" in shown


def test_the_command(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "PATH_IMAGES", 5)
    words = ["lesion", str(finished), "--images", "20", "--samples", "1", "--device", "cpu"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("lesion.png", "blocks.csv", "several.csv", "swaps.csv", "paths.csv")
    }
    assert len(read_csv(tmp_path / "out" / "blocks.csv")) == 3
    assert "of the 3 branches carry 95% of the gradient" in capsys.readouterr().out


def test_mistakes_are_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    for options, said in (
        ({"samples": 0}, "--samples 0: must be 1 or more"),
        ({"samples": 1, "out": tmp_path}, "there is something already"),
    ):
        with pytest.raises(UserError, match=said):
            command.run(Namespace(**options))

"""The loss around nets and between them: places, values, figures, and what a folder keeps."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lab import read_csv, read_result
from omegaconf import OmegaConf
from torch import Tensor, nn

from resnet_lab import charts, cli, language
from resnet_lab.analysis import landscape_lines, landscape_picture
from resnet_lab.analysis.landscape import (
    Section,
    Value,
    combined,
    even_batches,
    filter_normalised,
    random_directions,
    refuse_other_nets,
    weights_of,
)
from resnet_lab.analysis.landscape_folder import LandscapeFolder, default_folder, missing
from resnet_lab.analysis.landscape_jobs import measured
from resnet_lab.analysis.landscape_picture import KOREAN, Net, Seen
from resnet_lab.analysis.landscape_places import Place, across, around, between, corners
from resnet_lab.analysis.landscape_shape import barrier, bent_down, shape_of, turns
from resnet_lab.config.errors import UserError

ONE, ZERO = torch.ones(1), torch.zeros(1)


class Line(nn.Module):
    """Logits (a x, b x) of a gray pixel x; a and b are two filters of one number."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[a], [b]]))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def gray(*pixels: int) -> Tensor:
    return torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 1, 3)


def section_of(net: nn.Module, bases: list, pixels=(1, 2), labels=(0, 1), **how) -> Section:
    """Measured on gray images of one pixel each, which are not normalised."""
    images = gray(*pixels)
    scales = [(ONE, ZERO)] * (how.pop("nets", 1)) + [(ZERO, ZERO)] * len(bases)
    return Section(net, bases, scales[: len(bases)], [images], [torch.tensor(labels)], **how)


# ------------------------------------------------------------------ directions


def test_a_direction_has_the_norms_of_the_filters():
    weight = torch.tensor([[[[3.0]], [[4.0]]], [[[0.0]], [[2.0]]]])  # norms 5 and 2
    drawn = torch.tensor([[[[1.0]], [[0.0]]], [[[6.0]], [[8.0]]]])
    expected = torch.tensor([[[[5.0]], [[0.0]]], [[[1.2]], [[1.6]]]])
    torch.testing.assert_close(filter_normalised(drawn, weight), expected)
    assert filter_normalised(torch.ones(3), torch.full((3,), 7.0)).tolist() == [0, 0, 0]
    rows = filter_normalised(torch.ones(2, 4), torch.tensor([[2.0] * 4, [0.0] * 4]))
    torch.testing.assert_close(rows, torch.tensor([[2.0] * 4, [0.0] * 4]))


def test_directions_follow_the_seed_and_leave_biases_and_norms():
    def net(norm: type[nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Flatten(), nn.Linear(4, 2))

    weights = weights_of(net(nn.BatchNorm2d))
    one, two = random_directions(weights, 5, 2)
    again = random_directions(weights, 5, 2)
    for first, second in zip([*one, *two], [*again[0], *again[1]], strict=True):
        assert torch.equal(first, second)
    for direction in (one, two):
        for part, weight in zip(direction, weights, strict=True):
            expected = weight.flatten(1).norm(dim=1) if weight.dim() > 1 else None
            if expected is None:
                assert not part.any()
            else:
                torch.testing.assert_close(part.flatten(1).norm(dim=1), expected)
    assert not torch.allclose(one[0], two[0])
    assert not torch.allclose(one[0], random_directions(weights, 6, 1)[0][0])
    plain = weights_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)))
    plain = [weights[0], weights[1], *plain[2:]]  # without a norm the draws are the same
    assert torch.equal(one[0], random_directions(plain, 5, 1)[0][0])


# ------------------------------------------------------------------ values


def test_a_surface_is_the_formula():
    net = Line(0.5, -2.0)
    bases = [weights_of(net), *random_directions(weights_of(net), 0, 2)]
    signs = [(base[0] / bases[0][0]).flatten().tolist() for base in bases[1:]]  # each +1 or -1
    section = section_of(net, bases)
    places = around(5, 1.0, 2)
    assert [place.position for place in places[:2]] == [(-1.0, -1.0), (-0.5, -1.0)]
    assert places[12] == Place((0.0, 0.0), (1.0, 0.0, 0.0))
    for (x, y), coefficients in places:
        a = 0.5 * (1 + x * signs[0][0] + y * signs[1][0])
        b = -2.0 * (1 + x * signs[0][1] + y * signs[1][1])
        # Images 1 and 2 of the classes 0 and 1.
        loss = (math.log1p(math.exp(b - a)) + math.log1p(math.exp(2 * (a - b)))) / 2
        value = section.at(coefficients)
        assert value.loss == pytest.approx(loss, abs=1e-6)
        if abs(a - b) > 1e-6:
            assert value.accuracy == 0.5  # always one of the two


def test_what_is_not_finite_is_a_value():
    net = Line(1.0, 2.0)
    own, inf = weights_of(net), [torch.tensor([[math.inf], [math.inf]])]
    assert math.isnan(section_of(net, [inf]).at((1.0,)).loss)
    section = section_of(net, [inf, own], nets=2)
    assert math.isfinite(section.at((0.0, 1.0)).loss)  # 0 times infinity is left out
    nothing = [torch.tensor([[math.nan], [1.0]])]
    assert section_of(net, [nothing]).at((1.0,)).accuracy == 0


def test_the_line_ends_in_its_nets():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(1, 3)) for _ in range(2)]
    bases = [weights_of(net) for net in nets]
    section = section_of(nets[0], bases, pixels=(0, 1, 2), labels=(0, 1, 2), nets=2)
    section.scales = [(ONE, ZERO), (ONE / 3, -ONE)]  # the second was trained on other images
    places = {place.position[0]: place for place in between(30)}
    assert {0.0, 1.0, -0.25, 1.25} <= places.keys()
    assert [p.position[0] for p in between(31)] == [round(-0.25 + n / 20, 10) for n in range(31)]
    for end, images in ((0.0, [0.0, 1, 2]), (1.0, [-1.0, -2 / 3, -1 / 3])):
        net, weights = nets[int(end)], bases[int(end)]
        value = section.at(places[end].coefficients)
        for parameter, expected in zip(section.net.parameters(), weights, strict=True):
            assert torch.equal(parameter, expected)
        with torch.no_grad():
            for parameter, expected in zip(net.parameters(), weights, strict=True):
                parameter.copy_(expected)
            logits = net(torch.tensor(images).view(-1, 1, 1, 1))
        loss = nn.functional.cross_entropy(logits, torch.arange(3))
        assert value.loss == pytest.approx(float(loss), abs=1e-6)


def test_the_plane_goes_through_its_nets():
    # (0, 0), (3, 4) and 5 to the left of it as one walks from the first to the second, 2 ahead.
    nets = [[torch.tensor(p)] for p in ([0.0, 0.0], [3.0, 4.0], [1.2 - 4.0, 1.6 + 3.0])]
    at = corners(nets)
    np.testing.assert_allclose(at, [(0, 0), (5, 0), (2, 5)], atol=1e-6)
    places = across(5, at)
    assert len(places) == 25 + 3
    for place, own in zip(places[-3:], nets, strict=True):
        assert torch.equal(combined(place.coefficients, [net[0] for net in nets]), own[0])
    ahead, aside = torch.tensor([0.6, 0.8]), torch.tensor([-0.8, 0.6])
    for (x, y), coefficients in places:
        found = combined(coefficients, [net[0] for net in nets])
        torch.testing.assert_close(found, x * ahead + y * aside, atol=1e-5, rtol=0)
    xs, ys = ({place.position[axis] for place in places[:-3]} for axis in (0, 1))
    np.testing.assert_allclose([min(xs), max(xs)], [2.5 - 3.75, 2.5 + 3.75], atol=1e-6)
    np.testing.assert_allclose([min(ys), max(ys)], [-1.25, 6.25], atol=1e-6)
    for third in ([6.0, 8.0], [3.0, 4.0], [math.nan, 0.0]):
        with pytest.raises(UserError, match="the three nets lie on one line"):
            corners([*nets[:2], [torch.tensor(third)]])
    with pytest.raises(UserError, match="lie on one line"):
        corners([nets[0], nets[0], nets[2]])


def normed() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Flatten())
    net[1].running_mean.fill_(4.0)
    return net.eval()


@pytest.mark.parametrize("batchnorm", ["running", "batch", "recomputed"])
def test_statistics_of_batchnorm(batchnorm):
    net = normed()
    bases = [weights_of(net), *random_directions(weights_of(net), 0, 1)]
    statistics = [gray(3, 9), gray(0, 4)]
    how = {"batchnorm": batchnorm, "statistics": statistics}
    section = section_of(net, bases, pixels=(1, 2, 6), labels=(0, 1, 2), **how)
    first = section.at((1.0, 0.5))
    section.at((1.0, -3.0))
    assert section.at((1.0, 0.5)) == first  # whatever was measured before
    conv, norm = net[0], net[1]
    conv_out = conv(torch.tensor([1.0, 2.0, 6.0]).view(-1, 1, 1, 1)).flatten(1)
    if batchnorm == "batch":
        mean, var = conv_out.mean(dim=0), conv_out.var(dim=0, unbiased=False)
    elif batchnorm == "recomputed":
        parts = [conv(part[..., :1].float()).flatten(1) for part in statistics]
        mean = sum(part.mean(dim=0) for part in parts) / 2
        var = sum(part.var(dim=0) for part in parts) / 2
    else:
        mean, var = torch.full((3,), 4.0), torch.ones(3)
    loss = nn.functional.cross_entropy((conv_out - mean) / (var + norm.eps).sqrt(), torch.arange(3))
    assert first.loss == pytest.approx(float(loss.detach()), abs=1e-5)
    assert not norm.training
    if batchnorm != "recomputed":
        assert norm.running_mean.tolist() == [4, 4, 4]


def test_a_frozen_norm_keeps_its_statistics():
    net = normed()
    net[1].requires_grad_(False)
    how = {"pixels": (1, 2, 6), "labels": (0, 1, 2), "statistics": [gray(3, 9)]}
    values = {
        batchnorm: section_of(net, [weights_of(net)], batchnorm=batchnorm, **how).at((1.0,))
        for batchnorm in ("running", "batch", "recomputed")
    }
    assert values["batch"] == values["recomputed"] == values["running"]
    assert net[1].running_mean.tolist() == [4, 4, 4]


def test_no_batch_is_short():
    assert [len(part) for part in even_batches(torch.zeros(251))] == [126, 125]
    assert [len(part) for part in even_batches(torch.zeros(101), 50)] == [34, 34, 33]
    assert [len(part) for part in even_batches(torch.zeros(3))] == [3]


# ------------------------------------------------------------------ which nets


def subject(model: dict, net: nn.Module, size: int = 8, classes=("a", "b")) -> SimpleNamespace:
    run = SimpleNamespace(
        cfg=OmegaConf.create({"model": model}), run_dir=Path(f"run-{size}"), class_names=classes
    )
    return SimpleNamespace(run=run, net=net, pixels=torch.zeros(1, size, size, 3))


def test_only_runs_of_one_net_have_weights_in_between():
    small, large = nn.Linear(2, 2), nn.Linear(3, 2)
    first = subject({"shortcut": "A"}, small)
    refuse_other_nets([first, subject({"shortcut": "A", "zero_init_residual": True}, small)])
    for other, why in (
        (subject({"shortcut": "none"}, small), "model.shortcut"),
        (subject({"shortcut": "A"}, large), "the shapes of their weights"),
        (subject({"shortcut": "A"}, small, 9), "the size of their images"),
        (subject({"shortcut": "A"}, small, classes=("a", "c")), "their classes"),
    ):
        with pytest.raises(UserError, match=f"run-8 and run-.* are different nets .{why}"):
            refuse_other_nets([first, other])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("a b c --cut", "--cut: give one run, or two of the same net, not 3"),
        ("a b --plane", "--plane: give three runs of the same net, not 2"),
        ("a b c d e f g", "7 runs: at most 6"),
        ("a --points 8", "--points 8: must be an odd number, so that the net itself is a point"),
        ("a b --cut --points 3", "--points 3: must be 5 or more"),
        ("a b --cut --seed 1", "--seed: is for random directions"),
        ("a b --cut --batchnorm running", "--batchnorm running: weights between runs have no"),
        ("a --range nan", "--range nan: must be above 0"),
        ("a --statistics 9", "--statistics: is for --batchnorm recomputed"),
        ("a --jobs 0", "--jobs 0: must be 1 or more"),
    ],
)
def test_mistakes_are_refused_before_torch_is_imported(refused, arguments, sentence):
    assert sentence in refused("landscape", *arguments.split())


# ------------------------------------------------------------------ the folder

PLACES = around(5, 1.0, 1)
ASKED = {"kind": "cut", "points": 5}


def values(numbers) -> Iterator[tuple[int, Value]]:
    return ((n, Value(n / 3, 1 / (n + 1))) for n in numbers)


def test_what_is_measured_is_kept_and_only_the_rest_measured_again(tmp_path):
    folder = LandscapeFolder(tmp_path / "new")
    folder.begin(ASKED, ["f"], ["run"])
    kept: dict[int, Value] = {}

    def stopped() -> Iterator[tuple[int, Value]]:
        yield from values([3, 0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.keep(1, PLACES, kept, stopped())
    with folder.points(1).open("a") as file:  # damage, and points of another grid
        file.write("1,-0.5,nonsense,1\n2,0.25,1,1\n99,0,1,1\nx\n")
    folder.begin(ASKED, ["f"], ["run"])
    again = folder.read_points(1, PLACES)
    assert again == dict(values([0, 3]))
    assert list(missing(PLACES, again)) == [1, 2, 4]
    folder.keep(1, PLACES, again, values([1, 2, 4]))
    assert folder.read_points(1, PLACES) == dict(values(range(5)))
    whole = LandscapeFolder(tmp_path / "whole")
    whole.begin(ASKED, ["f"], ["run"])
    whole.keep(1, PLACES, {}, values(range(5)))
    assert whole.points(1).read_bytes() == folder.points(1).read_bytes()
    assert whole.read_points(2, PLACES) == {}
    infinite = {0: Value(math.inf, 0.0), 1: Value(math.nan, 0.0)}
    whole.write_points(3, PLACES, infinite)
    found = whole.read_points(3, PLACES)
    assert found[0] == infinite[0]
    assert math.isnan(found[1].loss)


def test_a_folder_of_something_else_is_refused(tmp_path):
    folder = LandscapeFolder(tmp_path / "new")
    assert folder.picture("en").name == "landscape.png"
    assert folder.picture("ko").name == "landscape-ko.png"
    folder.refuse_others(ASKED)  # none yet
    folder.begin(ASKED, ["f"], ["run"])
    folder.refuse_others(ASKED)
    with pytest.raises(UserError, match=r"its points are of points=5, not 7; give the command"):
        folder.refuse_others(ASKED | {"points": 7})
    with pytest.raises(UserError, match="of other weights or images than these runs have now"):
        folder.begin(ASKED, ["g"], ["run"])
    before = folder.settings.read_text()
    for damaged in ("", "[]", '{"command": "lesion"}', "[" * 100_000):
        folder.settings.write_text(damaged)
        with pytest.raises(UserError, match="there is something else already"):
            folder.refuse_others(ASKED)
    folder.settings.write_text(before)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="there is a file already"):
        LandscapeFolder(tmp_path / "file").refuse_others(ASKED)
    (tmp_path / "empty").mkdir()
    LandscapeFolder(tmp_path / "empty").refuse_others(ASKED)


def test_the_folder_of_a_command_is_always_the_same(tmp_path, monkeypatch):
    one = default_folder([Path("sweeps/model=a,shortcut=A")], ASKED)
    assert one.parent == Path("outputs/analysis")
    assert one.name.startswith("landscape-model=a,shortcut=A-")
    assert one == default_folder(
        [Path("sweeps/model=a,shortcut=A/")], dict(reversed(ASKED.items()))
    )
    others = [
        default_folder([Path("sweeps/model=a,shortcut=A")], ASKED | {"points": 7}),
        default_folder([Path("other/model=a,shortcut=A")], ASKED),
        default_folder([Path("x/../../\n evil $(name)")], ASKED),
    ]
    assert len({one, *others}) == 4
    assert others[2].parent == Path("outputs/analysis")
    assert others[2].name.startswith("landscape-_evil_name_-")


# ------------------------------------------------------------------ figures


def grid(loss: Callable, n: int = 11) -> np.ndarray:
    steps = np.linspace(-1, 1, n)
    return np.array([[loss(x, y) for x in steps] for y in steps], dtype=float)


def test_figures_of_surfaces_by_hand():
    bowl = shape_of(grid(lambda x, y: 1 + x * x + 2 * y * y), 1.0)
    assert (bowl.centre, bowl.lowest, bowl.lowest_at, bowl.minima) == (1, 1, (0, 0), 1)
    assert (bowl.bent_down, bowl.bent_down_near, bowl.far_above, bowl.not_finite) == (0, 0, 0, 0)
    cone = shape_of(grid(lambda x, y: 0.1 + math.hypot(x, y), 21), 1.0)
    assert cone.at_half == pytest.approx(0.6, abs=0.05)
    assert cone.at_edge == pytest.approx(1.1, abs=0.05)
    away = grid(lambda x, y: math.hypot(x, y), 21)
    assert cone.far_above == pytest.approx((away > 0.9).mean())
    saddle = shape_of(grid(lambda x, y: 5 + x * x - y * y), 1.0)
    assert (saddle.bent_down, saddle.minima) == (1, 0)
    assert saddle.lowest_at in ((0, -1), (0, 1))
    half = shape_of(grid(lambda x, y: 5 + (x * x if x > 0.01 else -x * x)), 1.0)
    assert half.bent_down == pytest.approx(4 / 9)  # of the inner columns
    waves = shape_of(grid(lambda x, y: 3 + math.cos(2 * math.pi * x) + math.cos(math.pi * y)), 1.0)
    assert waves.minima == 0  # on the border alone
    dents = shape_of(grid(lambda x, y: 3 - math.cos(2.5 * math.pi * x) + y * y), 1.0)
    assert dents.minima == 3
    rounding = grid(lambda x, y: 1 + 1e-6 * math.sin(50 * x + 90 * y))
    assert not bent_down(rounding, 0.2)[0].any()
    assert shape_of(rounding, 1.0).minima == 0


def test_figures_of_surfaces_with_holes():
    loss = grid(lambda x, y: 1 + x * x + y * y)
    loss[0, :] = math.inf
    loss[-1, -1] = math.nan
    shape = shape_of(loss, 1.0)
    assert shape.not_finite == pytest.approx(12 / 121)
    assert shape.far_above == pytest.approx(12 / 121)
    assert (shape.centre, shape.bent_down, shape.minima) == (1, 0, 1)
    nothing = shape_of(np.full((5, 5), math.nan), 1.0)
    assert math.isnan(nothing.bent_down)
    assert nothing.at_edge == math.inf


def test_barriers_by_hand():
    at = [-0.25, 0.0, 0.25, 0.5, 1.0, 1.25]
    assert barrier(at, [9, 1, 2, 3, 2, 9]).height == pytest.approx(1.5)  # 3 above 1.5
    assert barrier(at, [9, 1, 2, 3, 2, 9]).at == 0.5
    assert barrier(at, [9, 1, 1.25, 1.5, 2, 9]).height == 0  # straight
    assert barrier(at, [0, 2, 0, 0, 2, 0]).height == 0  # a valley
    assert barrier(at, [9, 1, math.nan, 3, 2, 9]).height == math.inf
    assert turns([3, 2, 1, 2, 3]) == 1
    assert turns([3, 1, 1, 1 + 1e-7, 1, 2, 1]) == 2
    assert turns([1, 1]) == 0


# ------------------------------------------------------------------ pictures


def test_every_text_of_the_pictures_has_korean():
    def say(text: str, **values: object) -> str:
        assert text in {**KOREAN, **language.KOREAN}, text
        return text.format(**values)

    loss = grid(lambda x, y: 0.3 + 30 * (x * x + y * y))
    loss[0, 0], loss[1, 1] = math.inf, math.nan
    seen = Seen(500, "val", 10)
    free = "$x^{2 \x1b[31m"
    for n in (1, 3):
        figure = landscape_picture.surfaces([Net(free, loss)] * n, 1.0, seen, say)
        assert len(figure.axes) == 2 * n + 1
    at = [-0.25, 0.0, 0.5, 1.0, 1.25]
    found = barrier(at, [1.0, 1, 2, 1, 1])
    pair = landscape_lines.line(
        at, [1.0, 1, 2, 1, 1], [0.5] * 5, [free] * 2, (found,) * 2, seen, say
    )
    assert "barrier 1.000" in {axes.get_title() for axes in pair.axes}
    landscape_lines.line(at, [1.0, 1, 90, math.inf, math.nan], [0.5] * 5, [free], None, seen, say)
    steps, three = np.linspace(-1, 1, 11), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)]
    landscape_lines.plane(three, [free] * 3, steps, steps, loss, loss / 100, seen, say)


# ------------------------------------------------------------------ the command


def test_the_command_goes_on_where_it_was(finished, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    command = ["landscape", str(finished), "--points", "5", "--split", "test", "--device", "cpu"]
    command += ["--jobs", "1", "--range", "0.5", "--images", "359", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(charts, "write_png", lambda path, draw: None)  # takes a second
        assert cli.main(command) == 0
    points = read_csv(out / "points-1.csv")
    assert len(points) == 25
    own = float(points[12]["loss"])
    assert (points[12]["x"], points[12]["y"]) == ("0.0", "0.0")
    assert own == pytest.approx(read_result(finished)["test/loss"], abs=1e-4)
    assert float(points[12]["accuracy"]) == pytest.approx(read_result(finished)["test/acc"])
    (row,) = read_csv(out / "figures.csv")
    assert float(row["loss"]) == pytest.approx(own, rel=1e-5)
    assert "kept" not in capsys.readouterr().out
    whole = (out / "points-1.csv").read_text()
    (out / "points-1.csv").write_text("\n".join(whole.splitlines()[:20]))
    assert cli.main(command) == 0
    assert "19 of 25 points are kept" in capsys.readouterr().out
    assert (out / "points-1.csv").read_text() == whole
    assert (out / "landscape.png").stat().st_size > 10_000


@pytest.mark.slow
def test_processes_measure_what_one_measures():
    net = normed()
    weights = weights_of(net)
    bases = [weights, *random_directions(weights, 0, 2)]
    section = section_of(net, bases, pixels=(1, 2, 6), labels=(0, 1, 2))
    places = dict(enumerate(around(5, 1.0, 2)))
    alone = dict(measured(section, places, 1))
    assert dict(measured(section, places, 3)) == alone
    assert dict(measured(section, places, None)) == alone
    assert list(measured(section, {}, 3)) == []
    first = next(iter(going := measured(section, places, 2)))  # ended in between
    going.close()
    assert first[1] == alone[first[0]]


@pytest.mark.slow
def test_a_process_that_ends_is_noticed():
    section = section_of(Ending(1.0, 2.0), [weights_of(Line(1.0, 2.0))])
    with pytest.raises(UserError, match=r"has ended \(status 7\).*with fewer --jobs"):
        dict(measured(section, dict(enumerate([Place((0.0,), (1.0,))] * 2)), 2))


class Ending(Line):
    def forward(self, images: Tensor) -> Tensor:
        import os

        os._exit(7)

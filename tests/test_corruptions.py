"""Corruptions: what each level does to images, and the command."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from lab import read_csv

from resnet_lab import cli
from resnet_lab.analysis import corruptions_picture
from resnet_lab.analysis.corruptions import (
    CORRUPTIONS,
    LEVELS,
    Robustness,
    conditions,
    corrupt,
    study,
)
from resnet_lab.commands import corruptions as command
from resnet_lab.language import translator

KINDS = {kind.name: kind for kind in CORRUPTIONS}


def images(n: int = 3, side: int = 32, channels: int = 3) -> torch.Tensor:
    """uint8 images with coarse and fine detail, from dark to light."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = (
        torch.nn.functional.interpolate(
            torch.rand(n, channels, cells, cells, generator=generator), side, mode="bilinear"
        )
        for cells in (4, side // 2)
    )
    return (255 * (0.6 * coarse + 0.4 * fine)).permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).square().mean().sqrt())


@pytest.mark.parametrize("name", KINDS)
def test_each_level_is_farther_from_the_image(name):
    pixels = images()
    made = [corrupt(pixels, KINDS[name], level) for level in range(LEVELS + 1)]
    assert all(one.shape == pixels.shape and one.dtype == torch.uint8 for one in made)
    distances = [distance(one, pixels) for one in made]
    assert distances[0] == 0
    assert all(less < more for less, more in pairwise(distances)), distances
    assert distances[-1] > 8


@pytest.mark.parametrize("name", KINDS)
def test_an_image_is_corrupted_alike_alone_and_among_others(name):
    pixels = images(4)
    together = corrupt(pixels, KINDS[name], 3)
    alone = corrupt(pixels[[2]], KINDS[name], 3)
    # Sums of floats may be taken in another order.
    assert (together[[2]].int() - alone.int()).abs().max() <= 1
    assert torch.equal(together, corrupt(pixels, KINDS[name], 3))


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur"])
def test_what_is_random_depends_on_the_seed(name):
    pixels = images(2)
    one, other = (corrupt(pixels, KINDS[name], 4, seed) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_the_images_given_stay_as_they_are():
    pixels = images()
    before = pixels.clone()
    corrupt(pixels, KINDS["brightness"], 0).zero_()
    for kind in CORRUPTIONS:
        corrupt(pixels, kind, 5).zero_()
    assert torch.equal(pixels, before)


def test_strengths_are_those_that_are_said():
    grey = torch.full((8, 32, 32, 3), 128, dtype=torch.uint8)
    noisy = corrupt(grey, KINDS["gaussian_noise"], 4).double()
    assert float(noisy.std()) == pytest.approx(255 * 0.12, rel=0.03)
    shot = corrupt(grey, KINDS["shot_noise"], 3).double()
    assert float(shot.std()) == pytest.approx(255 * (128 / 255 / 70) ** 0.5, rel=0.03)
    impulses = corrupt(grey, KINDS["impulse_noise"], 5)
    assert float((impulses != 128).double().mean()) == pytest.approx(0.15, rel=0.06)
    assert {*impulses.unique().tolist()} == {0, 128, 255}
    assert corrupt(grey, KINDS["brightness"], 2).unique().tolist() == [128 + 51]


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur", "pixelate"])
def test_blurs_keep_what_is_even_and_the_mean(name):
    grey = torch.full((2, 32, 32, 3), 100, dtype=torch.uint8)
    assert (corrupt(grey, KINDS[name], 5).int() - 100).abs().max() <= 1
    pixels = images()
    mean = float(corrupt(pixels, KINDS[name], 5).double().mean())
    assert mean == pytest.approx(float(pixels.double().mean()), rel=0.03)


def test_contrast_and_pixels_by_hand():
    pixels = torch.tensor([[0, 200], [100, 100]], dtype=torch.uint8).reshape(1, 2, 2, 1)
    # Half of the distance to the mean, 100, is kept.
    assert corrupt(pixels, KINDS["contrast"], 2).flatten().tolist() == [50, 150, 100, 100]
    columns = (torch.arange(32) % 4 * 40).to(torch.uint8).expand(1, 32, 32)[..., None].contiguous()
    coarse = corrupt(columns, KINDS["pixelate"], 3)  # pixels of 2 x 2
    assert coarse[0, 0, :4, 0].tolist() == [20, 20, 100, 100]
    assert corrupt(columns, KINDS["pixelate"], 5).unique().tolist() == [60]


def test_lengths_grow_with_the_image():
    edge = torch.zeros(1, 64, 64, 1, dtype=torch.uint8)
    edge[:, :, 32:] = 255
    large = corrupt(edge, KINDS["gaussian_blur"], 5)[0, 32, :, 0]
    small = corrupt(edge[:, ::2, ::2].contiguous(), KINDS["gaussian_blur"], 5)[0, 16, :, 0]

    def width(line: torch.Tensor) -> int:
        return int(((line > 25) & (line < 230)).sum())

    assert width(large) >= 2 * width(small) - 1 > width(small)


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (20, 2)])
def test_any_size_and_number_of_channels(side, channels):
    pixels = images(2, side, channels)
    for kind in CORRUPTIONS:
        assert corrupt(pixels, kind, 5).shape == pixels.shape


# ------------------------------------------------------------------ a net


def test_the_means_by_hand():
    found = Robustness(0.9, {"a": (0.8, 0.4), "b": (0.6, 0.2)})
    assert found.means == pytest.approx({"a": 0.6, "b": 0.4})
    assert found.mean == pytest.approx(0.5)
    assert found.by_level == pytest.approx((0.7, 0.3))


def test_every_condition_is_measured_once():
    pixels = images(2, side=8)
    seen: list[torch.Tensor] = []

    def accuracy(given: torch.Tensor) -> float:
        seen.append(given)
        return 1 / len(seen)

    found = study(accuracy, pixels, seed=0)
    assert found.clean == 1
    assert torch.equal(seen[0], pixels)
    assert len(seen) == 1 + len(CORRUPTIONS) * LEVELS
    assert [*found.levels] == [*KINDS]
    assert found.levels["gaussian_noise"] == pytest.approx([1 / n for n in range(2, 7)])
    kind, level = list(conditions())[7]
    assert torch.equal(seen[8], corrupt(pixels, kind, level))


def nets(count: int) -> list[corruptions_picture.Net]:
    levels = {kind.name: tuple(0.8 - 0.1 * n for n in range(LEVELS)) for kind in CORRUPTIONS}
    return [
        corruptions_picture.Net(f"net $ {n}\x1b", Robustness(0.9, levels)) for n in range(count)
    ]


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_pictures(language):
    say = translator(language, corruptions_picture.KOREAN)
    figure = corruptions_picture.draw(nets(9), 10, 500, say)
    assert len([axes for axes in figure.axes if axes.axison]) == len(CORRUPTIONS) + 1
    lines = figure.axes[0].get_lines()
    assert lines[0].get_ydata() == pytest.approx([90, 80, 70, 60, 50, 40])
    looks = {(line.get_color(), line.get_linestyle()) for line in lines[:-1]}
    assert len(looks) == 9  # more than there are colours
    assert figure.legends[0].get_texts()[0].get_text() == "net $ 0\\x1b"
    strips = [(name, np.zeros((6, 8, 8, 1), dtype=np.uint8)) for name in KINDS]
    shown = corruptions_picture.examples(strips, say)
    assert shown.axes[0].images[0].get_array().shape == (8, 6 * 9 - 1, 3)
    untranslated = [name for name in KINDS if say(name.replace("_", " ")).isascii()]
    assert (untranslated == []) == (language == "ko")


# ------------------------------------------------------------------ the command


def test_the_command(finished, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["corruptions", str(finished), "--device", "cpu", "--images", "10", "--out", str(out)]
    assert cli.main([*words, "--example", "9"]) == 0
    shown = capsys.readouterr().out
    assert "not the images of CIFAR-10-C" in " ".join(shown.split())
    rows = read_csv(out / "corruptions.csv")
    assert len(rows) == len(CORRUPTIONS) * (LEVELS + 1)
    clean = {row["accuracy"] for row in rows if row["level"] == "0"}
    assert len(clean) == 1
    for name in ("corruptions.png", "corruptions_examples.png"):
        assert (out / name).stat().st_size > 10_000


def test_a_net_that_is_never_right_has_no_relative_accuracy(tmp_path):
    none = corruptions_picture.Net("x", Robustness(0.0, {"fog": (0.0,) * LEVELS}))
    command._write(tmp_path, ["run"], [none], 10)
    assert {row["relative_to_clean"] for row in read_csv(tmp_path / "corruptions.csv")} == {""}
    command._show([none], 10, "test")


def test_mistakes(refused):
    assert "--seed -1: must be 0 or more" in refused("corruptions", "run", "--seed", "-1")
    assert "--example -2: must be 0 or more" in refused("corruptions", "run", "--example", "-2")

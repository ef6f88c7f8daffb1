"""The pictures of agreement: how many nets are right, which differ, and what all get wrong."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_lab.charts import Tile, grid, shortened
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.style import INK, MUTED, PALETTE

KOREAN = {
    "{nets} nets on the same {images} images": "같은 이미지 {images}장에 대한 신경망 {nets}개의 답",
    "How many of the {nets} nets are right": "신경망 {nets}개 중 맞힌 신경망의 수",
    "nets that get an image right": "한 이미지를 맞힌 신경망의 수",
    "share of images, %": "이미지의 비율, %",
    "these nets": "이 신경망들",
    "independent nets of the same accuracies": "정확도가 같은 서로 독립인 신경망",
    "Different answers, % of images": "서로 다른 답을 한 이미지, %",
    "Images that all {nets} nets get wrong": "신경망 {nets}개가 모두 틀린 이미지",
    "it is {name}": "정답: {name}",
    "taken for {name} ({share})": "예측: {name} ({share})",
}

MOST_NUMBERED = 12  # nets of a matrix that shows its numbers
NAME = 12  # letters of a class below an image


def draw(
    titles: Sequence[str],
    nets_right: Sequence[float],
    independent: Sequence[float],
    disagreement: Sequence[Sequence[float]],
    images: int,
    say: Translate,
) -> Figure:
    """How many nets get an image right, beside the matrix of their disagreement.

    Args:
        titles: of the nets.
        nets_right, independent: shares of images that 0, 1, ..., K nets get right: found, and of
            independent nets.
        disagreement: of each pair, from 0 to 1.
        images: how many there are.
    """
    nets = len(titles)
    side = max(3.6, 0.3 * min(nets, 30))
    figure = Figure(figsize=(9.6, side), layout="constrained")
    title = say("{nets} nets on the same {images} images", nets=nets, images=f"{images:,}")
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    _counts(left, nets_right, independent, say)
    _matrix(right, titles, disagreement, say)
    return figure


def _counts(
    axes: Axes, found: Sequence[float], independent: Sequence[float], say: Translate
) -> None:
    nets = len(found) - 1
    x = np.arange(nets + 1)
    axes.bar(x, 100 * np.asarray(found), color=PALETTE[0], width=0.7, label=say("these nets"))
    label = say("independent nets of the same accuracies")
    axes.plot(
        x, 100 * np.asarray(independent), color=PALETTE[1], marker="o", ms=4, lw=1.1, label=label
    )
    axes.set_title(say("How many of the {nets} nets are right", nets=nets))
    axes.set_xlabel(say("nets that get an image right"))
    axes.set_ylabel(say("share of images, %"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 118 * max(*found, *independent))  # room for the legend
    axes.legend(loc="upper left")


def _matrix(
    axes: Axes, titles: Sequence[str], shares: Sequence[Sequence[float]], say: Translate
) -> None:
    values = 100 * np.asarray(shares)
    most = max(float(values.max()), 1e-9)
    axes.imshow(
        values, cmap="Blues", vmin=0, vmax=2 * most
    )  # no cell is so dark that it hides text
    numbers = range(1, len(titles) + 1)
    names = [f"{shortened(printable(t), 34)}  {n}" for n, t in zip(numbers, titles, strict=True)]
    places = range(len(titles))
    if len(titles) > MOST_NUMBERED:
        names = [str(n) for n in numbers]
    axes.set_yticks(places, names, parse_math=False, fontsize=8)
    axes.set_xticks(places, [str(n) for n in numbers], fontsize=8)
    axes.set_title(say("Different answers, % of images"))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(titles) > MOST_NUMBERED:
        axes.figure.colorbar(axes.images[0], ax=axes, shrink=0.8)
        return
    for row, column in np.ndindex(values.shape):
        text, colour = (f"{values[row, column]:.1f}", INK) if row != column else ("-", MUTED)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def missed(
    images: np.ndarray,
    truths: Sequence[str],
    mistakes: Sequence[str],
    probabilities: Sequence[float],
    nets: int,
    say: Translate,
) -> Figure:
    """Images that all nets get wrong, each with its class and the likeliest mistake.

    Args:
        images: uint8 [n, height, width, 1 or 3].
        mistakes: what the nets take it for.
        probabilities: of the mistake, the mean over the nets, from 0 to 1.
        nets: how many there are.
    """
    tiles = []
    for image, truth, answer, sure in zip(images, truths, mistakes, probabilities, strict=True):
        name, other = (shortened(printable(text), NAME) for text in (truth, answer))
        lines = (
            say("it is {name}", name=name),
            say("taken for {name} ({share})", name=other, share=f"{sure:.0%}"),
        )
        tiles.append(Tile(np.broadcast_to(image, (*image.shape[:2], 3)), "\n".join(lines)))
    title = say("Images that all {nets} nets get wrong", nets=nets)
    return grid(tiles, title, columns=8, side=1.25)

"""Images as the net gets them, turned back into pictures for people."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from resnet_lab.charts import Tile, grid, shortened


def pictures(
    images: Tensor,
    captions: Sequence[str],
    title: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Figure:
    """Images [n, c, height, width], normalised with `mean` and `std`, each above its caption."""
    shift, scale = (torch.tensor(list(s)).view(-1, 1, 1) for s in (mean, std))
    rgb = (images.float().cpu() * scale + shift).clamp(0, 1).expand(-1, 3, -1, -1)
    pixels = rgb.permute(0, 2, 3, 1).numpy()
    return grid([Tile(*pair) for pair in zip(pixels, captions, strict=True)], title)


def caption(target: Tensor, names: Sequence[str]) -> str:
    """The class in words of a label [], or of shares of classes [classes]; "" of one that does not
    count."""
    if target.ndim == 0:
        return shortened(names[int(target)], 16) if target >= 0 else ""
    shares, classes = target.topk(2)
    if shares[0] > 0.995:
        return shortened(names[int(classes[0])], 16)
    return " ".join(
        f"{shortened(names[label], 7)} {share:.1f}"
        for share, label in zip(shares.tolist(), classes.tolist(), strict=True)
    )

"""The curves of several runs in one picture."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from resnet_lab import charts
from resnet_lab.config.errors import UserError
from resnet_lab.files import replacing
from resnet_lab.report.plots import assign_styles, curve_charts, styled
from resnet_lab.report.runs import Run, Study
from resnet_lab.report.stats import summarise

KEY = "which"
MOST = 30  # letters of a name in the legend


def save_curves(runs: Sequence[Run], names: Sequence[str], path: Path) -> None:
    """Write loss and accuracy by epoch, on training and validation images, as PNG.

    Args:
        names: of the runs, for the legend; runs of the same one are drawn as their mean.

    Raises:
        UserError: no run has finished an epoch.
    """
    shown = [charts.shortened(name, MOST) for name in names]
    named = [
        replace(run, settings={KEY: name}, memo={}) for run, name in zip(runs, shown, strict=True)
    ]
    study = Study("curves", [], [KEY], named)
    rows = summarise(study)
    style = assign_styles(study, rows) if rows else None
    if style:
        style = replace(style, labels={setting: setting[0] for setting in style.labels})
    pictures = curve_charts(rows, style) if style else []
    if not pictures:
        raise UserError("No run has finished an epoch: there are no curves yet.")
    with styled(), replacing(path, "wb") as file:
        pictures[0].figure.savefig(file, format="png", dpi=150, facecolor="white")

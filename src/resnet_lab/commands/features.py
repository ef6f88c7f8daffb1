"""A map of the features in front of the head, and what each part of a net holds."""

import argparse
import csv
import re
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_lab.commands import _analysis, describe
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable, replacing
from resnet_lab.screen import console

if TYPE_CHECKING:
    from resnet_lab.analysis.features import Features
    from resnet_lab.analysis.features_picture import Curve, Map
    from resnet_lab.analysis.subject import Subject

MOST_RUNS = 3
FEWEST = 3  # images


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Draws images as points: close where the net's features in front of its head are alike; "
        "and, after each part of the net, how many images have the class of most of their 20 "
        "nearest neighbours. Writes features.png, map.csv and neighbours.csv. --projector also "
        "writes the features with their images for TensorBoard's PROJECTOR.",
        "resnet-lab features RUN_DIR\n"
        "resnet-lab features PLAIN RESIDUAL --images 1000\n"
        "resnet-lab features RUN_DIR --map umap --projector",
    )
    _analysis.add_runs(parser)
    _analysis.add_images(parser, 2000)
    parser.add_argument("--map", choices=["pca", "umap"], default="pca", help="how (pca)")
    parser.add_argument(
        "--projector", action="store_true", help="write files for TensorBoard's PROJECTOR, too"
    )
    _analysis.add_out(parser)


def run(options: argparse.Namespace) -> int:
    if len(options.run_dirs) > MOST_RUNS:
        raise UserError(f"{len(options.run_dirs)} runs are named; {MOST_RUNS} at most are drawn.")
    _analysis.refuse_filled(options.out)
    if options.map == "umap" and find_spec("umap") is None:
        raise UserError(
            "--map umap needs the package umap-learn: pip install umap-learn, or use --map pca."
        )
    subjects = _analysis.subjects(options)

    from resnet_lab import charts
    from resnet_lab.analysis import features_picture
    from resnet_lab.analysis.features import NEIGHBOURS, collect
    from resnet_lab.analysis.projector import write_projector
    from resnet_lab.analysis.subject import titles
    from resnet_lab.language import translator

    say = translator(options.language, features_picture.KOREAN)
    classes = subjects[0].run.class_names
    if any(subject.run.class_names != classes for subject in subjects):
        raise UserError("the runs know other classes; compare runs on the same data.")
    n = min(len(subject.labels) for subject in subjects)
    if n < FEWEST:
        raise UserError(f"--images {n}: {FEWEST} at least are needed.")
    found = [collect(subject) for subject in subjects]
    names = [printable(name) for name in titles([s.run for s in subjects], say)]
    maps = [_map(*each, options.map) for each in zip(names, subjects, found, strict=True)]
    curves = [_curve(*each) for each in zip(names, subjects, found, strict=True)]

    folder = _analysis.result_folder(options, "features")
    charts.write_png(
        folder / "features.png",
        lambda: features_picture.draw(maps, curves, classes, NEIGHBOURS, say),
    )
    _write_maps(folder / "map.csv", maps, found, classes)
    _write_curves(folder / "neighbours.csv", curves, found)
    _show(maps, curves)
    console.print(f"\nwritten     {folder}", soft_wrap=True)
    if options.projector:
        for number, (name, subject, each) in enumerate(zip(names, subjects, found, strict=True), 1):
            write_projector(
                folder / "projector" / f"{number}-{re.sub('[^A-Za-z0-9]+', '-', name)}",
                each.before_head,
                subject.pixels,
                subject.labels,
                each.predicted,
                classes,
            )
        where = shlex.quote(str(folder / "projector"))
        console.print(f"projector   tensorboard --logdir {where}", soft_wrap=True)
    return 0


def _map(name: str, subject: "Subject", features: "Features", kind: str) -> "Map":
    from resnet_lab.analysis.features import principal_components, umap_places
    from resnet_lab.analysis.features_picture import Map

    shares = None
    if kind == "umap":
        places = umap_places(features.before_head)
    else:
        places, of_variance = principal_components(features.before_head)
        shares = (float(of_variance[0]), float(of_variance[1]))
    labels = subject.labels
    right = features.predicted == labels
    return Map(name, places.numpy(), labels.numpy(), right.numpy(), shares)


def _curve(name: str, subject: "Subject", features: "Features") -> "Curve":
    from resnet_lab.analysis.features import neighbour_accuracy
    from resnet_lab.analysis.features_picture import Curve

    stages = [part.stage for part, _ in features.parts]
    accuracies = [neighbour_accuracy(pooled, subject.labels) for _, pooled in features.parts]
    return Curve(name, stages, accuracies, neighbour_accuracy(features.pixels, subject.labels))


def _write_maps(
    path: Path, maps: "Sequence[Map]", found: "Sequence[Features]", classes: Sequence[str]
) -> None:
    with replacing(path, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["net", "image", "class", "predicted", "axis_1", "axis_2"])
        for each, features in zip(maps, found, strict=True):
            answers = zip(each.places, each.labels, features.predicted.tolist(), strict=True)
            for number, (place, label, answer) in enumerate(answers):
                kinds = [printable(classes[label]), printable(classes[answer])]
                writer.writerow([each.name, number, *kinds, *(f"{axis:.6g}" for axis in place)])


def _write_curves(path: Path, curves: "Sequence[Curve]", found: "Sequence[Features]") -> None:
    with replacing(path, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["net", "part", "accuracy"])
        for curve, features in zip(curves, found, strict=True):
            writer.writerow([curve.name, "pixels", f"{curve.of_pixels:.6f}"])
            for (part, _), accuracy in zip(features.parts, curve.accuracies, strict=True):
                writer.writerow([curve.name, part.name, f"{accuracy:.6f}"])


def _show(maps: "Sequence[Map]", curves: "Sequence[Curve]") -> None:
    """Accuracy of the nets, and of neighbours after the last part of each stage."""
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    stages = list(dict.fromkeys(stage for curve in curves for stage in curve.stages))
    for title in ("k-NN accuracy after", "pixels", *stages, "net's own"):
        table.add_column(printable(title), justify="left" if " after" in title else "right")
    for each, curve in zip(maps, curves, strict=True):
        last = dict(zip(curve.stages, curve.accuracies, strict=True))
        cells = [f"{last[stage]:.1%}" if stage in last else "" for stage in stages]
        table.add_row(curve.name, f"{curve.of_pixels:.1%}", *cells, f"{each.right.mean():.1%}")
    console.print(table)

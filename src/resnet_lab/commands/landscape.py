"""The loss around a net's weights, and between the weights of several nets."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from resnet_lab.commands import _analysis, describe
from resnet_lab.config.compose import quoted
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.language import LANGUAGES
from resnet_lab.screen import console

if TYPE_CHECKING:  # which import torch or matplotlib
    from resnet_lab.analysis.landscape import Section, Value
    from resnet_lab.analysis.landscape_folder import LandscapeFolder
    from resnet_lab.analysis.landscape_picture import Seen
    from resnet_lab.analysis.landscape_places import Place
    from resnet_lab.analysis.landscape_results import Result
    from resnet_lab.analysis.subject import Subject

POINTS = {"surface": 21, "cut": 51, "line": 31, "plane": 21}  # along each axis
MOST_RUNS = 6  # that are drawn side by side


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Draws the loss in the plane of two random directions through a net's weights, each "
        "filter of a direction as long as that filter of the net (Li et al. 2018, arXiv "
        "1712.09913). --cut: along one direction, or on the straight line between two trained "
        "runs of one net, with the barrier between them (Frankle et al. 2020, arXiv 1912.05671). "
        "--plane: in the plane through three such runs (Garipov et al. 2018, arXiv 1802.10026). "
        "The same command goes on where it was stopped.",
        "resnet-lab landscape RESIDUAL_RUN PLAIN_RUN\n"
        "resnet-lab landscape RUN_DIR --cut\n"
        "resnet-lab landscape SEED_0 SEED_1 --cut --split test\n"
        "resnet-lab landscape SEED_0 SEED_1 SEED_2 --plane",
    )
    _analysis.add_runs(parser)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--cut", action="store_true", help="on a line: give one run, or two")
    kind.add_argument("--plane", action="store_true", help="in the plane through three runs")
    parser.add_argument(
        "--points",
        type=int,
        metavar="N",
        help="along each axis (21; with --cut 51, and 31 between two runs)",
    )
    parser.add_argument(
        "--range",
        type=float,
        metavar="R",
        help="from -R to R along each random direction; at 1 it is as long as the net (1)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the random directions (0)")
    parser.add_argument(
        "--batchnorm",
        choices=["running", "batch", "recomputed"],
        help="statistics of BatchNorm: those that the net came with; of each batch of images; or "
        "of --statistics training images, anew at each point (running; recomputed between runs)",
    )
    parser.add_argument(
        "--statistics", type=int, metavar="N", help="images for --batchnorm recomputed (500)"
    )
    _analysis.add_images(parser, 500, "train")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="processes, on a CPU (one for each core, 8 at most)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="a new folder, or one of this command (outputs/analysis/landscape-RUN-...)",
    )
    parser.add_argument(
        "--language", choices=LANGUAGES, default="en", help="of the picture's texts (en)"
    )


def run(options: argparse.Namespace) -> int:
    asked = _asked(options)  # refuses before torch is imported

    from resnet_lab.analysis.landscape_folder import LandscapeFolder, default_folder

    folder = LandscapeFolder(options.out or default_folder(options.run_dirs, asked))
    folder.refuse_others(asked)

    from resnet_lab import charts
    from resnet_lab.analysis import landscape, landscape_picture, landscape_results
    from resnet_lab.analysis.subject import titles
    from resnet_lab.language import translator

    subjects = _analysis.subjects(options)
    if (options.jobs or 1) > 1 and subjects[0].device.type != "cpu":
        raise UserError(f"--jobs {options.jobs}: is for a CPU; leave it out, or say --device cpu.")
    say = translator(options.language, landscape_picture.KOREAN)
    names = titles([subject.run for subject in subjects], say)
    first = subjects[0]
    seen = landscape_picture.Seen(len(first.labels), options.split, len(first.run.class_names))
    places, sections, fingerprints = _sections(subjects, asked, options)
    runs = [printable(str(path)) for path in options.run_dirs]
    folder.begin(asked, fingerprints, runs)
    between = asked["kind"] in ("line", "plane")
    own = [landscape.own_value(subject) for subject in subjects] if between else []
    found = []
    for number, section in enumerate(sections, 1):
        title = " - ".join(names) if between else names[number - 1]
        what = f"landscape of {printable(title)}"
        found.append(_measured(section, places, folder, number, what, options.jobs))
    if asked["kind"] == "surface":
        result = landscape_results.surface(names, found, asked["range"], seen, say)
    elif asked["kind"] == "cut":
        result = landscape_results.cut(names[0], places, found[0], seen, say)
    else:
        results = {"line": landscape_results.between, "plane": landscape_results.plane}
        result = results[asked["kind"]](names, places, found[0], own, seen, say)
    charts.write_png(folder.picture(options.language), result.draw)
    folder.write_figures(landscape_results.named(list(map(printable, names)), runs, result))
    _show(names, result, asked, seen)
    console.print(f"\nwritten     {folder}", soft_wrap=True)
    return 0


# ------------------------------------------------------------------ what is asked


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What the points depend on, beside runs and images; UserError where it makes no sense."""
    runs = len(options.run_dirs)
    if options.cut:
        if runs > 2:
            raise UserError(f"--cut: give one run, or two of the same net, not {runs}.")
        kind = "cut" if runs == 1 else "line"
    elif options.plane:
        if runs != 3:
            raise UserError(f"--plane: give three runs of the same net, not {runs}.")
        kind = "plane"
    else:
        if runs > MOST_RUNS:
            raise UserError(f"{runs} runs: at most {MOST_RUNS} are drawn side by side.")
        kind = "surface"
    is_random = kind in ("surface", "cut")
    if not is_random:
        for name in ("range", "seed"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name}: is for random directions; leave it out between runs.")
        if options.batchnorm == "running":
            raise UserError(
                "--batchnorm running: weights between runs have no statistics of their own; "
                "leave it out, and they are recomputed."
            )
    points = POINTS[kind] if options.points is None else options.points
    if points < 5 or (is_random and points % 2 == 0):
        odd = "an odd number, so that the net itself is a point, and " if is_random else ""
        raise UserError(f"--points {points}: must be {odd}5 or more.")
    reach = 1.0 if options.range is None else options.range
    if not 0 < reach < math.inf:
        raise UserError(f"--range {reach}: must be above 0.")
    statistics = 500 if options.statistics is None else options.statistics
    for name, value in (("statistics", statistics), ("jobs", options.jobs)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be 1 or more.")
    batchnorm = options.batchnorm or ("running" if is_random else "recomputed")
    if options.statistics is not None and batchnorm != "recomputed":
        raise UserError("--statistics: is for --batchnorm recomputed.")
    asked = {"kind": kind, "points": points, "split": options.split, "images": options.images}
    asked |= {"range": reach, "seed": options.seed or 0} if is_random else {}
    asked |= {"batchnorm": batchnorm}
    return asked | ({"statistics": statistics} if batchnorm == "recomputed" else {})


def _sections(
    subjects: "list[Subject]", asked: dict[str, Any], options: argparse.Namespace
) -> "tuple[list[Place], list[Section], list[str]]":
    """The places, and for each section its measure and its fingerprint."""
    from resnet_lab.analysis import landscape, landscape_places
    from resnet_lab.analysis.subject import open_subject

    kind, points = asked["kind"], asked["points"]
    weights = [landscape.weights_of(subject.net) for subject in subjects]
    if kind in ("line", "plane"):
        landscape.refuse_other_nets(subjects)
        groups, bases = [subjects], [weights]
        nets = landscape_places.corners(weights) if kind == "plane" else []
        places = (
            landscape_places.across(points, nets)
            if kind == "plane"
            else landscape_places.between(points)
        )
    else:
        axes = 2 if kind == "surface" else 1
        groups = [[subject] for subject in subjects]
        bases = [[w, *landscape.random_directions(w, asked["seed"], axes)] for w in weights]
        places = landscape_places.around(points, asked["range"], axes)
    sections, fingerprints = [], []
    for group, base in zip(groups, bases, strict=True):
        training = None
        if "statistics" in asked:
            training = open_subject(
                group[0].run.run_dir,
                split="train",
                images=asked["statistics"],
                device=options.device,
                overrides=[] if options.root is None else [f"data.root={quoted(options.root)}"],
                trust=options.trust,
            )
        sections.append(landscape.make_section(group, base, asked["batchnorm"], training))
        fingerprints.append(landscape.fingerprint([*group, *([training] if training else [])]))
    return places, sections, fingerprints


def _measured(
    section: "Section",
    places: "list[Place]",
    folder: "LandscapeFolder",
    number: int,
    what: str,
    jobs: int | None,
) -> "list[Value]":
    """The values of all places, of which those that the folder keeps are not measured again."""
    from resnet_lab.analysis.landscape_folder import in_order, missing
    from resnet_lab.analysis.landscape_jobs import measured
    from resnet_lab.data.cache import progress

    values = folder.read_points(number, places)
    if values:
        console.print(f"{what}: {len(values)} of {len(places)} points are kept", soft_wrap=True)
    to_do = missing(places, values)
    if to_do:
        done = progress(measured(section, to_do, jobs), len(to_do), what)
        try:
            folder.keep(number, places, values, done)
        except KeyboardInterrupt:
            kept = f"{len(values)} of {len(places)} points are kept in {folder}"
            console.print(f"stopped; {kept}, and the same command goes on", soft_wrap=True)
            raise
    return list(in_order(places, values))


def _show(names: "list[str]", result: "Result", asked: dict[str, Any], seen: "Seen") -> None:
    batchnorm = {
        "running": "running statistics",
        "batch": "statistics of each batch",
        "recomputed": f"statistics of {asked.get('statistics')} training images at each point",
    }
    console.print(
        f"loss in nats on {seen.images:,} {asked['split']} images; BatchNorm with "
        f"{batchnorm[asked['batchnorm']]}\n",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("net", overflow="fold")
    for column in result.columns:
        table.add_column(column, justify="right")
    for name, cells in zip(names, result.table, strict=True):
        table.add_row(printable(name), *cells)
    console.print(table)
    for note in result.notes:
        console.print(f"\n{note}")

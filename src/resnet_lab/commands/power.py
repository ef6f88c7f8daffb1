"""How many seeds a difference between settings needs, and what a sweep's seeds can tell."""

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_lab.commands import _analysis, describe
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable, replacing, write_json
from resnet_lab.screen import console

if TYPE_CHECKING:  # which imports pandas
    from resnet_lab.report.power import Noise, Pair, Plan, Repeats
    from resnet_lab.report.runs import Study

MOST_LINES = 15  # pairs on the screen
WORDS = {"test": "test", "val": "validation"}


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "From a sweep with several seeds of each setting: the spread between seeds beside the "
        "error that finitely many images give, the seeds that a difference of 0.1 to 2 points "
        "needs (t test, two-sided 5%, power 80% and 90%), and which pairs of settings differ "
        "(Welch's intervals). Needs no torch. Writes power.png, power.csv, pairs.csv and "
        "power.json.",
        "resnet-lab power outputs/sweeps/NAME\n"
        "resnet-lab power outputs/sweeps/NAME --split val\n"
        "resnet-lab power outputs/runs/FIRST outputs/runs/SECOND outputs/runs/THIRD",
    )
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="a sweep folder, or folders of runs"
    )
    parser.add_argument(
        "--split", choices=[*WORDS], default="test", help="whose accuracy is compared (test)"
    )
    _analysis.add_out(parser)


def run(options: argparse.Namespace) -> int:
    _analysis.refuse_filled(options.out)

    from resnet_lab import charts
    from resnet_lab.language import translator
    from resnet_lab.report import power, power_picture

    study = _one_study(options.paths)
    settings = power.repeats(study, options.split)
    if not settings:
        raise UserError(
            f"{study.name}: no finished run has a {WORDS[options.split]} accuracy; wait for the "
            "sweep, or try --split " + {"test": "val", "val": "test"}[options.split] + "."
        )
    found = power.noise(settings)
    pairs = power.pairs(settings)
    plans = power.plans(found, len(pairs))
    say = translator(options.language, power_picture.KOREAN)
    folder = _analysis.result_folder(options, "power")
    charts.write_png(
        folder / "power.png",
        lambda: power_picture.draw(study.name, settings, found, pairs, options.split, say),
    )
    _write(folder, options.split, settings, found, pairs, plans)
    _show(options.split, settings, found, pairs, plans)
    console.print(f"\nwritten     {folder}", soft_wrap=True)
    return 0


def _one_study(paths: list[Path]) -> "Study":
    from resnet_lab.report.runs import read

    first, *others = read(paths)
    if others:
        data = "; ".join(study.data for study in (first, *others))
        raise UserError(f"The runs are on different data, name those of one: {data}.")
    return first


# ------------------------------------------------------------------ what is written


def _write(
    folder: Path,
    split: str,
    settings: "list[Repeats]",
    found: "Noise",
    pairs: "list[Pair]",
    plans: "list[Plan]",
) -> None:
    """All accuracies in percent, differences and standard deviations in points."""
    from resnet_lab.report.power import POWERS, detectable, usual_seeds

    with replacing(folder / "power.csv", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["difference", "power", "seeds", "seeds_low", "seeds_high", "seeds_bonferroni"]
        )
        for plan in plans:
            counts = (plan.seeds, plan.low, plan.high, plan.corrected)
            cells = ["" if count is None else count for count in counts]
            writer.writerow([plan.difference, plan.wanted, *cells])
    with replacing(folder / "pairs.csv", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["setting", "minus", "difference", "low", "high", "p", "p_holm"])
        for pair in pairs:
            figures = pair.difference, pair.low, pair.high, pair.p, pair.corrected
            names = printable(pair.second.name), printable(pair.first.name)
            writer.writerow([*names, *(f"{figure:.6g}" for figure in figures)])
    seeds = usual_seeds(settings)
    content = {
        "split": split,
        "images": found.images if found.images == found.images else None,
        "settings": [
            {
                "setting": printable(one.name),
                "seeds": one.seeds.n,
                "mean": one.seeds.mean,
                "sd": one.seeds.sd if one.seeds.n > 1 else None,
            }
            for one in settings
        ],
        "sd_between_seeds": found.sd,
        "sd_interval": [found.low, found.high],
        "degrees_of_freedom": found.freedom,
        "binomial_sd": found.binomial or None,
        "usual_seeds": seeds,
        "detectable": {str(wanted): detectable(found.sd, seeds, wanted) for wanted in POWERS},
    }
    write_json(folder / "power.json", content)


# ------------------------------------------------------------------ what is shown


def _show(
    split: str,
    settings: "list[Repeats]",
    found: "Noise",
    pairs: "list[Pair]",
    plans: "list[Plan]",
) -> None:
    console.print(
        f"sd between seeds: {found.sd:.2f} points (95%: {found.low:.2f} to {found.high:.2f}, "
        f"degrees of freedom: {found.freedom})",
        soft_wrap=True,
    )
    if found.binomial:
        images = f"{found.images:,.0f} {WORDS[split]} images"
        console.print(
            f"sd from {images} alone: {found.binomial:.2f} points, of one net (binomial)\n\n"
            f"{_judged(found)}",
            soft_wrap=True,
        )
    console.print("\nseeds of each setting that find a difference (t test, two-sided 5%)\n")
    console.print(_plans(plans, len(pairs)))
    _can_tell(settings, found, len(pairs))
    if pairs:
        _pairs(pairs)


def _judged(found: "Noise") -> str:
    """The spread between seeds beside the error of finitely many images, in a sentence."""
    if found.low > found.binomial:
        return (
            "Seeds differ more than finitely many images explain: some nets are better than "
            "others, and would be on other images."
        )
    return (
        "Finitely many images can explain all of the spread: each seed then misses others of them, "
        "and the best seed is a lucky one, not a better net (arXiv 2304.01910). How much they do "
        "explain, the answers tell: resnet-lab agreement."
    )


def _plans(plans: "list[Plan]", comparisons: int) -> Table:
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    columns = ["difference", "power 80%", "power 90%"]
    columns += [f"80%, {comparisons} comparisons", f"90%, {comparisons} comparisons"]
    for column in columns if comparisons > 1 else columns[:3]:
        table.add_column(column, justify="right")
    for difference in dict.fromkeys(plan.difference for plan in plans):
        both = [plan for plan in plans if plan.difference == difference]
        cells = [f"{_count(p.seeds)} ({_count(p.low)} to {_count(p.high)})" for p in both]
        cells += [_count(plan.corrected) for plan in both] if comparisons > 1 else []
        table.add_row(f"{difference:g}", *cells)
    return table


def _count(seeds: int | None) -> str:
    from resnet_lab.report.power import MOST

    return f"> {MOST:,}" if seeds is None else f"{seeds:,}"


def _can_tell(settings: "list[Repeats]", found: "Noise", comparisons: int) -> None:
    from resnet_lab.report.power import ALPHA, POWERS, detectable, usual_seeds

    seeds = usual_seeds(settings)
    alone, together = (
        detectable(found.sd, seeds, POWERS[0], alpha)
        for alpha in (ALPHA, ALPHA / max(1, comparisons))
    )
    text = f"\nWith {seeds} seeds a difference of {alone:.2f} points is found with power 80%"
    text += f", and of {together:.2f} among {comparisons} comparisons" if comparisons > 1 else ""
    console.print(f"{text}.", soft_wrap=True)
    single = sum(one.seeds.n < 2 for one in settings)
    if single:
        console.print(f"Settings with one seed, which are not compared: {single}.")


def _pairs(pairs: "list[Pair]") -> None:
    differ = sum(pair.differs for pair in pairs)
    console.print(
        f"\n{differ} of {len(pairs)} pairs differ (Welch's t test, p corrected by Holm; the "
        "intervals are of each pair alone)\n",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("setting", "minus"):
        table.add_column(column, overflow="fold")
    for column in ("points", "95%", "p"):
        table.add_column(column, justify="right")
    shown = sorted(pairs, key=lambda pair: -abs(pair.difference))[:MOST_LINES]
    for pair in shown:
        table.add_row(
            printable(pair.second.name),
            printable(pair.first.name),
            f"{pair.difference:+.2f}",
            f"{pair.low:+.2f} to {pair.high:+.2f}",
            f"{pair.corrected:.3f}" + (" *" if pair.differs else ""),
        )
    console.print(table)
    if len(pairs) > len(shown):
        console.print(f"... {len(pairs) - len(shown)} smaller ones are in pairs.csv")
    console.print(
        "\nAll of it is about these images. More seeds do not make up for few images: on others "
        "the settings may rank otherwise. Much of that error cancels where all are tested on the "
        "same images; resnet-lab agreement counts those on which nets differ.",
        soft_wrap=True,
    )

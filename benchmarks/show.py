"""The benchmark's figures as tables and one picture; imports no torch."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

EPOCH_STEPS = 351  # of CIFAR-10 at batch 128, a tenth kept for validation
RATIO = "Ratio: median over rounds of the ratio within a round; not the quotient of the medians."

Segment = Mapping[str, Any]
Rounds = Mapping[str, Sequence[Segment]]


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """The median over the rounds, and the least and the most in brackets."""
    least, most = min(values), max(values)
    between = "" if least == most else f" ({least:{form}} to {most:{form}})"
    return f"{median(values):{form}}{between}"


def speed(segment: Segment) -> float:
    """Images/s over a whole CIFAR-10 epoch without validation: its steps, and its end."""
    share = segment["steps"] / EPOCH_STEPS  # of an epoch, which a segment is only a part of
    seconds = segment["seconds"] + share * segment.get("boundary_seconds", 0.0)
    return float(segment["images"] / seconds)


def jobs_per_hour(segment: Segment) -> float:
    return float(3600 * segment["jobs"] / segment["seconds"])


def ratios(
    rounds: Sequence[Segment], others: Sequence[Segment], figure: Callable[[Segment], float] = speed
) -> list[float]:
    """`rounds` over `others`, compared within each round."""
    pairs = zip(rounds, others, strict=False)  # one that failed late has fewer
    return [figure(one) / figure(other) for one, other in pairs]


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """As Markdown, with columns that line up on a screen."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(str.ljust, cells, widths)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    lines = [f"**{title}**", "", line(header), rule, *map(line, rows), ""]
    return "\n".join([*lines, note, ""] if note else lines)


def text(results: Mapping[str, Any]) -> str:
    """All tables, as Markdown."""
    makers = {
        "startup": _startup,
        "training": _training,
        "pipeline": _pipeline,
        "sweep": _sweep,
        "memory": _memory,
    }
    machine, parts = results["machine"], results["parts"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    loads = " to ".join(f"{results[key][0]:.1f}" for key in ("load_at_start", "load_at_end"))
    lines = [
        f"{machine['device']}, {machine['memory_gb']:.0f} GB, {machine['threads']} threads; "
        f"{versions}. {results['rounds']} rounds in {results['seconds'] / 60:.0f} minutes; "
        f"medians, with the least and the most in brackets. Load {loads}.\n"
    ]
    if results["quick"]:
        lines = ["A quick run: it shows that everything runs; its figures mean nothing.\n"]
    lines += [f"{name}: {part['skipped']}.\n" for name, part in parts.items() if "skipped" in part]
    lines += [f"FAILED {name}: {error}\n" for name, error in results["errors"].items()]
    for name, part in parts.items():
        if "skipped" not in part and "errors" not in part:
            lines += makers[name](part)
    return "\n".join(lines)


def _startup(part: Mapping[str, Any]) -> list[str]:
    rows = [(name, spread(times, ".2f")) for name, times in part["seconds"].items()]
    return [table("Start-up, whole processes", ("", "seconds"), rows)]


def _training(part: Mapping[str, Any]) -> list[str]:
    rates = sorted(part["settings"].items(), key=lambda item: -item[1])
    fastest = [(name, f"{rate:,.0f}") for name, rate in rates]
    tables = [table("Bare loops by setting (the fastest is the limit)", ("", "images/s"), fastest)]
    for net, race in part["nets"].items():
        rows = []
        for name, segments in race["rounds"].items():
            ends = [s["boundary_seconds"] for s in segments if "boundary_seconds" in s]
            rows.append(
                (
                    name,
                    spread([speed(s) for s in segments]),
                    spread(ends, ".2f") if ends else "",
                    _ratio(segments, race["rounds"].get("limit")),
                    {True: "yes", False: "no", None: ""}[segments[-1].get("compiled")],
                )
            )
        header = ("", "images/s", "epoch's end, s", "ratio to the limit", "compiled")
        note = (
            "images/s: the epoch's end (figures, logs, checkpoints, the next epoch's order; not "
            f"validation) is spread over the {EPOCH_STEPS} steps of a CIFAR-10 epoch. {RATIO}"
        )
        tables.append(table(f"Training {net}, batch 128", header, rows, note))
    return tables


def _pipeline(part: Mapping[str, Any]) -> list[str]:
    tables = []
    for title, race in part["races"].items():
        rounds: Rounds = race["rounds"]
        rows = []
        for name, segments in rounds.items():
            own = rounds.get(re.sub("torchvision|kornia.*", "ours", name), rounds.get("ours"))
            ratio = "" if own is segments or own is None else _ratio(own, segments)
            rows.append((name, spread([speed(s) for s in segments]), ratio))
        tables.append(table(title, ("", "images/s", "ours is faster by"), rows, RATIO))
    return tables


def _ratio(segments: Sequence[Segment], others: Sequence[Segment] | None) -> str:
    return spread(ratios(segments, others), ".3f") if others else ""


def _sweep(part: Mapping[str, Any]) -> list[str]:
    rounds: Rounds = part["rounds"]
    first = next(iter(rounds.values()))
    rows = [
        (
            name,
            spread([jobs_per_hour(s) for s in segments]),
            spread([s["seconds"] for s in segments], ",.1f"),
            spread(ratios(segments, first, jobs_per_hour), ".2f"),
        )
        for name, segments in rounds.items()
    ]
    title = f"A sweep of {first[0]['jobs']} jobs: ResNet-20, one epoch of {part['images']:,} images"
    header = ("jobs and threads", "jobs/hour", "seconds of the sweep", "ratio to the first")
    return [table(title, header, rows, f"The sweep's own start-up included. {RATIO}")]


def _memory(part: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, *(f"{held[field]:,.0f}" for field in ("Rss", "Pss", "own")))
        for name, held in part["runs"].items()
    ]
    note = "All processes of a run together; an image has 3,072 bytes."
    header = ("", "RSS, MB", "PSS, MB", "without libraries, MB")
    return [table("Peak memory", header, rows, note)]


# ------------------------------------------------------------------ picture

GREY = "#8a8a8a"
COLOURS = {"limit": GREY, "ours": "#1f6fb4", "common style": "#d98b3a"}


def figure(results: Mapping[str, Any], path: Path) -> None:
    """Bars of the speed of training for each net, and of the jobs per hour of a sweep."""
    from matplotlib.figure import Figure

    parts = results["parts"]
    panels: list[tuple[str, Rounds, Callable[[Segment], float]]] = [
        (f"Training {net}, batch 128: images/s", race["rounds"], speed)
        for net, race in parts.get("training", {}).get("nets", {}).items()
    ]
    if rounds := parts.get("sweep", {}).get("rounds"):
        panels.append(("A sweep: jobs per hour", rounds, jobs_per_hour))
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return
    heights = [len(rounds) for _, rounds, _ in panels]
    picture = Figure(figsize=(9, 1.2 + 0.45 * sum(heights) + 0.5 * len(panels)))
    picture.set_layout_engine("constrained")
    ratio = {"height_ratios": heights}
    for axes, (title, rounds, rate) in zip(
        picture.subplots(len(panels), 1, squeeze=False, gridspec_kw=ratio)[:, 0],
        panels,
        strict=True,
    ):
        first = next(iter(rounds.values()))
        for row, (name, segments) in enumerate(rounds.items()):
            values = [rate(segment) for segment in segments]
            middle = median(values)
            whiskers = [[middle - min(values)], [max(values) - middle]]
            colour = COLOURS.get(name, COLOURS["ours"])
            axes.barh(row, middle, 0.7, color=colour, xerr=whiskers, ecolor="#333", capsize=3)
            share = median(ratios(segments, first, rate))
            axes.annotate(
                f"{middle:,.0f}" + ("" if segments is first else f"   ratio {share:.2f}"),
                (max(values), row),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(rounds)), rounds)
        axes.invert_yaxis()
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.3)
        axes.set_xlim(left=0)
    picture.supxlabel(f"median; whiskers: least and most. {RATIO}", fontsize=8)
    picture.suptitle(results["machine"]["device"], fontsize=11)
    picture.savefig(path, dpi=150)

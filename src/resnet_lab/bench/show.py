"""The benchmark's figures as tables and one picture; imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

EPOCH_STEPS = 351  # of CIFAR-10 at batch 128, a tenth cut for validation

Segment = Mapping[str, Any]
Rounds = Mapping[str, Sequence[Segment]]


class Spread(NamedTuple):
    """Over the rounds."""

    median: float
    low: float
    high: float

    def text(self, form: str = ",.0f") -> str:
        if self.low == self.high:
            return f"{self.median:{form}}"
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def speed(segment: Segment) -> float:
    """Images/s over a whole CIFAR-10 epoch without validation: its steps, and its end."""
    share = segment["steps"] / EPOCH_STEPS  # of an epoch, which a segment is only a part of
    seconds = segment["seconds"] + share * segment.get("boundary_seconds", 0.0)
    return float(segment["images"] / seconds)


def step_ms(segment: Segment) -> float:
    return 1000 * float(segment["seconds"] / segment["steps"])


def speeds(rounds: Sequence[Segment]) -> Spread:
    return spread([speed(segment) for segment in rounds])


def ratios(
    rounds: Sequence[Segment], others: Sequence[Segment], figure: Callable[[Segment], float] = speed
) -> Spread:
    """`rounds` over `others`, compared within each round."""
    pairs = zip(rounds, others, strict=False)  # one that failed late has fewer
    return spread([figure(one) / figure(other) for one, other in pairs])


# ------------------------------------------------------------------ tables


class Table(NamedTuple):
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def text(self) -> str:
        """As Markdown, with columns that line up on a screen."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(map(str.ljust, cells, widths)) + " |"

        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        table = [f"**{self.title}**", "", line(self.header), rule, *map(line, self.rows)]
        return "\n".join([*table, "", self.note, ""] if self.note else [*table, ""])


def text(results: Mapping[str, Any]) -> str:
    """All tables, as Markdown."""
    parts = results["parts"]
    tables = [
        table
        for name, make in (
            ("training", _training),
            ("pipeline", _pipeline),
            ("overhead", _overhead),
            ("start-up", _startup),
            ("memory", _memory),
            ("gpu", _gpu),
        )
        if name in parts and "skipped" not in parts[name]
        for table in make(parts[name])
    ]
    if rows := targets(parts):
        tables.insert(0, Table("Targets", ("target", "wanted", "measured", "met"), rows))
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    loads = [f"{results[key][0]:.1f}" for key in ("load_at_start", "load_at_end")]
    lines = [
        f"{machine.get('device', machine['system'])}, {machine['memory_gb']:.0f} GB, "
        f"{machine.get('threads', '?')} threads, {machine.get('instructions', '?')}; {versions}. "
        f"{results['settings']['rounds']} rounds in {results['seconds'] / 60:.0f} minutes; "
        "medians, with the least and the most in brackets. "
        f"Load at the start {loads[0]}, at the end {loads[1]}.",
        "",
    ]
    if results["settings"]["quick"]:
        lines = ["A quick run: it shows that everything runs, and its figures say nothing.", ""]
    lines += [f"{name}: {part['skipped']}.\n" for name, part in parts.items() if "skipped" in part]
    lines += [f"FAILED {name}: {error}\n" for name, error in results["errors"].items()]
    return "\n".join([*lines, *(table.text() for table in tables)])


def _training(part: Mapping[str, Any]) -> list[Table]:
    tables = []
    if "tournament" in part:
        by_speed = sorted(part["tournament"].items(), key=lambda item: -item[1])
        rows = [(name, f"{rate:,.0f}") for name, rate in by_speed]
        tables.append(
            Table("Bare loops by setting (the fastest is the limit)", ("", "images/s"), rows)
        )
    for net, rounds in (("ResNet-20", part), ("ResNet-56", part.get("deep", {}))):
        if table := _against_limit(f"{net}, batch 128, training", rounds.get("rounds", {})):
            tables.append(table)
    return tables


def _against_limit(title: str, rounds: Rounds) -> Table | None:
    limit = rounds.get("limit")
    if not limit:
        return None
    rows = []
    for name, segments in rounds.items():
        if not segments:
            continue
        boundary = [s["boundary_seconds"] for s in segments if "boundary_seconds" in s]
        rows.append(
            (
                name,
                speeds(segments).text(),
                spread([s["images"] / s["seconds"] for s in segments]).text(),
                spread(boundary).text(".2f") if boundary else "",
                ratios(segments, limit).text(".3f"),
                {True: "yes", False: "no", None: ""}[segments[-1].get("compiled")],
            )
        )
    header = ("", "images/s", "in its steps", "epoch's end, s", "of the limit", "compiled")
    note = (
        f"images/s has the epoch's end (figures, logs, checkpoints, the next epoch's order; not "
        f"validation) spread over the {EPOCH_STEPS} steps of a CIFAR-10 epoch."
    )
    return Table(title, header, rows, note)


def _pipeline(part: Mapping[str, Any]) -> list[Table]:
    tables = []
    for key, title in (
        ("small", "Data pipeline alone, 32 pixels: crop, flip, normalise, batches of 128"),
        ("photographs", "Photographs to 224 pixels: decode, random-resized-crop, flip, normalise"),
    ):
        rounds: Rounds = part.get(key, {}).get("rounds", {})
        rows = []
        for name, segments in rounds.items():
            if name.startswith("ours"):
                rows.append((name, speeds(segments).text(), ""))
                continue
            workers = name.partition(", ")[2]
            rival = rounds.get(f"ours, {workers}" if key == "photographs" else "ours")
            ratio = ratios(rival, segments).text(".2f") if rival else ""
            rows.append((name, speeds(segments).text(), ratio))
        tables.append(Table(title, ("", "images/s", "ours is faster by"), rows))
    return tables


def _overhead(part: Mapping[str, Any]) -> list[Table]:
    rounds: Rounds = part.get("rounds", {})
    rows = [
        (
            name,
            spread([step_ms(s) for s in segments]).text(".2f"),
            _cost(rounds, name).text(".2f") if "bare loop" in rounds else "",
        )
        for name, segments in rounds.items()
    ]
    note = (
        "One linear layer, 16 images of 32 pixels, fp32; ours with its data pipeline, the others "
    )
    note += "on batches that lie ready."
    return [
        Table("The framework's cost per step", ("", "ms a step", "over the bare loop"), rows, note)
    ]


def _cost(rounds: Rounds, name: str) -> Spread:
    pairs = zip(rounds[name], rounds["bare loop"], strict=False)
    return spread([step_ms(one) - step_ms(bare) for one, bare in pairs])


def _startup(part: Mapping[str, Any]) -> list[Table]:
    rows = [(name, spread(times).text(".2f")) for name, times in part.get("seconds", {}).items()]
    return [Table("Start-up, whole processes", ("", "seconds"), rows)]


def _memory(part: Mapping[str, Any]) -> list[Table]:
    rows = [
        (name, *(f"{held[field]:,.0f}" for field in ("Rss", "Pss", "Pss_Anon", "images", "own")))
        for name, held in part.get("runs", {}).items()
    ]
    header = ("images, processes", "RSS, MB", "PSS, MB", "anonymous", "images", "without libraries")
    note = (
        "All processes of a run together. Without libraries, over the tiny set's run: "
        + "; ".join(
            f"{label} {ratio:.2f} of the images' {part['image_megabytes']:.0f} MB"
            for label, ratio in part.get("over_baseline", {}).items()
        )
    )
    return [Table("Peak memory", header, rows, note)]


def _gpu(part: Mapping[str, Any]) -> list[Table]:
    tables = []
    flops = None
    if turns := part["rates"]["rounds"].get("rates"):
        flops = median(turn["flops"] for turn in turns)
        bandwidth = median(turn["bandwidth"] for turn in turns)
        able = [("bf16 matrices, TFLOP/s", f"{flops / 1e12:,.0f}")]
        able += [("memory, GB/s", f"{bandwidth / 1e9:,.0f}")]
        tables.append(Table("What the device can do", ("", "measured"), able))
    rows = []
    for net in (key for key in part if key != "rates"):
        rounds: Rounds = part[net]["rounds"]
        macs = _macs(rounds)
        for name, segments in rounds.items():
            images = speeds(segments)
            epoch = spread([50_000 / speed(segment) for segment in segments])
            used = f"{3 * 2 * macs * images.median / flops:.1%}" if flops and macs else ""
            rows.append((net, name, images.text(), epoch.text(".2f"), used))
    header = ("net", "", "images/s", "s per epoch of 50,000", "of the matrix rate")
    tables.append(Table("CIFAR-10 on the GPU, batch 128, bf16", header, rows))
    return tables


def _macs(rounds: Rounds) -> int | None:
    """Multiply-adds of the forward pass; training takes three times as many."""
    return next((s["macs"] for segments in rounds.values() for s in segments if "macs" in s), None)


# ------------------------------------------------------------------ targets


def targets(parts: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was promised, what was measured, and whether it holds; of the parts that ran."""
    rows: list[tuple[str, str, str, str]] = []

    def at_least(name: str, wanted: float, measured: Spread | None, form: str = ".2f") -> None:
        if measured:
            met = "yes" if measured.median >= wanted else "no"
            rows.append((name, f"at least {wanted:{form}}", measured.text(form), met))

    def at_most(name: str, wanted: float, measured: Spread | None, form: str = ".2f") -> None:
        if measured:
            met = "yes" if measured.median <= wanted else "no"
            rows.append((name, f"at most {wanted:{form}}", measured.text(form), met))

    def between(rounds: Rounds, one: str, other: str) -> Spread | None:
        present = rounds.get(one) and rounds.get(other)
        return ratios(rounds[one], rounds[other]) if present else None

    training: Rounds = parts.get("training", {}).get("rounds", {})
    deep: Rounds = parts.get("training", {}).get("deep", {}).get("rounds", {})
    at_least("ResNet-20: ours / limit", 0.95, between(training, "ours", "limit"), ".3f")
    at_least("ResNet-56: ours / limit", 0.97, between(deep, "ours", "limit"), ".3f")
    at_least("ResNet-20: ours / common style", 3, between(training, "ours", "common style"))
    small: Rounds = parts.get("pipeline", {}).get("small", {}).get("rounds", {})
    at_least("data, 32 pixels: ours / torchvision", 10, between(small, "ours", "torchvision"))
    images = speeds(small["ours"]) if small.get("ours") else None
    at_least("data, 32 pixels: images/s", 100_000, images, ",.0f")
    photographs: Rounds = parts.get("pipeline", {}).get("photographs", {}).get("rounds", {})
    for workers in ("0 workers", "2 workers"):
        measured = between(photographs, f"ours, {workers}", f"torchvision, {workers}")
        at_least(f"photographs, {workers}: ours / torchvision", 1.5, measured)
    overhead: Rounds = parts.get("overhead", {}).get("rounds", {})
    if all(overhead.get(name) for name in ("bare loop", "ours", "Trainer, logged every step")):
        ours, stock = _cost(overhead, "ours"), _cost(overhead, "Trainer, logged every step")
        share = ours.median / stock.median
        at_most("cost per step: ours / logging every step", 0.25, Spread(share, share, share))
    seconds = parts.get("start-up", {}).get("seconds", {})
    if "a typo's error" in seconds:
        at_most("a typo's error, s", 1.5, spread(seconds["a typo's error"]))
    for label, ratio in parts.get("memory", {}).get("over_baseline", {}).items():
        at_most(f"memory over images, {label}", 1.2, Spread(ratio, ratio, ratio))
    return rows


# ------------------------------------------------------------------ picture

BLUE, GREY, LIGHT = "#1f6fb4", "#8a8a8a", "#9cc3e4"


def figure(results: Mapping[str, Any], path: Path) -> None:
    """Bars of images/s for ResNet-20 and ResNet-56, each labelled with its part of the limit."""
    from matplotlib.figure import Figure

    training = results["parts"].get("training", {})
    groups = {"ResNet-20": training.get("rounds", {})}
    groups["ResNet-56"] = training.get("deep", {}).get("rounds", {})
    groups = {net: rounds for net, rounds in groups.items() if rounds.get("limit")}
    if not groups:
        return
    heights = [len(rounds) for rounds in groups.values()]
    picture = Figure(figsize=(9, 1.4 + 0.45 * sum(heights)), layout="constrained")
    panels = picture.subplots(
        len(groups), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    top = max(speeds(s).high for rounds in groups.values() for s in rounds.values() if s)
    for panel, (net, rounds) in zip(panels, groups.items(), strict=True):
        for row, (name, segments) in enumerate(rounds.items()):
            middle, low, high = speeds(segments)
            colour = {"limit": GREY, "ours": BLUE, "common style": "#d98b3a"}.get(name, LIGHT)
            whiskers = [[middle - low], [high - middle]]
            panel.barh(row, middle, 0.7, color=colour, xerr=whiskers, ecolor="#333", capsize=3)
            label = f"{middle:,.0f}"
            if name != "limit":
                label += f"   {ratios(segments, rounds['limit']).median:.0%} of the limit"
            panel.text(high + top * 0.015, row, label, va="center", fontsize=9)
        names = ["limit (bare loop)" if name == "limit" else name for name in rounds]
        panel.set_yticks(range(len(names)), names)
        panel.invert_yaxis()
        panel.set_title(f"{net}, batch 128", loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(0, top * 1.3)
    panels[-1].set_xlabel("training images/s, median of the rounds; whiskers: least and most")
    machine = results["machine"]
    picture.suptitle(f"Training speed on {machine.get('device', machine['system'])}", fontsize=11)
    picture.savefig(path, dpi=150)

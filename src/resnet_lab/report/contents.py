"""What a report says, in its order: from the study to a page."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations
from math import isnan, prod

from resnet_lab.report.page import Block, Cell, Code, Column, Grid, Page, Section, Table, Text
from resnet_lab.report.plots import (
    Looks,
    cost_charts,
    curve_charts,
    effects_chart,
    gradient_charts,
    looks,
    quantity,
    settings_chart,
)
from resnet_lab.report.runs import Reference, Run, Study, reference
from resnet_lab.report.search import search_blocks
from resnet_lab.report.statistics import (
    EVERY_PAIR,
    Spread,
    Summary,
    effects,
    frontier,
    over,
    pivot,
    spread,
    summarise,
)
from resnet_lab.screen import duration

# More than this nobody reads; results.csv has the rest, and the page says so.
MOST_SETTINGS, MOST_VALUES, MOST_EFFECTS, MOST_COMMANDS = 60, 20, 100, 20
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
NOTHING = Cell(DASH, quiet=True)
COST_NAMES = {"params": "parameters", "macs": "multiply-adds", "train_seconds": "training time"}

FOOTER = (
    "Accuracies are percentages, their differences percentage points. ± and sd: sample standard "
    f"deviation over runs (n {MINUS} 1). Intervals: 95%, of the mean, Student's t; of one run "
    "there is none. The best is chosen by validation; the test set is shown beside it and never "
    "chosen by. Training time counts training steps and what feeds them, not validation and "
    "checkpoints."
)


def compose(study: Study) -> Page:
    """The page of a study; `files` is left to whoever writes it."""
    rows = summarise(study)
    look = looks(study, rows)
    # Trials of a search share few values, so that there are no pairs to compare.
    grid = study.search is None
    sections = [
        Section("Search", search_blocks(study)),
        Section("What varied", _varied(study) if grid else []),
        Section("Summary", _summary(study, rows)),
        Section("Pairs of factors", _pivots(study) if grid else []),
        Section("Effect of each factor", _effects(study) if grid else []),
        Section("Learning curves", _curves(study, rows, look)),
        Section("Gradient norms", _gradients(rows, look)),
        Section("Accuracy against cost", _costs(study, rows, look)),
        Section("Jobs without a result", _unfinished(study)),
        Section("Command" if len(study.commands) == 1 else "Commands", _commands(study)),
        Section("Hardware and versions", machines(study)),
        Section("Beside published figures", _references(study, rows)),
    ]
    return Page(
        study.name,
        f"{_count(len(study.runs), 'job')}, {_states(study)}. "
        f"Report of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        _cards(study, rows),
        [section for section in sections if section.blocks],
        FOOTER,
    )


# ------------------------------------------------------------------ words and figures


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _states(study: Study) -> str:
    states = Counter(run.state for run in study.runs)
    return ", ".join(f"{n:,} {state}" for state, n in states.most_common())


def _label(study: Study, row: Summary) -> str:
    pairs = zip(study.factors, row.setting, strict=True)
    return ", ".join(f"{study.short(key)}={value}" for key, value in pairs) or study.name


def _signed(figure: float) -> str:
    text = f"{figure:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", MINUS)


def _interval(of: Spread, signed: bool = False) -> str:
    if of.half is None:
        return DASH
    low, high = of.mean - of.half, of.mean + of.half
    if signed:
        return f"[{_signed(low)}, {_signed(high)}]"
    return f"[{low:.2f}, {high:.2f}]".replace("-", MINUS)


def plus_minus(of: Spread) -> str:
    """Mean and standard deviation; of one run the mean alone."""
    if not of.n:
        return DASH
    return f"{of.mean:.2f}" + (f" ± {of.sd:.2f}" if of.sd is not None else "")


def counted(row: Summary) -> str:
    """How many jobs of a setting have finished, and of how many where that is not all."""
    n, jobs = len(row.runs), len(row.jobs)
    return f"{n}" if n == jobs else f"{n} of {jobs}"


def _spread_cells(of: Spread, badge: str = "") -> list[Cell]:
    """Mean, standard deviation and interval, each its own cell so that numerals align."""
    if not of.n:
        return [NOTHING] * 3
    if of.sd is None:
        return [Cell(f"{of.mean:.2f}", badge=badge, strong=True), Cell("n=1", quiet=True), NOTHING]
    return [
        Cell(f"{of.mean:.2f}", badge=badge, strong=True),
        Cell(f"{of.sd:.2f}"),
        Cell(_interval(of), quiet=True),
    ]


def _cards(study: Study, rows: Sequence[Summary]) -> list[tuple[str, str, str]]:
    cards = []
    best = next((row for row in rows if row.best), None)
    if best is not None:
        name = ", ".join(best.setting) or str(best.runs[0].result.get("model", study.name))
        if len(rows) > 1:
            remark = f"{_label(study, best)}: validation {plus_minus(best.val)} %"
            cards.append(("Best by validation", name, remark))
        else:
            remark = f"{name}, {_interval_remark(best.val)}"
            cards.append(("Validation accuracy", f"{plus_minus(best.val)} %", remark))
        if best.test.n:
            label = "Its test accuracy" if len(rows) > 1 else "Test accuracy"
            cards.append((label, f"{plus_minus(best.test)} %", _interval_remark(best.test)))
    others = len(study.runs) - len(study.finished)
    cards.append(
        (
            "Jobs finished",
            f"{len(study.finished):,} of {len(study.runs):,}",
            f"{_count(others, 'job')} without a result" if others else "none is missing",
        )
    )
    seconds = [
        run.result["train_seconds"] for run in study.finished if "train_seconds" in run.result
    ]
    if seconds:
        cards.append(
            ("Time spent training", duration(sum(seconds)), f"over {_count(len(seconds), 'run')}")
        )
    return cards


def _interval_remark(of: Spread) -> str:
    return "n=1" if of.n == 1 else f"n={of.n}, 95% interval {_interval(of)}"


# ------------------------------------------------------------------ sections


def _varied(study: Study) -> list[Block]:
    blocks: list[Block] = []
    missing = len(study.runs) - len(study.finished)
    if missing:
        blocks.append(
            Text(
                f"{missing:,} of {_count(len(study.runs), 'job')} "
                f"{'has' if missing == 1 else 'have'} no result; each is listed with its reason "
                "under “Jobs without a result”, and no figure below counts it.",
                warning=True,
            )
        )
    if study.keys:
        rows = []
        for key, values in study.values.items():
            shown = ", ".join(values[:MOST_VALUES])
            more = f" and {len(values) - MOST_VALUES:,} more" if len(values) > MOST_VALUES else ""
            rows.append([Cell(key), Cell(shown + more), Cell(f"{len(values):,}")])
        columns = [Column("key", number=False), Column("values", number=False), Column("number")]
        blocks.append(Table(columns, rows))
        grid = prod(len(values) for values in study.values.values())
        if grid != len(study.runs):
            blocks.append(
                Text(
                    f"The whole grid would be {_count(grid, 'job')}; there are "
                    f"{len(study.runs):,}.",
                    quiet=True,
                )
            )
    elif len(study.runs) > 1:
        blocks.append(Text("Nothing: these runs are repeats of one setting."))
    else:
        blocks.append(Text("Nothing: this is a single run."))
    same = _same_in_all(study)
    if same:
        blocks.append(Text(f"The same in all: {', '.join(same)}.", quiet=True))
    return blocks


def _same_in_all(study: Study) -> list[str]:
    names = {
        "model": "model {}",
        "data": "data {}",
        "n_train": "{:,} training images",
        "n_val": "{:,} validation images",
        "n_test": "{:,} test images",
        "batch_size": "batch {}",
        "epochs": "{} epochs",
        "seed": "seed {}",
    }
    same = []
    for key, form in names.items():
        values = {run.result.get(key) for run in study.finished}
        if len(values) == 1 and None not in values:
            same.append(form.format(values.pop()))
    return same


def summary_table(study: Study, rows: Sequence[Summary]) -> Table:
    """A row a setting; splits that no run has are left out."""
    splits = {"val": "validation accuracy, %", "test": "test accuracy, %"}
    splits = {
        split: name for split, name in splits.items() if any(getattr(r, split).n for r in rows)
    }
    columns = [Column(study.short(key), number=False) for key in study.factors]
    columns = columns or [Column("", number=False)]
    columns.append(Column("n"))
    for name in splits.values():
        columns += [Column("mean", name), Column("± sd", name), Column("95% interval", name)]
    columns += [Column("parameters"), Column("multiply-adds"), Column("training")]
    cells = []
    for row in rows:
        line = [Cell(value) for value in row.setting] or [Cell(study.name)]
        line.append(Cell(counted(row)))
        for split in splits:
            best = "best" if row.best and split == "val" and len(rows) > 1 else ""
            line += _spread_cells(getattr(row, split), best)
        line += [_known(row.costs[cost], quantity) for cost in ("params", "macs")]
        line.append(_known(row.costs["train_seconds"], duration))
        cells.append(line)
    marked = frozenset(i for i, row in enumerate(rows) if row.best and len(rows) > 1)
    return Table(columns, cells, marked=marked)


def _known(figure: float, form: object) -> Cell:
    return NOTHING if isnan(figure) else Cell(form(figure))  # type: ignore[operator]


def shown_settings(rows: Sequence[Summary], most: int) -> tuple[Sequence[Summary], str]:
    """All in their order where they are few, else the best by validation, and a sentence on it."""
    if len(rows) <= most:
        return rows, ""
    ranked = sorted(rows, key=lambda row: -row.val.mean if row.val.n else float("inf"))
    return ranked[:most], (
        f"The {most} best of {len(rows):,} settings by validation; results.csv has every run."
    )


def _summary(study: Study, rows: Sequence[Summary]) -> list[Block]:
    if not study.finished:
        return [Text("No job has finished yet, so there is no final figure.")]
    blocks: list[Block] = []
    shown, sentence = shown_settings(rows, MOST_SETTINGS)
    if sentence:
        blocks.append(Text(sentence))
    if not any(row.val.n for row in rows):
        blocks.append(
            Text(
                "These runs have no validation set, so nothing is chosen as best: test is no judge."
            )
        )
    elif "seed" in study.keys and len(rows) > 1:
        blocks.append(Text("Each row is a setting over its seeds."))
    blocks.append(summary_table(study, shown))
    chart = settings_chart(study, rows)
    if chart:
        blocks += [
            Grid([chart]),
            Text(
                "Pale dots: runs. Ticks: means. Lines: 95% intervals, cut off at the frame where "
                "few runs make them wide; of one run there is none.",
                quiet=True,
            ),
        ]
    return blocks


def _pivots(study: Study) -> list[Block]:
    blocks: list[Block] = []
    if not study.finished:
        return blocks
    values = study.values
    wide = [key for key in study.factors if len(values[key]) > MOST_VALUES]
    blocks += [
        Text(f"{key} has {len(values[key]):,} values, too many for a table.") for key in wide
    ]
    for row, column in combinations([key for key in study.factors if key not in wide], 2):
        cells = pivot(study, row, column)
        tables = [
            _pivot_table(study, row, column, cells, split)
            for split in ("val", "test")
            if over(study.finished, split).n
        ]
        blocks.append(Grid(tables))
        others = [study.short(key) for key in study.factors if key not in (row, column)]
        if others:
            blocks.append(
                Text(
                    f"Cells take runs of every {' and '.join(others)} together; their spread holds "
                    "those differences too.",
                    quiet=True,
                )
            )
    return blocks


def _pivot_table(
    study: Study, row: str, column: str, cells: dict[tuple[str, str], list[Run]], split: str
) -> Table:
    values = study.values
    counted = {
        place: over([run for run in runs if run.state == "finished"], split)
        for place, runs in cells.items()
    }
    means = [of.mean for of in counted.values() if of.n]
    low, reach = min(means), max(means) - min(means)

    def cell(place: tuple[str, str]) -> Cell:
        of, jobs = counted.get(place), len(cells.get(place, []))
        if of is None:
            return NOTHING
        n = f"n={of.n}" if of.n == jobs else f"n={of.n} of {jobs}"
        if not of.n:
            return Cell(DASH, n, quiet=True)
        note = n if of.half is None else f"{_interval(of)} {n}"
        return Cell(plus_minus(of), note, tint=(of.mean - low) / reach if reach else 0.0)

    return Table(
        [
            Column(study.short(row), number=False),
            *(Column(f"{study.short(column)}={value}") for value in values[column]),
        ],
        [[Cell(r, strong=True), *(cell((r, c)) for c in values[column])] for r in values[row]],
        title={"val": "Validation accuracy, %", "test": "Test accuracy, %"}[split],
    )


def _effects(study: Study) -> list[Block]:
    if not study.finished or not study.factors:
        return []
    found = list(effects(study))
    if not found:
        return [
            Text(
                "No two finished runs differ in one key alone, so no effect can be told from them."
            )
        ]
    blocks: list[Block] = [
        Text(
            "Differences within pairs of runs that share the seed and everything but one key: "
            "+0.50 says that the second value is better by half a percentage point. In bold where "
            "the 95% interval leaves out zero; the intervals are not widened for there being "
            "several."
        )
    ]
    splits = [
        (split, name)
        for split, name in (("val", "validation difference"), ("test", "test difference"))
        if any(getattr(effect, split).n for effect in found)
    ]
    columns = [Column("factor", number=False), Column("change", number=False), Column("n pairs")]
    for _, name in splits:
        columns += [Column("mean", name), Column("95% interval", name)]
    rows = []
    for effect in found[:MOST_EFFECTS]:
        pairs = max(effect.val.n, effect.test.n)
        row = [Cell(effect.key), Cell(f"{effect.here} → {effect.there}"), Cell(f"{pairs}")]
        for split, _ in splits:
            of: Spread = getattr(effect, split)
            if not of.n:
                row += [NOTHING, NOTHING]
                continue
            clear = of.half is not None and abs(of.mean) > of.half
            row.append(Cell(_signed(of.mean), strong=clear))
            row.append(Cell(_interval(of, signed=True) if of.n > 1 else "n=1", quiet=True))
        rows.append(row)
    if len(found) > MOST_EFFECTS:
        blocks.append(Text(f"The first {MOST_EFFECTS} of {len(found):,} comparisons."))
    if any(len(study.values[key]) > EVERY_PAIR for key in study.factors):
        blocks.append(
            Text(
                f"Keys of more than {EVERY_PAIR} values are compared with their first value alone."
            )
        )
    blocks.append(Table(columns, rows))
    chart = effects_chart(study, found)
    return [*blocks, Grid([chart])] if chart else blocks


def _curves(study: Study, rows: Sequence[Summary], look: Looks) -> list[Block]:
    charts = curve_charts(rows, look)
    if not charts:
        return [Text("No run has finished an epoch yet.")]
    parts = ["Lines: mean of the finished runs. Bands: one standard deviation to each side."]
    if any(len(row.runs) == 1 for row in rows):
        parts.append("With n=1 there is no band.")
    if len(study.finished) < len(study.runs):
        parts.append("Thin dashed lines: single runs that have not finished.")
    parts += [look.left_out] if look.left_out else []
    return [Text(" ".join(parts)), Grid(charts)]


def _gradients(rows: Sequence[Summary], look: Looks) -> list[Block]:
    charts = gradient_charts(rows, look)
    if not charts:
        return []
    text = (
        "How large the gradient is that each block of a net gets. Where it falls from the output "
        "to the input by powers of ten, the first blocks hardly learn (it vanishes); where it "
        "grows, they are thrown about (it explodes). Means over the finished runs of a setting; "
        f"an epoch's figure is the mean over some of its steps. {look.left_out}"
    )
    return [Text(text.strip()), *(Grid([chart]) for chart in charts)]


def _costs(study: Study, rows: Sequence[Summary], look: Looks) -> list[Block]:
    charts = cost_charts(rows, look)
    if not charts:
        return []
    text = (
        "Mean validation accuracy of each setting with one standard deviation to each side. "
        "Outlined, and joined by the line: the frontier, which no other setting reaches at the "
        "same cost or less."
    )
    blocks: list[Block] = [Text(f"{text} {look.left_out}".strip())]
    machines = {run.result.get("device_name") for run in study.finished}
    if len(machines) > 1:
        blocks.append(
            Text(
                f"The runs were made on {len(machines)} kinds of device: their training times are "
                "not comparable.",
                warning=True,
            )
        )
    lines = []
    for cost, name in COST_NAMES.items():
        form = duration if cost == "train_seconds" else quantity
        on_edge = frontier(rows, cost)
        lines += [
            [
                Cell(name if i == 0 else ""),
                Cell(_label(study, row)),
                Cell(form(row.costs[cost])),
                Cell(plus_minus(row.val), strong=True),
                Cell(plus_minus(row.test)),
                Cell(str(len(row.runs))),
            ]
            for i, row in enumerate(on_edge)
        ]
    columns = [
        Column("frontier by", number=False),
        Column("setting", number=False),
        Column("cost"),
        Column("validation, %"),
        Column("test, %"),
        Column("n"),
    ]
    return [*blocks, Grid(charts), Table(columns, lines)]


def _unfinished(study: Study) -> list[Block]:
    blocks: list[Block] = [Text(note, warning=True) for note in study.notes]
    others = [run for run in study.runs if run.state != "finished"]
    if not others:
        total = _count(len(study.runs), "job")
        return [*blocks, Text(f"None: {total} asked for, {len(study.runs):,} finished.")]
    columns = [Column(title, number=False) for title in ("job", "state", "reason")]
    rows = [[Cell(run.name), Cell(run.state), Cell(run.reason)] for run in others]
    return [*blocks, Table(columns, rows)]


def _commands(study: Study) -> list[Block]:
    if not study.commands:
        return [Text("No command is recorded.")]
    blocks: list[Block] = [Code("\n".join(study.commands[:MOST_COMMANDS]))]
    if len(study.commands) > MOST_COMMANDS:
        more = len(study.commands) - MOST_COMMANDS
        blocks.append(Text(f"And {more:,} more, in results.csv.", quiet=True))
    return blocks


def machines(study: Study) -> list[Block]:
    """One line where all runs agree; what differs, value by value."""
    facts: dict[str, Counter[str]] = {}
    for run in study.runs:
        result = run.result
        known = {
            "device": result.get("device_name"),
            "devices": result.get("devices"),
            "precision": result.get("precision"),
            **result.get("versions", {}),
            "commit": result.get("git_commit"),
        }
        for name, value in known.items():
            if value is not None:
                facts.setdefault(name, Counter())[str(value)] += 1
    plain = ("device", "devices")
    same = [
        next(iter(values)) + (" device(s)" if name == "devices" else "")
        if name in plain
        else f"{name} {next(iter(values))}"
        for name, values in facts.items()
        if len(values) == 1
    ]
    blocks: list[Block] = [Text(f"All runs: {', '.join(same)}.")] if same else []
    rows = [
        [Cell(name if i == 0 else ""), Cell(value), Cell(f"{n:,}")]
        for name, values in facts.items()
        if len(values) > 1
        for i, (value, n) in enumerate(values.most_common())
    ]
    if rows:
        columns = [Column("differs", number=False), Column("value", number=False), Column("runs")]
        blocks.append(Table(columns, rows))
    return blocks or [Text("Nothing is recorded.")]


def _references(study: Study, rows: Sequence[Summary]) -> list[Block]:
    blocks: list[Block] = []
    lines = []
    for row in rows:
        named: dict[Reference, list[Run]] = {}
        for run in row.runs:
            try:
                found = reference(run)
            except ValueError as error:
                blocks.append(Text(str(error), warning=True))
                continue
            if found is not None:
                named.setdefault(found, []).append(run)
        for published, runs in named.items():
            ours = over(runs, "test")
            apart = spread(100 * run.result["test/acc"] - published.test_acc for run in runs)
            lines.append(
                [
                    Cell(_label(study, row)),
                    Cell(f"{published.test_acc:.2f}"),
                    *_spread_cells(ours),
                    Cell(str(ours.n)),
                    Cell(_signed(apart.mean), strong=True),
                    Cell(_interval(apart, signed=True), quiet=True),
                    Cell(published.source or "not named"),
                ]
            )
    if lines:
        ours_name, apart_name = "ours: test accuracy, %", f"ours {MINUS} published"
        columns = [
            Column("setting", number=False),
            Column("published, %"),
            Column("mean", ours_name),
            Column("± sd", ours_name),
            Column("95% interval", ours_name),
            Column("n"),
            Column("points", apart_name),
            Column("95% interval", apart_name),
            Column("source", number=False),
        ]
        blocks.append(Table(columns, lines))
    return blocks

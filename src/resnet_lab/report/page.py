"""A report as a list of blocks, and the two forms it is written in: one HTML file, and Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from resnet_lab.report.plots import Picture


@dataclass(frozen=True)
class Cell:
    """`note` is a second, smaller line, `badge` a mark after the text, `tint` a shade, 0 to 1."""

    text: str
    note: str = ""
    badge: str = ""
    tint: float | None = None
    strong: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Column:
    """Columns beside each other with the same `group` share a heading."""

    title: str
    group: str = ""
    number: bool = True


@dataclass(frozen=True)
class Table:
    """`marked` are the indices of the rows that stand out."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Text:
    text: str
    quiet: bool = False
    warning: bool = False


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Grid:
    """Tables or pictures beside each other where there is room."""

    items: Sequence[Table | Picture]


Block = Table | Text | Code | Grid


@dataclass
class Section:
    title: str
    blocks: list[Block]


@dataclass
class Page:
    """`cards` are (label, figure, remark): what the report says at a glance."""

    title: str
    subtitle: str
    cards: list[tuple[str, str, str]]
    sections: list[Section]
    footer: str = ""
    files: list[str] = field(default_factory=list)

    @property
    def pictures(self) -> list[Picture]:
        grids = (b for section in self.sections for b in section.blocks if isinstance(b, Grid))
        return [item for grid in grids for item in grid.items if isinstance(item, Picture)]


# ------------------------------------------------------------------ HTML

CSS = """
:root { color-scheme: light dark; --paper: #fefefe; --ink: #1c2128; --muted: #68707b;
  --line: #dfe3e8; --soft: #f5f7f9; --accent: #0072b2; --warn: #b04a00; --warn-soft: #fdf3ea; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181d; --ink: #e6e9ed; --muted: #98a1ac;
  --line: #2f353d; --soft: #1d2127; --accent: #56b4e9; --warn: #f0a35e; --warn-soft: #2a211a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums lining-nums; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.015em;
  overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 52px 0 12px; padding-top: 18px; border-top: 1px solid var(--line);
  letter-spacing: -0.01em; }
h3 { font-size: 15px; margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 76ch; }
.quiet { color: var(--muted); font-size: 14px; }
.warning { background: var(--warn-soft); border-left: 3px solid var(--warn); padding: 9px 14px;
  max-width: none; border-radius: 0 6px 6px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 14px;
  margin: 26px 0 22px; }
.card { background: var(--soft); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 18px; min-width: 0; }
.card b { display: block; font-size: 25px; line-height: 1.3; font-weight: 620;
  letter-spacing: -0.015em; overflow-wrap: anywhere; }
.card span { display: block; color: var(--muted); font-size: 13px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0 0 18px; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 7px 13px; text-align: left; white-space: nowrap; vertical-align: baseline; }
th { font-weight: 560; font-size: 13px; color: var(--muted); background: var(--soft); }
th[colspan] { text-align: center; padding-bottom: 0; color: var(--ink); }
.number { text-align: right; }
tbody tr { border-top: 1px solid var(--line); }
td.long { white-space: normal; min-width: 260px; overflow-wrap: anywhere; }
td small { display: block; color: var(--muted); font-size: 12px; }
td.quiet { font-size: 14px; }
td b { font-weight: 640; }
tr.marked { background: color-mix(in srgb, var(--accent) 9%, transparent); }
tr.marked td:first-child { box-shadow: inset 3px 0 var(--accent); }
.tinted { background: color-mix(in srgb, var(--accent) calc(var(--tint) * 30%), transparent); }
.badge { display: inline-block; margin-left: 8px; padding: 0 8px; border-radius: 9px;
  color: var(--paper); background: var(--accent);
  font-size: 11.5px; font-weight: 600;
  line-height: 18px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr));
  gap: 8px 28px; align-items: start; margin: 0 0 10px; }
.grid.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); }
.grid.one { grid-template-columns: minmax(0, 760px); }
.grid > * { min-width: 0; }
figure { margin: 0 0 14px; }
figure svg { display: block; width: 100%; height: auto; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 16px;
  font: 13px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 12px; }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--line); font-size: 13.5px;
  color: var(--muted); }
@media (max-width: 600px) {
  main { padding: 24px 16px 40px; } h1 { font-size: 25px; } h2 { margin-top: 38px; }
  .cards { grid-template-columns: 1fr 1fr; gap: 10px; } .card { padding: 11px 13px; }
  .card b { font-size: 19px; } th, td { padding: 7px 10px; }
  .scroll td:first-child, .scroll th:first-child { position: sticky; left: 0;
    background: var(--paper); }
  .scroll tr.marked td:first-child { background:
    color-mix(in srgb, var(--accent) 9%, var(--paper)); }
  .scroll th:first-child { background: var(--soft); }
}
@page { margin: 14mm 12mm; }
@media print {
  :root { color-scheme: light; --paper: #ffffff; --ink: #111418; --muted: #555c66; --line: #d5d9de;
    --soft: #f6f7f9; --accent: #0072b2; --warn: #b04a00; --warn-soft: #fdf3ea; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  h2 { break-after: avoid; margin-top: 26px; } h3 { break-after: avoid; }
  figure, .card, tr, pre { break-inside: avoid; }
  .scroll { overflow: visible; } table { font-size: 8.6pt; } th { font-size: 8.2pt; }
  th, td { padding: 4px 7px; } td small { font-size: 7.6pt; } .badge { font-size: 7.4pt; }
  .grid { grid-template-columns: 1fr 1fr; } .grid.three { grid-template-columns: 1fr 1fr 1fr; }
  .grid.one { grid-template-columns: minmax(0, 150mm); }
}
"""
MARKER = "resnet-lab-report"  # a meta element of this name lists the files that are ours


def html(page: Page) -> str:
    """One file that needs no other, no network and no script."""
    cards = "".join(
        f"<div class=card><span>{escape(label)}</span><b>{escape(figure)}</b>"
        f"<span>{escape(remark)}</span></div>"
        for label, figure, remark in page.cards
    )
    sections = "\n".join(
        f"<section><h2>{escape(section.title)}</h2>\n"
        + "\n".join(_html(block) for block in section.blocks)
        + "</section>"
        for section in page.sections
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="{MARKER}" content="{escape("|".join(page.files))}">
<title>{escape(page.title)}</title>
<style>{CSS}</style></head>
<body><main>
<h1>{escape(page.title)}</h1>
<p class="quiet">{escape(page.subtitle)}</p>
<div class=cards>{cards}</div>
{sections}
<footer>{escape(page.footer)}</footer>
</main></body></html>
"""


def _html(block: Block) -> str:
    match block:
        case Table():
            return _html_table(block)
        case Text():
            kind = "warning" if block.warning else "quiet" if block.quiet else ""
            return f'<p class="{kind}">{escape(block.text)}</p>'
        case Code():
            return f"<pre>{escape(block.text)}</pre>"
        case Grid():
            size = {1: "grid one", 3: "grid three"}.get(len(block.items), "grid")
            tables = any(isinstance(item, Table) for item in block.items)
            items = (
                f"<div>{_html_table(item)}</div>"
                if isinstance(item, Table)
                else f'<figure role="img" aria-label="{escape(item.alt)}">{item.svg}</figure>'
                for item in block.items
            )
            return f'<div class="{"grid" if tables else size}">{"".join(items)}</div>'


def _html_table(table: Table) -> str:
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    head = "".join(
        f"<th{' class=number' if column.number else ''}>{escape(column.title)}</th>"
        for column in table.columns
    )
    groups = ""
    if any(column.group for column in table.columns):
        groups = "<tr>" + "".join(
            f'<th colspan="{width}">{escape(group)}</th>' for group, width in _groups(table.columns)
        )
    body = "\n".join(
        f"<tr{' class=marked' if i in table.marked else ''}>"
        + "".join(_html_cell(c, column) for c, column in zip(row, table.columns, strict=True))
        + "</tr>"
        for i, row in enumerate(table.rows)
    )
    return (
        f"{title}<div class=scroll tabindex=0><table><thead>{groups}<tr>{head}</tr></thead>"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _groups(columns: Sequence[Column]) -> Iterable[tuple[str, int]]:
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    return groups


def _html_cell(cell: Cell, column: Column) -> str:
    kinds = [
        name
        for name, holds in (
            ("number", column.number),
            ("quiet", cell.quiet),
            ("long", not column.number and len(cell.text) > 60),
            ("tinted", cell.tint is not None),
        )
        if holds
    ]
    style = "" if cell.tint is None else f' style="--tint: {cell.tint:.2f}"'
    text = f"<b>{escape(cell.text)}</b>" if cell.strong else escape(cell.text)
    badge = f"<span class=badge>{escape(cell.badge)}</span>" if cell.badge else ""
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    return f'<td class="{" ".join(kinds)}"{style}>{text}{badge}{note}</td>'


# ------------------------------------------------------------------ Markdown


def markdown(page: Page) -> str:
    """The same for places that show Markdown; the pictures are the PNG files beside it."""
    parts = [f"# {page.title}", page.subtitle]
    parts.append(
        "\n".join(
            f"- {label}: **{figure}**{f' ({remark})' if remark else ''}"
            for label, figure, remark in page.cards
        )
    )
    for section in page.sections:
        parts.append(f"## {section.title}")
        for block in section.blocks:
            parts += _markdown(block)
    return "\n\n".join(part for part in (*parts, page.footer) if part) + "\n"


def _markdown(block: Block) -> list[str]:
    match block:
        case Table():
            return _markdown_table(block)
        case Text():
            return [f"**{block.text}**" if block.warning else block.text]
        case Code():
            return [f"```\n{block.text}\n```"]
        case Grid():
            return [
                text
                for item in block.items
                for text in (
                    _markdown_table(item)
                    if isinstance(item, Table)
                    else [f"![{item.alt}]({item.file})"]
                )
            ]


def _markdown_table(table: Table) -> list[str]:
    titles = [f"{c.group}: {c.title}" if c.group else c.title for c in table.columns]
    lines = [
        titles,
        ["---:" if column.number else ":---" for column in table.columns],
        *([_markdown_cell(cell) for cell in row] for row in table.rows),
    ]
    title = [f"**{table.title}**"] if table.title else []
    return [*title, "\n".join("| " + " | ".join(line) + " |" for line in lines)]


def _markdown_cell(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|").replace("\n", " ")
    text = f"**{text}**" if cell.strong and text else text
    return " ".join(
        part
        for part in (
            text,
            f"*{cell.badge}*" if cell.badge else "",
            f"({cell.note})" if cell.note else "",
        )
        if part
    )

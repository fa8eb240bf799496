"""A self-contained HTML page: no scripts, no fonts, nothing to fetch; light or dark as the reader's system is."""

from __future__ import annotations

import re
from html import escape
from string import Template

from exprune_fx.report.document import document_of
from exprune_fx.report.explained import Explained
from exprune_fx.report.layout import Cell, Column, Document, Figure, Section, Table

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
<p class="summary">$summary</p>
</header>
<div class="figures">
$figures
</div>
$sections
</main>
</body>
</html>
""")

_STYLE = """:root {
  color-scheme: light dark;
  --ground: light-dark(#f6f7f9, #14171c); --card: light-dark(#ffffff, #1c2027); --line: light-dark(#e3e6eb, #2e343e);
  --text: light-dark(#1d2430, #dfe4ec); --quiet: light-dark(#667085, #8d97a8); --accent: light-dark(#2456c7, #86abff);
  --good: light-dark(#137547, #5fcf98); --bad: light-dark(#b3261e, #ff8f87); --bar: light-dark(#dce7fb, #28395c);
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { margin: 0; font-size: 28px; letter-spacing: -0.01em; }
h2 { margin: 0 0 6px; font-size: 18px; }
p { margin: 0 0 12px; color: var(--quiet); max-width: 80ch; }
p.summary { margin-top: 6px; font-size: 17px; color: var(--text); }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 24px 0; }
.figure { flex: 1 1 170px; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 18px; }
.figure .label, .figure .note { color: var(--quiet); font-size: 13px; }
.figure .value { font-size: 26px; font-weight: 650; font-variant-numeric: tabular-nums; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px;
  margin: 0 0 18px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 40%; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--quiet); border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th, td { padding: 7px 18px 7px 0; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr + tr td { border-top: 1px solid var(--line); }
td { white-space: nowrap; }
td.prose { white-space: normal; min-width: 26ch; }
.right { text-align: right; font-variant-numeric: tabular-nums; }
.mono, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 13px; }
.good { color: var(--good); } .bad { color: var(--bad); } .quiet { color: var(--quiet); }
.bar { display: inline-block; min-width: 84px; padding-bottom: 4px; background:
  linear-gradient(var(--accent), var(--accent)) no-repeat left bottom / var(--share) 3px,
  linear-gradient(var(--bar), var(--bar)) no-repeat left bottom / 100% 3px; }
.below { margin: 10px 0 0; }
pre { margin: 0; overflow-x: auto; line-height: 1.55; }
pre .comment { color: var(--quiet); } pre .state { color: var(--good); }
pre .ours { color: var(--accent); font-weight: 600; }
"""

_COLOURED = re.compile(r"\b(self)\.[\w.]+|\bexprune\.\w+")

_PROSE_FROM = 40
"""Entries longer than this may wrap."""


def to_html(explanation: Explained) -> str:
    """The explanation as one HTML page."""
    return document_html(document_of(explanation))


def document_html(document: Document) -> str:
    """A document as one HTML page."""
    return _PAGE.substitute(
        title=escape(document.title),
        style=_STYLE,
        summary=escape(document.summary),
        figures="\n".join(map(_figure, document.figures)),
        sections="\n".join(map(_section, document.sections)),
    )


def _figure(figure: Figure) -> str:
    note = f'<div class="note">{escape(figure.note)}</div>' if figure.note else ""
    label, value = escape(figure.label), escape(figure.value)
    return f'<div class="figure"><div class="label">{label}</div><div class="value">{value}</div>{note}</div>'


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
    if section.table is not None:
        parts.append(_table(section.table))
    if section.code:
        parts.append(f"<pre><code>{_code(section.code)}</code></pre>")
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    """One table; what is the same in all its rows is said once, below."""
    table, said = table.narrow()
    head = "".join(f"<th{_class(['right'] if c.right else [])}>{escape(c.title)}</th>" for c in table.columns)
    rows = ("".join(_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)) for row in table.rows)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    below = f'\n<p class="below">{escape(said)}</p>' if said else ""
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>{below}'
    )


def _cell(cell: Cell, column: Column) -> str:
    names = ["right"] * column.right + ["mono"] * cell.mono + [cell.tone] * bool(cell.tone)
    names += ["prose"] * (len(cell.text) > _PROSE_FROM)
    text = escape(cell.text)
    if cell.fraction is not None:
        share = 100 * min(max(cell.fraction, 0.0), 1.0)
        text = f'<span class="bar" style="--share: {share:.1f}%">{text}</span>'
    return f"<td{_class(names)}>{text}</td>"


def _class(names: list[str]) -> str:
    return f' class="{" ".join(names)}"' if names else ""


def _code(text: str) -> str:
    return "\n".join(map(_code_line, text.rstrip("\n").split("\n")))


def _code_line(line: str) -> str:
    """Colours this library's operators, the model's tensors, and comments."""
    code, mark, comment = line.partition("  # ")
    shown = _COLOURED.sub(lambda m: f'<span class="{"state" if m[1] else "ours"}">{m[0]}</span>', escape(code))
    return shown + (f'<span class="comment">{escape(mark + comment)}</span>' if mark else "")

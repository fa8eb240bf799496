"""Tables for a rich console."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table as RichTable
from rich.text import Text

from exprune_fx.report.document import document_of
from exprune_fx.report.explanation import Explanation
from exprune_fx.report.layout import Cell, Section, Table

_STYLES = {"": "", "good": "green", "bad": "red", "quiet": "dim"}


def to_rich(explanation: Explanation) -> RenderableType:
    """The explanation as rich tables."""
    document = document_of(explanation)
    opening = Text.assemble((document.title, "bold cyan"), ": ", document.summary)
    return Group(opening, *map(section_renderable, document.sections))


def section_renderable(section: Section) -> RenderableType:
    """One section under its title."""
    parts: list[RenderableType] = [Text(""), Rule(Text(section.title, "bold"), align="left", style="dim")]
    parts += [Text(paragraph, "dim") for paragraph in section.paragraphs]
    if section.table is not None:
        parts.append(table_renderable(section.table))
    if section.code:
        parts.append(Syntax(section.code.rstrip("\n"), "python", background_color="default", word_wrap=False))
    return Group(*parts)


def table_renderable(table: Table) -> RichTable:
    """One table without frame lines."""
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in table.columns:
        drawn.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(_cell, row))
    return drawn


def _cell(cell: Cell) -> Text:
    return Text(cell.text, _STYLES[cell.tone] or ("cyan" if cell.mono else ""))

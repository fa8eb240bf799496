"""Tables for a rich console."""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table as RichTable
from rich.text import Text

from exprune_fx.report.document import document_of
from exprune_fx.report.explained import Explained
from exprune_fx.report.layout import Cell, Section, Table

_STYLES = {"": "", "good": "green", "bad": "red", "quiet": "dim"}


def to_rich(explanation: Explained) -> RenderableType:
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
        parts.append(Syntax(section.code.rstrip("\n"), "python", background_color="default", word_wrap=True))
    return Group(*parts)


def table_renderable(table: Table) -> RenderableType:
    """One table without frame lines; what is the same in all its rows is said once, below."""
    narrow, said = table.narrow()
    drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for i, column in enumerate(narrow.columns):
        whole = column.right or i == 0  # numbers and names are not broken over lines, prose may be
        side: Literal["left", "right"] = "right" if column.right else "left"
        drawn.add_column(column.title, justify=side, no_wrap=whole, overflow="fold")
    for row in narrow.rows:
        drawn.add_row(*map(_cell, row))
    return Group(drawn, Text(said, "dim")) if said else drawn


def _cell(cell: Cell) -> Text:
    return Text(cell.text, _STYLES[cell.tone] or ("cyan" if cell.mono else ""))

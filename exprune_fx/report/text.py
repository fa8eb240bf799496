"""Plain text: what ``print(explain(...))`` shows, the same in every terminal and every process."""

from __future__ import annotations

import textwrap

from exprune_fx.report.document import document_of
from exprune_fx.report.explained import Explained
from exprune_fx.report.layout import Document, Section, Table

WIDTH = 100
_GAP = "  "


def to_text(explanation: Explained) -> str:
    """The explanation as plain text, prose wrapped at 100 columns; tables may be wider."""
    return document_text(document_of(explanation))


def document_text(document: Document) -> str:
    """A document as plain text."""
    opening = "\n".join(textwrap.wrap(f"{document.title}: {document.summary}", WIDTH))
    return "\n\n".join([opening, *map(_section, document.sections)]) + "\n"


def _section(section: Section) -> str:
    lines = [section.title, "-" * len(section.title)]
    for paragraph in section.paragraphs:
        lines += textwrap.wrap(paragraph, WIDTH)
    if section.table is not None:
        lines += table_lines(section.table)
    if section.code:
        lines += section.code.rstrip("\n").split("\n")
    return "\n".join(lines)


def table_lines(table: Table) -> list[str]:
    """A table with columns as wide as their widest entry."""
    grid = [[column.title for column in table.columns], *([cell.text for cell in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in grid) for i in range(len(table.columns))]
    return [
        _GAP.join(
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(row, widths, table.columns, strict=True)
        ).rstrip()
        for row in grid
    ]

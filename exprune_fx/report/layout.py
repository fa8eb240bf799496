"""What an explanation says, as sections of text, tables and code that each renderer draws its own way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from exprune_fx.wording import percent_text


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: what it says.
        fraction: from 0 to 1, where a page may draw a bar.
        tone: good and bad are coloured, quiet is greyed.
        mono: a name or a formula rather than prose.
    """

    text: str
    fraction: float | None = None
    tone: Literal["", "good", "bad", "quiet"] = ""
    mono: bool = False


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: above it.
        right: its entries stand right.
        shared: where all entries are the same, a narrow renderer may say so once instead.
    """

    title: str
    right: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows, each row as long as there are columns."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def narrow(self) -> tuple[Table, str]:
        """The table without the shared columns that are the same in all rows, and these in words ("" if none)."""
        same = [
            column.shared and len(self.rows) > 1 and len({row[i].text for row in self.rows}) == 1
            for i, column in enumerate(self.columns)
        ]
        if not any(same):
            return self, ""
        said = "; ".join(f"{column.title}: {self.rows[0][i].text}" for i, column in enumerate(self.columns) if same[i])
        columns = tuple(column for i, column in enumerate(self.columns) if not same[i])
        rows = tuple(tuple(cell for i, cell in enumerate(row) if not same[i]) for row in self.rows)
        return Table(columns, rows), f"All rows: {said}."


@dataclass(frozen=True)
class Section:
    """A titled part.

    Attributes:
        title: of the part ("" for the opening one).
        paragraphs: prose before the table.
        table: or None.
        code: Python text, or "".
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    table: Table | None = None
    code: str = ""


@dataclass(frozen=True)
class Figure:
    """A number that stands large at the top of a page."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Document:
    """All of it: a title, one sentence, the large numbers, and the sections."""

    title: str
    summary: str
    figures: tuple[Figure, ...] = ()
    sections: tuple[Section, ...] = field(default_factory=tuple)


def columns(*titles: str) -> tuple[Column, ...]:
    """Columns from titles; a title that starts with ``>`` stands right, one with ``=`` may be said once."""
    return tuple(Column(title.lstrip(">="), title.startswith(">"), title.startswith("=")) for title in titles)


def name_cell(text: str) -> Cell:
    """A module path, a parameter, a guard: set like code."""
    return Cell(text, mono=True)


def removed_cell(fraction: float | None) -> Cell:
    """FLOPs removed: good if any, bad if staging costs more than it saves."""
    if fraction is None:
        return Cell("-", tone="quiet")
    return Cell(percent_text(fraction), max(0.0, fraction), "good" if fraction > 0 else "bad")

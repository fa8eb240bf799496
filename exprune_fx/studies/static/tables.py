"""What every experiment prints: a title, a sentence on how the figures came about, and rows of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exprune_fx.report.layout import Cell, Section, Table, columns


def section(title: str, about: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Section:
    """A titled table.

    Args:
        title: what it is about.
        about: how the figures came about, counts included.
        titles: of the columns; see `exprune_fx.report.layout.columns`.
        rows: of as many cells.
    """
    cells = tuple(tuple(Cell(text) for text in row) for row in rows)
    return Section(title, (about,), Table(columns(*titles), cells))


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction times 100, without a sign; a dash for None."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f}"

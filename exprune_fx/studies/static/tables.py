"""What every experiment prints: a title, a sentence on how it was made, and rows of text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what it is about.
        about: how the figures came about, counts included.
        columns: headings.
        rows: of as many cells.
    """

    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in self._all()]
        return "\n".join([self.title, self.about, "", *lines])

    def _all(self) -> tuple[tuple[str, ...], ...]:
        return (self.columns, *self.rows)


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction times 100, without a sign."""
    return f"{100 * fraction:.{digits}f}"

"""Evaluations kept in a file: a run that was interrupted goes on from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exprune_fx.errors import DataError
from exprune_fx.studies.paper.results import Effort
from exprune_fx.timing import Stopwatch
from exprune_fx.tuning.lines import Lines

_AGAIN = "give another folder with --study, or remove the file to start again"


class Store:
    """Results by key; in memory, and in a file where one is given.

    Args:
        path: of the file, or None.
        about: digest of all that the results depend on; a file of something else is refused.

    Raises:
        DataError: the file cannot be read, or is about something else.
    """

    def __init__(self, path: Path | None, about: str) -> None:
        self._found: dict[str, dict[str, Any]] = {}
        self._took: dict[str, Effort] = {}
        self._lines = None if path is None else Lines(path, "study", _AGAIN)
        if path is None or self._lines is None:
            return
        lines = self._lines.found
        if not lines:
            self._lines.add({"about": about})
        elif (lines[0] or {}).get("about") != about:
            raise DataError(f"study {os.fspath(path)!r} is of other weights, data or settings", hint=_AGAIN)
        for entry in lines:
            if entry is not None and "key" in entry:
                self._found[entry["key"]] = entry["value"]
                self._took[entry["key"]] = Effort(1, entry.get("wall_s", 0.0), entry.get("cpu_s", 0.0))

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of this key: the one on file, or a new one, which is then written down."""
        if key not in self._found:
            clock = Stopwatch()
            value, spent = make(), clock.spent
            if self._lines is not None:
                self._lines.add({"key": key, "value": value, **spent})
            self._found[key], self._took[key] = value, Effort(1, **spent)
        return self._found[key]

    def took(self, key: str) -> Effort:
        """What making this result took, when it was made."""
        return self._took[key]

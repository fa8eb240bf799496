"""Evaluations kept in a file, one JSON object a line: a run that was interrupted goes on from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exprune_fx.errors import DataError

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
        self._path = path
        self._found: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read study {os.fspath(path)!r}: {error}", hint=_AGAIN) from error
        entries = [entry for entry in map(_parsed, lines) if entry is not None]
        if not lines:
            self._append({"about": about})
        elif not entries or entries[0].get("about") != about:
            raise DataError(f"study {os.fspath(path)!r} is of other weights, data or settings", hint=_AGAIN)
        self._found = {entry["key"]: entry["value"] for entry in entries if "key" in entry}

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of this key: the one on file, or a new one, which is then written down."""
        if key not in self._found:
            value = make()
            self._append({"key": key, "value": value})
            self._found[key] = value
        return self._found[key]

    def _append(self, entry: dict[str, Any]) -> None:
        if self._path is None:
            return
        unfinished = self._path.exists() and not self._path.read_bytes().endswith(b"\n") and self._path.stat().st_size
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("\n" if unfinished else "") + json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: str) -> dict[str, Any] | None:
    """None for what a killed process left unfinished."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None

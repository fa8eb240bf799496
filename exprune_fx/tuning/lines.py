"""A file of one JSON object a line, which only grows: interrupted work goes on from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exprune_fx.errors import DataError


class Lines:
    """What is on file, and what is added to it.

    Attributes:
        found: by line, when the file was opened; None for what is no JSON object, such as what a killed process left
            unfinished. Empty where there was no file, or nothing in it.

    Args:
        path: of the file; its folder is made when something is written.
        what: it holds, for messages.
        hint: what to do where it cannot be read or written.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: Path, what: str, hint: str) -> None:
        self._path, self._what, self._hint = path, what, hint
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {what} {os.fspath(path)!r}: {error}", hint=hint) from error
        self.found = [_parsed(line) for line in text.splitlines()]
        self._torn = bool(text) and not text.endswith("\n")

    def add(self, entry: Mapping[str, Any]) -> None:
        """Writes a line, and waits until it is on the disk.

        Raises:
            DataError: the file cannot be written.
        """
        line = ("\n" if self._torn else "") + json.dumps(entry) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            at = os.fspath(self._path)
            raise DataError(f"cannot write {self._what} {at!r}: {error}", hint=self._hint) from error
        self._torn = False


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None

"""What the backend says: once a process, however many graphs Dynamo makes."""

from __future__ import annotations

import logging

_log = logging.getLogger("exprune_fx.backend")
_said: set[str] = set()


def warn(message: str) -> None:
    """Says at level WARNING what costs the caller something."""
    _say(logging.WARNING, message)


def inform(message: str) -> None:
    """Says at level INFO what the caller may want to know."""
    _say(logging.INFO, message)


def _say(level: int, message: str) -> None:
    if message not in _said:
        _said.add(message)
        _log.log(level, "%s", message)


def forget() -> None:
    """Says everything again from now on."""
    _said.clear()

"""Where exported files may be written."""

from __future__ import annotations

from pathlib import Path

from exprune_fx.errors import ExportError


def checked(path: Path, suffix: str) -> Path:
    """The path, which must end so and be in a directory that exists.

    Raises:
        ExportError: it is not.
    """
    if path.suffix != suffix:
        raise ExportError(f"{str(path)!r} does not end in {suffix}", hint=f"name a file that ends in {suffix}")
    if not path.parent.is_dir():
        raise ExportError(f"{str(path.parent)!r} is no directory", hint="make the directory first")
    return path

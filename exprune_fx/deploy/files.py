"""Files that appear whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def written_whole(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Paths of the same names to write to instead; moved to their places in this order if nothing was raised.

    A path to which nothing was written is left out.
    """
    with tempfile.TemporaryDirectory(prefix=f".{paths[0].name}.", dir=paths[0].parent) as scratch:
        unfinished = tuple(Path(scratch) / path.name for path in paths)
        yield unfinished
        for made, path in zip(unfinished, paths, strict=True):
            if made.exists():
                made.replace(path)

"""Files that appear whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Paths of the same names to write to instead; moved to their places in this order if nothing was raised.

    A path to which nothing was written is left out.

    Raises:
        OSError: their directory is missing, or nothing can be written there.
    """
    with tempfile.TemporaryDirectory(prefix=f".{paths[0].name}.", dir=paths[0].parent) as scratch:
        unfinished = tuple(Path(scratch) / path.name for path in paths)
        yield unfinished
        for made, path in zip(unfinished, paths, strict=True):
            if made.exists():
                made.replace(path)

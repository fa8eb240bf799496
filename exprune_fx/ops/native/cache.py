"""Where compiled libraries are kept, and how to put one there while other processes look."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exprune_fx.errors import KernelError

_log = logging.getLogger(__name__)


def find(name: str) -> Path | None:
    """An intact library of this name in any of the directories, also in one that cannot be written."""
    paths = (directory / name for directory in (_preferred(), _fallback()) if directory is not None)
    return next((path for path in paths if is_intact(path)), None)


def writable_directory() -> Path:
    """``EXPRUNE_CACHE_DIR``, else the user's cache directory, else a directory of the user's among temporary files.

    Raises:
        KernelError: none of them can be written.
    """
    preferred, fallback = _preferred(), _fallback()
    if preferred is not None and _can_write(preferred):
        return preferred
    if fallback is None or not _can_write(fallback):
        raise KernelError(
            f"no directory for the native kernels: neither {preferred} nor {fallback} can be written",
            hint="name a directory in EXPRUNE_CACHE_DIR",
        )
    _log.info("%s cannot be written: native kernels are kept in %s", preferred, fallback)
    return fallback


def _preferred() -> Path | None:
    if named := os.environ.get("EXPRUNE_CACHE_DIR"):
        return Path(named).absolute()
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches).absolute() / "exprune_fx"
    try:
        return Path.home() / ".cache" / "exprune_fx"
    except RuntimeError:  # no home directory
        return None


def _fallback() -> Path | None:
    """A directory that only this user can have made: a library that somebody else left there must not be loaded."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    path = Path(tempfile.gettempdir()) / f"exprune_fx-{user}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError:
        return None
    others = hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return None if others or not stat.S_ISDIR(status.st_mode) else path


def _can_write(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def is_intact(library: Path) -> bool:
    """Whether the file is what `put` put there. To load a truncated library can end the process."""
    try:
        return _digest(library) == _digest_path(library).read_text()
    except (OSError, UnicodeDecodeError):
        return False


def put(made: Path, library: Path) -> None:
    """Moves a file, atomically, to its place in the cache; both on one file system."""
    expected = made.with_suffix(".sha256")
    expected.write_text(_digest(made))
    expected.replace(_digest_path(library))  # first: a library without its digest would be taken for a broken one
    made.replace(library)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_path(library: Path) -> Path:
    return library.with_suffix(".sha256")


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """One process at a time; the kernel frees the lock of a process that died.

    Where there are no file locks, several processes may do the work at once, which costs time and nothing else.
    """
    import fcntl  # noqa: PLC0415 - not on Windows

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            _log.info("no lock on %s: %s", path, error)
        yield

"""Whether the fused operators can be called in this process; the first question builds and loads them."""

from __future__ import annotations

import functools
import logging
import os
import threading

import torch

from exprune_fx.errors import KernelError
from exprune_fx.ops.native import build, elsewhere, fake, fake_heads

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_MODES = ("auto", "native", "reference")


def available() -> bool:
    """Whether ``torch.ops.exprune.staged_*`` can be called; the first call builds (once a machine) and loads them.

    ``EXPRUNE_KERNELS`` decides: "auto" (the default) says no, with one warning a process, where they cannot be had;
    "native" raises there; "reference" says no and builds nothing.

    Raises:
        KernelError: ``EXPRUNE_KERNELS`` is none of these, or is "native" and the operators cannot be had.
    """
    mode = os.environ.get("EXPRUNE_KERNELS") or "auto"
    if mode not in _MODES:
        raise KernelError(f"EXPRUNE_KERNELS is {mode!r}", hint=f"one of {', '.join(_MODES)}, or leave it unset")
    if mode == "reference":
        return False
    with _lock:
        failure = _failure()
    if failure is not None and mode == "native":
        raise failure
    return failure is None


def isa() -> str:
    """The instruction set that the operators use: "avx512", "avx2", "portable", or "reference" without operators."""
    if not available():
        return "reference"
    name: str = torch.ops.exprune.kernels_isa()
    return name


@functools.cache
def _failure() -> KernelError | None:
    """Loads the operators; what went wrong, after a warning, or None."""
    try:
        _load()
    except KernelError as error:
        _log.warning("native kernels are off, the readable form runs instead: %s", error)
        return error
    return None


def _load() -> None:
    path = build.build()
    try:
        if not _present():
            torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        raise KernelError(
            f"the native kernels in {path} cannot be loaded: {error}",
            hint="if their directory forbids to execute files, name another one in EXPRUNE_CACHE_DIR",
        ) from error
    try:
        torch.ops.exprune.kernels_isa()
    except RuntimeError as error:
        raise KernelError(str(error), hint="leave EXPRUNE_ISA unset, or build with EXPRUNE_ISA=all") from error
    fake.register()
    fake_heads.register()
    elsewhere.register()


def _present() -> bool:
    """Whether the operators are there already, as of a package's copy of the library: a second ends the process."""
    return hasattr(torch.ops.exprune, "kernels_isa")

"""The backend that compiles what exprune made."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.registry import lookup_backend

from exprune_fx.backend.options import Inner
from exprune_fx.errors import ExpruneError


def compile_inner(gm: fx.GraphModule, inputs: Sequence[Any], inner: Inner, mode: str | None) -> Callable[..., Any]:
    """Compiles a graph.

    Args:
        gm: the graph.
        inputs: examples, one for each placeholder.
        inner: the backend's name, or the backend.
        mode: Inductor's, such as "max-autotune".

    Raises:
        ExpruneError: a mode for a backend other than Inductor.
    """
    if inner == "inductor":
        _import_inductor()
    backend: Callable[..., Callable[..., Any]] = lookup_backend(inner) if isinstance(inner, str) else inner
    if mode is None or mode == "default":
        return backend(gm, list(inputs))
    if inner != "inductor":
        raise ExpruneError(f"mode {mode!r} is Inductor's, and the inner backend is {inner}", hint="leave mode out")
    patches = torch._inductor.list_mode_options(mode)
    return backend(gm, list(inputs), config_patches=patches)


def _import_inductor() -> None:
    """Without torch's warnings about torch, which would be errors for those who run with warnings as errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script_method`", category=DeprecationWarning)
        importlib.import_module("torch._inductor.compile_fx")

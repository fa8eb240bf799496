"""`export_program`: a graph as an exported program, and as the file that ``torch.export.load`` reads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from exprune_fx.deploy.files import checked
from exprune_fx.deploy.kernels import calls_kernels, copy_library, library_beside
from exprune_fx.errors import ExportError
from exprune_fx.files import written_whole
from exprune_fx.graph import require_graph
from exprune_fx.graph.capture import known_warnings
from exprune_fx.graph.edits import CONSTANTS_KEY
from exprune_fx.graph.signature import exported
from exprune_fx.ops import OPERATORS, reference


def export_program(gm: fx.GraphModule, path: str | os.PathLike[str] | None = None) -> ExportedProgram:
    """Exports a staged (or captured) graph; symbolic sizes stay symbolic.

    Of the readable form this gives a program of ATen operators only, which any process with torch can load and run. Of
    the lowered form, one that calls the fused operators: it runs where they are registered, which
    ``torch.ops.load_library`` does with the library beside the file, and importing this package and asking
    ``exprune_fx.ops.native.available()`` does without it. (In one process only one of the two.)

    Args:
        gm: what ``transform``, ``load`` or ``capture`` made.
        path: a file that ends in ``.pt2`` to save it to, besides; what the lowered form calls goes beside it, as
            ``<name>.kernels.so``. Both appear whole or not at all.

    Returns:
        The program, with the graph's own tensors.

    Raises:
        ExportError: not a graph of this library, a path that ends otherwise, or torch.export refuses the graph.
        CaptureError: an input of the graph cannot be written down.
        KernelError: the lowered form, where the kernels cannot be had.
    """
    require_graph(gm)
    if CONSTANTS_KEY not in gm.meta:
        raise ExportError(f"this {type(gm).__name__} was not captured", hint="export what transform or capture returns")
    target = None if path is None else checked(Path(path), ".pt2")
    with known_warnings():
        program: ExportedProgram = exported(gm).run_decompositions(_readable_operators())
    if target is not None:
        with written_whole(library_beside(target), target) as (library, file):
            if calls_kernels(gm):
                copy_library(library)
            with warnings.catch_warnings():
                # Of transposed tensors torch finds no complete one; it then saves each whole, strides too.
                warnings.filterwarnings("ignore", message="No complete tensor found", category=UserWarning)
                torch.export.save(program, file)
    return program


def _readable_operators() -> dict[Any, Callable[..., Any]]:
    """What each readable operator is made of; every other operator stays as it is."""
    return {getattr(torch.ops.exprune, name).default: getattr(reference, name) for name in OPERATORS}

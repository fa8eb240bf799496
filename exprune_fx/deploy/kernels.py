"""The native library that goes with whatever calls the fused operators."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from torch import fx

from exprune_fx.errors import KernelError
from exprune_fx.ops import native
from exprune_fx.ops.native import build
from exprune_fx.staging import ROLE_KEY


def calls_kernels(gm: fx.GraphModule) -> bool:
    """Whether the graph calls fused operators, which only the native library has."""
    return any(node.meta.get(ROLE_KEY) == "fused" for node in gm.graph.nodes)


def library_beside(path: Path) -> Path:
    """Where the library of a file goes: ``model.pt2`` has ``model.kernels.so``."""
    return path.with_name(f"{path.stem}.kernels.so")


def copy_library(target: Path) -> None:
    """Copies the library that is shipped; the first time on a machine, it may have to be compiled.

    Raises:
        KernelError: the operators are switched off in this process, or the library cannot be built.
    """
    if not native.available():
        raise KernelError(
            "the native kernels cannot be had in this process, and the graph calls them",
            hint="export the readable form: transform(gm, plan, lower=False)",
        )
    shutil.copyfile(shipped_library(), target)


def shipped_library() -> Path:
    """The one place that says which library is shipped: one for all processors of this machine's kind."""
    return build.build(build.recipe(isas=build.isas_of(platform.machine())))

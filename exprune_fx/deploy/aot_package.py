"""`export_package`: a graph compiled ahead of time by AOTInductor, for a process without this library."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._subclasses.fake_tensor import maybe_get_fake_mode

from exprune_fx.deploy.files import checked
from exprune_fx.deploy.kernels import calls_kernels, copy_library, library_beside
from exprune_fx.deploy.program import export_program
from exprune_fx.errors import ExportError
from exprune_fx.files import written_whole
from exprune_fx.graph.capture import known_warnings


@dataclass(frozen=True)
class Package:
    """What ``export_package`` wrote.

    Attributes:
        path: the package, for ``torch._inductor.aoti_load_package``.
        kernels: the library to load before it with ``torch.ops.load_library``; None where the package needs none.
    """

    path: Path
    kernels: Path | None


def export_package(
    gm: fx.GraphModule, path: str | os.PathLike[str], inductor_configs: Mapping[str, Any] | None = None
) -> Package:
    """Compiles a staged graph by AOTInductor into a package that runs without this library, and without its Python.

    Whoever runs it loads the library, then the package:

        torch.ops.load_library("model.kernels.so")
        model = torch._inductor.aoti_load_package("model.pt2")

    with the torch that it was made with, on a processor that has this one's instructions. A package takes its inputs to
    lie in memory as the example's did, densely, and looks only where ``AOTI_RUNTIME_CHECK_INPUTS=1`` is set: give a
    slice as ``x[:, :5].contiguous()``.

    Args:
        gm: what ``transform`` or ``load`` made, in either form; a captured graph too.
        path: a file that ends in ``.pt2``; the native library goes beside it, as ``<name>.kernels.so``, where the
            graph calls fused operators. Both appear whole or not at all.
        inductor_configs: Inductor's settings, as ``torch._inductor.aoti_compile_and_package`` takes them.

    Raises:
        ExportError: not a graph of this library, a path that ends otherwise, or AOTInductor refuses the graph.
        CaptureError: an input of the graph cannot be written down.
        KernelError: the lowered form, where the kernels cannot be had.
    """
    # Imported here: Inductor takes long to import, and only this call needs it.
    from torch._inductor import aoti_compile_and_package  # noqa: PLC0415

    target = checked(Path(path), ".pt2")
    program = export_program(gm)
    needs_kernels = calls_kernels(gm)
    with written_whole(library_beside(target), target) as (library, package):
        if needs_kernels:
            copy_library(library)
        try:
            with known_warnings(), batch_left_open(), warnings.catch_warnings():
                # Inductor imports parts of torch that say so of themselves.
                warnings.filterwarnings("ignore", message=r"`torch\.jit\.script_method`", category=DeprecationWarning)
                configs = {**_defaults(), **(inductor_configs or {})}
                aoti_compile_and_package(program, package_path=str(package), inductor_configs=configs)
        except Exception as error:  # Inductor and the compiler that it starts raise anything
            raise ExportError(
                f"AOTInductor could not compile the graph: {type(error).__name__}: {error}",
                hint="see whether torch.compile can; the cause is chained",
            ) from error
    return Package(target, library_beside(target) if needs_kernels else None)


def _defaults() -> dict[str, Any]:
    """A symbolic size starts at 2 for torch, which means "not specialised to 1": a package takes a batch of one too."""
    from torch._inductor import config  # noqa: PLC0415 - as above

    return {"aot_inductor.check_lowerbound": False} if hasattr(config.aot_inductor, "check_lowerbound") else {}


@contextmanager
def batch_left_open() -> Iterator[None]:
    """Keeps torch from taking "fewer than 16 examples" for granted, because the example had fewer.

    To choose a convolution's library, which decides nothing but the layout of a fake value, torch asks whether the
    batch has 16 examples, and the answer for the example becomes a bound that the compiled code may rely on.
    """
    select = torch._C._select_conv_backend

    def without_guards(*args: Any, **kwargs: Any) -> Any:
        mode = maybe_get_fake_mode(args[0] if args else kwargs["input"])  # by name in torch 2.11, by place since
        env = None if mode is None else mode.shape_env
        with nullcontext() if env is None else env.suppress_guards():
            return select(*args, **kwargs)

    with mock.patch.object(torch._C, "_select_conv_backend", without_guards):
        yield

"""`export_onnx`: a graph's readable form as an ONNX file of standard operators."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import fx

from exprune_fx.deploy.files import checked
from exprune_fx.deploy.kernels import calls_kernels
from exprune_fx.deploy.program import export_program
from exprune_fx.errors import ExportError
from exprune_fx.files import written_whole
from exprune_fx.graph import require_graph
from exprune_fx.graph.capture import known_warnings
from exprune_fx.pipeline import readable_form

_NEEDED = ("onnx", "onnxscript")


def export_onnx(gm: fx.GraphModule, path: str | os.PathLike[str], opset_version: int | None = None) -> None:
    """Writes a staged graph as an ONNX model of standard operators; symbolic sizes stay symbolic.

    It is written from the readable form, whatever form is given: the file shows which neurons stop, computes densely,
    and masks. Sums are rounded otherwise than here, so a neuron that lies on its threshold may fall on the other side.

    Args:
        gm: what ``transform`` or ``load`` made; a captured graph too.
        path: a file that ends in ``.onnx``, of at most 2 GiB (ONNX's own limit for one file).
        opset_version: of ONNX; the default is torch's.

    Raises:
        ExportError: onnx or onnxscript is not installed, not a graph of this library, a path that ends otherwise, or an
            operator that ONNX does not have.
        CaptureError: an input of the graph cannot be written down.
    """
    require_graph(gm)
    target = checked(Path(path), ".onnx")
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX needs {' and '.join(missing)}", hint="pip install 'exprune_fx[onnx]'")
    readable = readable_form(gm)
    if calls_kernels(readable):
        raise ExportError("this graph calls native operators, and does not remember its readable form")
    program = export_program(readable)
    with written_whole(target) as (file,):
        try:
            with known_warnings():
                torch.onnx.export(
                    program, (), file, dynamo=True, opset_version=opset_version, external_data=False, verbose=False
                )
        except Exception as error:  # the exporter has many errors of its own
            cause = _first_cause(error)
            raise ExportError(
                f"the graph cannot be written as ONNX: {type(cause).__name__}: {str(cause)[:500]}",
                hint="keep what ONNX has no operator for outside the model; all causes are chained",
            ) from error


def _first_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _first_cause(error.__cause__)

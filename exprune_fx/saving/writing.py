"""`save`: from a staged graph back to the captured model's tensors, and into a file."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from exprune_fx.errors import CaptureError, ExpruneError, SaveError
from exprune_fx.graph import copy_graph_module, python_text, require_graph, tensor_at, tensor_names
from exprune_fx.graph.edits import ALIASES_KEY, CONSTANTS_KEY
from exprune_fx.graph.signature import Signature
from exprune_fx.passes.reorder_terms import ReorderTermsPass
from exprune_fx.pipeline import StagedRecord, record_of
from exprune_fx.saving.content import Content
from exprune_fx.saving.replay import bound, graph_text, replayed, shortened, shown
from exprune_fx.staging import ROLE_KEY

_log = logging.getLogger(__name__)

_ROUNDING = 16  # units in the last place that two computations of one derived tensor may differ by

_CHANGED = "this graph, or its model, was changed after transform"
_AGAIN = "transform the captured model again, and save that"


def save(staged: fx.GraphModule, path: str | os.PathLike[str]) -> None:
    """Writes a staged graph, so that ``load`` makes an equal one on a fresh model.

    The file is ``{"format", "version", "plan", "state_dict", ...}``: plain data and tensors, which
    ``torch.load(path, weights_only=True)`` reads. ``state_dict`` holds the tensors of the captured model under its own
    names, neither folded nor packed. Before anything is written, the graph is made again from what would be: one that
    was changed after ``transform`` is not saved. The file appears whole or not at all.

    Args:
        staged: a graph that ``transform`` or ``load`` made, in either form.
        path: the file; an existing one is replaced.

    Raises:
        SaveError: not a staged graph, one that was changed after ``transform`` (or whose model was), or nowhere to
            write.
        CaptureError: `staged` is no graph at all.
    """
    require_graph(staged)
    record = record_of(staged)
    if record is None or record.captured is None:
        raise SaveError("this graph is not staged", hint="save what transform(gm, plan) returns")
    fused = any(node.meta.get(ROLE_KEY) == "fused" for node in staged.graph.nodes)
    try:
        captured = _restored(record, record.captured)
        again = replayed(captured, record.plan, lowered=record.lowered, fused=fused)
    except ExpruneError as error:
        raise SaveError(f"{_CHANGED} and cannot be made again: {error.what}", hint=_AGAIN) from error
    _check_same(again, staged)
    _content(captured, record, fused).write(Path(path))


def _restored(record: StagedRecord, captured: fx.GraphModule) -> fx.GraphModule:
    """The graph that was given to ``transform``: terms back in their order, tensors in the layout that they had."""
    dense = copy_graph_module(record.dense)
    dense.meta.pop("exprune_orders", None)  # else an order that is its own inverse would be taken for done
    inverse = {name: tuple(torch.argsort(torch.tensor(order)).tolist()) for name, order in record.plan.orders.items()}
    undone = ReorderTermsPass(inverse)(dense).graph_module
    shared = set(tensor_names(undone))
    tensors = {
        str(node.target): _with_strides_of(node.meta["val"], tensor_at(undone, str(node.target)))
        for node in captured.graph.nodes
        if node.op == "get_attr" and node.target in shared
    }
    return bound(captured, tensors)


def _with_strides_of(like: Tensor, tensor: Tensor) -> Tensor:
    if tensor.stride() == like.stride() or tensor.shape != like.shape:
        return tensor
    with torch.no_grad():
        return torch.empty_strided(tensor.shape, like.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _check_same(again: fx.GraphModule, staged: fx.GraphModule) -> None:
    """Refuses a graph that would not come back equal."""
    if python_text(again) != python_text(staged):
        raise SaveError(f"{_CHANGED}: its nodes are not those of its plan", hint=_AGAIN)
    pairs = {name: (tensor_at(staged, name), tensor_at(again, name)) for name in tensor_names(staged)}
    differing = [f"{name} ({shown(pair[0])})" for name, pair in pairs.items() if not _is_same(name, *pair)]
    if differing:
        raise SaveError(f"{_CHANGED}: {shortened(differing, ', ')} would not come back", hint=_AGAIN)


def _is_same(name: str, a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    # Heads and bounds are products of weights, which torch may round differently with another number of threads.
    if name.startswith("exprune.") and a.is_floating_point():
        near = _ROUNDING * torch.finfo(a.dtype).eps
        largest = float(a.detach().abs().nan_to_num(posinf=0.0).max()) if a.numel() else 0.0
        return torch.allclose(a, b, rtol=near, atol=near * largest, equal_nan=True)
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _content(captured: fx.GraphModule, record: StagedRecord, fused: bool) -> Content:
    constants = captured.meta.get(CONSTANTS_KEY, frozenset())
    tensors = {name: _own(tensor_at(captured, name).detach()) for name in tensor_names(captured)}
    state = {name: tensor for name, tensor in tensors.items() if name not in constants}
    state |= {alias: state[kept] for alias, kept in captured.meta.get(ALIASES_KEY, {}).items() if kept in state}
    signature, unsigned = _signature_of(captured)
    return Content(
        plan=record.plan,
        state_dict=state,
        constants={name: tensor for name, tensor in tensors.items() if name in constants},
        signature=signature,
        unsigned=unsigned,
        graph=graph_text(captured),
        lowered=record.lowered,
        fused=fused,
        torch_version=str(torch.__version__),
    )


def _own(tensor: Tensor) -> Tensor:
    """The tensor without the rest of the memory that it is a view of, which torch.save would write too."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=torch.preserve_format)


def _signature_of(captured: fx.GraphModule) -> tuple[dict[str, Any] | None, str]:
    try:
        return Signature.of(captured).to_dict(), ""
    except CaptureError as error:
        _log.warning("the file cannot say how the model is called, so load will need example args: %s", error.what)
        return None, error.what

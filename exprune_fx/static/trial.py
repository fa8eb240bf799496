"""A shrunk copy of the user's module, tried out before anything is written: does its own code take the new sizes?"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from exprune_fx.errors import ShrinkError
from exprune_fx.static.module import AttributeChange, Bindings, shared_copy

aten = torch.ops.aten
_SIZED_NAMES = """
view reshape _unsafe_view expand split split_with_sizes zeros ones full new_zeros new_ones slice
"""
_SIZED = {getattr(aten, name) for name in _SIZED_NAMES.split()}
_NORMS = {aten.layer_norm, aten.rms_norm}
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in .*\n\s*(.*)')
_CALL = re.compile(r"\b(view|reshape|unflatten|expand|split|zeros|ones|full|new_zeros|new_ones|repeat)\(")
_CONSTANT = re.compile(r"(?<![\w.-])([2-9]|[1-9]\d+)\b|self\.|\b[A-Z_]{2,}\b")
# Relative to the largest output: far above sums in another order, far below what one misplaced channel does.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Trial:
    """What a copy did.

    Attributes:
        problem: "" where it runs and computes what the smaller graph does; else what went wrong.
        where: module path and source line, "" if unknown.
    """

    problem: str = ""
    where: str = ""


def try_out(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    biases: Mapping[str, Tensor],
    attributes: Sequence[AttributeChange],
    call: tuple[tuple[Any, ...], Mapping[str, Any]],
    wanted: Sequence[Tensor],
) -> Trial:
    """Runs a copy of the model with new tensors and attributes.

    Args:
        model: the user's module; it is not written to.
        tensors: new tensors by name.
        biases: added ones.
        attributes: changes of attributes.
        call: example inputs.
        wanted: the outputs of the smaller graph on these.
    """
    copied = shared_copy(model)
    bindings = Bindings(copied)
    for name, tensor in tensors.items():
        bindings.bind(name, tensor)
    for name, tensor in biases.items():
        bindings.add(name, tensor)
    for change in attributes:
        bindings.set_attribute(change)
    bindings.commit()
    try:
        with torch.no_grad():
            result = copied(*call[0], **call[1])
    except Exception as error:  # noqa: BLE001 (whatever the user's forward raises is reported)
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Trial(text, _place(copied, error.__traceback__))
    got = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return Trial(f"gives shapes {[list(t.shape) for t in got]} for {[list(t.shape) for t in wanted]}")
    for one, other in zip(got, wanted, strict=True):
        if other.is_floating_point() and not _close(one, other):
            return Trial(f"gives other values than the smaller graph (by up to {float((one - other).abs().max()):.3g})")
    return Trial()


def _close(one: Tensor, other: Tensor) -> bool:
    scale = float(other.abs().nan_to_num(0.0, 0.0, 0.0).max()) if other.numel() else 0.0
    tolerance = _TOLERANCES.get(other.dtype, 1e-1) * max(scale, 1e-6)
    return bool(torch.isclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True).all())


def _place(model: nn.Module, trace: TracebackType | None) -> str:
    """The innermost module outside torch that was running, and the line in it."""
    paths = {id(module): path for path, module in model.named_modules()}
    library = str(Path(torch.__file__).parent)
    found = ""
    for frame, line in traceback.walk_tb(trace):
        module = frame.f_locals.get("self")
        source = frame.f_code.co_filename
        if source.startswith(library) or not isinstance(module, nn.Module) or id(module) not in paths:
            continue
        text = traceback.extract_tb(trace)
        code = next((entry.line for entry in text if entry.filename == source and entry.lineno == line), "")
        found = f"module {paths[id(module)]!r} ({type(module).__name__}), {Path(source).name}:{line}: {code}"
    return found


def view_attributes(gm: fx.GraphModule, small: fx.GraphModule, model: nn.Module) -> list[AttributeChange]:
    """Attributes of the user's own modules that hold a size which a view or split in their forward is given.

    An int attribute of the module that makes the call, of the value that the call was given, takes the new one. That is
    a guess, which `try_out` confirms or refutes.

    Args:
        gm: the dense graph.
        small: the smaller one, of the same nodes.
        model: the user's module.
    """
    after = {node.name: node for node in small.graph.nodes}
    found: dict[tuple[str, str], AttributeChange] = {}
    for node in gm.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if node.name not in after or packet not in _SIZED | _NORMS:
            continue
        path = node.meta.get("module_path", "")
        try:
            owner = model.get_submodule(path)
        except AttributeError:
            continue
        for name, value in _follows(owner, node, after[node.name]).items():
            found.setdefault((path, name), AttributeChange(path, name, value))
    return list(found.values())


def _follows(owner: nn.Module, node: fx.Node, after: fx.Node) -> dict[str, int | tuple[int, ...]]:
    """New values of attributes that hold the sizes of one node."""
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm):  # without a weight, this is all that tells its size
        shape = after.args[1]
        assert isinstance(shape, (list, tuple))
        return {} if list(shape) == list(owner.normalized_shape) else {"normalized_shape": tuple(shape)}  # type: ignore[arg-type]
    if type(owner).__module__.startswith("torch.nn") and not isinstance(owner, nn.MultiheadAttention):
        return {}
    sizes = _changed(node, after)
    found: dict[str, int | tuple[int, ...]] = {}
    for name, value in vars(owner).items():
        if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_"):
            new = _new_value(name, [(size, last) for old, size, last in sizes if old == value])
            if new is not None and new != value:
                found[name] = new
    return found


def _changed(node: fx.Node, after: fx.Node) -> list[tuple[int, int, bool]]:
    """Old and new size of every dim, and whether it is the last one, of results of which any dim changed."""
    found: list[tuple[int, int, bool]] = []
    for one, other in zip(_shapes(node), _shapes(after), strict=True):
        pairs = list(zip(one, other, strict=True))
        if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
            found += [
                (a, b, i == len(pairs) - 1)
                for i, (a, b) in enumerate(pairs)
                if isinstance(a, int) and isinstance(b, int)
            ]
    return found


def _shapes(node: fx.Node) -> list[tuple[Any, ...]]:
    value = node.meta["val"]
    return [tuple(each.shape) for each in (value if isinstance(value, (list, tuple)) else [value])]


def _new_value(name: str, fits: Sequence[tuple[int, bool]]) -> int | None:
    """Of several dims of the old size, the last for what is called a dim or size, the first for a number of things."""
    extent = any(word in name for word in ("dim", "size", "width", "channels", "features"))
    if not extent and "head" in name:  # heads stand before what each has
        fits = [(size, last) for size, last in fits if not last]
    if not fits:
        return None
    return fits[-1][0] if extent else fits[0][0]


def given_sizes(gm: fx.GraphModule, small: fx.GraphModule) -> tuple[str, ...]:
    """Source lines that give a view, or the like, sizes in numbers or attributes, where these had to change.

    Args:
        gm: the dense graph.
        small: the smaller one, of the same nodes.
    """
    after = {node.name: node for node in small.graph.nodes}
    found: dict[str, None] = {}
    for node in gm.graph.nodes:
        if getattr(node.target, "overloadpacket", None) not in _SIZED or node.name not in after:
            continue
        frames = _FRAME.findall(node.meta.get("stack_trace") or "")
        if _shapes(node) == _shapes(after[node.name]) or not frames:
            continue
        source, line, code = frames[-1]
        if _CALL.search(code) and _CONSTANT.search(code):
            found[f"module {node.meta.get('module_path', '')!r}, {Path(source).name}:{line}: {code.strip()}"] = None
    return tuple(found)


def refuse(trial: Trial, blamed: Sequence[str], lines: Sequence[str]) -> ShrinkError:
    """The error that names what cannot be shrunk, and the lines that give sizes."""
    groups = ", ".join(blamed) if blamed else "none alone, but all together"
    text = f"the model's own code does not run with the smaller sizes: {trial.problem}"
    if trial.where:
        text += f"\n  where: {trial.where}"
    if lines:
        text += "\n  sizes are given by: " + "; ".join(lines[:3]) + (" and others" if len(lines) > 3 else "")
    return ShrinkError(
        f"{text}\n  groups that it cannot lose members of: {groups}",
        hint="take sizes from tensors instead of constants there (x.flatten(1), x.shape[1]); or leave these groups "
        f"whole: fixed='keep', or ignore={list(blamed)}; or shrink the captured graph instead of the module",
    )

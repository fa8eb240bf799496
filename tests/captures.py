"""Captures that tests share: models of one structure get one captured graph, each with its own tensors.

What capture itself does is tested in tests/graph; elsewhere its graph is where a test begins, and to trace a small
network takes longer than most of what is then tested.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx, nn

from exprune_fx.graph import capture, copy_graph_module, tensor_at, tensor_names

_made: dict[Any, fx.GraphModule] = {}
_OF_ALL_MODULES = set(vars(nn.Module()))


def captured_alike(model: nn.Module, x: Tensor, dynamic_shapes: Any = None) -> fx.GraphModule:
    """``capture(model, (x,), dynamic_shapes=dynamic_shapes)``, traced once for all models of this structure.

    A model that keeps something other than modules, tensors, numbers and texts is traced each time.
    """
    structure = _structure(model)
    if structure is None:
        return capture(model, (x,), dynamic_shapes=dynamic_shapes)
    key = (structure, _layout(x), repr(dynamic_shapes))
    if key not in _made:
        like_it = copy.deepcopy(model)  # no test's weights are kept
        _made[key] = capture(like_it, (x,), dynamic_shapes=dynamic_shapes)
    gm = copy_graph_module(_made[key])
    for name in tensor_names(gm):
        prefix, _, field = name.rpartition(".")
        held = gm.get_submodule(prefix)
        own: dict[str, Any] = held._parameters if field in held._parameters else held._buffers
        own[field] = tensor_at(model, name)
    return gm


def _structure(model: nn.Module) -> object:
    """All that tracing depends on; None where there is more than can be compared."""
    first: dict[int, str] = {}
    parts: list[object] = []
    for path, module in model.named_modules(remove_duplicate=False):
        plain = {key: value for key, value in vars(module).items() if key not in _OF_ALL_MODULES}
        if not all(_is_plain(value) for value in plain.values()):
            return None
        parts.append((path, type(module), tuple(plain.items())))
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None:  # one tensor under two names is one node
                parts.append((name, _layout(value), first.setdefault(id(value), f"{path}.{name}")))
    return tuple(parts)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _layout(value: Tensor) -> tuple[object, ...]:
    return type(value), tuple(value.shape), value.stride(), value.dtype

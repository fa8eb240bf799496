"""Put a ReLU before the max-pool whose result it takes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import fx
from torch.fx.node import Node

from exprune_fx.graph.edits import copy_graph_module, insert_call, is_call, recompile, remove_dead, replace_node
from exprune_fx.pass_manager import PassResult

_aten = torch.ops.aten
_POOLS = (
    _aten.max_pool1d.default,
    _aten.max_pool2d.default,
    _aten.max_pool3d.default,
    _aten.max_pool2d_with_indices.default,
    _aten.max_pool3d_with_indices.default,
)
_WITH_INDICES = _POOLS[3:]


@dataclass(frozen=True)
class CommuteReluMaxPoolPass:
    """relu(max_pool(x)) -> max_pool(relu(x)), so that the ReLU meets the convolution before the pool.

    ReLU is monotone, so it commutes with the maximum over the elements of a window, NaN included. Padding is -inf on
    both sides, so a window must hold an element: it does when it has no holes (dilation 1; padding is at most half a
    window) or no padding.

    Requires: a graph in the dialect. Ensures: no ReLU is the only reader of a max-pool whose indices nobody reads; the
    outputs are bit for bit the same. Not valid after: nothing.
    """

    name: ClassVar[str] = "commute-relu-max-pool"

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Runs the pass."""
        result = copy_graph_module(gm)
        waiting = [n for n in result.graph.nodes if is_call(n, _aten.relu.default)]
        edits = 0
        while waiting:
            relu = waiting.pop()
            pool = _match(relu)
            if pool is not None:
                waiting.append(_commute(result, relu, pool))  # there may be another pool before
                edits += 1
        if not edits:
            return PassResult(gm, changed=False, edits=0)
        remove_dead(result)
        return PassResult(recompile(result), changed=True, edits=edits)


def _match(relu: Node) -> Node | None:
    """The max-pool that `relu` alone reads."""
    pool = relu.args[0]
    if is_call(pool, operator.getitem) and isinstance(pool, Node) and pool.args[1] == 0 and len(pool.users) == 1:
        pool = pool.args[0]
        if not is_call(pool, *_WITH_INDICES):
            return None
    elif is_call(pool, *_WITH_INDICES):
        return None
    if not isinstance(pool, Node) or not is_call(pool, *_POOLS) or len(pool.users) != 1:
        return None
    padding, dilation = _option(pool, 3, "padding", 0), _option(pool, 4, "dilation", 1)
    return pool if all(d == 1 for d in dilation) or all(p == 0 for p in padding) else None


def _option(pool: Node, position: int, name: str, default: int) -> Sequence[object]:
    value = pool.args[position] if len(pool.args) > position else pool.kwargs.get(name, default)
    return value if isinstance(value, list | tuple) else (value,)


def _commute(gm: fx.GraphModule, relu: Node, pool: Node) -> Node:
    name = CommuteReluMaxPoolPass.name
    inner = insert_call(gm, _aten.relu.default, (pool.args[0],), like=relu, made_by=name, before=pool)
    target, args = cast(Any, pool.target), (inner, *pool.args[1:])
    outer = insert_call(gm, target, args, dict(pool.kwargs), like=pool, made_by=name, before=pool)
    if pool.target in _WITH_INDICES:
        outer = insert_call(gm, operator.getitem, (outer, 0), like=pool, made_by=name, before=relu)
    replace_node(gm, relu, outer)
    remove_dead(gm)
    return inner

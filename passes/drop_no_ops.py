"""Drop operators that give their input back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import fx
from torch.fx.node import Node

from exprune_fx.graph.edits import copy_graph_module, recompile, remove_dead, replace_node
from exprune_fx.graph.verify import same_layout
from exprune_fx.pass_manager import PassResult

_aten = torch.ops.aten
Rule = Callable[[Node, Node], bool]


@dataclass(frozen=True)
class DropNoOpsPass:
    """Replaces operators that compute nothing by their input.

    Requires: a graph in the dialect. Ensures: the outputs' values are bit for bit the same, no output shares memory
    with an input, a parameter or another output that it did not share memory with before, and strides stay as they
    were. Not valid after: nothing; but gradients flow where a dropped `detach` stopped them.
    """

    name: ClassVar[str] = "drop-no-ops"

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Runs the pass."""
        result = copy_graph_module(gm)
        edits = 0
        while found := _drop_once(result):  # what keeps a copy may itself be dropped
            edits += found
        if not edits:
            return PassResult(gm, changed=False, edits=0)
        remove_dead(result)
        return PassResult(recompile(result), changed=True, edits=edits)


def _drop_once(gm: fx.GraphModule) -> int:
    edits = 0
    for node in list(gm.graph.nodes):
        source = _source(node)
        if source is not None:
            replace_node(gm, node, source)
            edits += 1
    return edits


def _source(node: Node) -> Node | None:
    """The node that `node` gives back unchanged; None when that is not proved."""
    rule = _RULES.get(node.target) if node.op == "call_function" else None
    if rule is None:
        return None
    first = node.args[0]
    source = first[0] if isinstance(first, list | tuple) and len(first) == 1 else first
    if not isinstance(source, Node) or not rule(node, source) or not same_layout(node.meta["val"], source.meta["val"]):
        return None
    # A copy that is returned keeps the caller from writing into what it was copied from.
    return None if not _is_view(node) and _escapes(node) else source


def _is_view(node: Node) -> bool:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return any(r.alias_info is not None for r in target._schema.returns)
    return target is operator.getitem


def _escapes(node: Node) -> bool:
    """Whether an output is the node's memory, or a view of it."""
    return any(user.op == "output" or (_is_view(user) and _escapes(user)) for user in node.users)


def _always(_node: Node, _source: Node) -> bool:
    return True


def _copy(node: Node, _source: Node) -> bool:
    """A copy asked to be contiguous stays before a view: an input may come with other strides than the example."""
    wanted = node.kwargs.get("memory_format")
    return wanted in (None, torch.preserve_format) or not any(map(_is_view, node.users))


def _eval_dropout(node: Node, _source: Node) -> bool:
    return len(node.args) > 2 and node.args[2] is False


def _only_dtype(node: Node, source: Node) -> bool:
    """A conversion that changes nothing but, perhaps, the dtype and device, which are compared elsewhere."""
    return not (node.kwargs.keys() - {"dtype", "device", "memory_format", "non_blocking"}) and _copy(node, source)


def _unit_step(node: Node, _source: Node) -> bool:
    """With step 1, a slice of the same size holds everything."""
    return len(node.args) < 5 or bool(node.args[4] == 1)


def _identity_permutation(node: Node, source: Node) -> bool:
    dims, rank = node.args[1], source.meta["val"].dim()
    return isinstance(dims, list | tuple) and [cast(int, d) % rank for d in dims] == list(range(rank))


def _adds_zero(node: Node, source: Node) -> bool:
    """X + 0 is x for integers; for floats it turns -0.0 into 0.0."""
    dtype = source.meta["val"].dtype
    exact = not (dtype.is_floating_point or dtype.is_complex)
    return exact and _operand_is(node, 0)


def _times_one(node: Node, _source: Node) -> bool:
    return _operand_is(node, 1)


def _operand_is(node: Node, value: int) -> bool:
    operand = node.args[1]
    return isinstance(operand, int | float) and not isinstance(operand, bool) and operand == value


_RULES: Mapping[Any, Rule] = MappingProxyType(
    {
        _aten.alias.default: _always,
        _aten.detach.default: _always,
        _aten.lift_fresh_copy.default: _always,
        _aten.view.default: _always,
        _aten._unsafe_view.default: _always,
        _aten.reshape.default: _always,
        _aten.expand.default: _always,
        _aten.cat.default: _always,
        _aten.clone.default: _copy,
        _aten.contiguous.default: _copy,
        _aten._to_copy.default: _only_dtype,
        _aten.dropout.default: _eval_dropout,
        _aten.slice.Tensor: _unit_step,
        _aten.permute.default: _identity_permutation,
        _aten.add.Tensor: _adds_zero,
        _aten.sub.Tensor: _adds_zero,
        _aten.mul.Tensor: _times_one,
        _aten.div.Tensor: _times_one,
    }
)

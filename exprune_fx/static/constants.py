"""What a removed channel still gives: the constants that flow from biases and shifts once its weights are zero.

A removed member's producing weights count as zero: rows of linear layers and convolutions, columns of embeddings,
scales of batch norms; biases and shifts stay. Its value is then a constant, which pointwise ops, pooling and views pass
on. A value here is a small float64 tensor on the CPU that broadcasts to the node's value: numbers where the value is
known for every input, NaN where it is not; None where nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from exprune_fx.graph.edits import tensor_at
from exprune_fx.static.constant_rules import Known, rule_of
from exprune_fx.static.units import Removal, removed_along
from exprune_fx.symmetry import SymmetryReport


class Propagation:
    """Constants of every node of a graph in which members are removed.

    Args:
        gm: the dense graph.
        report: its symmetries.
        removals: what goes.
    """

    def __init__(self, gm: fx.GraphModule, report: SymmetryReport, removals: Sequence[Removal]) -> None:
        self._gm = gm
        self._report = report
        self._removals = removals
        self.known: dict[fx.Node, Known] = {}
        with torch.no_grad():
            for node in gm.graph.nodes:
                self.known[node] = self._value(node)

    def removed(self, node: fx.Node, dim: int) -> Tensor | None:
        """Which positions along a dim of a node's value go, or None."""
        axes = self._report.analysis.axes.get(node.name)
        if not isinstance(axes, tuple) or not axes:
            return None
        return removed_along(self._report, axes, dim % len(axes), self._removals)

    def given(self, argument: Any) -> Tensor | None:
        """What is known of an argument."""
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            return self.parameter(argument)
        found = self.known.get(argument) if isinstance(argument, fx.Node) else None
        return found if isinstance(found, Tensor) else None

    def results(self, argument: Any) -> list[Tensor | None]:
        """What is known of a node with several results."""
        found = self.known.get(argument)
        return found if isinstance(found, list) else []

    def parameter(self, argument: Any) -> Tensor | None:
        """The tensor that a get_attr argument reads, in float64 on the CPU; None for anything else."""
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            return None
        held = tensor_at(self._gm, str(argument.target)).detach()
        return held.to("cpu", torch.float64) if held.is_floating_point() else None

    def fixed(self, node: fx.Node, dim: int, values: Tensor | float) -> Tensor | None:
        """`values` along a dim where its positions go, NaN elsewhere."""
        gone = self.removed(node, dim)
        if gone is None or not gone.any():
            return None
        rank = gone.dim()
        if isinstance(values, Tensor):
            values = values.reshape([-1 if i == dim % rank else 1 for i in range(rank)])
        return torch.where(gone, torch.as_tensor(values, dtype=torch.float64), torch.nan)

    def _value(self, node: fx.Node) -> Known:
        if node.op != "call_function":
            return None
        rule = rule_of(node.target)
        result = rule(self, node) if rule is not None else None
        if isinstance(result, list):
            return [_compressed(each) for each in result]
        return _compressed(result)


def _compressed(value: Tensor | None) -> Tensor | None:
    """The same with every dim of size 1 along which nothing differs; None where nothing is known."""
    if value is None or bool(value.isnan().all()):
        return None
    for dim, size in enumerate(value.shape):
        first = value.narrow(dim, 0, 1)
        if size > 1 and bool(((value == first) | (value.isnan() & first.isnan())).all()):
            value = first
    return value

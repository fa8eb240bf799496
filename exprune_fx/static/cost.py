"""Parameters, FLOPs and members of a graph as functions of what each atom keeps, without rewriting the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn

from exprune_fx.cost import dense_flops, model_flops
from exprune_fx.graph import copy_graph_module, tensor_at, tensor_names
from exprune_fx.static.axes import Sizes, kept_size
from exprune_fx.symmetry import SymmetryReport

Metric: TypeAlias = Literal["flops", "params"]


def graph_cost(gm: fx.GraphModule) -> tuple[int, int]:
    """Parameters that a graph reads, and its FLOPs at the example's sizes."""
    params = sum(tensor.numel() for name in tensor_names(gm) if isinstance(tensor := tensor_at(gm, name), nn.Parameter))
    expression = model_flops(gm)
    sizes = [size for node in gm.graph.nodes for size in _shape(node) if isinstance(size, torch.SymInt)]
    hints = {symbol: size.node.shape_env.var_to_val[symbol] for size in sizes for symbol in size.node.expr.free_symbols}
    return params, int(expression.subs(hints))


def _shape(node: fx.Node) -> tuple[int | torch.SymInt, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


class CostModel:
    """What a graph costs when atoms keep only some of their members.

    FLOPs count 2 for a multiply-add of linear layers, convolutions, matrix products and attention, and nothing else, at
    the example's sizes where sizes are symbolic. Parameters are those that the graph reads; buffers are none.

    Args:
        gm: the dense graph; it is not changed.
        report: its symmetries.
    """

    def __init__(self, gm: fx.GraphModule, report: SymmetryReport) -> None:
        self._report = report
        self._parameters = {
            name: report.analysis.parameters[name]
            for name in tensor_names(gm)
            if isinstance(tensor_at(gm, name), nn.Parameter) and name in report.analysis.parameters
        }
        self._others = sum(
            tensor_at(gm, name).numel()
            for name in tensor_names(gm)
            if isinstance(tensor_at(gm, name), nn.Parameter) and name not in self._parameters
        )
        shadow = copy_graph_module(gm)
        self._nodes = [node for node in shadow.graph.nodes if dense_flops(node) != 0]

    def params(self, sizes: Sizes) -> int:
        """Number of parameters."""
        found = self._others
        for axes in self._parameters.values():
            count = 1
            for layout in axes:
                count *= self._kept(layout, sizes)
            found += count
        return found

    def flops(self, sizes: Sizes) -> int:
        """FLOPs at the example's sizes."""
        return sum(self.node_flops(sizes).values())

    def node_flops(self, sizes: Sizes) -> Mapping[str, int]:
        """FLOPs of every node that has any."""
        for node in self._nodes:
            for each in (node, *node.all_input_nodes):
                axes = self._report.analysis.axes.get(each.name)
                if isinstance(axes, tuple) and isinstance(each.meta.get("val"), torch.Tensor):
                    given = each.meta.setdefault("exprune_shape", tuple(each.meta["val"].shape))
                    shape = [self._kept(a, sizes, s) for a, s in zip(axes, given, strict=True)]
                    each.meta["val"] = torch.empty(shape, device="meta")
        return {node.name: int(dense_flops(node)) for node in self._nodes}

    def of(self, metric: Metric, sizes: Sizes) -> int:
        """One of the two."""
        return self.flops(sizes) if metric == "flops" else self.params(sizes)

    def _kept(self, layout: Any, sizes: Sizes, given: int | torch.SymInt = 1) -> int:
        size = kept_size(self._report.analysis.unifier, layout, sizes)
        if isinstance(size, int):
            return size
        hint = given.node.hint if isinstance(given, torch.SymInt) else given
        return int(hint)

"""Parameters, FLOPs and members of a graph as functions of what each atom keeps, without rewriting the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn

from exprune_fx.cost import dense_flops
from exprune_fx.graph import copy_graph_module, tensor_at, tensor_names
from exprune_fx.static.axes import Sizes, kept_size
from exprune_fx.symmetry import SymmetryReport

Metric: TypeAlias = Literal["flops", "params"]


def graph_cost(gm: fx.GraphModule) -> tuple[int, int]:
    """Parameters that a graph reads, and its FLOPs at the example's sizes."""
    params = sum(tensor.numel() for name in tensor_names(gm) if isinstance(tensor := tensor_at(gm, name), nn.Parameter))
    nodes = _counted(gm)
    for each in {each for node in nodes for each in (node, *node.all_input_nodes)}:
        if isinstance(each.meta.get("val"), torch.Tensor):
            _set_shape(each, [_hint(size) for size in each.meta["val"].shape])
    return params, sum(int(dense_flops(node)) for node in nodes)


def _counted(gm: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a copy of a graph that have FLOPs."""
    return [node for node in copy_graph_module(gm).graph.nodes if dense_flops(node) != 0]


def _set_shape(node: fx.Node, shape: Sequence[int]) -> None:
    node.meta["val"] = torch.empty(shape, device="meta")


def _hint(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


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
        self._nodes = _counted(gm)

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
                    _set_shape(each, [self._kept(a, sizes, s) for a, s in zip(axes, given, strict=True)])
        return {node.name: int(dense_flops(node)) for node in self._nodes}

    def of(self, metric: Metric, sizes: Sizes) -> int:
        """One of the two."""
        return self.flops(sizes) if metric == "flops" else self.params(sizes)

    def _kept(self, layout: Any, sizes: Sizes, given: int | torch.SymInt = 1) -> int:
        size = kept_size(self._report.analysis.unifier, layout, sizes)
        return size if isinstance(size, int) else _hint(given)

"""Lets values keep another memory layout on their way through a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from exprune_fx.graph.edits import copy_graph_module, insert_call, is_call, recompile, replace_node
from exprune_fx.pass_manager import PassResult

aten = torch.ops.aten


@dataclass(frozen=True)
class ReshapeViewsPass:
    """Replaces ``view`` by ``reshape`` in a graph with two-dimensional convolutions.

    Capture writes `view`, for the layouts that it saw. A fused convolution, and a dense one with a channels-last
    weight, give channels-last, of which a flatten is no view; `reshape` copies where it has to, else it is a view.

    Requires: nothing.
    Ensures: the same values, in whatever layout a node's input is.
    Not valid after: nothing.
    """

    name: ClassVar[str] = "reshape-views"

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Rewrites every view of a copy, if a convolution is there."""
        if not any(_is_convolution(node) for node in gm.graph.nodes):
            return PassResult(gm, changed=False, edits=0)
        if not any(is_call(node, aten.view.default) for node in gm.graph.nodes):
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        views = [node for node in result.graph.nodes if is_call(node, aten.view.default)]
        for view in views:
            made = insert_call(result, aten.reshape.default, view.args, like=view, made_by=self.name, before=view)
            replace_node(result, view, made)
        recompile(result)
        return PassResult(result, changed=True, edits=len(views))


def _is_convolution(node: fx.Node) -> bool:
    return is_call(node, aten.conv2d.default, aten.conv2d.padding, torch.ops.exprune.finish_conv_relu.default)

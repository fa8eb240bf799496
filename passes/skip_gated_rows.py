"""Lets the gate of ``relu(a) * linear(x)`` say which rows of the other branch are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from exprune_fx.graph.edits import copy_graph_module, insert_call, is_call, recompile, remove_dead, replace_node
from exprune_fx.pass_manager import PassResult
from exprune_fx.staging import ROLE_KEY, SITE_KEY

aten = torch.ops.aten
exprune = torch.ops.exprune


@dataclass(frozen=True)
class SkipGatedRowsPass:
    """Replaces ``finish(...) * linear(x, w, b)`` by ``gated_linear(finish(...), x, w, b)``.

    Requires: staged sites (their ``finish_*`` nodes have exact zeros).
    Ensures: the same values wherever the linear branch is finite; where the gate is 0 the product is exactly 0.
    Matches only where the product is the gate's and the branch's one use and their shapes are equal.
    Not valid after: nothing.
    """

    name: ClassVar[str] = "skip-gated-rows"

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Rewrites every match of a copy."""
        if not any(_match(node) for node in gm.graph.nodes):
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        matches = [found for node in result.graph.nodes if (found := _match(node)) is not None]
        for product, gate, branch in matches:
            bias = branch.args[2] if len(branch.args) > 2 else None
            args = (gate, branch.args[0], branch.args[1], bias)
            made = insert_call(
                result, exprune.gated_linear.default, args, like=branch, made_by=self.name, before=product
            )
            made.meta[SITE_KEY], made.meta[ROLE_KEY] = gate.meta[SITE_KEY], "gated"
            replace_node(result, product, made)
        remove_dead(result)
        recompile(result)
        return PassResult(result, changed=True, edits=len(matches))


def _match(product: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """(product, gate, branch) if this node is a staged gate times a linear branch."""
    if not is_call(product, aten.mul.Tensor):
        return None
    for gate, branch in (product.args, reversed(product.args)):
        if (
            isinstance(gate, fx.Node)
            and isinstance(branch, fx.Node)
            and gate.meta.get(ROLE_KEY) == "finish"
            and is_call(branch, aten.linear.default)
            and len(gate.users) == len(branch.users) == 1
            and gate.meta["val"].shape == branch.meta["val"].shape
        ):
            return product, gate, branch
    return None

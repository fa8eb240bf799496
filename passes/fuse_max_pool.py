"""Joins a fused convolution whose neurons are rivals and the max pool that alone reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from exprune_fx.graph.edits import copy_graph_module, insert_call, is_call, recompile, remove_dead, replace_node
from exprune_fx.pass_manager import PassResult
from exprune_fx.sites.pooled import pool_window
from exprune_fx.staging import ROLE_KEY, SITE_KEY
from exprune_fx.staging.arguments import arguments_of, in_order

exprune = torch.ops.exprune


@dataclass(frozen=True)
class FuseMaxPoolPass:
    """``max_pool2d(staged_conv2d_relu(..., window=w))`` -> ``staged_conv2d_relu(..., window=w, pools=True)``.

    The operator then writes what the pool would pass on, a fraction of the numbers, and nobody reads the others.

    Requires: lowered sites, and the fused operators registered.
    Ensures: bit for bit the same values: all activations are at least 0, as is what stops. Matches only where the pool
    is the convolution's one reader and its windows are those in which the neurons are rivals (`sites.pooled`).
    Not valid after: nothing.
    """

    name: ClassVar[str] = "fuse-max-pool"

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Joins every match of a copy."""
        if not any(map(_matches, gm.graph.nodes)):
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        found = [node for node in result.graph.nodes if _matches(node)]
        target = exprune.staged_conv2d_relu.default
        for node in found:
            (pool,) = node.users
            args = in_order(target, {**arguments_of(node), "pools": True})
            made = insert_call(result, target, args, like=node, made_by=self.name, before=pool)
            made.meta[SITE_KEY], made.meta[ROLE_KEY] = node.meta[SITE_KEY], "fused"
            replace_node(result, pool, made)
        remove_dead(result)
        recompile(result)
        return PassResult(result, changed=True, edits=len(found))


def _matches(node: fx.Node) -> bool:
    if not is_call(node, exprune.staged_conv2d_relu.default):
        return False
    given, pool = arguments_of(node), pool_window(node)
    return pool is not None and not given["pools"] and tuple(given["window"] or ()) == pool.kernel

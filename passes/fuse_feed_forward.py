"""Joins a site and the linear layer that alone reads it: of that layer only the columns of nonzero units are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx
from torch.fx.node import Argument

from exprune_fx.graph.edits import copy_graph_module, insert_call, is_call, recompile, remove_dead, replace_node
from exprune_fx.pass_manager import PassResult
from exprune_fx.sites import Site
from exprune_fx.staging import ROLE_KEY, SITE_KEY
from exprune_fx.staging.arguments import arguments_of, in_order
from exprune_fx.staging.holding import obstacle_in_tensors

aten = torch.ops.aten
exprune = torch.ops.exprune


@dataclass(frozen=True)
class FuseFeedForwardPass:
    """Replaces ``linear(staged_linear_relu(...), w, b)`` by ``staged_ffn``, and the gated form by ``staged_gated_ffn``.

    Requires: lowered sites, and the fused operators registered.
    Ensures: the same values to rounding. Matches only where the site has no residual and its activation has this one
    use, where gate and value read the same input, where all weights have one dtype, and where the second layer is no
    site of its own; sites named in ``unstaged`` are joined as they are, with no head.
    Not valid after: nothing.

    Attributes:
        sites: of the graph before staging.
        unstaged: names of dense sites whose zeros alone are worth skipping.
    """

    name: ClassVar[str] = "fuse-feed-forward"

    sites: tuple[Site, ...] = ()
    unstaged: tuple[str, ...] = ()

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Joins every match of a copy."""
        if not self._matches(gm):
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        matches = self._matches(result)
        for found in matches:
            args = in_order(found.target, found.given)
            made = insert_call(result, found.target, args, like=found.first, made_by=self.name, before=found.linear)
            made.meta[SITE_KEY], made.meta[ROLE_KEY] = found.site, "fused"
            replace_node(result, found.linear, made)
        remove_dead(result)
        recompile(result)
        return PassResult(result, changed=True, edits=len(matches))

    def _matches(self, gm: fx.GraphModule) -> list[_Match]:
        unstaged = {site.activation_node: site for site in self.sites if site.name in self.unstaged}
        reductions = {site.node for site in self.sites}
        seconds = [
            node for node in gm.graph.nodes if is_call(node, aten.linear.default) and node.name not in reductions
        ]
        return [found for node in seconds if (found := _match(node, unstaged)) is not None]


@dataclass(frozen=True, eq=False)
class _Match:
    """What to insert in the place of ``linear``: ``target`` on the arguments given by name."""

    linear: fx.Node
    first: fx.Node
    site: str
    target: torch._ops.OpOverload
    given: dict[str, Argument]


def _parameters(linear: fx.Node) -> tuple[Argument, Argument]:
    return linear.args[1], linear.args[2] if len(linear.args) > 2 else linear.kwargs.get("bias")


def _match(linear: fx.Node, unstaged: dict[str, Site]) -> _Match | None:
    hidden, weight = linear.args[0], linear.args[1]
    if not isinstance(hidden, fx.Node) or len(hidden.users) != 1:
        return None
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    if is_call(hidden, exprune.gated_linear.default):
        found = _gated(linear, hidden)
    elif hidden.name in unstaged:
        found = _unstaged(linear, unstaged[hidden.name])
    else:
        found = _plain(linear, hidden)
    return found if found is not None and _kernels_hold(found) else None


def _plain(linear: fx.Node, hidden: fx.Node) -> _Match | None:
    given = _without_residual(hidden)
    if given is None:
        return None
    return _Match(linear, hidden, hidden.meta[SITE_KEY], exprune.staged_ffn.default, {**given, **_second(linear)})


def _gated(linear: fx.Node, product: fx.Node) -> _Match | None:
    gate, x, weight, bias = product.args
    if not isinstance(gate, fx.Node) or len(gate.users) != 1:
        return None
    given = _without_residual(gate)
    if given is None or given["x"] is not x:
        return None
    both = {**given, "weight_value": weight, "bias_value": bias, **_second(linear)}
    return _Match(linear, gate, gate.meta[SITE_KEY], exprune.staged_gated_ffn.default, both)


def _unstaged(linear: fx.Node, site: Site) -> _Match | None:
    """A dense site: Linear -> activation, nothing between, every value with one use."""
    before = {node.name: node for node in linear.graph.nodes}
    first = before.get(site.node)
    if first is None or not is_call(first, aten.linear.default) or site.residual or site.chain or site.obstacle:
        return None
    weight, bias = _parameters(first)
    layer: dict[str, Argument] = {"x": first.args[0], "weight": weight, "bias": bias, "activation": site.activation}
    given = {**layer, **_NO_HEAD, **_second(linear)}
    return _Match(linear, first, site.name, exprune.staged_ffn.default, given)


_NO_HEAD: dict[str, Argument] = {
    "down": None, "up": None, "stages": [], "block": 1, "guard": "none", "number": 0.0, "limits": None,
}  # fmt: skip


def _second(linear: fx.Node) -> dict[str, Argument]:
    weight, bias = _parameters(linear)
    return {"weight_out": weight, "bias_out": bias}


def _without_residual(node: fx.Node) -> dict[str, Argument] | None:
    """A lowered linear site's arguments; None if it has a residual, or is no such site."""
    if not is_call(node, exprune.staged_linear_relu.default):
        return None
    given = arguments_of(node)
    return given if given["residual"] is None else None


def _kernels_hold(found: _Match) -> bool:
    """Whether all that is joined is on the CPU and has one dtype that the kernels compute in."""
    given = [value for name, value in found.given.items() if name != "limits"]
    return not obstacle_in_tensors(found.linear, *given)

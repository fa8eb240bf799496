"""The products of matrices and convolutions that are no site, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy
import torch
from torch import fx

from exprune_fx.cost import dense_flops
from exprune_fx.report.facts import OtherFacts, Sizes
from exprune_fx.sites import Site
from exprune_fx.sites.find import is_reduction
from exprune_fx.staging import ROLE_KEY, SITE_KEY

_aten = torch.ops.aten
_AFFINE = (_aten.add.Tensor, _aten.batch_norm.default)
_RELU_LIKE = (
    _aten.relu.default,
    _aten.relu6.default,
    _aten.hardtanh.default,
    _aten.clamp.default,
    _aten.clamp_min.default,
)


def other_facts(
    gm: fx.GraphModule, sites: Sequence[Site], sizes: Sizes, joined: Mapping[str, str]
) -> tuple[OtherFacts, ...]:
    """Every node that costs FLOPs and belongs to no site.

    Args:
        gm: the normalised, not yet staged graph.
        sites: its sites.
        sizes: how its FLOPs come to one example.
        joined: names of weights whose layer a site's operator computes too, with the site.
    """
    known = {site.node for site in sites} | {site.gated.node for site in sites if site.gated}
    nodes = [(node, dense_flops(node)) for node in gm.graph.nodes if node.name not in known]
    return tuple(
        OtherFacts(_name(node), operator_name(node), sizes.fraction(flops), _why_no_site(node, joined))
        for node, flops in nodes
        if flops != sympy.Integer(0)
    )


def operator_name(node: fx.Node) -> str:
    """An operator as the printed graph spells it, without its namespace."""
    target = node.target
    return target._schema.name.partition("::")[2] if isinstance(target, torch._ops.OpOverload) else str(target)


def _name(node: fx.Node) -> str:
    return str(node.meta.get("module_path") or node.name)


def joined_weights(gm: fx.GraphModule) -> dict[str, str]:
    """The second layers that fused feed-forwards compute: names of their weights, and the site that each belongs to."""
    fused = [node for node in gm.graph.nodes if node.meta.get(ROLE_KEY) == "fused" and "_ffn" in operator_name(node)]
    return {str(node.args[-2].target): node.meta[SITE_KEY] for node in fused}


def _why_no_site(node: fx.Node, joined: Mapping[str, str]) -> str:
    if not is_reduction(node):
        return "it has no parameter as its weight, so its terms are not fixed before the input comes"
    weight = node.args[1]
    if isinstance(weight, fx.Node) and str(weight.target) in joined:
        return f"no site, but computed together with {joined[str(weight.target)]}: the zeros from there are skipped"
    step = node
    while True:
        users = list(step.users)
        if len(users) != 1:
            return f"its result is read in {len(users)} places, so the whole of it is needed"
        user = users[0]
        if user.op == "output":
            return "its result is an output of the model, no ReLU-like activation follows"
        if user.target in _RELU_LIKE:
            return (
                "another reduction of the same sum is the site" if step is not node else f"{user} is not a plain ReLU"
            )
        if user.target not in _AFFINE:
            return f"its result meets {operator_name(user)}, not a ReLU-like activation"
        step = user

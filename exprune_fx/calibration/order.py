"""The order of terms: which permutation of each free group puts the terms that vary most first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from exprune_fx.calibration.moments import VarianceObserver, falling_order
from exprune_fx.calibration.observe import Data
from exprune_fx.cost import dense_flops, evaluate
from exprune_fx.sites import Site
from exprune_fx.symmetry import SymmetryReport


def find_orders(
    data: Data, gm: fx.GraphModule, groups: SymmetryReport, sites: Sequence[Site]
) -> dict[str, tuple[int, ...]]:
    """For each group that sites run over, its members by falling variance of their terms."""
    sizes = {group.name: group.size for group in groups if group.free and group.repeats == 1}
    on_groups = [site for site in sites if site.input_group in sizes and sizes[site.input_group] == site.terms]
    if not on_groups:
        return {}
    observer = VarianceObserver({site.name for site in on_groups})
    data.walk(gm, sites, observer, "variances")  # all sites: the first that is not finite is the one to name
    nodes = {node.name: node for node in gm.graph.nodes}
    scores: dict[str, Tensor] = {}
    for site in on_groups:
        variance = observer.term_variances(site)
        flops = evaluate(dense_flops(nodes[site.node]), data.sizes)
        share = variance * (flops / variance.sum().clamp_min(torch.finfo(torch.float64).tiny))
        assert site.input_group is not None
        scores[site.input_group] = scores.get(site.input_group, torch.zeros_like(share)) + share
    return {name: falling_order(score.tolist()) for name, score in scores.items()}

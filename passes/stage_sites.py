"""Rewrites planned sites into their readable staged form: partial sum, guard, finish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from exprune_fx.errors import PassError, PlanError
from exprune_fx.graph.edits import copy_graph_module, recompile, remove_dead
from exprune_fx.ops import coded
from exprune_fx.pass_manager import PassResult
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.sites import Site, find_sites
from exprune_fx.staging import SITE_KEY, stage_site


@dataclass(frozen=True)
class StageSitesPass:
    """Splits each planned site's reduction in stages: head, guard, ..., finish.

    Requires: a normalised graph (batch norm folded), its terms in the plan's order.
    Ensures: each planned site's activation is a ``finish_*`` node that is exactly 0 where a guard stopped, and equals
    the dense value elsewhere to rounding; ``meta`` of guard and finish nodes names the site, role and stage; sites
    that the plan leaves dense, and all else, are as before.
    Not valid after: fold-batch-norm and commute-relu-max-pool have nothing to find in a staged site.

    Raises:
        PlanError: an entry does not fit its site.
        PassError: an entry asks for what cannot be staged.
    """

    name: ClassVar[str] = "stage-sites"

    plan: Plan

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Stages every planned site of a copy."""
        done = {node.meta[SITE_KEY] for node in gm.graph.nodes if SITE_KEY in node.meta}
        due = [entry for entry in self.plan.staged if entry.site not in done]
        if not due:
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        sites = {site.name: site for site in find_sites(result)}
        nodes = {node.name: node for node in result.graph.nodes}
        for entry in due:
            site = sites.get(entry.site)
            _check(entry, site, self.name)
            assert site is not None
            stage_site(result, site, entry, nodes, self.name)
        remove_dead(result)
        recompile(result)
        return PassResult(result, changed=True, edits=len(due))


def _check(entry: SitePlan, site: Site | None, pass_name: str) -> None:
    at = f"{pass_name}: site {entry.site!r}"
    if site is None:
        raise PlanError(f"{at} is in the plan, not in the graph", hint="give the plan that was made for this model")
    if site.weight_shape != entry.weight_shape:
        raise PlanError(
            f"{at} has weight {list(site.weight_shape)}, the plan was made for {list(entry.weight_shape)}",
            hint="give the plan that was made for this model",
        )
    if site.obstacle:
        raise PassError(f"{at} cannot be staged: {site.obstacle}", hint="leave it dense in the plan")
    if entry.window and (site.pool is None or site.pool.kernel != entry.window):
        raise PlanError(
            f"{at}: the plan lets neurons be rivals in windows of {list(entry.window)}, and here "
            + (f"they stand in windows of {list(site.pool.kernel)}" if site.pool else "no max pool alone reads them"),
            hint="give the plan that was made for this model",
        )
    if entry.stages[-1] >= site.terms and entry.head == "prefix":
        raise PlanError(f"{at} has {site.terms} terms, stages are {list(entry.stages)}", hint="stop before the last")
    if entry.head == "principal" and site.geometry is not None and site.geometry.groups > 1:
        raise PassError(f"{at} is a grouped convolution: no principal head", hint="use a prefix head")
    if entry.head == "coded":
        groups = 1 if site.geometry is None else site.geometry.groups
        if reason := coded.obstacle(site.weight_shape, groups):
            raise PassError(f"{at}: no coded head: {reason}", hint="use a prefix head")
    if entry.guard is not None and entry.guard.needs_exchangeability and not site.exchangeable:
        raise PassError(f"{at}: {entry.guard} needs exchangeable terms: {site.reason}", hint="use Calibrated or Bound")

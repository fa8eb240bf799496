"""Thresholds made again site after site, each on the inputs that the staged sites before it really give it.

Calibration looks at the dense model. Where many sites stop neurons, a later site reads inputs that lack what earlier
ones stopped, and thresholds made for whole inputs then stop more, or less, than they were to.
"""

from __future__ import annotations

from dataclasses import replace

from exprune_fx.calibration.candidates import Candidate
from exprune_fx.calibration.counting import count_outcomes
from exprune_fx.calibration.decide import dense_entry, staged_entry
from exprune_fx.calibration.fit import fit_thresholds
from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.graph.edits import tensor_at
from exprune_fx.guards import Calibrated
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.sites import find_sites
from exprune_fx.symmetry import symmetries


def refit(graph: Prepared, data: Data, plan: Plan) -> Plan:
    """The same heads, ranks and budgets, with the thresholds that they get on staged inputs.

    Reads the calibration data twice and once more a stage for every site with a `Calibrated` guard, each time as far as
    that site. Bases of principal heads and the order of terms stay.

    Args:
        graph: the dense graph, its terms in the plan's order.
        data: calibration data.
        plan: of this graph.
    """
    done: dict[str, SitePlan] = {}
    dense = {site.name: dense_entry(site, "not yet refitted") for site in graph.sites}
    for entry in plan.sites:
        if isinstance(entry.guard, Calibrated) and entry.is_staged:
            done[entry.site] = _refitted(graph, data, Plan(tuple({**dense, **done}.values())), entry)
        elif entry.is_staged:
            done[entry.site] = entry
    return replace(plan, sites=tuple(done.get(entry.site, entry) for entry in plan.sites))


def _refitted(graph: Prepared, data: Data, before: Plan, entry: SitePlan) -> SitePlan:
    """The entry of one site, those before it being staged."""
    assert entry.guard is not None
    assert entry.is_staged
    gm = StageSitesPass(before)(graph.gm).graph_module if before.staged else graph.gm
    site = next(site for site in find_sites(gm, symmetries(gm)) if site.name == entry.site)
    weight = tensor_at(gm, site.weight).detach()
    down, lift = (None if array is None else array.tensor().to(weight.dtype) for array in (entry.down, entry.lift))
    candidate = Candidate(site, entry.looks_at, entry.stages, entry.guard, weight, down, lift)
    thresholds = fit_thresholds(data, gm, [candidate])
    (outcome,) = count_outcomes(data, gm, [candidate], thresholds).values()
    return staged_entry(outcome, thresholds, f"{entry.reason}; thresholds on staged inputs")

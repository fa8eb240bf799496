"""What is staged where no plan says it: rules that are safe without data."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from exprune_fx.backend.once import inform, warn
from exprune_fx.backend.options import DEFAULT_GUARD, DEFAULT_STAGES, HOW_TO_CALIBRATE, Options
from exprune_fx.calibration.request import Request
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.sites import Site


def plan_without_data(sites: Sequence[Site], options: Options, refused: Collection[str] = ()) -> Plan:
    """A plan for one graph: prefix heads at the same shares of the terms for every site that the guard may stage.

    Args:
        sites: of the normalised graph.
        options: what the caller asked for.
        refused: names of sites that are to stay dense.
    """
    guard, stages = options.guard or DEFAULT_GUARD, options.stages or DEFAULT_STAGES
    request = Request(guard, stages, "prefix", options.objective or "flops")
    say = inform if options.chosen else warn
    say(f"no plan was given: {guard} needs no data, but stops little; a calibrated plan does more: {HOW_TO_CALIBRATE}")
    entries = []
    for site in sites:
        reason = "no native kernel holds it" if site.name in refused else request.refusal(site)
        if reason:
            entries.append(SitePlan(site.name, site.weight_shape, reason=f"dense: {reason}"))
            continue
        terms = request.prefix_stages(site)
        words = f"{guard} after {', '.join(map(str, terms))} of {site.terms} terms"
        entries.append(SitePlan(site.name, site.weight_shape, "prefix", words, guard, terms))
    return Plan(tuple(entries), objective=request.objective)

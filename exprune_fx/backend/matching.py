"""Which entries of a plan are those of one of Dynamo's graphs: by module path and weight shape."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from exprune_fx.backend.once import inform
from exprune_fx.backend.orders import Root, find_orders
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.sites import Site
from exprune_fx.symmetry import SymmetryReport


def plan_for_graph(plan: Plan, sites: Sequence[Site], groups: SymmetryReport) -> Plan:
    """A plan with one entry for each site of one graph, which may be a part of the model that the plan was made for.

    Args:
        plan: made for the whole model.
        sites: of the normalised graph, at least one.
        groups: its symmetries.

    Raises:
        PlanError: no site of the graph is in the plan, or one has another weight there; lists every difference.
    """
    roots = _roots(plan, sites)
    if not roots or (len(roots) == 1 and _other_shapes(plan, sites, roots[0])):
        _refuse(plan, sites)
    found = [_entries(plan, sites, root) for root in roots]
    entries = {site.name: _agreed(site, [each.get(site.name) for each in found]) for site in sites}
    whole = len(roots) == 1 and len(plan.sites) == len(found[0]) == len(sites)
    orders = find_orders(plan, roots[0], groups, whole=whole)
    by_name = {site.name: site for site in sites}
    for name, entry in entries.items():
        obstacle = orders.obstacle(by_name[name], entry) if entry.is_staged else ""
        if obstacle:
            inform(f"site {name!r} stays dense: {obstacle}")
            entries[name] = _dense(by_name[name], obstacle)
    applied = orders.needed((by_name[name], entry) for name, entry in entries.items())
    adapted = tuple(orders.relabelled(site, _without_rivals(site, entries[site.name]), applied) for site in sites)
    return replace(plan, sites=adapted, orders=applied)


def _base(name: str) -> str:
    """The module path in a site's name."""
    return name.partition("#")[0]


def _roots(plan: Plan, sites: Sequence[Site]) -> list[Root]:
    """Where this graph's module paths may start in the plan; none where nothing fits.

    Dynamo starts paths at the module whose forward it compiles: after a graph break a part of the model, where the
    model is called by another module that one. Only what fits most sites is kept, and alone where paths are the same.
    """
    planned = {(_base(entry.site), entry.weight_shape) for entry in plan.sites}
    here = {(_base(site.name), site.weight_shape) for site in sites}
    candidates = {Root()}
    for (path, shape), (base, shape_here) in itertools.product(planned, here):
        if shape == shape_here and path.endswith(f".{base}"):
            candidates.add(Root(plan=path.removesuffix(base)))
        if shape == shape_here and base.endswith(f".{path}"):
            candidates.add(Root(graph=base.removesuffix(path)))
    fitting = {
        root: sum((in_plan, shape) in planned for base, shape in here if (in_plan := root.in_plan(base)) is not None)
        for root in candidates
    }
    most = max(fitting.values())
    best = [root for root, count in fitting.items() if count == most > 0]
    return [Root()] if Root() in best else sorted(best, key=lambda root: (root.plan, root.graph))


def _other_shapes(plan: Plan, sites: Sequence[Site], root: Root) -> bool:
    planned = {entry.site: entry.weight_shape for entry in plan.sites}
    names = ((root.in_plan(site.name), site.weight_shape) for site in sites)
    return any(name in planned and planned[name] != shape for name, shape in names if name is not None)


def _refuse(plan: Plan, sites: Sequence[Site]) -> NoReturn:
    plan.check_fits(sites)
    raise AssertionError("a plan that fits has a root")


def _entries(plan: Plan, sites: Sequence[Site], root: Root) -> dict[str, SitePlan]:
    """The entry of each site that has one, under the site's own name."""
    by_name = {entry.site: entry for entry in plan.sites}
    calls = Counter(_base(entry.site) for entry in plan.sites)
    calls_here = Counter(_base(site.name) for site in sites)
    found = {}
    for site in sites:
        entry = by_name.get(root.in_plan(site.name) or "")
        if entry is None or calls[_base(entry.site)] != calls_here[_base(site.name)]:
            continue  # of a module's several calls, nobody knows which this one is
        if entry.weight_shape == site.weight_shape:
            found[site.name] = replace(entry, site=site.name)
    return found


def _agreed(site: Site, entries: Sequence[SitePlan | None]) -> SitePlan:
    """The entry that all prefixes give; dense where they differ: one compiled graph serves all these modules."""
    first = entries[0]
    if first is None or any(entry is None for entry in entries):
        reason = "the plan has no entry of its own for it"
    elif any(_decision(entry) != _decision(first) for entry in entries if entry is not None):
        reason = f"after a graph break one graph serves {len(entries)} modules, for which the plan decides differently"
    else:
        return first
    inform(f"site {site.name!r} stays dense: {reason}")
    return _dense(site, reason)


def _decision(entry: SitePlan) -> tuple[object, ...]:
    numbers = (entry.thresholds, entry.margins, entry.window, entry.down, entry.lift)
    return entry.head, entry.guard, entry.stages, numbers


def _without_rivals(site: Site, entry: SitePlan) -> SitePlan:
    """The entry without its margins where this graph does not show the max pool that they are for: fewer stop then."""
    if not entry.window or (site.pool is not None and site.pool.kernel == entry.window):
        return entry
    inform(f"site {site.name!r}: its max pool is in another graph, its neurons stop by their thresholds alone")
    return replace(entry, margins=None, window=())


def _dense(site: Site, reason: str) -> SitePlan:
    return SitePlan(site.name, site.weight_shape, reason=f"dense: {reason}")

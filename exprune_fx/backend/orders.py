"""The orders of a plan in one of Dynamo's graphs: which can be applied there, and entries that do without."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from exprune_fx.plan import Array, Plan, SitePlan
from exprune_fx.sites import Site
from exprune_fx.symmetry import SymmetryGroup, SymmetryReport

Order = tuple[int, ...]
# See exprune_fx.symmetry.report: a parameter, its axis, perhaps a segment, perhaps a factor, perhaps a number.
_NAME = re.compile(r"(?P<target>.+)\[(?P<dim>\d+)\](\[(?P<start>\d+):(?P<stop>\d+)\])?(:[^#]*)?")


@dataclass(frozen=True)
class Root:
    """How a plan's names and a graph's differ.

    Attributes:
        plan: what only the plan's names start with, "" or with a dot at its end.
        graph: what only the graph's names start with, "" or with a dot at its end.
    """

    plan: str = ""
    graph: str = ""

    def in_plan(self, name: str) -> str | None:
        """The plan's name of what the graph calls so; None if it cannot be in the plan."""
        return self.plan + name.removeprefix(self.graph) if name.startswith(self.graph) else None

    def in_graph(self, name: str) -> str | None:
        """The graph's name of what the plan calls so; None if it cannot be in the graph."""
        return self.graph + name.removeprefix(self.plan) if name.startswith(self.plan) else None


@dataclass(frozen=True, eq=False)
class Orders:
    """The orders of a plan, as far as they concern the groups of one graph.

    Attributes:
        known: for each group of this graph that the plan reorders, its order; the group may be pinned here.
        elsewhere: sizes of the orders that may be those of an axis that is tied to another graph's.
        groups: of this graph.
    """

    known: Mapping[str, Order]
    elsewhere: frozenset[int]
    groups: SymmetryReport

    def obstacle(self, site: Site, entry: SitePlan) -> str:
        """Why an entry's numbers cannot be used here; "" if they can."""
        for dim in (0, 1):
            for group in self.groups.groups_of(site.weight, dim):
                if group.name not in self.known and not group.free and group.size in self.elsewhere:
                    what = f"the plan may reorder axis {dim} of its weight"
                    return f"{what}, which in this part of the model {group.reason}"
                if dim == 1 and group.name in self.known and entry.head == "prefix" and not group.free:
                    return f"the plan reorders its terms, and their axis in this part of the model {group.reason}"
        return ""

    def needed(self, staged: Iterable[tuple[Site, SitePlan]]) -> dict[str, Order]:
        """The orders that prefix heads rest on; all else can be written for the order that there is."""
        along = [
            group.name
            for site, entry in staged
            if entry.head == "prefix"
            for group in self.groups.groups_of(site.weight, 1)
        ]
        return {name: self.known[name] for name in dict.fromkeys(along) if name in self.known}

    def relabelled(self, site: Site, entry: SitePlan, applied: Mapping[str, Order]) -> SitePlan:
        """An entry for a graph in which only some orders are applied."""
        rows, columns = (self._places(site, dim, applied) for dim in (0, 1))
        return replace(
            entry,
            thresholds=_moved(entry.thresholds, 1, rows),
            margins=_moved(entry.margins, 1, rows),
            down=_moved(entry.down, 1, columns),
            lift=_moved(entry.lift, 0, columns),
        )

    def _places(self, site: Site, dim: int, applied: Mapping[str, Order]) -> torch.Tensor | None:
        """For each place along an axis in the plan's order, where it is found here; None where that is the same."""
        places = torch.arange(site.weight_shape[dim])
        for group in self.groups.groups_of(site.weight, dim):
            if group.name not in self.known or group.name in applied:
                continue
            member = next(m for m in group.members if (m.target, m.dim) == (site.weight, dim))
            for new, old in enumerate(self.known[group.name]):
                places[list(member.positions[new])] = torch.tensor(member.positions[old])
        return None if torch.equal(places, torch.arange(len(places))) else places


def _moved(array: Array | None, dim: int, places: torch.Tensor | None) -> Array | None:
    if array is None or places is None:
        return array
    values = array.tensor()
    return Array.of(torch.empty_like(values).index_copy_(dim, places, values))


def find_orders(plan: Plan, root: Root, groups: SymmetryReport, *, whole: bool) -> Orders:
    """Finds the groups that a plan reorders among those of one graph.

    Args:
        plan: made for the whole model.
        root: how names differ.
        groups: of the graph.
        whole: the graph has all sites of the plan, so that no axis is tied to one of another graph.
    """
    known: dict[str, Order] = {}
    elsewhere: set[int] = set()
    for name, order in plan.orders.items():
        group = _named(name, root, len(order), groups)
        if group is None or group.name in known:
            elsewhere.add(len(order))
        else:
            known[group.name] = order
        if not whole:
            elsewhere.add(len(order))
    return Orders(known, frozenset(elsewhere), groups)


def _named(name: str, root: Root, size: int, groups: SymmetryReport) -> SymmetryGroup | None:
    found = _NAME.fullmatch(name)
    target = root.in_graph(found["target"]) if found is not None else None
    if found is None or target is None:
        return None
    dim = int(found["dim"])
    fitting = [group for group in groups.groups_of(target, dim) if group.size == size and group.repeats == 1]
    if found["start"] is not None:
        segment = range(int(found["start"]), int(found["stop"]))
        fitting = [group for group in fitting if _lies_in(group, target, dim, segment)]
    return fitting[0] if len(fitting) == 1 else None


def _lies_in(group: SymmetryGroup, target: str, dim: int, segment: range) -> bool:
    members = [member for member in group.members if (member.target, member.dim) == (target, dim)]
    return all(place in segment for member in members for places in member.positions for place in places)

"""What an explanation holds, before anybody draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exprune_fx.plan import SiteTiming
from exprune_fx.report.facts import OtherFacts, SiteFacts, TotalFacts
from exprune_fx.report.groups import GroupFacts
from exprune_fx.report.heads import HeadFacts


@dataclass(frozen=True)
class Explained:
    """What `explain` found, as data.

    Attributes:
        staged: the graph was made by `transform`.
        totals: the whole model.
        sites: every site, in graph order.
        others: the matrix products and convolutions that are no site.
        groups: every symmetry group.
        orders: for each reordered group, which old member comes at each new position.
        machine: where the plan's timings were taken, in words; "" without timings.
        whole: what the whole compiled graph took, dense and staged; None where that was not measured.
        graph: the graph as Python text.
        heads: every prediction head, in graph order.
    """

    staged: bool
    totals: TotalFacts
    sites: tuple[SiteFacts, ...]
    others: tuple[OtherFacts, ...]
    groups: tuple[GroupFacts, ...]
    orders: Mapping[str, tuple[int, ...]]
    machine: str
    whole: SiteTiming | None
    graph: str
    heads: tuple[HeadFacts, ...] = ()

"""The graph that calibration looks at: normalised, and its terms in a better order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.order import find_orders
from exprune_fx.calibration.request import Request
from exprune_fx.errors import PlanError
from exprune_fx.passes.reorder_terms import ReorderTermsPass
from exprune_fx.pipeline import normalise, record_of
from exprune_fx.sites import Site, find_sites
from exprune_fx.symmetry import SymmetryReport, symmetries


@dataclass(frozen=True, eq=False)
class Prepared:
    """The dense graph and what is known of it."""

    gm: fx.GraphModule
    groups: SymmetryReport
    sites: tuple[Site, ...]

    @classmethod
    def of(cls, gm: fx.GraphModule) -> Prepared:
        """The normalised form of a captured graph.

        Raises:
            PlanError: it is staged already.
        """
        if record_of(gm) is not None:
            raise PlanError("this graph is staged already", hint="calibrate the graph that was given to transform")
        dense = normalise(gm)
        groups = symmetries(dense)
        return cls(dense, groups, find_sites(dense, groups))

    def chosen(self, request: Request) -> list[Site]:
        """The sites that may be staged."""
        return [site for site in self.sites if not request.refusal(site)]

    def ordered(self, data: Data, request: Request) -> tuple[Prepared, dict[str, tuple[int, ...]]]:
        """The graph with its terms in a better order, and that order; as it is where the guard or head wants none."""
        if not request.wants_prefix or request.guard.needs_exchangeability:
            return self, {}
        orders = find_orders(data, self.gm, self.groups, self.chosen(request))
        gm = ReorderTermsPass(orders)(self.gm).graph_module
        groups = symmetries(gm)
        return Prepared(gm, groups, find_sites(gm, groups)), orders

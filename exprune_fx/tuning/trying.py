"""Makes the graphs of many plans of one model, quickly: to be counted, and to be evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from exprune_fx.graph.edits import recompile
from exprune_fx.guards import FinitePopulation, Guard, StatsTest, Threshold
from exprune_fx.measurement import measure
from exprune_fx.ops import native
from exprune_fx.passes.lower_sites import LowerSitesPass
from exprune_fx.passes.reshape_views import ReshapeViewsPass
from exprune_fx.passes.skip_gated_rows import SkipGatedRowsPass
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.pipeline import RECORD_KEY, StagedRecord
from exprune_fx.plan import Plan
from exprune_fx.sites import find_sites
from exprune_fx.staging import ROLE_KEY, SITE_KEY
from exprune_fx.symmetry import symmetries
from exprune_fx.tuning.guard_space import GuardSpace, NumberSpace

_NUMBER_AT = {
    torch.ops.exprune.guard_threshold.default: 4,
    torch.ops.exprune.guard_stats_test.default: 5,
    torch.ops.exprune.guard_finite_population.default: 5,
}


@dataclass(frozen=True, eq=False)
class Made:
    """The graphs of one plan.

    Attributes:
        model: to be evaluated; lowered where kernels are there.
        fraction_removed: share of all FLOPs, tests counted, on the examples that the maker counts with.
    """

    model: fx.GraphModule
    fraction_removed: float


class Maker:
    """Makes trial graphs of one model.

    What does not depend on the plan is done once: normalising, ordering, finding symmetries and sites, and, where a
    setting only changes the numbers of the guards, staging too. Nothing is packed: a trial is not run for long.

    Args:
        dense: the normalised graph, its terms in the plans' order.
        space: the settings.
        counted: batches that FLOPs are counted on.
    """

    def __init__(self, dense: fx.GraphModule, space: GuardSpace, counted: Sequence[object]) -> None:
        dense = ReshapeViewsPass()(dense).graph_module
        groups = symmetries(dense)
        self._record = StagedRecord(Plan(), dense, find_sites(dense, groups), groups)
        self._space, self._counted = space, counted
        self._template: fx.GraphModule | None = None

    def make(self, setting: Sequence[float]) -> Made:
        """The graphs of one setting."""
        plan = self._space.plan(setting)
        if not plan.staged:
            return Made(self._record.dense, 0.0)
        space = self._space
        readable = self._numbered(plan, space) if isinstance(space, NumberSpace) else self._staged(plan)
        readable.meta[RECORD_KEY] = replace(self._record, plan=plan)
        removed = measure(readable, self._counted).fraction_removed
        model = LowerSitesPass()(readable).graph_module if native.available() else readable
        return Made(model, removed)

    def _staged(self, plan: Plan) -> fx.GraphModule:
        graph = StageSitesPass(plan)(self._record.dense).graph_module
        return SkipGatedRowsPass()(graph).graph_module

    def _numbered(self, plan: Plan, space: NumberSpace) -> fx.GraphModule:
        """The graph in which every site is staged, with the plan's numbers, or one that stops nobody."""
        if self._template is None:
            self._template = self._staged(space.plan((1.0,) * len(space.sites)))
        numbers: dict[str, float] = {}
        for entry in plan.staged:
            numbers[entry.site] = _number(entry.guard)
        never = float("inf") if space.kind == "finite_population" else float("-inf")
        for node in self._template.graph.nodes:
            if node.meta.get(ROLE_KEY) != "stopped":
                continue
            rule = node if node.target in _NUMBER_AT else node.args[1]  # a later stage is `earlier or rule`
            rule.update_arg(_NUMBER_AT[rule.target], numbers.get(node.meta[SITE_KEY], never))
        return recompile(self._template)


def _number(guard: Guard | None) -> float:
    if isinstance(guard, Threshold):
        return float(guard.threshold)
    assert isinstance(guard, StatsTest | FinitePopulation)
    return guard.quantile

"""One staged graph for all settings of a guard: only its numbers are written anew for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import fx

from exprune_fx.graph.edits import recompile
from exprune_fx.guards import FinitePopulation, Guard, StatsTest, Threshold
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

PlanOf = Callable[[Sequence[float]], Plan]
_NUMBER_AT = {
    torch.ops.exprune.guard_threshold.default: 4,
    torch.ops.exprune.guard_stats_test.default: 5,
    torch.ops.exprune.guard_finite_population.default: 5,
}


def record_to_stage(dense: fx.GraphModule) -> StagedRecord:
    """What many plans of a normalised graph, its terms in their order, are staged from."""
    dense = ReshapeViewsPass()(dense).graph_module
    groups = symmetries(dense)
    return StagedRecord(Plan(), dense, find_sites(dense, groups), groups)


def staged_by(record: StagedRecord, plan: Plan) -> fx.GraphModule:
    """The readable graph of one plan. Nothing is packed: a trial is not run for long."""
    graph = SkipGatedRowsPass()(StageSitesPass(plan)(record.dense).graph_module).graph_module
    graph.meta[RECORD_KEY] = replace(record, plan=plan)
    return graph


def quickest_form(readable: fx.GraphModule) -> fx.GraphModule:
    """With fused operators where there are kernels."""
    return LowerSitesPass()(readable).graph_module if native.available() else readable


class Template:
    """Staged graphs of one model by the settings of one guard.

    Staging squares of convolutions takes seconds, numbers take none. Sites that a setting leaves dense are staged with
    a number that stops nobody; what goes by the plan counts them as dense.

    Args:
        record: what is staged.
        plan_of: the plan of a setting: Threshold, StatsTest or FinitePopulation, the same at all sites.
        boldest: a setting in which every site is staged.
    """

    def __init__(self, record: StagedRecord, plan_of: PlanOf, boldest: Sequence[float]) -> None:
        self._record, self._plan_of = record, plan_of
        self._staged = staged_by(record, plan_of(boldest))

    def readable(self, setting: Sequence[float]) -> fx.GraphModule:
        """The readable graph of one setting, until the next one is asked for."""
        plan = self._plan_of(setting)
        numbers = {entry.site: _number(entry.guard) for entry in plan.staged}
        for node in self._staged.graph.nodes:
            if node.meta.get(ROLE_KEY) != "stopped":
                continue
            rule = node if node.target in _NUMBER_AT else node.args[1]  # a later stage is `earlier or rule`
            number = numbers.get(node.meta[SITE_KEY], _never(rule.target))
            rule.update_arg(_NUMBER_AT[rule.target], number)
        self._staged.meta[RECORD_KEY] = replace(self._record, plan=plan)
        return recompile(self._staged)

    def model(self, setting: Sequence[float]) -> fx.GraphModule:
        """The graph to evaluate one setting with."""
        return quickest_form(self.readable(setting))


def _never(rule: object) -> float:
    """The number with which a rule stops nobody."""
    return float("inf") if rule is torch.ops.exprune.guard_finite_population.default else float("-inf")


def _number(guard: Guard | None) -> float:
    if isinstance(guard, Threshold):
        return float(guard.threshold)
    assert isinstance(guard, StatsTest | FinitePopulation)
    return guard.quantile

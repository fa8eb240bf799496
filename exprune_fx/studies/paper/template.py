"""One staged graph for all settings of one of the paper's guards: only its numbers are written anew for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from exprune_fx.calibration.prepare import Prepared
from exprune_fx.graph.edits import recompile
from exprune_fx.guards import Guard, StatsTest, Threshold
from exprune_fx.ops import native
from exprune_fx.passes.lower_sites import LowerSitesPass
from exprune_fx.passes.reshape_views import ReshapeViewsPass
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.pipeline import RECORD_KEY, StagedRecord
from exprune_fx.plan import Plan
from exprune_fx.sites import find_sites
from exprune_fx.staging import ROLE_KEY, SITE_KEY
from exprune_fx.studies.paper.guards import GuardSpace
from exprune_fx.symmetry import symmetries

_NUMBER_AT = {torch.ops.exprune.guard_threshold.default: 4, torch.ops.exprune.guard_stats_test.default: 5}


class Template:
    """Staged graphs of one model by the settings of one guard.

    Staging squares of convolutions takes seconds, numbers take none. Sites that a setting leaves dense are staged with
    a number that stops nobody; `Counting` goes by the plan, and counts them as dense.

    Args:
        prepared: the model.
        space: the settings.
    """

    def __init__(self, prepared: Prepared, space: GuardSpace) -> None:
        dense = ReshapeViewsPass()(prepared.gm).graph_module
        groups = symmetries(dense)
        self._record = StagedRecord(Plan(), dense, find_sites(dense, groups), groups)
        self._space = space
        self._staged = StageSitesPass(space.plan(space.diagonal[-1]))(dense).graph_module

    def readable(self, setting: Sequence[float]) -> fx.GraphModule:
        """The readable graph of one setting, until the next one is asked for."""
        plan = self._space.plan(setting)
        numbers = {entry.site: _number(entry.guard) for entry in plan.staged}
        for node in self._staged.graph.nodes:
            if node.meta.get(ROLE_KEY) == "stopped":
                node.update_arg(_NUMBER_AT[node.target], numbers.get(node.meta[SITE_KEY], float("-inf")))
        self._staged.meta[RECORD_KEY] = replace(self._record, plan=plan)
        return recompile(self._staged)

    def model(self, setting: Sequence[float]) -> fx.GraphModule:
        """The same with fused operators where there are kernels."""
        readable = self.readable(setting)
        return LowerSitesPass()(readable).graph_module if native.available() else readable


def _number(guard: Guard | None) -> float:
    if isinstance(guard, Threshold):
        return float(guard.threshold)
    assert isinstance(guard, StatsTest)
    return guard.quantile

"""ReshapeViewsPass: golden line beside its input, and graphs that it leaves alone."""

from __future__ import annotations

import torch

from exprune_fx.graph.printing import python_text
from exprune_fx.guards import Calibrated
from exprune_fx.passes.reshape_views import ReshapeViewsPass
from exprune_fx.passes.stage_sites import StageSitesPass
from tests.passes.staging import ResidualNet, SquaredNet, plan_for, randomised
from tests.passes.test_lower_sites import captured


def test_golden() -> None:
    gm, x = captured(randomised(ResidualNet()), 3, 8, 8)
    before = StageSitesPass(plan_for(gm, Calibrated(0.1)))(gm).graph_module
    view = "    view = aten.view(max_pool2d, [sym_size, 128])  # f32[s0, 128]"
    assert view in python_text(before).split("\n")
    result = ReshapeViewsPass()(before)
    assert result.edits == 1
    changed = python_text(before).replace(view, view.replace("view", "reshape"))
    assert python_text(result.graph_module) == changed.replace("(view", "(reshape")
    assert torch.equal(result.graph_module(x), before(x))
    assert not ReshapeViewsPass()(result.graph_module).changed


def test_a_graph_without_staged_convolutions_is_left_alone() -> None:
    gm, _ = captured(randomised(ResidualNet()), 3, 8, 8)
    assert any("view" in str(node.target) for node in gm.graph.nodes)
    assert not ReshapeViewsPass()(gm).changed
    gm, _ = captured(randomised(SquaredNet()), 6)
    assert not ReshapeViewsPass()(StageSitesPass(plan_for(gm, Calibrated(0.1)))(gm).graph_module).changed

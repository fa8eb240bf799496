"""ReshapeViewsPass: golden line beside its input, and graphs that it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.graph.printing import python_text
from exprune_fx.guards import Calibrated
from exprune_fx.passes.reshape_views import ReshapeViewsPass
from exprune_fx.passes.stage_sites import StageSitesPass
from tests.passes.staging import ResidualNet, plan_for, randomised
from tests.passes.test_lower_sites import captured

VIEW = "    view = aten.view(max_pool2d, [sym_size, 128])  # f32[s0, 128]"


@pytest.mark.parametrize("staged", [False, True])
def test_golden(staged: bool) -> None:
    before, x = captured(randomised(ResidualNet()), 3, 8, 8)
    if staged:
        before = StageSitesPass(plan_for(before, Calibrated(0.1)))(before).graph_module
    assert VIEW in python_text(before).split("\n")
    result = ReshapeViewsPass()(before)
    assert result.edits == 1
    changed = python_text(before).replace(VIEW, VIEW.replace("view", "reshape"))
    assert python_text(result.graph_module) == changed.replace("(view", "(reshape")
    assert torch.equal(result.graph_module(x), before(x))
    assert not ReshapeViewsPass()(result.graph_module).changed


class _Heads(nn.Module):
    """Views without a convolution, and a convolution in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv = nn.Linear(6, 8), nn.Conv1d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.fc(x).view(-1, 2, 4)).flatten(1)
        return y


def test_a_graph_without_two_dimensional_convolutions_is_left_alone() -> None:
    gm, _ = captured(randomised(_Heads()), 6)
    assert any("view" in str(node.target) for node in gm.graph.nodes)
    assert not ReshapeViewsPass()(gm).changed

"""SkipGatedRowsPass: golden text beside its input, and what must not match."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.graph.printing import python_text
from exprune_fx.guards import Bound, Calibrated
from exprune_fx.measurement import measure
from exprune_fx.passes.skip_gated_rows import SkipGatedRowsPass
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.pipeline import normalise, transform
from tests.passes.staging import GatedNet, captured, plan_for, randomised

GOLDEN = """\
def forward(
    x,  # f64[s0, 7, 6]
):
    embed_weight = self.embed.weight  # f64[16, 6]
    embed_bias = self.embed.bias  # f64[16]
    gate_weight = self.gate.weight  # f64[24, 16]
    up_weight = self.up.weight  # f64[24, 16]
    up_bias = self.up.bias  # f64[24]
    down_weight = self.down.weight  # f64[4, 24]
    down_bias = self.down.bias  # f64[4]
    exprune_gate_thresholds_0 = self.exprune.gate.thresholds_0  # f64[24]
    linear = aten.linear(x, embed_weight, embed_bias)  # f64[s0, 7, 16] embed
    partial_linear = exprune.partial_linear(linear, gate_weight, 0, 8, None)  # f64[s0, 7, 24] gate
    guard_calibrated = exprune.guard_calibrated(partial_linear, None, exprune_gate_thresholds_0)  # b8[s0, 7, 24] gate
    finish_linear_relu = exprune.finish_linear_relu(linear, gate_weight, None, None, partial_linear, guard_calibrated, 8, 'relu')  # f64[s0, 7, 24] gate
    gated_linear = exprune.gated_linear(finish_linear_relu, linear, up_weight, up_bias)  # f64[s0, 7, 24] up
    linear_1 = aten.linear(gated_linear, down_weight, down_bias)  # f64[s0, 7, 4] down
    return linear_1
"""


def _staged(model: nn.Module, *shape: int) -> torch.fx.GraphModule:
    gm = normalise(captured(randomised(model), *shape)[0])
    return StageSitesPass(plan_for(gm, Calibrated(0.1), count=1))(gm).graph_module


def test_golden() -> None:
    result = SkipGatedRowsPass()(_staged(GatedNet(), 7, 6))
    assert (result.changed, result.edits) == (True, 1)
    assert python_text(result.graph_module) == GOLDEN


class _Near(nn.Module):
    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.gate, self.up = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(16, 24)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.combine(self.gate(x).relu(), self.up(x))


@pytest.mark.parametrize(
    "combine",
    [
        lambda gate, up: gate + up,
        lambda gate, up: gate * up + up,  # the branch is read twice
        lambda gate, up: gate * up + gate,  # the gate is read twice
        lambda gate, up: gate * up.exp(),  # not linear in the end
        lambda gate, up: gate * up.sum(-1, keepdim=True),
    ],
)
def test_near_misses_are_left_alone(combine: Callable[[Tensor, Tensor], Tensor]) -> None:
    staged = _staged(_Near(combine), 6)
    assert not SkipGatedRowsPass()(staged).changed


def test_an_unstaged_gate_is_left_alone() -> None:
    gm = normalise(captured(randomised(GatedNet()), 7, 6)[0])
    assert not SkipGatedRowsPass()(gm).changed


def test_the_gate_saves_the_branch_it_skips() -> None:
    """Dense: gate and up cost the same. With no neuron stopped, what is saved is up's rows of zero gates."""
    gm, x = captured(randomised(GatedNet()), 7, 6)
    staged = transform(gm, plan_for(normalise(gm), Calibrated(0.0), threshold=-1e30, count=1), lower=False)
    (site,) = measure(staged, [(x,)]).sites
    gate = torch.relu(gm.get_parameter("embed.weight").new_tensor(0)) + torch.nn.functional.linear(
        torch.nn.functional.linear(x, gm.get_parameter("embed.weight"), gm.get_parameter("embed.bias")),
        gm.get_parameter("gate.weight"),
    )
    nonzero = float((gate > 0).double().mean())
    assert site.flops_staged == pytest.approx(site.flops_dense / 2 * (1 + nonzero), rel=1e-12)


def test_values_are_those_of_the_product() -> None:
    gm, x = captured(randomised(GatedNet()), 7, 6)
    staged = transform(gm, plan_for(normalise(gm), Bound(), count=2), lower=False)
    assert any(n.meta.get("exprune_role") == "gated" for n in staged.graph.nodes)
    # float64 sums in another order
    torch.testing.assert_close(staged(x), gm(x), rtol=1e-10, atol=1e-10)

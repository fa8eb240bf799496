"""StageSitesPass: golden text beside its input, near misses, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.errors import ExpruneError, PassError, PlanError
from exprune_fx.graph import capture
from exprune_fx.graph.printing import python_text
from exprune_fx.guards import Bound, Calibrated, StatsTest
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.pipeline import normalise
from exprune_fx.plan import Array, Plan, SitePlan
from exprune_fx.sites import find_sites
from tests.passes.staging import OneConv, ResidualNet, SquaredNet, captured, plan_for, randomised

GOLDEN_CALIBRATED = """\
def forward(
    x,  # f64[s0, 6]
):
    fc1_weight = self.fc1.weight  # f64[16, 6]
    fc1_bias = self.fc1.bias  # f64[16]
    fc2_weight = self.fc2.weight  # f64[24, 16]
    fc2_bias = self.fc2.bias  # f64[24]
    fc3_weight = self.fc3.weight  # f64[4, 24]
    fc3_bias = self.fc3.bias  # f64[4]
    exprune_fc2_thresholds_0 = self.exprune.fc2.thresholds_0  # f64[24]
    exprune_fc2_thresholds_1 = self.exprune.fc2.thresholds_1  # f64[24]
    linear = aten.linear(x, fc1_weight, fc1_bias)  # f64[s0, 16] fc1
    constant_term = exprune.constant_term(fc2_bias, None, 0)  # f64[24] fc2
    partial_linear = exprune.partial_linear(linear, fc2_weight, 0, 5, None)  # f64[s0, 24] fc2
    guard_calibrated = exprune.guard_calibrated(partial_linear, constant_term, exprune_fc2_thresholds_0)  # b8[s0, 24] fc2
    partial_linear_1 = exprune.partial_linear(linear, fc2_weight, 5, 10, partial_linear)  # f64[s0, 24] fc2
    guard_calibrated_1 = exprune.guard_calibrated(partial_linear_1, constant_term, exprune_fc2_thresholds_1)  # b8[s0, 24] fc2
    logical_or = aten.logical_or(guard_calibrated, guard_calibrated_1)  # b8[s0, 24] fc2
    finish_linear_relu = exprune.finish_linear_relu(linear, fc2_weight, fc2_bias, None, partial_linear_1, logical_or, 10, 'relu_squared')  # f64[s0, 24] fc2
    linear_1 = aten.linear(finish_linear_relu, fc3_weight, fc3_bias)  # f64[s0, 4] fc3
    return linear_1
"""

GOLDEN_BOUND = """\
def forward(
    x,  # f64[s0, 6]
):
    fc1_weight = self.fc1.weight  # f64[16, 6]
    fc1_bias = self.fc1.bias  # f64[16]
    fc2_weight = self.fc2.weight  # f64[24, 16]
    fc2_bias = self.fc2.bias  # f64[24]
    fc3_weight = self.fc3.weight  # f64[4, 24]
    fc3_bias = self.fc3.bias  # f64[4]
    exprune_fc2_rest_weight_norm_0 = self.exprune.fc2.rest_weight_norm_0  # f64[24]
    exprune_fc2_weight_norm_0 = self.exprune.fc2.weight_norm_0  # f64[24]
    linear = aten.linear(x, fc1_weight, fc1_bias)  # f64[s0, 16] fc1
    constant_term = exprune.constant_term(fc2_bias, None, 0)  # f64[24] fc2
    input_norm_linear = exprune.input_norm_linear(linear, 0, 16)  # f64[s0, 1] fc2
    partial_linear = exprune.partial_linear(linear, fc2_weight, 0, 8, None)  # f64[s0, 24] fc2
    input_norm_linear_1 = exprune.input_norm_linear(linear, 8, 16)  # f64[s0, 1] fc2
    guard_bound = exprune.guard_bound(partial_linear, constant_term, exprune_fc2_rest_weight_norm_0, input_norm_linear_1, exprune_fc2_weight_norm_0, input_norm_linear, 16)  # b8[s0, 24] fc2
    finish_linear_relu = exprune.finish_linear_relu(linear, fc2_weight, fc2_bias, None, partial_linear, guard_bound, 8, 'relu_squared')  # f64[s0, 24] fc2
    linear_1 = aten.linear(finish_linear_relu, fc3_weight, fc3_bias)  # f64[s0, 4] fc3
    return linear_1
"""


GOLDEN_CODED = """\
def forward(
    x,  # f64[s0, 4, 5, 5]
):
    conv_weight = self.conv.weight  # f64[6, 4, 3, 3]
    conv_bias = self.conv.bias  # f64[6]
    exprune_conv_codes = self.exprune.conv.codes  # i8[6, 4, 3, 3]
    exprune_conv_code_scales = self.exprune.conv.code_scales  # f32[6]
    exprune_conv_thresholds_0 = self.exprune.conv.thresholds_0  # f64[6, 1, 1]
    constant_term = exprune.constant_term(conv_bias, None, 2)  # f64[6, 1, 1] conv
    coded_conv = exprune.coded_conv(x, exprune_conv_codes, exprune_conv_code_scales, [1, 1], [1, 1], [1, 1])  # f64[s0, 6, 5, 5] conv
    guard_calibrated = exprune.guard_calibrated(coded_conv, constant_term, exprune_conv_thresholds_0)  # b8[s0, 6, 5, 5] conv
    finish_conv_relu = exprune.finish_conv_relu(x, conv_weight, conv_bias, None, None, guard_calibrated, [1, 1], [1, 1], [1, 1], 1, 0, 'relu')  # f64[s0, 6, 5, 5] conv
    return finish_conv_relu
"""


def test_golden_coded() -> None:
    gm = normalise(captured(randomised(OneConv()), 4, 5, 5)[0])
    result = StageSitesPass(plan_for(gm, Calibrated(0.1), coded=True))(gm)
    assert result.edits == 1
    assert python_text(result.graph_module) == GOLDEN_CODED


@pytest.mark.parametrize(("threshold", "zero"), [(-math.inf, False), (math.inf, True)])
def test_behind_a_coded_head_all_are_dense_or_none(threshold: float, zero: bool) -> None:
    gm, x = captured(randomised(ResidualNet()), 3, 8, 8)
    gm = normalise(gm)
    plan = plan_for(gm, Calibrated(0.1), threshold=threshold, coded=True)
    assert [entry.head for entry in plan.sites] == ["prefix", "coded", "coded", "prefix"]
    staged = StageSitesPass(plan)(gm).graph_module
    expected = gm.get_parameter("fc2.bias").expand(5, 5) if zero else gm(x)
    torch.testing.assert_close(staged(x), expected, rtol=1e-10, atol=1e-10)  # float64 sums in another order


def test_a_coded_head_over_a_grouped_convolution_is_refused() -> None:
    gm = normalise(captured(randomised(OneConv(8, groups=2)), 8, 5, 5)[0])
    thresholds = Array.of(torch.zeros(1, 6))
    plan = Plan((SitePlan("conv", (6, 4, 3, 3), "coded", "", Calibrated(0.1), (4,), thresholds),))
    with pytest.raises(PassError, match="'conv': no coded head: its convolution is grouped"):
        StageSitesPass(plan)(gm)


def _squared() -> torch.fx.GraphModule:
    return normalise(captured(randomised(SquaredNet()), 6)[0])


@pytest.mark.parametrize(
    ("guard", "count", "golden"),
    [(Calibrated(0.1), 2, GOLDEN_CALIBRATED), (Bound(), 1, GOLDEN_BOUND)],
    ids=["Calibrated", "Bound"],
)
def test_golden(guard: Calibrated | Bound, count: int, golden: str) -> None:
    gm = _squared()
    result = StageSitesPass(plan_for(gm, guard, count=count))(gm)
    assert result.changed
    assert result.edits == 1
    assert python_text(result.graph_module) == golden


def test_every_kind_of_site_is_staged_once() -> None:
    gm = normalise(captured(randomised(ResidualNet()), 3, 8, 8)[0])
    result = StageSitesPass(plan_for(gm, Calibrated(0.1)))(gm)
    finishes = [
        n.meta["exprune_site"] for n in result.graph_module.graph.nodes if n.meta.get("exprune_role") == "finish"
    ]
    assert finishes == ["stem", "conv1", "conv2", "fc1"]
    assert result.edits == 4


class _Near(nn.Module):
    """One linear layer and what follows it."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 16)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.fc2(self.fc1(x)))


@pytest.mark.parametrize(
    "after",
    [
        lambda z: nn.functional.leaky_relu(z, 0.1),
        lambda z: z.relu() + z,  # the pre-activation is read twice
        lambda z: z.clamp(-0.1, 6),
        lambda z: (2 * z).relu(),
        nn.functional.gelu,
        lambda z: z.abs(),
        lambda z: (z + z.detach().flip(0)).relu(),
    ],
)
def test_near_misses_are_left_alone(after: Callable[[Tensor], Tensor]) -> None:
    gm = normalise(captured(_Near(after).double().eval(), 6)[0])
    plan = Plan((_entry((16, 16)),))
    assert find_sites(gm) == ()
    with pytest.raises(PlanError, match="'fc2' is in the plan, not in the graph"):
        StageSitesPass(plan)(gm)
    assert not any("exprune" in str(node.target) for node in gm.graph.nodes)


def _entry(shape: tuple[int, ...] = (24, 16), **changes: object) -> SitePlan:
    fields: dict[str, object] = {
        "head": "prefix",
        "guard": Calibrated(0.1),
        "stages": (4,),
        "thresholds": Array.of(torch.zeros(1, shape[0])),
    }
    return SitePlan("fc2", shape, **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        (_entry((24, 15)), PlanError, r"weight \[24, 16\], the plan was made for \[24, 15\]"),
        (_entry(stages=(16,)), PlanError, r"has 16 terms, stages are \[16\]"),
        (
            SitePlan("fc9", (24, 16), head="prefix", guard=Bound(), stages=(4,)),
            PlanError,
            "'fc9' is in the plan, not in the graph",
        ),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(entry: SitePlan, error: type[ExpruneError], message: str) -> None:
    gm = _squared()
    text = python_text(gm)
    with pytest.raises(error, match=message):
        StageSitesPass(Plan((entry,)))(gm)
    assert python_text(gm) == text


def test_a_statistical_guard_on_raw_inputs_is_refused_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    gm = normalise(captured(model.double().eval(), 6)[0])
    plan = Plan((SitePlan("0", (8, 6), head="prefix", guard=StatsTest(0.1), stages=(3,)),))
    with pytest.raises(PassError, match="needs exchangeable terms"):
        StageSitesPass(plan)(gm)


def test_an_unfolded_batch_norm_is_refused() -> None:
    gm = captured(randomised(ResidualNet()), 3, 8, 8)[0]  # captured, not normalised
    with pytest.raises(PassError, match="batch norm is not folded"):
        StageSitesPass(plan_for(normalise(gm), Bound()))(gm)


@pytest.mark.parametrize(
    ("conv", "shape", "channels_last"),
    [
        (nn.Conv1d(6, 8, 3, padding=2, dilation=2), (4, 9), False),
        (nn.Conv2d(6, 8, (3, 1), stride=(2, 1), padding="valid"), (4, 9, 7), False),
        (nn.Conv2d(6, 8, 3, padding="same"), (4, 5, 7), True),
        (nn.Conv2d(6, 8, 3, padding=1, groups=2), (4, 5, 7), True),
        (nn.Conv3d(6, 8, 2, stride=2), (4, 4, 6, 4), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_bound_equals_dense_on_every_convolution(conv: nn.Module, shape: tuple[int, ...], channels_last: bool) -> None:
    dims = len(shape) - 1
    first = getattr(nn, f"Conv{dims}d")(4, 6, 1)
    model = randomised(nn.Sequential(first, nn.ReLU(), conv, nn.ReLU()))
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    gm = normalise(capture(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)))
    result = StageSitesPass(plan_for(gm, Bound(), count=1))(gm)
    assert result.edits == 2
    # float64 sums in another order
    torch.testing.assert_close(result.graph_module(x), model(x), rtol=1e-10, atol=1e-10)


def test_the_staged_graph_exports_compiles_and_differentiates() -> None:
    gm = _squared()
    staged = StageSitesPass(plan_for(gm, Calibrated(0.1), threshold=-math.inf))(gm).graph_module
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    expected = gm(x)
    compiled = torch.compile(staged, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-10, atol=1e-10)
    (slope,) = torch.autograd.grad(staged(x).sum(), x)
    (dense_slope,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(slope, dense_slope, rtol=1e-10, atol=1e-10)

"""LowerSitesPass: golden text beside its input, every guard against the readable form, and what stays readable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from exprune_fx.graph.edits import copy_graph_module, recompile
from exprune_fx.graph.printing import python_text
from exprune_fx.guards import Bound, Calibrated, Guard
from exprune_fx.ops.coded import numbers_of
from exprune_fx.ops.split import rest_of
from exprune_fx.passes.lower_sites import LowerSitesPass
from exprune_fx.passes.reshape_views import ReshapeViewsPass
from exprune_fx.passes.skip_gated_rows import SkipGatedRowsPass
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.pipeline import normalise
from exprune_fx.plan import Array, Plan
from exprune_fx.staging import KEPT_KEY, SITE_KEY
from tests.captures import captured_alike
from tests.passes.fused import need_operators
from tests.passes.staging import EVERY_GUARD, GatedNet, OneConv, ResidualNet, SquaredNet, plan_for, randomised

pytestmark = pytest.mark.usefixtures("_operators")


@pytest.fixture(scope="module")
def _operators() -> None:
    need_operators()


GOLDEN = """\
def forward(
    x,  # f32[s0, 6]
):
    fc1_weight = self.fc1.weight  # f32[16, 6]
    fc1_bias = self.fc1.bias  # f32[16]
    fc2_weight = self.fc2.weight  # f32[24, 16]
    fc2_bias = self.fc2.bias  # f32[24]
    fc3_weight = self.fc3.weight  # f32[4, 24]
    fc3_bias = self.fc3.bias  # f32[4]
    exprune_fc2_limits = self.exprune.fc2.limits  # f32[2, 24]
    linear = aten.linear(x, fc1_weight, fc1_bias)  # f32[s0, 16] fc1
    staged_linear_relu = exprune.staged_linear_relu(linear, fc2_weight, fc2_bias, None, None, None, [5, 10], 1, 'calibrated', 0.0, exprune_fc2_limits, 'relu_squared')  # f32[s0, 24] fc2
    linear_1 = aten.linear(staged_linear_relu, fc3_weight, fc3_bias)  # f32[s0, 4] fc3
    return linear_1
"""

GOLDEN_CONVOLUTIONS = """\
    staged_conv2d_relu = exprune.staged_conv2d_relu(x, stem_weight, stem_bias, None, exprune_stem_principal_down, exprune_stem_principal_up, [2], 'bound', 0.0, exprune_stem_limits, [1, 1], [1, 1], [1, 1], 1, 'relu')  # f32[s0, 8, 8, 8] stem
    staged_conv2d_relu_1 = exprune.staged_conv2d_relu(staged_conv2d_relu, conv1_folded_weight, conv1_folded_bias, None, exprune_conv1_principal_down, exprune_conv1_principal_up, [2], 'bound', 0.0, exprune_conv1_limits, [1, 1], [1, 1], [1, 1], 1, 'relu')  # f32[s0, 8, 8, 8] conv1
    staged_conv2d_relu_2 = exprune.staged_conv2d_relu(staged_conv2d_relu_1, conv2_folded_weight, conv2_folded_bias, staged_conv2d_relu, exprune_conv2_principal_down, exprune_conv2_principal_up, [2], 'bound', 0.0, exprune_conv2_limits, [1, 1], [1, 1], [1, 1], 1, 'relu')  # f32[s0, 8, 8, 8] conv2
    max_pool2d = aten.max_pool2d(staged_conv2d_relu_2, [2, 2])  # f32[s0, 8, 4, 4]
    reshape = aten.reshape(max_pool2d, [sym_size, 128])  # f32[s0, 128]
    staged_linear_relu = exprune.staged_linear_relu(reshape, fc1_weight, fc1_bias, None, exprune_fc1_principal_down, exprune_fc1_principal_up, [32], 1, 'bound', 0.0, exprune_fc1_limits, 'relu6')  # f32[s0, 12] fc1
    linear = aten.linear(staged_linear_relu, fc2_weight, fc2_bias)  # f32[s0, 5] fc2
    return linear
"""


GOLDEN_CODED = """\
    staged_conv2d_relu_1 = exprune.staged_conv2d_relu(staged_conv2d_relu, conv1_folded_weight, conv1_folded_bias, None, None, None, [8], 'calibrated', 0.0, exprune_conv1_limits, [1, 1], [1, 1], [1, 1], 1, 'relu', None, exprune_conv1_codes, exprune_conv1_code_numbers, exprune_conv1_code_rest)  # f32[s0, 8, 8, 8] conv1
    staged_conv2d_relu_2 = exprune.staged_conv2d_relu(staged_conv2d_relu_1, conv2_folded_weight, conv2_folded_bias, staged_conv2d_relu, None, None, [8], 'calibrated', 0.0, exprune_conv2_limits, [1, 1], [1, 1], [1, 1], 1, 'relu', None, exprune_conv2_codes, exprune_conv2_code_numbers, exprune_conv2_code_rest)  # f32[s0, 8, 8, 8] conv2
"""


def captured(model: nn.Module, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[fx.GraphModule, Tensor]:
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return normalise(captured_alike(model.to(dtype), x, ({0: torch.export.Dim("batch")},))), x


def staged(
    gm: fx.GraphModule, guard: Guard, *, count: int = 2, principal: bool = False, coded: bool = False
) -> fx.GraphModule:
    gm = StageSitesPass(plan_for(gm, guard, count=count, principal=principal, coded=coded))(gm).graph_module
    return ReshapeViewsPass()(SkipGatedRowsPass()(gm).graph_module).graph_module


def test_golden() -> None:
    gm, _ = captured(randomised(SquaredNet()), 6)
    before = staged(gm, Calibrated(0.1))
    text = python_text(before)
    result = LowerSitesPass()(before)
    assert (result.changed, result.edits) == (True, 1)
    assert python_text(result.graph_module) == GOLDEN
    assert python_text(before) == text
    again = LowerSitesPass()(result.graph_module)
    assert not again.changed
    assert again.graph_module is result.graph_module


def test_golden_convolutions() -> None:
    gm, _ = captured(randomised(ResidualNet()), 3, 8, 8)
    result = LowerSitesPass()(staged(gm, Bound(), principal=True))
    assert result.edits == 4
    assert python_text(result.graph_module).endswith(GOLDEN_CONVOLUTIONS)


def test_golden_coded() -> None:
    gm, _ = captured(randomised(ResidualNet()), 3, 8, 8)
    before = staged(gm, Calibrated(0.1), coded=True)
    after = LowerSitesPass()(before).graph_module
    assert GOLDEN_CODED in python_text(after)
    codes, scales = (before.get_buffer(f"exprune.conv1.{name}") for name in ("codes", "code_scales"))
    assert torch.equal(after.get_buffer("exprune.conv1.codes"), codes)
    assert torch.equal(after.get_buffer("exprune.conv1.code_numbers"), numbers_of(codes, scales))
    rest = rest_of(before.get_parameter("conv1.folded_weight"), codes, scales)
    assert torch.equal(after.get_buffer("exprune.conv1.code_rest"), rest)
    assert "exprune.conv1.code_scales" not in dict(after.named_buffers()), "the readable form's scales are gone"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.5])
def test_a_coded_head_stops_those_that_its_readable_form_stops(dtype: torch.dtype, threshold: float) -> None:
    """Sums of integers are exact, so nothing is within rounding of a threshold: no survivor is lost, none is won."""
    gm, _ = captured(randomised(OneConv(8)), 8, 9, 7, dtype=dtype)
    before = StageSitesPass(plan_for(gm, Calibrated(0.1), threshold=threshold, coded=True))(gm).graph_module
    after = LowerSitesPass()(before).graph_module
    assert ("exprune.conv.code_rest" in dict(after.named_buffers())) == (dtype == torch.float32)
    x = torch.randn(16, 8, 9, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    x[5:] = x[5:].relu()
    x[3, 2, 1, 4] = float("nan")
    with torch.no_grad():
        found, expected = after(x), before(x)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]  # a rounding of sums of 72 products of size one
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert bool((expected[:3] == 0).any())


def test_rivals_behind_a_coded_head() -> None:
    gm, x = captured(nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.MaxPool2d(2)), 8, 8, 8)
    margins = Array.of(torch.rand(1, 6, generator=torch.Generator().manual_seed(0)) * 0.1)
    plan = plan_for(gm, Calibrated(0.1), threshold=-0.1, coded=True)
    (entry,) = plan.sites
    before = StageSitesPass(Plan((replace(entry, margins=margins, window=(2, 2)),)))(gm).graph_module
    after = LowerSitesPass()(before).graph_module
    (call,) = _by_target(after, "staged_conv2d_relu")
    assert call.args[15] == [2, 2]
    with torch.no_grad():
        torch.testing.assert_close(after(x), before(x), rtol=1e-5, atol=1e-5)  # sums of 72 products of size one


def test_many_rivals_behind_a_coded_head_stay_readable() -> None:
    gm, x = captured(nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.MaxPool2d(3)), 8, 8, 8)
    (entry,) = plan_for(gm, Calibrated(0.1), coded=True).sites
    margins = Array.of(torch.zeros(1, 6))
    before = StageSitesPass(Plan((replace(entry, margins=margins, window=(3, 3)),)))(gm).graph_module
    after = LowerSitesPass()(before).graph_module
    kept = [node.meta[KEPT_KEY] for node in after.graph.nodes if KEPT_KEY in node.meta]
    assert kept == ["no kernel holds windows of 9 rivals behind a coded head"]
    assert torch.equal(after(x), before(x))


def test_the_tables_of_limits_hold_the_numbers_of_all_stages() -> None:
    gm, _ = captured(randomised(SquaredNet()), 6)
    before = staged(gm, Bound())
    after = LowerSitesPass()(before).graph_module
    rows = [
        [before.get_buffer(f"exprune.fc2.{what}_norm_{stage}") for what in ("rest_weight", "weight")]
        for stage in (0, 1)
    ]
    limits = after.get_buffer("exprune.fc2.limits")
    assert limits.dtype == torch.float32
    assert torch.equal(limits, torch.stack([torch.stack(row) for row in rows]))
    assert set(dict(after.named_buffers())) == {"exprune.fc2.limits"}, "the readable form's numbers are gone"


@pytest.mark.parametrize("principal", [False, True])
@pytest.mark.parametrize("guard", EVERY_GUARD, ids=str)
@pytest.mark.parametrize(("kind", "shape"), [(ResidualNet, (3, 8, 8)), (GatedNet, (7, 6)), (SquaredNet, (7, 6))])
def test_equals_the_readable_form(kind: type[nn.Module], shape: tuple[int, ...], guard: Guard, principal: bool) -> None:
    if principal and "principal" not in guard.heads:
        return
    gm, x = captured(randomised(kind()), *shape)
    before = staged(gm, guard, principal=principal)
    result = LowerSitesPass()(before)
    assert result.edits > 0
    with torch.no_grad():
        # float32 sums of at most 128 products of size one in another order
        torch.testing.assert_close(result.graph_module(x), before(x), rtol=1e-4, atol=1e-4)


class _Blocks(nn.Module):
    """A linear layer whose terms are channels of four pixels each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).flatten(1)).relu()
        return out


@pytest.mark.parametrize(
    ("guard", "stages", "block"), [(g, [2, 5], 4) for g in EVERY_GUARD[:3]] + [(Bound(), [8, 20], 1)]
)
def test_a_term_of_several_features(guard: Guard, stages: list[int], block: int) -> None:
    gm, x = captured(randomised(_Blocks()), 3, 2, 2)
    before = staged(gm, guard)
    after = LowerSitesPass()(before).graph_module
    (site,) = [node for node in after.graph.nodes if SITE_KEY in node.meta]
    assert (site.args[6], site.args[7]) == (stages, block)
    with torch.no_grad():
        torch.testing.assert_close(after(x), before(x), rtol=1e-4, atol=1e-4)  # float32 sums in another order


# --- what stays readable ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "dtype", "reason"),
    [
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU()), (6,), torch.float64, "its weight is float64"),
        (nn.Sequential(nn.Conv1d(6, 8, 3), nn.ReLU()), (6, 9), torch.float32, "no kernel convolves in 1 dimensions"),
        (nn.Sequential(nn.Conv3d(6, 8, 1), nn.ReLU()), (6, 2, 2, 2), torch.float32, "no kernel convolves in 3"),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()), (8, 5, 5), torch.float32, "is grouped"),
    ],
)
def test_what_no_kernel_holds_stays_readable_and_says_why(
    model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    gm, x = captured(model, *shape, dtype=dtype)
    before = staged(gm, Bound(), count=1)
    with caplog.at_level(logging.INFO, "exprune_fx"):
        result = LowerSitesPass()(before)
        again = LowerSitesPass()(result.graph_module)
    assert result.edits == 0
    assert not again.changed
    assert python_text(result.graph_module) == python_text(before)
    (kept,) = [node.meta[KEPT_KEY] for node in result.graph_module.graph.nodes if KEPT_KEY in node.meta]
    assert reason in kept
    assert sum(reason in message for message in caplog.messages) == 1
    torch.testing.assert_close(result.graph_module(x), gm(x))


def _swap(node: fx.Node, index: int, value: object) -> None:
    args = list(node.args)
    args[index] = value  # type: ignore[call-overload] # tests break the graph on purpose
    node.args = tuple(args)


def _by_target(gm: fx.GraphModule, name: str) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if name in str(node.target)]


def _other_sum_at_the_finish(gm: fx.GraphModule) -> None:
    _swap(_by_target(gm, "finish_linear_relu")[0], 4, _by_target(gm, "partial_linear")[0])


def _gap_between_stages(gm: fx.GraphModule) -> None:
    _swap(_by_target(gm, "partial_linear")[1], 2, 6)


def _other_start_of_the_tail(gm: fx.GraphModule) -> None:
    _swap(_by_target(gm, "finish_linear_relu")[0], 6, 11)


def _no_constant_at_a_guard(gm: fx.GraphModule) -> None:
    _swap(_by_target(gm, "guard_calibrated")[1], 1, None)


def _inverted_guard(gm: fx.GraphModule) -> None:
    (either,) = _by_target(gm, "logical_or")
    guard = either.args[1]
    with gm.graph.inserting_before(either):
        inverted = gm.graph.call_function(torch.ops.aten.logical_not.default, (guard,))
    inverted.meta.update(val=either.meta["val"], module_path="fc2")
    _swap(either, 1, inverted)


def _other_input(gm: fx.GraphModule) -> None:
    (linear,) = [
        node for node in gm.graph.nodes if node.meta.get("module_path") == "fc1" and node.op == "call_function"
    ]
    with gm.graph.inserting_after(linear):
        other = gm.graph.call_function(torch.ops.aten.neg.default, (linear,))
    other.meta.update(val=linear.meta["val"], module_path="fc1")
    _swap(_by_target(gm, "partial_linear")[0], 0, other)


@pytest.mark.parametrize(
    "change",
    [
        _other_sum_at_the_finish,
        _gap_between_stages,
        _other_start_of_the_tail,
        _no_constant_at_a_guard,
        _inverted_guard,
        _other_input,
    ],
)
def test_near_misses_stay_as_they_are(change: Callable[[fx.GraphModule], None]) -> None:
    gm, x = captured(randomised(SquaredNet()), 6)
    changed = copy_graph_module(staged(gm, Calibrated(0.1)))
    change(changed)
    recompile(changed)
    result = LowerSitesPass()(changed)
    assert result.edits == 0
    assert [node.meta[KEPT_KEY] for node in result.graph_module.graph.nodes if KEPT_KEY in node.meta] == [
        "its staged nodes are not the ones that staging writes"
    ]
    assert torch.equal(result.graph_module(x), changed(x))


def _other_input_of_the_codes(gm: fx.GraphModule) -> None:
    (head,) = _by_target(gm, "coded_conv")
    with gm.graph.inserting_before(head):
        other = gm.graph.call_function(torch.ops.aten.neg.default, (head.args[0],))
    assert isinstance(head.args[0], fx.Node)
    other.meta.update(val=head.args[0].meta["val"], module_path="conv")
    _swap(head, 0, other)


def _other_padding_of_the_codes(gm: fx.GraphModule) -> None:
    _swap(_by_target(gm, "coded_conv")[0], 4, [2, 2])
    _swap(_by_target(gm, "coded_conv")[0], 5, [2, 2])


def _codes_computed_in_the_graph(gm: fx.GraphModule) -> None:
    (head,) = _by_target(gm, "coded_conv")
    with gm.graph.inserting_before(head):
        other = gm.graph.call_function(torch.ops.aten.neg.default, (head.args[1],))
    assert isinstance(head.args[1], fx.Node)
    other.meta.update(val=head.args[1].meta["val"], module_path="conv")
    _swap(head, 1, other)


def _a_sum_to_go_on_from(gm: fx.GraphModule) -> None:
    _swap(_by_target(gm, "finish_conv_relu")[0], 4, _by_target(gm, "coded_conv")[0])


def _a_rule_that_counts_terms(gm: fx.GraphModule) -> None:
    (guard,) = _by_target(gm, "guard_calibrated")
    guard.target = torch.ops.exprune.guard_threshold.default
    guard.args = (*guard.args[:2], 8, 8, 0.0)


@pytest.mark.parametrize(
    "change",
    [
        _other_input_of_the_codes,
        _other_padding_of_the_codes,
        _codes_computed_in_the_graph,
        _a_sum_to_go_on_from,
        _a_rule_that_counts_terms,
    ],
)
def test_near_misses_of_a_coded_head_stay_as_they_are(change: Callable[[fx.GraphModule], None]) -> None:
    gm, x = captured(randomised(OneConv(8)), 8, 5, 5)
    whole = copy_graph_module(staged(gm, Calibrated(0.1), coded=True))
    assert LowerSitesPass()(whole).edits == 1
    change(whole)
    recompile(whole)
    result = LowerSitesPass()(whole)
    assert result.edits == 0
    assert [node.meta[KEPT_KEY] for node in result.graph_module.graph.nodes if KEPT_KEY in node.meta] == [
        "its staged nodes are not the ones that staging writes"
    ]
    with torch.no_grad():
        assert torch.equal(result.graph_module(x), whole(x))


def test_statistical_near_misses_stay_as_they_are() -> None:
    gm, _ = captured(randomised(SquaredNet()), 6)
    for guard, index, value in ((EVERY_GUARD[1], 4, 17), (EVERY_GUARD[0], 2, 4)):  # all terms; terms seen
        changed = copy_graph_module(staged(gm, guard))
        _swap(_by_target(changed, "guard_")[-1], index, value)
        assert LowerSitesPass()(recompile(changed)).edits == 0


def test_other_bound_margin_stays_readable() -> None:
    gm, _ = captured(randomised(SquaredNet()), 6)
    changed = copy_graph_module(staged(gm, Bound()))
    guard = _by_target(changed, "guard_bound")[0]
    _swap(guard, 6, 17)
    assert LowerSitesPass()(recompile(changed)).edits == 0

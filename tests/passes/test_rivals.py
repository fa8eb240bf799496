"""Rivals through the passes: golden text of both forms, near misses, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from exprune_fx.errors import PlanError
from exprune_fx.graph import capture
from exprune_fx.graph.edits import copy_graph_module, recompile
from exprune_fx.graph.printing import python_text
from exprune_fx.guards import Calibrated
from exprune_fx.measurement import measure
from exprune_fx.passes.lower_sites import LowerSitesPass
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.pipeline import normalise, transform
from exprune_fx.plan import Array, Plan, SitePlan
from exprune_fx.sites import find_sites
from exprune_fx.staging import KEPT_KEY
from tests.passes.fused import need_operators
from tests.passes.staging import randomised

READABLE = """\
    conv2d = aten.conv2d(x, conv1_weight, conv1_bias, [1, 1], [1, 1])  # f32[s0, 8, 7, 6] conv1
    constant_term = exprune.constant_term(conv2_folded_bias, None, 2)  # f32[6, 1, 1] conv2
    partial_conv = exprune.partial_conv(conv2d, conv2_folded_weight, [1, 1], [1, 1], [1, 1], 1, 0, 2, None)  # f32[s0, 6, 7, 6] conv2
    guard_pooled = exprune.guard_pooled(partial_conv, constant_term, exprune_conv2_thresholds_0, exprune_conv2_margins_0, [2, 3], None)  # b8[s0, 6, 7, 6] conv2
    partial_conv_1 = exprune.partial_conv(conv2d, conv2_folded_weight, [1, 1], [1, 1], [1, 1], 1, 2, 4, partial_conv)  # f32[s0, 6, 7, 6] conv2
    guard_pooled_1 = exprune.guard_pooled(partial_conv_1, constant_term, exprune_conv2_thresholds_1, exprune_conv2_margins_1, [2, 3], guard_pooled)  # b8[s0, 6, 7, 6] conv2
    logical_or = aten.logical_or(guard_pooled, guard_pooled_1)  # b8[s0, 6, 7, 6] conv2
    finish_conv_relu = exprune.finish_conv_relu(conv2d, conv2_folded_weight, conv2_folded_bias, None, partial_conv_1, logical_or, [1, 1], [1, 1], [1, 1], 1, 4, 'relu')  # f32[s0, 6, 7, 6] conv2
    max_pool2d = aten.max_pool2d(finish_conv_relu, [2, 3], [2, 3])  # f32[s0, 6, 3, 2] pool
    return max_pool2d
"""

FUSED = """\
    conv2d = aten.conv2d(x, conv1_weight, conv1_bias, [1, 1], [1, 1])  # f32[s0, 8, 7, 6] conv1
    staged_conv2d_relu = exprune.staged_conv2d_relu(conv2d, conv2_folded_weight, conv2_folded_bias, None, None, None, [2, 4], 'pooled', 0.0, exprune_conv2_limits, [1, 1], [1, 1], [1, 1], 1, 'relu', [2, 3])  # f32[s0, 6, 7, 6] conv2
    max_pool2d = aten.max_pool2d(staged_conv2d_relu, [2, 3], [2, 3])  # f32[s0, 6, 3, 2] pool
    return max_pool2d
"""


class PooledNet(nn.Module):
    """conv -> conv -> batch norm -> max pool -> ReLU: the pool is put behind, the norm into the weight."""

    def __init__(self, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.norm, self.pool = nn.BatchNorm2d(6), pool or nn.MaxPool2d((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(self.norm(self.conv2(self.conv1(x)))).relu()
        return out


def _graph(pool: nn.Module | None = None) -> tuple[fx.GraphModule, Tensor]:
    x = torch.randn(5, 3, 7, 6, generator=torch.Generator().manual_seed(1))
    model = randomised(PooledNet(pool)).float()
    return normalise(capture(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))), x


def _entry(margin: float = 0.5, threshold: float = 0.0, stages: tuple[int, ...] = (2, 4)) -> SitePlan:
    shape = (len(stages), 6)
    return SitePlan(
        "conv2", (6, 8, 3, 3), "prefix", "by hand", Calibrated(0.1), stages,
        Array.of(torch.full(shape, threshold)), margins=Array.of(torch.full(shape, margin)), window=(2, 3),
    )  # fmt: skip


def _staged(gm: fx.GraphModule, entry: SitePlan) -> fx.GraphModule:
    return StageSitesPass(Plan((entry,)))(gm).graph_module


def test_golden() -> None:
    gm, _ = _graph()
    staged = _staged(gm, _entry())
    assert python_text(staged).endswith(READABLE)
    need_operators()
    result = LowerSitesPass()(staged)
    assert result.edits == 1
    assert python_text(result.graph_module).endswith(FUSED)
    limits = result.graph_module.get_buffer("exprune.conv2.limits")
    assert torch.equal(limits, torch.tensor([0.0, 0.5]).reshape(1, 2, 1).expand(2, 2, 6))


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(("margin", "threshold"), [(0.0, -1e30), (1.0, 0.5), (1e30, 0.0), (1e30, -1e30)])
def test_the_pool_errs_only_where_the_winner_stopped(margin: float, threshold: float, lower: bool) -> None:
    """Against loops: with the head's sums from a convolution of fewer channels, in float64."""
    gm, x = _graph()
    if lower:
        need_operators()
    staged = _staged(gm, _entry(margin, threshold, (4,)))
    graph = LowerSitesPass()(staged).graph_module if lower else staged
    weight, bias = (
        gm.get_parameter(f"conv2.folded_{name}")
        if f"conv2.folded_{name}" in dict(gm.named_parameters())
        else gm.get_buffer(f"conv2.folded_{name}")
        for name in ("weight", "bias")
    )
    with torch.no_grad():
        inner = torch.conv2d(
            x.double(), gm.get_parameter("conv1.weight").double(), gm.get_parameter("conv1.bias").double(), padding=1
        )
        z = torch.conv2d(inner, weight.double(), bias.double(), padding=1)
        h = torch.conv2d(inner[:, :4], weight[:, :4].double(), bias.double(), padding=1)
        found = graph(x).double()
    expected, unsure = torch.zeros_like(found), torch.zeros_like(found, dtype=torch.bool)
    for n, j, a, b in ((n, j, a, b) for n in range(5) for j in range(6) for a in range(3) for b in range(2)):
        place = (n, j, slice(2 * a, 2 * a + 2), slice(3 * b, 3 * b + 3))
        limit = max(threshold, float(h[place].max()) - margin)
        going = h[place] >= limit
        expected[n, j, a, b] = z[place].clamp_min(0).masked_fill(~going, 0.0).max()
        unsure[n, j, a, b] = bool(((h[place] - limit).abs() < 1e-5).any()) and margin > 0
    assert float(unsure.double().mean()) < 0.02
    torch.testing.assert_close(found[~unsure], expected[~unsure], rtol=1e-4, atol=1e-4)  # float32 sums of 72 products


def test_what_is_measured_counts_rivals_and_their_tests() -> None:
    gm, x = _graph()
    plan = Plan((_entry(0.0, -1e30, (4,)),))
    need_operators()
    for lower in (False, True):
        result = measure(transform(gm, plan, lower=lower), [(x,)])
        (site,) = result.sites
        pixels = 5 * 6 * 7 * 6
        assert site.stopped_fraction == pytest.approx(1 - 6 / (7 * 6)), "one of each window, and none of the last row"
        assert site.flops_dense == 2 * 72 * pixels
        assert site.flops_staged == pytest.approx(2 * 36 * pixels * (1 + 1 / 7))
        assert site.flops_overhead == 3 * pixels, "threshold, largest of the window, and what is left of it"


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d((2, 3), stride=1), nn.Identity()], ids=str)
def test_a_plan_of_other_windows_is_refused(pool: nn.Module) -> None:
    gm, _ = _graph(pool)
    with pytest.raises(PlanError, match=r"rivals in windows of \[2, 3\], and here"):
        _staged(gm, _entry())


def test_windows_larger_than_a_tile_stay_readable() -> None:
    x = torch.randn(2, 3, 20, 20)
    gm = normalise(capture(randomised(PooledNet(nn.MaxPool2d(9))).float(), (x,)))
    need_operators()
    result = LowerSitesPass()(_staged(gm, replace(_entry(), window=(9, 9))))
    (reason,) = [node.meta[KEPT_KEY] for node in result.graph_module.graph.nodes if KEPT_KEY in node.meta]
    assert reason == "no kernel holds windows of 81 rivals"


def _other(position: int, value: Callable[[fx.Node], object]) -> Callable[[fx.GraphModule], None]:
    def change(gm: fx.GraphModule) -> None:
        guards = [node for node in gm.graph.nodes if node.target == torch.ops.exprune.guard_pooled.default]
        guards[1].update_arg(position, value(guards[1]))

    return change


@pytest.mark.parametrize(
    "change",
    [
        _other(4, lambda _: [2, 2]),
        _other(5, lambda _: None),
        _other(3, lambda guard: next(n for n in guard.graph.nodes if n.name.startswith("constant_term"))),
        _other(2, lambda guard: next(n for n in guard.graph.nodes if n.name.startswith("constant_term"))),
        _other(1, lambda _: None),
    ],
    ids=["window", "who stopped before", "margins", "thresholds", "constant"],
)
def test_near_misses_stay_readable(change: Callable[[fx.GraphModule], None]) -> None:
    gm, _ = _graph()
    staged = copy_graph_module(_staged(gm, _entry()))
    change(staged)
    recompile(staged)
    need_operators()
    result = LowerSitesPass()(staged)
    assert result.edits == 0
    assert [node for node in result.graph_module.graph.nodes if KEPT_KEY in node.meta]


def test_a_second_reader_makes_no_rivals() -> None:
    class Two(PooledNet):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv2(self.conv1(x))).relu()
            out: Tensor = self.pool(y) + y.mean()
            return out

    x = torch.randn(5, 3, 7, 6)
    gm = normalise(capture(randomised(Two()).float(), (x,)))
    assert [site.pool for site in find_sites(gm)] == [None]
    with pytest.raises(PlanError, match="no max pool alone reads them"):
        _staged(gm, _entry())

"""A fused convolution and the pool that alone reads it: golden text, equal values, near misses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from exprune_fx.graph import capture
from exprune_fx.graph.printing import python_text
from exprune_fx.guards import Calibrated
from exprune_fx.passes.fuse_max_pool import FuseMaxPoolPass
from exprune_fx.passes.lower_sites import LowerSitesPass
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.pipeline import normalise
from exprune_fx.plan import Array, Plan, SitePlan
from tests.passes.fused import need_operators

FUSED = """\
    staged_conv2d_relu = exprune.staged_conv2d_relu(x, conv_weight, conv_bias, None, None, None, [2], 'pooled', 0.0, exprune_conv_limits, [1, 1], [1, 1], [1, 1], 1, 'relu', [2, 3], None, None, None, True)  # f32[s0, 6, 3, 2] conv
    return staged_conv2d_relu
"""


class Net(nn.Module):
    """Convolution, ReLU, and what reads it."""

    def __init__(self, read: str = "pool") -> None:
        super().__init__()
        self.conv, self.read = nn.Conv2d(4, 6, 3, padding=1), read
        self.pool = nn.MaxPool2d((2, 3), stride=(2, 2) if read == "overlapping" else None)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x).relu()
        pooled: Tensor = self.pool(out)
        return pooled + out.mean() if self.read == "two readers" else pooled


def _lowered(
    read: str = "pool", *, rivals: bool = True, guard_window: tuple[int, ...] = (2, 3)
) -> tuple[fx.GraphModule, Tensor]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x = torch.randn(5, 4, 7, 6, generator=generator)
    gm = normalise(capture(Net(read).eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)))
    limits = Array.of(torch.full((1, 6), 0.1))
    margins, window = (limits, guard_window) if rivals else (None, ())
    entry = SitePlan(
        "conv", (6, 4, 3, 3), "prefix", "by hand", Calibrated(0.1), (2,), limits, margins=margins, window=window
    )
    return LowerSitesPass()(StageSitesPass(Plan((entry,)))(gm).graph_module).graph_module, x


def test_golden_and_the_same_values() -> None:
    need_operators()
    lowered, x = _lowered()
    before = python_text(lowered)
    result = FuseMaxPoolPass()(lowered)
    assert result.edits == 1
    assert python_text(result.graph_module).endswith(FUSED)
    assert python_text(lowered) == before
    with torch.no_grad():
        expected = lowered(x)
        assert torch.equal(result.graph_module(x), expected)
        assert torch.equal(result.graph_module(x[:1]), expected[:1])
    assert 0.1 < float((expected == 0).double().mean()) < 0.9
    assert not FuseMaxPoolPass()(result.graph_module).changed


@pytest.mark.parametrize(("read", "rivals"), [("two readers", False), ("overlapping", False), ("pool", False)])
def test_near_misses_are_left_alone(read: str, rivals: bool) -> None:
    need_operators()
    lowered, _ = _lowered(read, rivals=rivals)
    result = FuseMaxPoolPass()(lowered)
    assert not result.changed
    assert result.graph_module is lowered


def test_a_window_that_is_not_the_pools_is_left_alone() -> None:
    need_operators()
    lowered, _ = _lowered()
    (pool,) = [node for node in lowered.graph.nodes if node.target is torch.ops.aten.max_pool2d.default]
    pool.args = (pool.args[0], [3, 3], [3, 3])
    assert not FuseMaxPoolPass()(lowered).changed


def test_a_second_reader_keeps_the_pool_apart() -> None:
    need_operators()
    lowered, _ = _lowered()
    (pool,) = [node for node in lowered.graph.nodes if node.target is torch.ops.aten.max_pool2d.default]
    (output,) = pool.users
    output.args = ((pool, pool.args[0]),)
    assert not FuseMaxPoolPass()(lowered).changed

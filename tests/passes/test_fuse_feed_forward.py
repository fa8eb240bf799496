"""FuseFeedForwardPass: golden lines beside their input, and what must not match."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from exprune_fx.graph.printing import python_text
from exprune_fx.guards import Calibrated
from exprune_fx.passes.fuse_feed_forward import FuseFeedForwardPass
from exprune_fx.passes.lower_sites import LowerSitesPass
from exprune_fx.sites import find_sites
from tests.passes.fused import need_operators
from tests.passes.staging import GatedNet, SquaredNet, randomised
from tests.passes.test_lower_sites import captured, staged

pytestmark = pytest.mark.usefixtures("_operators")


@pytest.fixture(scope="module")
def _operators() -> None:
    need_operators()


PLAIN = "    staged_ffn = exprune.staged_ffn(linear, fc2_weight, fc2_bias, None, None, [8], 1, 'calibrated', 0.0, exprune_fc2_limits, 'relu_squared', fc3_weight, fc3_bias)  # f32[s0, 4] fc2"
GATED = "    staged_gated_ffn = exprune.staged_gated_ffn(linear, gate_weight, None, None, None, [8], 1, 'calibrated', 0.0, exprune_gate_limits, 'relu', up_weight, up_bias, down_weight, down_bias)  # f32[s0, 7, 4] gate"
UNSTAGED = "    staged_ffn = exprune.staged_ffn(linear, fc2_weight, fc2_bias, None, None, [], 1, 'none', 0.0, None, 'relu_squared', fc3_weight, fc3_bias)  # f32[s0, 4] fc2"


def lowered(model: nn.Module, *shape: int) -> tuple[fx.GraphModule, Tensor]:
    gm, x = captured(randomised(model), *shape)
    return LowerSitesPass()(staged(gm, Calibrated(0.1), count=1)).graph_module, x


def check_equal(before: fx.GraphModule, after: fx.GraphModule, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(after(x), before(x), rtol=1e-4, atol=1e-4)  # float32 sums in another order


@pytest.mark.parametrize(("model", "shape", "line"), [(SquaredNet, (6,), PLAIN), (GatedNet, (7, 6), GATED)])
def test_golden(model: type[nn.Module], shape: tuple[int, ...], line: str) -> None:
    before, x = lowered(model(), *shape)
    result = FuseFeedForwardPass()(before)
    assert (result.changed, result.edits) == (True, 1)
    assert python_text(result.graph_module).split("\n")[-3] == line
    assert not FuseFeedForwardPass()(result.graph_module).changed
    check_equal(before, result.graph_module, x)


def test_an_unstaged_site_is_joined_where_that_is_asked_for() -> None:
    gm, x = captured(randomised(SquaredNet()), 6)
    sites = find_sites(gm)
    assert not FuseFeedForwardPass(sites)(gm).changed
    assert not FuseFeedForwardPass(sites, ("fc1",))(gm).changed
    result = FuseFeedForwardPass(sites, ("fc2",))(gm)
    assert python_text(result.graph_module).split("\n")[-3] == UNSTAGED
    check_equal(gm, result.graph_module, x)


class _Near(nn.Module):
    """A site, and what else may stand there: `after` gets its input, its activation, and the second layer."""

    def __init__(self, after: Callable[[Tensor, Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.after(x, self.fc2(x).relu(), self.fc3)


@pytest.mark.parametrize(
    "after",
    [
        lambda x, hidden, layer: layer(hidden) + hidden,  # the activation is read twice
        lambda x, hidden, layer: layer(hidden.tanh()),  # something in between
        lambda x, hidden, layer: nn.functional.linear(x, hidden),  # the activation is the weight
        lambda x, hidden, layer: nn.functional.linear(hidden, x.new_ones(3, 16) * x.sum()),  # a computed weight
        lambda x, hidden, layer: nn.functional.conv1d(hidden[:, :, None], layer.weight[:, :, None]),
        lambda x, hidden, layer: layer(hidden).relu(),  # the second layer is a site of its own
    ],
)
def test_near_misses_are_left_alone(after: Callable[[Tensor, Tensor, nn.Module], Tensor]) -> None:
    gm, x = captured(randomised(_Near(after)), 6)
    sites = find_sites(gm)
    names = tuple(site.name for site in sites)
    assert "fc2" in names
    assert not FuseFeedForwardPass(sites, names)(gm).changed
    before = LowerSitesPass()(staged(gm, Calibrated(0.1), count=1)).graph_module
    assert not FuseFeedForwardPass(sites)(before).changed
    check_equal(before, FuseFeedForwardPass(sites)(before).graph_module, x)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        y: Tensor = self.fc3((self.fc2(x) + x).relu())
        return y


def test_a_residual_before_the_activation_is_left_alone() -> None:
    before, _ = lowered(_Residual(), 6)
    assert any("staged_linear_relu" in str(node.target) for node in before.graph.nodes)
    assert not FuseFeedForwardPass()(before).changed


class _Gates(nn.Module):
    """A gated product whose two branches read `x` and `read(x)`."""

    def __init__(self, read: Callable[[Tensor], Tensor], after: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.gate, self.up, self.down = (
            nn.Linear(6, 16),
            nn.Linear(16, 24),
            nn.Linear(16, 24),
            nn.Linear(24, 24),
        )
        self.read, self.after = read, after

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        product = self.gate(x).relu() * self.up(self.read(x))
        return self.after(self.down(product), product)


@pytest.mark.parametrize(
    ("read", "after", "edits"),
    [
        (lambda x: x, lambda out, product: out, 1),
        (lambda x: x.tanh(), lambda out, product: out, 0),  # gate and value read different inputs
        (lambda x: x, lambda out, product: out + product, 0),  # the product is read twice
    ],
)
def test_gated_near_misses_are_left_alone(
    read: Callable[[Tensor], Tensor], after: Callable[[Tensor, Tensor], Tensor], edits: int
) -> None:
    before, x = lowered(_Gates(read, after), 6)
    assert any("gated_linear" in str(node.target) for node in before.graph.nodes)
    result = FuseFeedForwardPass()(before)
    assert result.edits == edits
    check_equal(before, result.graph_module, x)


def test_float64_is_left_alone() -> None:
    gm, _ = captured(randomised(SquaredNet()), 6, dtype=torch.float64)
    sites = find_sites(gm)
    assert not FuseFeedForwardPass(sites, ("fc2",))(gm).changed

"""PackWeightsPass: the layouts that kernels read, each tensor copied once at most, and none written to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from exprune_fx.graph import capture
from exprune_fx.graph.printing import python_text
from exprune_fx.guards import Bound, Calibrated, StatsTest
from exprune_fx.passes.fuse_feed_forward import FuseFeedForwardPass
from exprune_fx.passes.lower_sites import LowerSitesPass
from exprune_fx.passes.pack_weights import PackWeightsPass
from exprune_fx.pipeline import normalise
from tests.passes.fused import need_operators
from tests.passes.staging import GatedNet, ResidualNet, SquaredNet, randomised
from tests.passes.test_lower_sites import captured, staged

pytestmark = pytest.mark.usefixtures("_operators")


@pytest.fixture(scope="module")
def _operators() -> None:
    need_operators()


def fused(gm: fx.GraphModule, *, principal: bool = False) -> fx.GraphModule:
    gm = LowerSitesPass()(
        staged(gm, Bound() if principal else Calibrated(0.1), count=1, principal=principal)
    ).graph_module
    return FuseFeedForwardPass()(gm).graph_module


def tensors(gm: fx.GraphModule) -> dict[str, Tensor]:
    return {**dict(gm.named_parameters()), **dict(gm.named_buffers())}


def test_convolutions_become_channels_last_and_second_layers_columns() -> None:
    gm, x = captured(randomised(ResidualNet()), 3, 8, 8)
    before = fused(gm, principal=True)
    old, text = copy.deepcopy(tensors(before)), python_text(before)
    result = PackWeightsPass()(before)
    after = tensors(result.graph_module)
    assert python_text(result.graph_module) == text
    assert set(after) == set(old)
    for name, value in old.items():
        assert torch.equal(after[name], value)
        assert torch.equal(tensors(before)[name], value), "the given graph's tensors are as they were"
        assert tensors(before)[name].stride() == value.stride()
        if value.dim() == 4:
            assert after[name].is_contiguous(memory_format=torch.channels_last), name
        elif name == "fc2.weight":
            assert after[name].stride() == (1, 5)
        else:
            assert after[name] is tensors(before)[name], f"{name} had its layout"
    assert isinstance(after["fc2.weight"], nn.Parameter)
    assert result.edits == 4  # three weights and one second layer; the second factors are made channels-last
    assert not PackWeightsPass()(result.graph_module).changed
    with torch.no_grad():
        torch.testing.assert_close(result.graph_module(x), before(x), rtol=1e-5, atol=1e-5)  # another order of sums


def test_codes_become_channels_last() -> None:
    gm, x = captured(randomised(ResidualNet()), 3, 8, 8)
    before = LowerSitesPass()(staged(gm, Calibrated(0.1), coded=True)).graph_module
    after = PackWeightsPass()(before).graph_module
    for name in ("exprune.conv1.codes", "exprune.conv2.codes", "exprune.conv1.code_rest", "exprune.conv2.code_rest"):
        old, new = before.get_buffer(name), after.get_buffer(name)
        assert torch.equal(new, old)
        assert new.is_contiguous(memory_format=torch.channels_last)
        assert not old.is_contiguous(memory_format=torch.channels_last), "the given graph's tensor is as it was"
    assert not PackWeightsPass()(after).changed
    with torch.no_grad():
        torch.testing.assert_close(after(x), before(x), rtol=1e-5, atol=1e-5)  # another order of sums


@pytest.mark.parametrize(("kind", "shape"), [(SquaredNet, (6,)), (GatedNet, (7, 6))])
def test_first_layers_and_values_stay_rows(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    before = fused(captured(randomised(kind()), *shape)[0])
    result = PackWeightsPass()(before)
    assert result.edits == 1
    differing = [name for name, value in tensors(result.graph_module).items() if value is not tensors(before)[name]]
    assert differing == ["down.weight" if kind is GatedNet else "fc3.weight"]


def test_a_graph_without_fused_operators_is_left_alone() -> None:
    gm, _ = captured(randomised(ResidualNet()), 3, 8, 8)
    assert not PackWeightsPass()(gm).changed


class _Mixed(nn.Module):
    """A dense convolution behind a staged one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu())
        return y


@pytest.mark.parametrize("asked", [False, True])
def test_dense_convolutions_follow_where_that_is_asked_for(asked: bool) -> None:
    before = fused(captured(randomised(_Mixed()), 3, 8, 8)[0])
    after = PackWeightsPass(dense_convolutions=asked)(before).graph_module
    assert after.get_parameter("first.weight").is_contiguous(memory_format=torch.channels_last)
    assert after.get_parameter("second.weight").is_contiguous(memory_format=torch.channels_last) is asked


class _Tied(nn.Module):
    """One square matrix that is the second layer of two feed-forwards, and, if asked for, the first of another."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both = both
        self.embed, self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.shared = nn.Parameter(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = nn.functional.linear(self.one(x).relu(), self.shared) + nn.functional.linear(
            self.two(x).relu(), self.shared
        )
        if self.both:
            y = nn.functional.linear(y, self.shared).relu()
        out: Tensor = self.last(y)
        return out


def test_a_weight_that_two_nodes_read_is_copied_once() -> None:
    result = PackWeightsPass()(fused(captured(randomised(_Tied(both=False)), 6)[0]))
    assert result.edits == 1
    assert result.graph_module.get_parameter("shared").stride() == (1, 16)


def test_where_one_weight_is_wanted_in_two_layouts_the_later_node_gets_its_own() -> None:
    gm, x = captured(randomised(_Tied(both=True)), 6)
    before = fused(gm)
    assert sum("staged_ffn" in str(node.target) for node in before.graph.nodes) == 3
    after = PackWeightsPass()(before).graph_module
    assert after.get_parameter("shared").stride() == (1, 16)
    own = after.get_buffer("exprune.shared.rows")
    assert own.is_contiguous()
    assert torch.equal(own, after.get_parameter("shared"))
    assert not PackWeightsPass()(after).changed
    with torch.no_grad():
        torch.testing.assert_close(after(x), before(x), rtol=1e-5, atol=1e-5)  # another order of sums


def test_a_model_that_is_channels_last_already_is_not_copied() -> None:
    model = randomised(_Mixed()).float().to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub
    x = torch.randn(2, 3, 8, 8)
    gm = normalise(capture(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)))
    assert not PackWeightsPass()(fused(gm)).changed


class _WideConvolution(nn.Module):
    """Its second weight has 1.1 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 128, 3), nn.Conv2d(128, 256, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu()).relu()
        return y


class _Wide(nn.Module):
    """A first weight of 2 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 512), nn.Linear(512, 1024), nn.Linear(1024, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))
        return out


def test_the_first_columns_of_a_large_weight_get_rows_of_their_own() -> None:
    gm, x = captured(randomised(_Wide()), 8)
    before = LowerSitesPass()(staged(gm, Calibrated(0.1), count=2)).graph_module
    result = PackWeightsPass()(before)
    packed = {name: value for name, value in tensors(result.graph_module).items() if name.endswith(".head")}
    (call,) = (n for n in result.graph_module.graph.nodes if any(str(a) == "exprune_fc2_weight_head" for a in n.args))
    first = next(value for value in call.args if isinstance(value, list))[0]
    assert list(packed) == ["exprune.fc2_weight.head"], "the other weights are small"
    assert torch.equal(packed["exprune.fc2_weight.head"], gm.get_parameter("fc2.weight")[:, :first])
    assert not PackWeightsPass()(result.graph_module).changed
    with torch.no_grad():
        assert torch.equal(result.graph_module(x), before(x)), "another place to read the same numbers"


def test_the_first_channels_of_a_large_convolution_get_rows_of_their_own() -> None:
    gm, x = captured(randomised(_WideConvolution()), 3, 8, 8)
    before = LowerSitesPass()(staged(gm, Calibrated(0.1), count=2)).graph_module
    after = PackWeightsPass()(before).graph_module
    packed = {name: value for name, value in tensors(after).items() if name.endswith(".head")}
    (call,) = (n for n in after.graph.nodes if any(str(a) == "exprune_second_weight_head" for a in n.args))
    first = next(value for value in call.args if isinstance(value, list))[0]
    assert list(packed) == ["exprune.second_weight.head"], "the first weight is small"
    head = packed["exprune.second_weight.head"]
    assert torch.equal(head, gm.get_parameter("second.weight")[:, :first])
    assert head.is_contiguous(memory_format=torch.channels_last)
    assert not PackWeightsPass()(after).changed
    with torch.no_grad():
        torch.testing.assert_close(after(x), before(x), rtol=1e-5, atol=1e-5)  # channels-last: another order of sums


@pytest.mark.parametrize("principal", [False, True])
def test_only_a_prefix_head_is_packed(principal: bool) -> None:
    gm, _ = captured(randomised(_WideConvolution()), 3, 8, 8)
    before = LowerSitesPass()(
        staged(gm, Calibrated(0.1), count=1, principal=principal, coded=not principal)
    ).graph_module
    assert not any(name.endswith(".head") for name in tensors(PackWeightsPass()(before).graph_module))


def test_a_rule_that_reads_squares_gets_no_packed_head() -> None:
    gm, _ = captured(randomised(_Wide()), 8)
    before = LowerSitesPass()(staged(gm, StatsTest(0.1), count=1)).graph_module
    assert not any(name.endswith(".head") for name in tensors(PackWeightsPass()(before).graph_module))

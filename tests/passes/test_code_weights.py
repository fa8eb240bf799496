"""CodeWeightsPass: codes for large weights that few rows of input meet, the same bits, and nothing else touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

import exprune_fx as ex
from exprune_fx.graph import capture
from exprune_fx.graph.edits import is_call
from exprune_fx.passes.code_weights import CodeWeightsPass
from exprune_fx.passes.fuse_feed_forward import FuseFeedForwardPass
from exprune_fx.passes.lower_sites import LowerSitesPass
from exprune_fx.staging import fewer_bits
from exprune_fx.staging.arguments import arguments_of
from tests.passes.fused import need_operators
from tests.passes.test_lower_sites import staged

pytestmark = pytest.mark.usefixtures("_operators")
FEATURES, HIDDEN = 48, 64


@pytest.fixture
def _operators(monkeypatch: pytest.MonkeyPatch) -> None:
    need_operators()
    monkeypatch.setattr(fewer_bits, "LARGE_BYTES", 4 * FEATURES * HIDDEN)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(FEATURES, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, 7)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return out


def lowered(
    rows: int = 1, *, dynamic: bool = False, dtype: torch.dtype = torch.float32, guard: ex.Guard | None = None
) -> tuple[fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    model = _Block().eval().to(dtype)
    x = torch.randn(rows, FEATURES).to(dtype)
    gm = capture(model, (x,), dynamic_shapes=({0: Dim.AUTO},) if dynamic else None)
    readable = staged(gm, guard or ex.Calibrated(0.1), count=1)
    return FuseFeedForwardPass()(LowerSitesPass()(readable).graph_module).graph_module, x


def given_to(gm: fx.GraphModule) -> dict[str, object]:
    (node,) = [node for node in gm.graph.nodes if is_call(node, torch.ops.exprune.staged_ffn.default)]
    return arguments_of(node)


@pytest.mark.parametrize("guard", [ex.Calibrated(0.1), ex.Bound()])
def test_a_large_weight_gets_codes_and_the_result_the_same_bits(guard: ex.Guard) -> None:
    before, x = lowered(guard=guard)
    tensors = dict(before.named_parameters())
    result = CodeWeightsPass()(before)
    assert result.edits == 1
    assert given_to(before)["codes"] is None, "the given graph is as it was"
    assert [str(given_to(result.graph_module)[name]) for name in ("codes", "code_numbers", "code_slack")] == [
        "exprune_fc1_weight_codes", "exprune_fc1_weight_code_numbers", "exprune_fc1_weight_code_slack",
    ]  # fmt: skip
    assert dict(result.graph_module.named_parameters()).keys() == tensors.keys()
    with torch.no_grad():
        assert torch.equal(result.graph_module(x), before(x))
    assert not CodeWeightsPass()(result.graph_module).changed


def test_a_batch_of_unknown_size_may_be_small() -> None:
    assert CodeWeightsPass()(lowered(8, dynamic=True)[0]).changed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewer_bits, "LARGE_BYTES", 2 * FEATURES * HIDDEN)
    before, x = lowered(dtype=dtype)
    result = CodeWeightsPass()(before)
    assert result.changed
    with torch.no_grad():
        assert torch.equal(result.graph_module(x), before(x))


def test_many_rows_and_small_weights_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not CodeWeightsPass()(lowered(5)[0]).changed
    monkeypatch.setattr(fewer_bits, "LARGE_BYTES", 4 * FEATURES * HIDDEN + 1)
    assert not CodeWeightsPass()(lowered()[0]).changed


def test_graphs_without_fused_operators_are_left_alone() -> None:
    gm = capture(_Block().eval(), (torch.randn(1, FEATURES),))
    assert not CodeWeightsPass()(gm).changed

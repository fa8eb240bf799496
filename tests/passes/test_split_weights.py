"""SplitWeightsPass: 24 bits for large float32 weights of calls known to be small, and nothing else touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

import exprune_fx as ex
from exprune_fx.graph.edits import tensor_at
from exprune_fx.ops import native
from exprune_fx.passes.code_weights import CodeWeightsPass
from exprune_fx.passes.split_weights import SplitWeightsPass
from exprune_fx.staging import fewer_bits
from tests.passes.fused import need_operators
from tests.passes.test_code_weights import FEATURES, HIDDEN, given_to, lowered

pytestmark = pytest.mark.usefixtures("_operators")
_TABLES = ("code_rest", "out_codes", "out_scales", "out_rest")


@pytest.fixture
def _operators(monkeypatch: pytest.MonkeyPatch) -> None:
    need_operators()
    monkeypatch.setattr(fewer_bits, "LARGE_BYTES", 1)
    monkeypatch.setattr(fewer_bits, "SPLIT_BYTES", 1)


def coded(
    rows: int = 1, *, dynamic: bool = False, dtype: torch.dtype = torch.float32, guard: ex.Guard | None = None
) -> tuple[fx.GraphModule, Tensor]:
    gm, x = lowered(rows, dynamic=dynamic, dtype=dtype, guard=guard)
    return CodeWeightsPass()(gm).graph_module, x


def tables(gm: fx.GraphModule) -> list[str]:
    return [name for name in _TABLES if given_to(gm)[name] is not None]


@pytest.mark.parametrize("guard", [ex.Calibrated(0.1), ex.Bound()])
@pytest.mark.parametrize("rows", [1, 4])
def test_both_weights_are_split_and_values_stay(rows: int, guard: ex.Guard) -> None:
    before, x = coded(rows, guard=guard)
    result = SplitWeightsPass()(before)
    assert result.edits == 1
    assert tables(before) == [], "the given graph is as it was"
    assert tables(result.graph_module) == list(_TABLES)
    with torch.no_grad():  # sums of 64 and 48 numbers of about 1, whose weights are off by 2^-23 of the largest
        torch.testing.assert_close(result.graph_module(x), before(x), rtol=1e-5, atol=1e-6)
    assert not SplitWeightsPass()(result.graph_module).changed


@pytest.mark.skipif(not native.available(), reason="native kernels cannot be built here")
def test_the_kernel_reads_the_tables_and_not_the_weights() -> None:
    result, x = SplitWeightsPass()(coded()[0]).graph_module, lowered()[1]
    with torch.no_grad():
        expected = result(x)
        for name in ("fc1.weight", "fc2.weight"):
            tensor_at(result, name).fill_(torch.nan)
        assert torch.equal(result(x), expected)


def test_how_many_rows_there_are_must_be_known_and_few() -> None:
    assert not SplitWeightsPass()(coded(4, dynamic=True)[0]).changed, "a row would be computed in two ways"
    assert not SplitWeightsPass()(coded(5)[0]).changed


def test_only_float32_is_split() -> None:
    assert not SplitWeightsPass()(coded(dtype=torch.bfloat16)[0]).changed


def test_rules_that_square_terms_read_the_weight() -> None:
    before, _ = coded()
    (node,) = [node for node in before.graph.nodes if fewer_bits.may_have_codes(node)]
    args = list(node.args)
    args[args.index("calibrated")] = "stats_test"
    node.args = tuple(args)
    result = SplitWeightsPass()(before)
    assert tables(result.graph_module) == ["out_codes", "out_scales", "out_rest"]


def test_without_codes_there_is_no_rest() -> None:
    assert tables(SplitWeightsPass()(lowered()[0]).graph_module) == ["out_codes", "out_scales", "out_rest"]


@pytest.mark.parametrize(("name", "left"), [("fc1.weight", _TABLES[1:]), ("fc2.weight", _TABLES[:1])])
def test_weights_that_24_bits_do_not_hold_are_left_alone(name: str, left: tuple[str, ...]) -> None:
    before, _ = coded()
    with torch.no_grad():
        tensor_at(before, name)[3, 5] = torch.inf
    assert tables(SplitWeightsPass()(before).graph_module) == list(left)


def test_small_weights_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewer_bits, "SPLIT_BYTES", 4 * FEATURES * HIDDEN)
    assert tables(SplitWeightsPass()(coded()[0]).graph_module) == ["code_rest"], "the second weight is smaller"

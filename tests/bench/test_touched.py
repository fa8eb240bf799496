"""FLOPs and bytes that a staged graph needs, against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx
from torch.export import Dim

from exprune_fx.bench.micro import ConvRelu, FeedForward
from exprune_fx.bench.touched import count_touched
from exprune_fx.errors import PlanError
from exprune_fx.graph import capture
from exprune_fx.guards import Calibrated
from exprune_fx.pipeline import transform
from exprune_fx.plan import Array, Plan, SitePlan
from exprune_fx.staging import fewer_bits


def staged_ffn(thresholds: Tensor, *, rows: int | None = None) -> fx.GraphModule:
    """Hidden 8, 32 units; a prefix of 2 terms; the first weights as below, all the rest ones.

    Args:
        thresholds: [32].
        rows: of each call, if the graph is to know that.
    """
    model = FeedForward(8).eval()
    for parameter in model.parameters():
        parameter.data = torch.ones_like(parameter)
    model.fc1.bias.data = torch.zeros(32)
    model.fc1.weight.data[16:] = -1.0  # half of the units are zero for positive inputs
    gm = capture(model, (torch.ones(rows or 2, 8),), dynamic_shapes=None if rows else ({0: Dim.AUTO},))
    entry = SitePlan(
        "fc1", (32, 8), "prefix", "", Calibrated(0.0), (2,), thresholds=Array.of(thresholds.reshape(1, 32))
    )
    return transform(gm, Plan((entry,)), lower=False)


def test_a_feed_forward_block_reads_what_goes_on_and_the_columns_of_what_is_not_zero() -> None:
    thresholds = torch.full((32,), -torch.inf)
    thresholds[16:24] = 0.0  # eight of the sixteen dead units stop: their sums are -2
    touched = count_touched(staged_ffn(thresholds), [(torch.ones(1, 8),)])
    assert touched.stopped_fraction == 0.25
    assert touched.zero_fraction == 0.5
    head, tail, second = 32 * 2, 24 * 6, 16 * 8
    assert touched.flops == 2 * (head + tail + second) + 32  # one comparison a unit
    assert touched.flops_dense == 2 * (32 * 8 + 32 * 8)
    activations = 8 + 32 + 32 + 8 + 8  # in, hidden out and in, out, and the second bias
    assert touched.bytes == 4 * (head + tail + second + activations)
    assert touched.bytes_dense == 4 * (2 * 32 * 8 + activations + 32)  # the dense first layer's bias counts too


def test_of_a_weight_with_codes_the_codes_are_read_and_the_rows_that_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fewer_bits, "LARGE_BYTES", 4 * 32 * 8)
    thresholds = torch.full((32,), -torch.inf)
    thresholds[16:24] = 0.0
    touched = count_touched(staged_ffn(thresholds), [(torch.ones(1, 8),)])
    codes, needed = 32 * 2 + 24 * 6, 16 * 8
    activations = 8 + 32 + 32 + 8 + 8
    assert touched.bytes == codes + 4 * (needed + 16 * 8 + activations)


def test_of_weights_in_24_bits_three_bytes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewer_bits, "LARGE_BYTES", 1)
    monkeypatch.setattr(fewer_bits, "SPLIT_BYTES", 1)
    thresholds = torch.full((32,), -torch.inf)
    thresholds[16:24] = 0.0
    touched = count_touched(staged_ffn(thresholds, rows=1), [(torch.ones(1, 8),)])
    codes, needed = 32 * 2 + 24 * 6, 16 * 8
    activations = 8 + 32 + 32 + 8 + 8
    assert touched.bytes == codes + 2 * needed + 3 * 16 * 8 + 4 * activations


def test_a_row_that_one_of_several_tokens_needs_is_read_once() -> None:
    thresholds = torch.full((32,), -torch.inf)
    thresholds[16:24] = 0.0
    tokens = torch.stack([torch.ones(8), -torch.ones(8)])  # what the first stops, the second needs
    both = count_touched(staged_ffn(thresholds), [(tokens,)])
    assert both.stopped_fraction == 0.125
    weights = 32 * 8 + 32 * 8
    assert both.bytes == 4 * (weights + 2 * (8 + 32 + 32 + 8) + 8)


def test_several_calls_are_averaged() -> None:
    gm = staged_ffn(torch.zeros(32))
    one, other = (torch.ones(1, 8),), (-torch.ones(1, 8),)
    mean = count_touched(gm, [one, other])
    assert mean.flops == pytest.approx((count_touched(gm, [one]).flops + count_touched(gm, [other]).flops) / 2)
    assert mean.stopped_fraction == 0.5


def test_a_convolution() -> None:
    model = ConvRelu(4).eval()
    gm = capture(model, (torch.ones(2, 4, 5, 5),), dynamic_shapes=({0: Dim.AUTO},))
    never = Array.of(torch.full((1, 4), -torch.inf))
    entry = SitePlan("conv", (4, 4, 3, 3), "prefix", "", Calibrated(0.0), (1,), thresholds=never)
    touched = count_touched(transform(gm, Plan((entry,)), lower=False), [(torch.ones(1, 4, 5, 5),)])
    assert touched.flops == touched.flops_dense + 4 * 25
    assert touched.flops_dense == 2 * 4 * 25 * 4 * 9
    assert touched.bytes == 4 * (100 + 100 + 4 * 4 * 9)


def test_a_coded_head_reads_a_byte_a_weight_and_then_two_of_the_rows_that_go_on() -> None:
    model = ConvRelu(4).eval()
    gm = capture(model, (torch.ones(2, 4, 5, 5),), dynamic_shapes=({0: Dim.AUTO},))
    thresholds = torch.full((1, 4), -torch.inf)
    thresholds[0, 2] = torch.inf  # one output of four
    entry = SitePlan("conv", (4, 4, 3, 3), "coded", "", Calibrated(0.0), (4,), thresholds=Array.of(thresholds))
    touched = count_touched(transform(gm, Plan((entry,)), lower=False), [(torch.ones(1, 4, 5, 5),)])
    assert touched.stopped_fraction == 0.25
    assert touched.flops == touched.flops_dense * (0.25 + 0.75) + 4 * 25
    assert touched.bytes == 4 * (100 + 100) + 4 * 4 * 9 + 2 * (3 * 4 * 9)


def test_a_graph_that_was_not_staged_is_refused() -> None:
    gm = capture(FeedForward(8).eval(), (torch.ones(1, 8),))
    with pytest.raises(PlanError, match="not made by transform"):
        count_touched(gm, [(torch.ones(1, 8),)])

"""partial_*, squares_* and principal_*: against explicit loops over terms in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import exprune_fx.ops  # noqa: F401 - registers the operators
from tests.ops.truths import (
    CONVS,
    Conv,
    assert_close,
    double_conv_terms,
    double_linear_terms,
    elements_of,
    rounding,
)

ops = torch.ops.exprune
HALVES = (torch.float16, torch.bfloat16)
each_conv = pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS.keys())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_partial_linear_sums_the_terms_between_start_and_stop(data: st.DataObject) -> None:
    leading = data.draw(st.lists(st.integers(0, 3), max_size=3), label="leading sizes")
    terms, out = data.draw(st.integers(1, 9), label="terms"), data.draw(st.integers(1, 4), label="out")
    start = data.draw(st.integers(0, terms - 1), label="start")
    stop = data.draw(st.integers(start + 1, terms), label="stop")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), label="seed"))
    x = torch.randn(*leading, terms, generator=generator)
    weight = torch.randn(out, terms, generator=generator)
    partial = torch.randn(*leading, out, generator=generator) if data.draw(st.booleans(), label="partial") else None
    truth = double_linear_terms(x, weight)
    expected = truth[..., start:stop].sum(-1) + (0 if partial is None else partial.double())
    # one more element and its magnitude for the addition of what was known
    tolerance = rounding(truth, terms + 1) + 1e-6 * (partial is not None)
    assert_close(ops.partial_linear(x, weight, start, stop, partial), expected, tolerance)


@pytest.mark.parametrize("block", [1, 3, 4])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 3), (0,)], ids=str)
def test_squares_linear_sums_the_squares_of_whole_terms(block: int, leading: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(block)
    x, weight = torch.randn(*leading, 12, generator=generator), torch.randn(4, 12, generator=generator)
    truth = double_linear_terms(x, weight, block).square()
    last = 12 // block
    found = ops.squares_linear(x, weight, block, 12, block)
    assert_close(found, truth[..., 1:last].sum(-1), rounding(truth, 12))
    again = ops.squares_linear(x, weight, 0, block, block, found)
    assert_close(again, truth.sum(-1), rounding(truth, 13))


@each_conv
def test_partial_conv_sums_the_terms_between_start_and_stop(conv: Conv) -> None:
    x, weight = conv.operands(1)
    truth = double_conv_terms(x, weight, conv)
    tolerance = rounding(truth, elements_of(weight) + 1)
    head = ops.partial_conv(x, weight, *conv.geometry, conv.groups, 0, 1)
    assert_close(head, truth[..., 0], tolerance)
    whole = ops.partial_conv(x, weight, *conv.geometry, conv.groups, 1, conv.channels, head)
    assert_close(whole, truth.sum(-1), tolerance)


@each_conv
def test_squares_conv_sums_the_squares_of_whole_terms(conv: Conv) -> None:
    x, weight = conv.operands(2)
    truth = double_conv_terms(x, weight, conv).square()
    tolerance = rounding(truth, elements_of(weight) + 2)
    head = ops.squares_conv(x, weight, *conv.geometry, conv.groups, 0, 1)
    assert_close(head, truth[..., 0], tolerance)
    whole = ops.squares_conv(x, weight, *conv.geometry, conv.groups, 1, conv.channels, head)
    assert_close(whole, truth.sum(-1), tolerance)


@pytest.mark.parametrize("groups", [1, 2])
def test_heads_of_an_empty_batch_are_empty(groups: int) -> None:
    x, weight = torch.zeros(0, 2 * groups, 4, 4), torch.randn(4, 2, 3, 3)
    geometry = ([1, 1], [1, 1], [1, 1])
    assert ops.partial_conv(x, weight, *geometry, groups, 0, 1).shape == (0, 4, 4, 4)
    assert ops.squares_conv(x, weight, *geometry, groups, 0, 2).shape == (0, 4, 4, 4)


@pytest.mark.parametrize("start", [0, 1])
def test_one_channel_of_a_channels_last_weight(start: int) -> None:
    """With strides (1, 2) and two images torch 2.13's own convolution of this slice reads numbers that are not its own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 3, 5, generator=generator)
    weight = torch.randn(12, 2, 1, 5, generator=generator).to(memory_format=torch.channels_last)
    found = ops.partial_conv(x, weight, [1, 2], [0, 0], [1, 1], 1, start, start + 1)
    part = slice(start, start + 1)
    truth = F.conv2d(x[:, part].double(), weight[:, part].double().contiguous(), stride=(1, 2))
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)  # five terms in float32


def test_squares_conv_of_no_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="no channels between 2 and 2"):
        ops.squares_conv(torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 1, 1), [1, 1], [0, 0], [1, 1], 1, 2, 2)


def test_the_principal_head_of_full_rank_is_the_whole_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, 6, generator=generator).double() for shape in ((3, 2), (5,)))
    basis = torch.randn(6, 6, generator=generator).double()
    found = ops.principal_linear(x, basis, weight @ torch.linalg.inv(basis))
    torch.testing.assert_close(found, double_linear_terms(x, weight).sum(-1), rtol=1e-10, atol=1e-10)


def test_a_principal_head_of_rank_r_keeps_the_first_r_rotated_terms() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(n, 6, generator=generator).double() for n in (4, 5))
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator).double()).Q
    rotated = double_linear_terms(x @ rotation.T, weight @ rotation.T)
    for rank in (1, 4):
        found = ops.principal_linear(x, rotation[:rank], weight @ rotation[:rank].T)
        torch.testing.assert_close(found, rotated[..., :rank].sum(-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name, conv in CONVS.items() if conv.groups == 1])
def test_the_principal_head_of_full_rank_is_the_whole_convolution(name: str) -> None:
    conv = CONVS[name]
    x, weight = conv.operands(4, torch.float64)
    basis = torch.randn(conv.channels, conv.channels, generator=torch.Generator().manual_seed(5)).double()
    up = torch.einsum("oc...,cr->or...", weight, torch.linalg.inv(basis))
    found = ops.principal_conv(x, basis, up, *conv.geometry)
    torch.testing.assert_close(found, double_conv_terms(x, weight, conv).sum(-1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", HALVES)
def test_sums_of_half_precision_terms_are_float32_sums(dtype: torch.dtype) -> None:
    """Not float32 numbers that were rounded to half precision on the way: a decision would hang on that."""
    conv = CONVS["conv2d"]
    x, weight = conv.operands(6, dtype)

    def check(found: torch.Tensor, terms: torch.Tensor, elements: int) -> None:
        assert found.dtype is torch.float32
        assert_close(found, terms.sum(-1), rounding(terms, elements))

    seen = double_conv_terms(x, weight, conv)[..., :3]
    check(ops.partial_conv(x, weight, *conv.geometry, 1, 0, 3), seen, elements_of(weight))
    # a term errs before it is squared, by more than its own eps where it cancels: twice its magnitude times that
    check(ops.squares_conv(x, weight, *conv.geometry, 1, 0, 3), seen.square(), 4 * elements_of(weight))
    flat, matrix = x.flatten(2).mT.contiguous(), weight[:, :, 0, 0].contiguous()
    terms = double_linear_terms(flat, matrix)
    check(ops.partial_linear(flat, matrix, 1, 4), terms[..., 1:4], 3)
    check(ops.squares_linear(flat, matrix, 1, 4, 1), terms[..., 1:4].square(), 4)
    check(ops.principal_linear(flat, torch.eye(5, dtype=dtype), matrix), terms, 5)
    pointwise = Conv(conv.space, (1, 1), (1, 1), (0, 0), (1, 1))
    found = ops.principal_conv(x, torch.eye(5, dtype=dtype), weight[:, :, :1, :1], *pointwise.geometry)
    check(found, double_conv_terms(x, weight[:, :, :1, :1], pointwise), 5)


def test_a_float16_sum_beyond_float16_does_not_overflow() -> None:
    x, weight = torch.full((1, 4), 200.0).half(), torch.full((1, 4), 200.0).half()
    assert ops.partial_linear(x, weight, 0, 4).item() == 160_000
    assert ops.squares_linear(x, weight, 0, 4, 1).item() == 4 * 40_000**2


@each_conv
def test_input_norm_conv_is_the_norm_of_the_receptive_field(conv: Conv) -> None:
    """A kernel of ones in one place picks one element of every field: the squares of these add up."""
    x, weight = conv.operands(7)
    squares = torch.zeros(())
    for channel in range(1, conv.channels):
        for offset in range(weight[0, 0].numel()):
            picked = torch.zeros(weight.shape[0], conv.channels, weight[0, 0].numel())
            picked[:, channel, offset] = 1
            squares = squares + double_conv_terms(x, picked.reshape(weight.shape), conv).sum(-1).square()
    per_group = conv.out // conv.groups
    found = ops.input_norm_conv(x, list(conv.kernel), *conv.geometry, conv.groups, per_group, 1, conv.channels)
    assert found.shape[1] == (1 if conv.groups == 1 else conv.out)
    torch.testing.assert_close(found.double().expand_as(squares), squares.sqrt(), rtol=1e-5, atol=1e-6)


def test_input_norm_linear_is_the_norm_of_the_features() -> None:
    x = torch.randn(2, 3, 7)
    expected = torch.stack([x[..., i].double().square() for i in range(2, 6)]).sum(0).sqrt().unsqueeze(-1)
    torch.testing.assert_close(ops.input_norm_linear(x, 2, 6).double(), expected, rtol=1e-6, atol=1e-7)
    assert ops.input_norm_linear(x.half(), 0, 7).dtype is torch.float32


def test_constant_term_adds_what_is_known() -> None:
    bias, residual = torch.randn(3), torch.randn(2, 3, 4, 4)
    assert torch.equal(ops.constant_term(bias, None, 0), bias)
    assert torch.equal(ops.constant_term(bias, None, 2), bias.reshape(3, 1, 1))
    assert torch.equal(ops.constant_term(None, residual, 2), residual)
    both = ops.constant_term(bias, residual, 2)
    assert all(torch.equal(both[:, c], residual[:, c] + bias[c]) for c in range(3))
    assert ops.constant_term(bias.half(), residual.half(), 2).dtype is torch.float32
    with pytest.raises(ValueError, match="needs a bias or a residual"):
        ops.constant_term(None, None, 2)


def test_the_loops_agree_with_torch() -> None:
    """The truth itself, once: otherwise a mistake in it could hide one in the operators."""
    conv = CONVS["conv2d all numbers differ"]
    x, weight = conv.operands(8, torch.float64)
    stride, padding, dilation = conv.geometry
    torch.testing.assert_close(
        double_conv_terms(x, weight, conv).sum(-1), F.conv2d(x, weight, None, stride, padding, dilation)
    )

"""coded_conv and the codes of a weight: against integers of numpy, one product at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exprune_fx.ops import coded
from exprune_fx.ops import reference as ops
from exprune_fx.ops.split import rest_of
from tests.ops.truths import CONVS, Conv, double_conv_terms

ONE = np.float32(1)
TWO_DIMENSIONAL = {name: conv for name, conv in CONVS.items() if len(conv.space) == 2 and conv.groups == 1}
each_conv = pytest.mark.parametrize("conv", TWO_DIMENSIONAL.values(), ids=TWO_DIMENSIONAL)


def integer_sums(ticks: npt.NDArray[np.int64], codes: Tensor, conv: Conv) -> npt.NDArray[np.int64]:
    """The convolution in int64 by explicit loops: [N, K, H, W] -> [N, out, H', W']."""
    kernels = codes.numpy().astype(np.int64)
    padded = np.pad(ticks, ((0, 0), (0, 0), *((p, p) for p in conv.padding)))
    sizes = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(conv.space, conv.padding, conv.dilation, conv.kernel, conv.stride, strict=True)
    ]
    sums = np.zeros((len(ticks), len(kernels), *sizes), dtype=np.int64)
    for row, column in itertools.product(*map(range, conv.kernel)):
        (top, left), (down, right) = (row * conv.dilation[0], column * conv.dilation[1]), conv.stride
        seen = padded[:, :, top::down, left::right][:, :, : sizes[0], : sizes[1]]
        for out, channel in itertools.product(range(len(kernels)), range(kernels.shape[1])):
            sums[:, out] += seen[:, channel] * kernels[out, channel, row, column]
    return sums


def estimate(x: Tensor, codes: Tensor, scales: Tensor, conv: Conv) -> Tensor:
    """`coded_conv` of finite values, an image at a time, in numpy."""
    images = []
    for image in x.float().numpy():
        low, high = min(image.min(), np.float32(0)), max(image.max(), np.float32(0))
        tick = (high - low) / np.float32(255)
        tick = tick if tick else ONE
        inverse = ONE / tick
        zero = np.rint(-low * inverse)
        ticks = np.clip(np.rint(image * inverse) + zero, 0, 255) - zero
        sums = integer_sums(ticks[None].astype(np.int64), codes, conv)
        images.append(sums.astype(np.float32) * (scales.numpy()[None, :, None, None] * tick))
    return torch.from_numpy(np.concatenate(images))


@each_conv
@pytest.mark.parametrize("shift", [0.0, 1.5, -7.0, 40.0])
def test_equals_the_integers_to_the_bit(conv: Conv, shift: float) -> None:
    """Shifted, so that zero is inside, at an end of, and far outside the values."""
    x, weight = conv.operands(3)
    codes, scales = coded.codes_of(weight)
    found = ops.coded_conv(x + shift, codes, scales, *conv.geometry)
    assert torch.equal(found, estimate(x + shift, codes, scales, conv))


@given(
    channels=st.sampled_from([1, 57, 58, 116, 130]),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]),
    nonnegative=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_long_sums_do_not_round(channels: int, magnitude: float, nonnegative: bool, seed: int) -> None:
    """57 channels of a 3 by 3 kernel are what float32 adds up at once. Codes and inputs at their ends sum up furthest."""
    conv = Conv((4, 3), (3, 3), (1, 1), (1, 1), (1, 1), channels=channels, out=3)
    x, _ = conv.operands(seed)
    x = (x.abs() if nonnegative else x).sign() * magnitude
    codes = torch.randint(0, 2, (3, channels, 3, 3), generator=torch.Generator().manual_seed(seed)) * 254 - 127
    codes[0] = 127
    scales = torch.tensor([1e-3, 1.0, 7.0])
    found = ops.coded_conv(x, codes.to(torch.int8), scales, *conv.geometry)
    assert torch.equal(found, estimate(x, codes, scales, conv))


def test_a_kernel_of_more_products_than_float32_adds_up() -> None:
    conv = Conv((30, 24), (29, 23), (1, 1), (1, 1), (1, 1), channels=2, out=2, batch=1)
    x, weight = conv.operands(0)
    codes, scales = coded.codes_of(weight)
    assert torch.equal(ops.coded_conv(x, codes, scales, *conv.geometry), estimate(x, codes, scales, conv))


@each_conv
def test_is_the_convolution_but_for_half_a_tick_a_value(conv: Conv) -> None:
    x, weight = conv.operands(4)
    codes, scales = coded.codes_of(weight)
    truth = double_conv_terms(x, weight, conv).sum(-1)
    tick = (x.amax((1, 2, 3)).clamp_min(0) - x.amin((1, 2, 3)).clamp_max(0)) / 255
    # each factor is off by half of what it counts in (the zero point by half a tick more), times the other
    ends = double_conv_terms(x.abs(), torch.ones_like(weight), conv).sum(-1) * scales.reshape(-1, 1, 1) / 2
    ends = ends + weight.abs().sum((1, 2, 3)).reshape(-1, 1, 1) * tick.reshape(-1, 1, 1, 1) * 1.01
    ends = ends + math.prod(weight.shape[1:]) * (scales.reshape(-1, 1, 1) * tick.reshape(-1, 1, 1, 1))
    found = ops.coded_conv(x, codes, scales, *conv.geometry)
    assert bool(((found - truth).abs() <= ends).all())
    assert float((found - truth).abs().mean()) < 0.02 * float(truth.std())  # and mostly far nearer


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_an_image_without_a_tick_stops_nobody(value: float) -> None:
    """3e38 beside -3e38: their distance is no float32. The other image is as it was."""
    conv = Conv((4, 4), (3, 3), (1, 1), (1, 1), (1, 1), channels=4)
    x, weight = conv.operands(5)
    codes, scales = coded.codes_of(weight)
    before = ops.coded_conv(x, codes, scales, *conv.geometry)
    x[0, 1, 2, 3], x[0, 0, 0, 0] = value, -3e38
    after = ops.coded_conv(x, codes, scales, *conv.geometry)
    assert bool(after[0].isnan().all())
    assert torch.equal(after[1], before[1])
    assert not ops.guard_calibrated(after[:1], None, torch.full((4, 1, 1), math.inf)).any()
    margins = torch.zeros(4, 1, 1)
    assert not ops.guard_pooled(after[:1], None, torch.full((4, 1, 1), math.inf), margins, [2, 2]).any()


def test_values_too_small_to_have_a_tick_stop_nobody() -> None:
    x = torch.full((1, 4, 2, 2), 1e-42)  # a tick is below the smallest number whose inverse is one
    found = ops.coded_conv(x, torch.ones(1, 4, 1, 1, dtype=torch.int8), torch.ones(1), [1, 1], [0, 0], [1, 1])
    assert bool(found.isnan().all())


def test_an_image_of_zeros_is_zero() -> None:
    codes = torch.full((2, 4, 3, 3), -127, dtype=torch.int8)
    found = ops.coded_conv(torch.zeros(1, 4, 3, 3), codes, torch.ones(2), [1, 1], [1, 1], [1, 1])
    assert torch.equal(found, torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_values_of_one_sign_have_zero_at_an_end(sign: float) -> None:
    """So the padding's zero has a tick of its own, and constant images are known exactly."""
    x = torch.full((1, 4, 2, 2), 2.5 * sign)
    codes = torch.full((1, 4, 3, 3), 100, dtype=torch.int8)
    found = ops.coded_conv(x, codes, torch.full((1,), 0.01), [1, 1], [1, 1], [1, 1])
    torch.testing.assert_close(found, torch.full((1, 1, 2, 2), 40 * sign), rtol=1e-6, atol=0)  # two float32 products


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_estimates_are_at_least_float32(dtype: torch.dtype) -> None:
    conv = TWO_DIMENSIONAL["conv2d"]
    x, weight = conv.operands(6, dtype)
    codes, scales = coded.codes_of(weight)
    found = ops.coded_conv(x, codes, scales, *conv.geometry)
    assert found.dtype is (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(found.float(), estimate(x, codes, scales, conv))


def test_an_empty_batch_is_empty() -> None:
    codes = torch.zeros(3, 4, 3, 3, dtype=torch.int8)
    found = ops.coded_conv(torch.zeros(0, 4, 5, 5), codes, torch.ones(3), [1, 1], [0, 0], [1, 1])
    assert found.shape == (0, 3, 3, 3)


def test_no_derivative_flows() -> None:
    """Who stops is a decision; the values of those who go on are computed from nothing."""
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    codes, scales = coded.codes_of(torch.randn(2, 4, 1, 1))
    assert not ops.coded_conv(x, codes, scales, [1, 1], [0, 0], [1, 1]).requires_grad


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_codes_are_the_weight_but_for_half_a_scale(dtype: torch.dtype) -> None:
    weight = torch.randn(5, 8, 3, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    codes, scales = coded.codes_of(weight)
    assert (codes.dtype, scales.dtype) == (torch.int8, torch.float32)
    assert torch.equal(codes.abs().amax((1, 2, 3)), torch.full((5,), 127, dtype=torch.int8))
    off = (codes.double() * scales.double().reshape(-1, 1, 1, 1) - weight.double()).abs()
    assert bool((off <= scales.double().reshape(-1, 1, 1, 1) * (0.5 + 1e-5)).all())  # ratios round in float32


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_the_rest_completes_the_codes_to_24_bits(spread: float) -> None:
    """Of rows with weights of one size, and of rows whose largest weight is far above the others."""
    generator = torch.Generator().manual_seed(1)
    weight = (
        torch.randn(6, 8, 3, 3, generator=generator) * (spread * torch.randn(6, 8, 3, 3, generator=generator)).exp()
    )
    codes, scales = coded.codes_of(weight)
    rest = rest_of(weight, codes, scales)
    assert rest.dtype is torch.int16
    again = scales.double().reshape(-1, 1, 1, 1) * (codes.double() + rest.double() / 2**16)
    largest = weight.double().abs().amax((1, 2, 3), keepdim=True)
    off = (again - weight).abs() / (largest / (127 * 2**16))
    assert float(off.quantile(0.99)) <= 0.51
    assert float(off.max()) <= 1.6  # in the middle between two codes a rest of 2^15 is cut to one less


def test_the_rest_of_weights_that_are_not_finite_is_nothing() -> None:
    weight = torch.randn(2, 4, 1, 1)
    weight[1, 0] = math.inf
    assert not rest_of(weight, *coded.codes_of(weight))[1].any()


def test_an_output_without_weights_has_scale_one() -> None:
    weight = torch.randn(2, 4, 1, 1)
    weight[1] = 0
    codes, scales = coded.codes_of(weight)
    assert float(scales[1]) == 1
    assert not codes[1].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_output_whose_weights_are_not_finite_is_never_stopped(value: float) -> None:
    weight = torch.randn(2, 4, 3, 3)
    weight[1, 2, 0, 0] = value
    codes, scales = coded.codes_of(weight)
    found = ops.coded_conv(torch.randn(1, 4, 3, 3), codes, scales, [1, 1], [1, 1], [1, 1])
    assert bool(found[:, 1].isnan().all())
    assert bool(found[:, 0].isfinite().all())


def test_numbers_are_scales_and_sums_of_codes() -> None:
    codes, scales = coded.codes_of(torch.randn(3, 8, 3, 3))
    numbers = coded.numbers_of(codes, scales)
    expected = torch.stack([scales, codes.double().sum((1, 2, 3)).float()])
    assert torch.equal(numbers, expected)
    assert numbers.dtype is torch.float32


@pytest.mark.parametrize(
    ("shape", "groups", "reason"),
    [
        ((8, 16, 3, 3), 1, ""),
        ((8, 60_000, 1, 1), 1, ""),
        ((8, 16), 1, "no two-dimensional convolution"),
        ((8, 16, 3), 1, "no two-dimensional convolution"),
        ((8, 16, 3, 3, 3), 1, "no two-dimensional convolution"),
        ((8, 16, 3, 3), 2, "grouped"),
        ((8, 6, 3, 3), 1, "6 input channels are no multiple of 4"),
        ((8, 60_004, 1, 1), 1, "60004 products"),
    ],
)
def test_where_no_coded_head_may_look(shape: tuple[int, ...], groups: int, reason: str) -> None:
    found = coded.obstacle(shape, groups)
    assert reason in found
    assert bool(found) == bool(reason)

"""What a coded head computes: the estimate of every pre-activation from 8-bit codes of weights and inputs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_EXACT_PRODUCTS = 518  # 255 * 127 * 518 < 2^24: so many products add up without rounding in float32


def coded_conv(
    x: Tensor, codes: Tensor, scales: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """The convolution with inputs and weights rounded to 8 bits; the sum of integers is exact.

    The values of one image, and 0, are rounded to 256 ticks from the smallest to the largest. An image whose tick
    float32 does not hold (it has a value that is not finite, or none but the smallest) gets NaN: nobody stops there.

    Args:
        x: [N, K, H, W].
        codes: int8 [out, K, kh, kw], from -127 to 127.
        scales: float32 [out], what each output's codes count in.
        stride: of rows and columns; so too ``padding`` and ``dilation``.
        padding: see ``stride``.
        dilation: see ``stride``.

    Returns:
        [N, out, H', W'], at least float32.
    """
    wide = x.detach().float()
    low, high = wide.amin((1, 2, 3)).clamp_max(0), wide.amax((1, 2, 3)).clamp_min(0)
    tick = (high - low) / 255
    tick = tick.masked_fill(tick == 0, 1.0)
    inverse = 1 / tick
    tick = tick.masked_fill(~(torch.isfinite(tick) & torch.isfinite(inverse)), torch.nan)
    inverse, zero = _per_image(inverse), _per_image(torch.round(-low * inverse))
    ticks = (torch.round(wide * inverse) + zero).clamp(0, 255) - zero
    sums = _exact_sums(ticks, codes, stride, padding, dilation)
    estimate = sums * (scales.reshape(-1, 1, 1) * _per_image(tick))
    return estimate.double() if x.dtype == torch.float64 else estimate


def _per_image(numbers: Tensor) -> Tensor:
    return numbers.reshape(-1, 1, 1, 1)


def _exact_sums(ticks: Tensor, codes: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """The convolution of whole numbers from -255 to 255 with codes, exact but for one rounding to float32.

    On a CPU in float32, so many channels at a time that nothing rounds. Elsewhere in float64: there a library may
    transform what it convolves, and only the many bits to spare keep whole numbers whole.
    """
    walk = (None, stride, padding, dilation)
    channels = _EXACT_PRODUCTS // math.prod(codes.shape[2:])
    if ticks.device.type != "cpu" or channels == 0:
        return F.conv2d(ticks.double(), codes.double(), *walk).round().float()
    kernels = codes.float()
    parts = [
        F.conv2d(ticks[:, first : first + channels], kernels[:, first : first + channels].contiguous(), *walk)
        for first in range(0, codes.shape[1], channels)
    ]
    if len(parts) == 1:
        return parts[0]
    total = parts[0].double()
    for part in parts[1:]:
        total = total + part
    return total.float()

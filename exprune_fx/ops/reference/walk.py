"""What all reference operators share: width of sums, convolution in any number of dimensions, channels of groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def wide(value: Tensor) -> Tensor:
    """At least float32, so that a decision never hangs on a half-precision sum."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def convolve(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """A convolution in one to three dimensions, by the weight's rank; no bias."""
    result: Tensor = _CONVOLUTIONS[weight.dim() - 2](x, weight, None, stride, padding, dilation, groups)
    return result


def channels(x: Tensor, groups: int, start: int, stop: int) -> Tensor:
    """Channels ``start:stop`` of every one of the groups: [N, G*C, *space] -> [N, G*(stop-start), *space]."""
    if groups == 1:
        return x[:, start:stop]
    grouped: Tensor = x.unflatten(1, (groups, -1))
    return grouped[:, :, start:stop].flatten(1, 2)

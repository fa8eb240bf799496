"""8-bit codes of a convolution's weight: what a coded head estimates every pre-activation with.

Four multiply-adds of 8-bit numbers fit where one of float32 does, and their sums are exact integers. So the whole
pre-activation is estimated for a quarter of its price, and only who is in doubt is computed in floating point, from the
codes once more and 16 bits that complete them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from exprune_fx.ops.dominance import LARGEST_CODE

AT_ONCE = 4  # products that one 8-bit instruction adds up: input channels come in so many
MOST_PRODUCTS = 60_000  # in one sum: 255 * 127 * 60,000 is below 2^31


def obstacle(weight_shape: Sequence[int], groups: int) -> str:
    """Why no coded head looks at a layer; "" if one may.

    Args:
        weight_shape: [out, K, kh, kw] of a two-dimensional convolution.
        groups: of the convolution.
    """
    if len(weight_shape) != 4:
        return "it is no two-dimensional convolution"
    if groups != 1:
        return "its convolution is grouped"
    if weight_shape[1] % AT_ONCE:
        return f"its {weight_shape[1]} input channels are no multiple of {AT_ONCE}"
    products = math.prod(weight_shape[1:])
    if products > MOST_PRODUCTS:
        return f"a sum of its {products} products may leave 32 bits, which hold {MOST_PRODUCTS}"
    return ""


def codes_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each output's weights to ``scale * code``.

    Args:
        weight: [out, ...], floating point.

    Returns:
        Codes, int8 of the weight's shape, from -127 to 127; scales, float32 [out]. The scale of an output whose weights
        are not all finite is NaN, so that no estimate of it stops it.
    """
    wide = weight.float()
    scales = wide.abs().amax(tuple(range(1, wide.dim()))) / LARGEST_CODE
    scales = scales.masked_fill(scales == 0, 1.0)
    ratios = (wide / scales.reshape(-1, *[1] * (wide.dim() - 1))).round().clamp(-LARGEST_CODE, LARGEST_CODE)
    codes = ratios.masked_fill(~torch.isfinite(ratios), 0.0).to(torch.int8)
    return codes, scales.masked_fill(~torch.isfinite(scales), torch.nan)


def numbers_of(codes: Tensor, scales: Tensor) -> Tensor:
    """What kernels read beside the codes: float32 [2, out], the scales and the sum of each output's codes."""
    return torch.stack([scales, codes.sum((1, 2, 3), dtype=torch.int32).float()])

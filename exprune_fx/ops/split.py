"""Float32 weights in 24 bits: 8-bit codes, and 16 bits more of what these leave.

Codes and rest are 24 bits of fixed point, ``w = scale * (code + rest / 2^16)``: a weight is off by at most 1.01 * 2^-24
of the largest of its row (3 * 2^-24 where it lies in the middle between two codes), which is less than float32 rounds
off sums over such rows. Read together they are three bytes a weight in place of four, of which the codes may have been
read already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exprune_fx.ops.coded import codes_of

MOST_PEAK = 64.0  # of a row, by its root mean square: beyond, its other weights would lose too many of their bits
LEAST_LARGEST = 1e-20  # of a row that is not zero: scales keep far from float32's smallest numbers
LARGEST_LARGEST = 1e20
_NUMBERS_AT_ONCE = 2**24  # of a weight, in float64


@dataclass(frozen=True, eq=False)
class Split:
    """A weight of rows [rows, K] in 24 bits.

    Attributes:
        codes: int8 [rows, K], from -127 to 127.
        scales: float32 [rows].
        rest: int16 [rows, K].
    """

    codes: Tensor
    scales: Tensor
    rest: Tensor


def rest_of(weight: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """What codes leave of a float32 weight, in 16 bits.

    Args:
        weight: [out, ...].
        codes: int8 of its shape.
        scales: [out], of the codes.

    Returns:
        int16 of its shape; 0 where a weight or its scale is not finite, or the scale is 0.
    """
    at_once = max(1, _NUMBERS_AT_ONCE // max(1, weight[:1].numel()))
    parts = zip(weight.detach().split(at_once), codes.split(at_once), scales.split(at_once), strict=True)
    return torch.cat([_rest_of_rows(*part) for part in parts])


def _rest_of_rows(weight: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    ratios = weight.double() / scales.double().reshape(-1, *[1] * (weight.dim() - 1))  # float32 would lose last bits
    rest = ((ratios - codes) * 65536).round().clamp(-32768, 32767)
    return rest.masked_fill(~torch.isfinite(rest), 0.0).to(torch.int16)


def split_of(weight: Tensor) -> Split:
    """Splits the rows of a float32 weight [rows, K] that `splits_well`, into contiguous tables."""
    weight = weight.detach().contiguous()
    codes, scales = codes_of(weight)
    return Split(codes, scales, rest_of(weight, codes, scales))


def rest_by_segments(weight: Tensor, codes: Tensor, scales: Tensor, ends: Sequence[int]) -> Tensor:
    """What a linear weight's codes leave of it, laid out as these are.

    Args:
        weight: [out, K].
        codes: `codes.Codes.codes`: segment by segment [out, columns of the segment].
        scales: [out], of the codes.
        ends: columns up to the end of each segment.

    Returns:
        int16 [out * K].
    """
    out = weight.shape[0]
    return torch.cat(
        [
            rest_of(weight[:, a:b], codes[out * a : out * b].view(out, b - a), scales).flatten()
            for a, b in zip([0, *ends[:-1]], ends, strict=True)
        ]
    )


def splits_well(weight: Tensor) -> bool:
    """Whether 24 bits hold the rows of a float32 weight [rows, K] as well as float32 sums need them.

    All is finite, and no row has a weight that stands out from the others so far that these would lose their bits.
    """
    largest = weight.detach().abs().amax(1)
    peak = largest / weight.detach().square().mean(1).sqrt()  # of a row of zeros it is not a number
    fits = (largest >= LEAST_LARGEST) & (largest <= LARGEST_LARGEST) & (peak <= MOST_PEAK)
    return bool((fits | (largest == 0)).all())

"""8-bit codes of a linear layer's weight: what they prove of a neuron need not be read from the weight.

A row w of the weight is rounded to ``scale * c`` with integers ``|c| <= 127``, and the input x to ``tick * t`` with
16-bit integers. The product of the integers is summed without rounding, and differs from ``w . x`` by at most

    sum over blocks b of columns: |w_b - scale c_b| |x_b|  +  0.5 tick sqrt(K) |scale c|

(Cauchy-Schwarz, block by block; |.| is the Euclidean norm). Where the whole interval around the estimate stops, or
goes on, or is below zero, so does the float32 sum that the kernel would have taken, whose own rounding is in the
interval too: a kernel that reads codes first returns the same bits. Of a float32 weight it so reads a quarter of the
bytes, and then the rows alone that may be positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exprune_fx.ops.dominance import LARGEST_CODE, in_one_row

BLOCK = 256  # columns whose error has one norm: as in csrc/coded.h
MOST_ROWS = 4  # of input, for which kernels read codes: with more of them most weights are needed by one
_ROUNDING = 2.0**-23  # twice the unit roundoff of float32
_TINY = 1e-30
_NUMBERS_AT_ONCE = 2**24  # of the weight, in float64


@dataclass(frozen=True, eq=False)
class Codes:
    """What kernels read in place of a weight [out, K].

    Attributes:
        codes: int8 [out * K + 64]: segment by segment [out, columns of the segment], and what may be read beyond.
        numbers: float32 [1 + blocks, out]: scale; for each block of columns the norm of what the codes miss, infinite
            where a row of the weight is not finite.
        slack: float32 [3]: what covers rounding, per unit of |x| and per tick; and the least tick per unit of |x|, with
            which sums of products stay below 2^31.
    """

    codes: Tensor
    numbers: Tensor
    slack: Tensor

    @staticmethod
    def of(weight: Tensor, ends: Sequence[int]) -> Codes:
        """Makes the codes of a weight, in float64, some rows at a time.

        Args:
            weight: [out, K], floating point.
            ends: columns up to the end of each segment, increasing; the last is K.
        """
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, weight.shape[1]))
        parts = [_part(rows, ends) for rows in weight.detach().split(at_once)]
        codes, numbers, lengths = (
            torch.cat(pieces, dim) for dim, pieces in zip((0, 1, 1), zip(*parts, strict=True), strict=True)
        )
        return Codes(in_one_row(codes, ends), numbers, _slack(weight.shape[1], *lengths.amax(1)))


def code_ends(columns: int, stages: Sequence[int]) -> list[int]:
    """Columns up to the end of each segment: what each stage has seen that reads codes, and all."""
    return [*stages, *([] if stages and stages[-1] == columns else [columns])]


def blocks_of(ends: Sequence[int]) -> list[tuple[int, int]]:
    """The blocks of columns, `BLOCK` at most, none across the end of a segment."""
    starts = [0, *ends[:-1]]
    return [
        (first, min(first + BLOCK, end))
        for start, end in zip(starts, ends, strict=True)
        for first in range(start, end, BLOCK)
    ]


def _part(weight: Tensor, ends: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [rows, K] of some rows, their numbers, and norms [3, rows]: of a row, of it rounded, of its codes."""
    wide = weight.double()
    finite = torch.isfinite(wide).all(1, keepdim=True)
    wide = torch.where(finite, wide, 0.0)
    scale = (wide.abs().amax(1, keepdim=True) / LARGEST_CODE).float().double()
    codes = torch.where(scale > 0, wide / scale.clamp_min(_TINY), 0.0).round().clamp(-LARGEST_CODE, LARGEST_CODE)
    error = wide - scale * codes
    norms = [error[:, first:last].norm(dim=1) * (1 + _ROUNDING) + _TINY for first, last in blocks_of(ends)]
    sound = finite.flatten()
    numbers = torch.stack([scale.flatten(), *(torch.where(sound, norm, torch.inf) for norm in norms)]).float()
    lengths = torch.stack([wide.norm(dim=1), (scale * codes).norm(dim=1), codes.norm(dim=1)])
    return codes.to(torch.int8), numbers, lengths


def _slack(features: int, longest: Tensor, longest_rounded: Tensor, longest_codes: Tensor) -> Tensor:
    """See `Codes`. A float32 sum of n products errs by at most n unit roundoffs of the product of the norms."""
    of_input = _ROUNDING * (features + 16) * longest + _TINY
    of_tick = 0.51 * features**0.5 * longest_rounded
    least_tick = longest_codes / 2.0**30
    return (torch.stack([of_input, of_tick, least_tick]) * (1 + 1e-6)).float()

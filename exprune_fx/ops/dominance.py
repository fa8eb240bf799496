"""The tables that `Dominance` reads of a prediction head's weight: codes, their errors, and what rounding may cost.

All logits ``z_j = w_j . x + b_j`` share ``omega . x``, and inputs are near their mean ``mu``. So, for any ``mu``,
``omega`` and invertible B,

    z_j = w'_j . x' + shift_j + omega . x
    w'_j = (w_j - omega) B^-1,   x' = B (x - mu),   shift_j = (w_j - omega) . mu + b_j

Rows ``w'_j`` are rounded to 8-bit codes times a scale, and are read in stages. After n features, what was not seen of
``w'_j . x'`` is, by Cauchy-Schwarz, at most (the norms of both are kept)

    |w'_j[:n] - scale_j codes_j[:n]| * |x'[:n]| + |w'_j[n:]| * |x'[n:]|

LEMP (Teflioudi et al., SIGMOD 2015) and FEXIPRO (Li et al., SIGMOD 2017) bound inner products so; the codes' error is
one term more. Products of codes and of inputs, which are rounded to 16 bits, are summed in integers, without rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

READ_BEYOND = 64  # bytes behind the codes that kernels may read
LARGEST_CODE = 127
_ROUNDING = 2.0**-23  # twice the unit roundoff of float32
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Tables:
    """What a weight and a bias come to.

    Attributes:
        codes: int8 [out, features].
        numbers: float32 [2 + 2 * stages, out]: scale, shift; by stage the norm of what the codes leave out of what is
            seen, and the norm of what is not seen. Infinite where a row of the weight is not finite: never stopped.
        center: float32 [2, features]: mu and omega; None where both are zero.
        basis: float32 [features, features], or [features] if it is diagonal; None for no change of basis.
        slack: float32 [5]: what covers rounding, per unit of |x|, of |x - mu|, of the input's tick, and alone; and the
            least tick per unit of |x'|, with which sums of products stay below 2^31.
    """

    codes: Tensor
    numbers: Tensor
    center: Tensor | None
    basis: Tensor | None
    slack: Tensor


@dataclass(frozen=True, eq=False)
class Coded:
    """A weight in one basis and its codes, of which the tables for all lists of stages are made: float64.

    Attributes:
        turned: [out, features], the rows ``w'``.
        error: [out, features], what the codes leave out of them.
        codes: int8 [out, features].
        scale: [out].
        shift: [out]; 0 where it is not finite.
        sound: bool [out], whether all numbers of the class are finite.
        center: as in `Tables`.
        basis: as in `Tables`.
        slack: as in `Tables`.
    """

    turned: Tensor
    error: Tensor
    codes: Tensor
    scale: Tensor
    shift: Tensor
    sound: Tensor
    center: Tensor | None
    basis: Tensor | None
    slack: Tensor
    _norms: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, center: Tensor | None, basis: Tensor | None) -> Coded:
        """Turns and rounds; arguments as for `tables_of`."""
        wide = weight.detach().double()
        finite = torch.isfinite(wide).all(1, keepdim=True)
        wide = torch.where(finite, wide, 0.0)
        mu, omega = center.double() if center is not None else wide.new_zeros(2, wide.shape[1])
        centered = wide - omega
        turned, left = _in_basis(centered, basis)
        scale = turned.abs().amax(1, keepdim=True) / LARGEST_CODE
        # a row of zeros has codes of zero, whatever it is divided by
        codes = (turned / scale.clamp_min(_TINY)).masked_fill_(scale == 0, 0.0).round_()
        scale = scale.float().double()
        shift = centered @ mu + (0.0 if bias is None else bias.detach().double())
        known = torch.isfinite(shift)
        seen, shift = scale * codes, torch.where(known, shift, 0.0)
        return cls(
            turned=turned,
            error=turned - seen,
            codes=codes.to(torch.int8),
            scale=scale.flatten(),
            shift=shift,
            sound=finite.flatten() & known,
            center=None if center is None else center.float(),
            basis=None if basis is None else basis.float(),
            slack=_slack(wide, omega, turned, seen, codes, left, shift, basis),
        )

    def tables(self, stages: Sequence[int]) -> Tables:
        """For these stages, as `tables_of` takes them."""
        rows = [self.scale, self.shift]
        for seen in stages:
            rows.extend(self._norms_at(seen))
        if stages[-1] == self.turned.shape[1]:
            rows[-1] = torch.where(self.sound, 0.0, torch.inf)
        return Tables(self.codes, torch.stack(rows).float(), self.center, self.basis, self.slack)

    def _norms_at(self, seen: int) -> tuple[Tensor, Tensor]:
        """Of what the codes leave out of what is seen, and of what is not seen, for every class."""
        if seen not in self._norms:
            error, unseen = (
                torch.where(self.sound, part.norm(dim=1) * (1 + _ROUNDING) + _TINY, torch.inf)
                for part in (self.error[:, :seen], self.turned[:, seen:])
            )
            self._norms[seen] = error, unseen
        return self._norms[seen]


def tables_of(
    weight: Tensor, bias: Tensor | None, stages: Sequence[int], center: Tensor | None, basis: Tensor | None
) -> Tables:
    """Makes the tables, in float64.

    Args:
        weight: [out, features], floating point.
        bias: [out] or None.
        stages: features seen after each stage, increasing; the last is all of them.
        center: [2, features] or None, as in `Tables`.
        basis: [features, features], [features] or None, as in `Tables`; invertible.
    """
    return Coded.of(weight, bias, center, basis).tables(stages)


def in_one_row(codes: Tensor, stages: Sequence[int]) -> Tensor:
    """Codes as kernels read them: stage by stage [out, features of the stage], in one row, and `READ_BEYOND` zeros."""
    starts = [0, *stages[:-1]]
    pieces = [codes[:, start:stop].reshape(-1) for start, stop in zip(starts, stages, strict=True)]
    return torch.cat([*pieces, codes.new_zeros(READ_BEYOND)])


def _in_basis(centered: Tensor, basis: Tensor | None) -> tuple[Tensor, Tensor]:
    """``w B^-1``, and the largest norm of what multiplying it with B again misses."""
    if basis is None:
        return centered, centered.new_zeros(())
    used = basis.float().double()  # as the operator reads it
    if used.dim() == 1:
        turned = centered / used
        return turned, (centered - turned * used).norm(dim=1).amax()
    turned = torch.linalg.solve(used, centered, left=False)
    return turned, (centered - turned @ used).norm(dim=1).amax()


def _slack(
    wide: Tensor,
    omega: Tensor,
    turned: Tensor,
    seen: Tensor,
    codes: Tensor,
    left: Tensor,
    shift: Tensor,
    basis: Tensor | None,
) -> Tensor:
    """See `Tables`.

    A float sum of n products errs by at most n roundoffs of the product of the norms; the operators sum in four lanes
    at least, n/4 terms each.
    """
    features = wide.shape[1]
    longest, longest_turned = wide.norm(dim=1).amax(), turned.norm(dim=1).amax()
    stretch = 1.0 if basis is None else basis.double().norm() if basis.dim() == 2 else basis.double().abs().amax()
    of_input = _ROUNDING * features * (longest + omega.norm())
    of_centered = _ROUNDING * (features / 4 + 16) * longest_turned * stretch + left + _ROUNDING * longest
    of_tick = 0.51 * features**0.5 * seen.norm(dim=1).amax()
    alone = 8 * _ROUNDING * shift.abs().amax() + features * _TINY
    least_tick = codes.norm(dim=1).amax() / 2.0**30
    return torch.stack([of_input, of_centered, of_tick, alone, least_tick]).float() * (1 + 1e-6)

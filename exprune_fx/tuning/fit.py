"""How the drop of a metric grows with the damage that plans do: a power law through the trials.

The drop of one plan on n examples is a poor judge of that plan: 5,000 images on which 1.5 % of the answers change know
it to 0.17 points. Taking the boldest of many plans whose own drop is within the budget then takes the luckiest. But the
trials of a search share one curve, and bold plans, whose drop is far above the noise, say where it runs.

The trials share their examples too. Most of what one plan changes its bolder neighbours change as well, so that their
errors go together, and generalised least squares (Aitken 1936), which knows by how much, gets more out of the same
evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

POWERS = tuple(0.5 + 0.05 * step for step in range(17))
_USUAL, _SPREAD = 1.0, 0.15
_FAR = 20.0  # times the budget: what has lost more says nothing of the region that matters
_LEAST = 3  # trials that are looked at however much they lost
_MISFIT = 0.15  # of a drop: how far from a power law curves run
_TINY = 1e-12


@dataclass(frozen=True)
class Law:
    """``drop = scale * (damage / unit) ** power``.

    Attributes:
        weight: how likely it is, of 1.
        scale: at least 0.
        error: standard deviation of the scale.
        power: of the damage.
    """

    weight: float
    scale: float
    error: float
    power: float


@dataclass(frozen=True)
class Curve:
    """``drop = sum of weight * scale * (damage / unit) ** power``: the mean of all power laws that the trials allow.

    Small errors move as many answers to the right side as to the wrong one, and what a metric loses is of second
    order: it grows with their square, as damage does, so that powers near 1 are expected. Those from 0.5 to 1.3 are
    looked at.

    Attributes:
        unit: the mean damage of the trials.
        laws: none where there are no trials.
    """

    unit: float = 1.0
    laws: tuple[Law, ...] = ()

    def drop(self, damage: float, confidence: float = 0.5) -> float:
        """What the drop at this damage is at most, with this confidence; one half: what is expected.

        By a normal distribution with the mean and the variance of the laws' mixture.
        """
        grown = [math.pow(damage / self.unit, law.power) for law in self.laws]
        mean = sum(law.weight * law.scale * growth for law, growth in zip(self.laws, grown, strict=True))
        if confidence == 0.5:
            return mean
        squares = sum(
            law.weight * growth**2 * (law.scale**2 + law.error**2) for law, growth in zip(self.laws, grown, strict=True)
        )
        return mean + NormalDist().inv_cdf(confidence) * math.sqrt(max(squares - mean**2, 0.0))

    @property
    def power(self) -> float:
        """The mean of the powers."""
        return sum(law.weight * law.power for law in self.laws)


def fit(damages: Sequence[float], drops: Sequence[float], budget: float, covariance: Tensor | None = None) -> Curve:
    """The curve through the trials, each power weighted by how likely it makes them.

    Trials that lost more than twenty times the budget are left out, unless they are among the three gentlest.

    Args:
        damages: at least 0.
        drops: of the metric; some may be negative.
        budget: the drop at which the curve has to be right.
        covariance: of the drops' errors, float64 [trials, trials]. Without, one that grows as the number of answers
            that change does, with the root of the damage, and as large as the drops scatter about the curve.
    """
    ordered = sorted(range(len(damages)), key=lambda index: damages[index])
    near = [index for place, index in enumerate(ordered) if place < _LEAST or drops[index] <= _FAR * budget]
    if not near:
        return Curve()
    damage = torch.tensor([max(damages[index], _TINY) for index in near], dtype=torch.float64)
    drop = torch.tensor([drops[index] for index in near], dtype=torch.float64)
    unit = float(damage.log().mean().exp())
    shape = [(damage / unit) ** power for power in POWERS]
    errors = _scattered(shape, damage, drop) if covariance is None else covariance[near][:, near]
    errors = errors + torch.diag((_MISFIT * drop.clamp_min(0.0)) ** 2)
    factor = torch.linalg.cholesky(errors + (1e-3 * float(errors.diagonal().mean()) + _TINY**2) * torch.eye(len(near)))
    laws = [_law(factor, each, drop, power) for each, power in zip(shape, POWERS, strict=True)]
    most = max(likelihood for likelihood, _, _ in laws)
    weights = [math.exp(likelihood - most) for likelihood, _, _ in laws]
    return Curve(
        unit,
        tuple(
            Law(weight / sum(weights), scale, error, power)
            for weight, (_, scale, error), power in zip(weights, laws, POWERS, strict=True)
        ),
    )


def _scattered(shape: Sequence[Tensor], damage: Tensor, drop: Tensor) -> Tensor:
    """A covariance, from the residuals: bolder plans change what gentler ones do, and more."""
    joint = torch.minimum(damage[:, None], damage).sqrt()
    factor = torch.linalg.cholesky(joint + 1e-3 * float(joint.diagonal().mean()) * torch.eye(len(drop)))
    seen = _white(factor, drop)
    residuals = []
    for each in shape:
        law = _white(factor, each)
        residuals.append(float((seen - law * (law @ seen) / (law @ law)).square().sum()))
    return joint * (min(residuals) / max(len(drop) - 1, 1))


def _law(factor: Tensor, shape: Tensor, drop: Tensor, power: float) -> tuple[float, float, float]:
    """How likely one power is (a logarithm), its scale, and the standard deviation of that."""
    law, seen = _white(factor, shape), _white(factor, drop)
    strength = float(law @ law)
    scale = max(float(law @ seen) / strength, 0.0)
    residual = float((seen - scale * law).square().sum())
    usual = ((power - _USUAL) / _SPREAD) ** 2
    return -(math.log(strength) + residual + usual) / 2, scale, strength**-0.5


def _white(factor: Tensor, values: Tensor) -> Tensor:
    """With errors that no longer go together."""
    white: Tensor = torch.linalg.solve_triangular(factor, values[:, None], upper=False)[:, 0]
    return white

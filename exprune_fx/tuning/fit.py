"""How the drop of a metric grows with the damage that plans do: a power law through the trials.

The drop of one plan on n examples is a poor judge of that plan: 5,000 images on which 1.5 % of the answers change know
it to 0.17 points. Taking the boldest of many plans whose own drop is within the budget then takes the luckiest. But the
trials of a search share one curve, and bold plans, whose drop is far above the noise, say where it runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

POWERS = tuple(0.5 + 0.05 * step for step in range(11))
_FAR = 10.0  # times the budget: what has lost more says nothing of the region that matters
_LEAST = 3  # trials that are looked at however much they lost
_TINY = 1e-12


@dataclass(frozen=True)
class Curve:
    """``drop = scale * damage ** power``.

    Attributes:
        scale: at least 0.
        power: 0.5 to 1. Outputs that are a little off cost a smooth metric in proportion; a metric that counts answers
            loses, of a small error, what lay within that error of turning, and so with its root.
    """

    scale: float
    power: float

    def drop(self, damage: float) -> float:
        """Expected at this damage."""
        return self.scale * math.pow(damage, self.power)


def fit(damages: Sequence[float], drops: Sequence[float], budget: float) -> Curve:
    """The curve through the trials by weighted least squares, the power from a grid.

    The variance of a drop is in proportion to how many answers change, which grows as the root of the damage. One trial
    alone gets the power 0.75. Trials that lost more than ten times the budget are left out, unless they are among the
    three gentlest.

    Args:
        damages: at least 0.
        drops: of the metric; some may be negative.
        budget: the drop at which the curve has to be right.
    """
    ordered = sorted(zip(damages, drops, strict=True))
    near = [pair for place, pair in enumerate(ordered) if place < _LEAST or pair[1] <= _FAR * budget]
    if not near:
        return Curve(0.0, 1.0)
    powers = POWERS if len(near) > 1 else (0.75,)
    return min((_scaled(near, power) for power in powers), key=lambda found: found[0])[1]


def _scaled(trials: Sequence[tuple[float, float]], power: float) -> tuple[float, Curve]:
    """The residual and the curve of one power."""
    trials = [(max(damage, _TINY), drop) for damage, drop in trials]
    weights = [damage**-0.5 for damage, _ in trials]
    above = sum(w * damage**power * drop for w, (damage, drop) in zip(weights, trials, strict=True))
    below = sum(w * damage ** (2 * power) for w, (damage, _) in zip(weights, trials, strict=True))
    curve = Curve(max(above / below, 0.0), power)
    residual = sum(w * (drop - curve.drop(damage)) ** 2 for w, (damage, drop) in zip(weights, trials, strict=True))
    return residual, curve

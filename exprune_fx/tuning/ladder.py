"""Plans from the gentlest to the boldest, each one step bolder than the one before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exprune_fx.calibration.frontier import Option


@dataclass(frozen=True)
class Rung:
    """One choice for every site.

    Attributes:
        options: by site, in graph order.
        damage: what the choice is expected to cost, in the unit of the sensitivities.
    """

    options: Mapping[str, Option]
    damage: float

    @property
    def flops_removed(self) -> float:
        """Of one calibration example, tests counted."""
        return sum(option.flops_removed for option in self.options.values())


def ladder(options: Mapping[str, Sequence[Option]], sensitivity: Mapping[str, float]) -> tuple[Rung, ...]:
    """All plans at which no FLOPs could be saved for less damage, the dense one first.

    The damage of a choice is taken as the sum over the sites of ``sensitivity * energy_lost``. A plan saves most for
    its damage if every site goes as far along its own concave hull as the price of a FLOP, the same for all, lets it:
    so the plans are nested, and each rung takes the cheapest step that is left (Everett's method of Lagrange
    multipliers, 1963).

    Args:
        options: by site, the first leaves it dense, each next one saves more and loses more.
        sensitivity: by site, the damage of losing all of its energy; at least 0.
    """
    hulls = {name: _hull(found, sensitivity[name]) for name, found in options.items()}
    steps = [
        (_price(hull[index], hull[index + 1], sensitivity[name]), place, index)
        for place, (name, hull) in enumerate(hulls.items())
        for index in range(len(hull) - 1)
    ]
    chosen = {name: hull[0] for name, hull in hulls.items()}
    names = list(hulls)
    rungs = [Rung(dict(chosen), 0.0)]
    for _, place, index in sorted(steps):  # along a hull prices rise, so that its steps come in their order
        chosen[names[place]] = hulls[names[place]][index + 1]
        damage = sum(sensitivity[name] * option.energy_lost for name, option in chosen.items())
        rungs.append(Rung(dict(chosen), damage))
    return tuple(rungs)


def _price(before: Option, after: Option, sensitivity: float) -> float:
    """Damage for each FLOP that a step saves."""
    return sensitivity * (after.energy_lost - before.energy_lost) / (after.flops_removed - before.flops_removed)


def _hull(options: Sequence[Option], sensitivity: float) -> list[Option]:
    """The options at which the price of the next step only rises."""
    hull: list[Option] = []
    for option in options:
        while len(hull) > 1 and _price(hull[-2], hull[-1], sensitivity) >= _price(hull[-1], option, sensitivity):
            hull.pop()
        hull.append(option)
    return hull

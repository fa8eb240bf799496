"""Walks a ladder of plans to the boldest that holds the budget, in few evaluations."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from exprune_fx.tuning.fit import Curve, fit
from exprune_fx.tuning.ladder import Rung

EVALUATIONS = 8
_SAME = 1.05  # rungs whose damages differ by less than this factor are as good as one


@dataclass(eq=False)
class Climb:
    """One ladder, and what is known of it.

    A rung holds the budget if the curve through all trials of the ladder says so (see `fit`), and its own drop does not
    contradict. First comes the rung in the middle; then always the boldest that the curve allows, no further than half
    of the way beyond what was tried. Where that is known, rungs of two and of four times its drop make the curve surer.

    Attributes:
        rungs: the dense one first, by rising damage.
        budget: the drop that is allowed.
        resolution: half of what one example weighs: a smaller expected drop is none.
        drops: of the rungs that were evaluated.
    """

    rungs: Sequence[Rung]
    budget: float
    resolution: float
    drops: dict[int, float] = field(default_factory=dict)

    def run(self, drop_of: Callable[[Rung], float]) -> None:
        """Evaluates rungs until there is nothing more to learn, `EVALUATIONS` at most."""
        while len(self.drops) < EVALUATIONS:
            index = self._next()
            if index is None:
                return
            self.drops[index] = drop_of(self.rungs[index])

    @property
    def best(self) -> Rung | None:
        """The boldest rung that was evaluated and holds; None where only the dense one does."""
        if not self.drops:
            return None
        allowed = self._allowed(self.curve, 1.0)
        held = max((index for index in self.drops if index <= allowed and self._holds(index)), default=None)
        return None if held is None else self.rungs[held]

    @property
    def curve(self) -> Curve:
        """Through all trials so far."""
        tried = sorted(self.drops)
        damages, drops = [self.rungs[index].damage for index in tried], [self.drops[index] for index in tried]
        return fit(damages, drops, max(self.budget, self.resolution))

    def _holds(self, index: int) -> bool:
        return self.drops[index] <= self.budget

    def _allowed(self, curve: Curve, times: float) -> int:
        """The boldest rung whose expected drop is at most so many times the budget."""
        limit = times * max(self.budget, self.resolution)
        return bisect_right(self.rungs, limit, lo=1, key=lambda rung: curve.drop(rung.damage)) - 1

    def _next(self) -> int | None:
        last = len(self.rungs) - 1
        if last < 1:
            return None
        if not self.drops:
            return (last + 1) // 2
        curve, tried = self.curve, sorted(self.drops)
        aim = min(max(self._allowed(curve, 1.0), tried[0] // 2), (tried[-1] + last + 1) // 2)
        failing = [index for index in tried if index <= aim and not self._holds(index)]
        if failing:
            held = max((index for index in tried if index < failing[0]), default=0)
            aim = (held + failing[0]) // 2
        if aim > 0 and not self._known(aim):
            return aim
        more = (self._allowed(curve, times) for times in (2.0, 4.0))
        return next((index for index in more if index <= tried[-1] and not self._known(index)), None)

    def _known(self, index: int) -> bool:
        """Whether this rung, or one as good, was evaluated."""
        damage = self.rungs[index].damage
        return index in self.drops or any(
            damage <= _SAME * self.rungs[other].damage and self.rungs[other].damage <= _SAME * damage
            for other in self.drops
        )

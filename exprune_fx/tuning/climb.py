"""Walks a ladder of plans to the boldest that holds the budget, in few evaluations."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exprune_fx.tuning.fit import Curve, fit
from exprune_fx.tuning.ladder import Rung

EVALUATIONS = 8
_SAME = 1.05  # rungs whose damages differ by less than this factor are as good as one
_BEYOND = (3.0, 9.0)  # times the budget: where drops stand out of the noise, and still tell of the budget
_EDGE = 4  # evaluations kept for the edge itself


@dataclass(frozen=True)
class Loss:
    """What one rung loses.

    Attributes:
        drop: of the metric.
        each: float64 [examples], what each example loses; None where only the metric is known.
    """

    drop: float
    each: Tensor | None = None


@dataclass(eq=False)
class Climb:
    """One ladder, and what is known of it.

    A rung holds the budget if the curve through all trials of the ladder says so (see `fit`), and its own drop is
    within the budget too. First comes the rung in the middle, then the boldest that the curve allows, no further than
    half of the way beyond what was tried; then rungs of three and of nine times its drop make the curve surer; and what
    evaluations are left go to the boldest rung that holds.

    Attributes:
        rungs: the dense one first, by rising damage.
        budget: the drop that is allowed.
        resolution: half of what one example weighs: a smaller expected drop is none.
        confidence: with which the curve has to say that a rung holds; one half: it is expected to.
        losses: of the rungs that were evaluated.
    """

    rungs: Sequence[Rung]
    budget: float
    resolution: float
    confidence: float = 0.5
    losses: dict[int, Loss] = field(default_factory=dict)

    def run(self, loss_of: Callable[[Rung], Loss]) -> None:
        """Evaluates rungs until there is nothing more to learn, `EVALUATIONS` at most."""
        while len(self.losses) < EVALUATIONS:
            index = self._next()
            if index is None:
                return
            self.losses[index] = loss_of(self.rungs[index])

    @property
    def best(self) -> Rung | None:
        """The boldest rung that was evaluated and holds; None where only the dense one does."""
        allowed = self._allowed(self.curve)
        held = max(
            (index for index in self.losses if self._within(index, allowed) and self._holds(index)), default=None
        )
        return None if held is None else self.rungs[held]

    @property
    def curve(self) -> Curve:
        """Through all trials so far."""
        tried = sorted(self.losses)
        damages = [self.rungs[index].damage for index in tried]
        return fit(damages, [self.losses[index].drop for index in tried], self._limit, self._covariance(tried))

    @property
    def _limit(self) -> float:
        return max(self.budget, self.resolution)

    def _covariance(self, tried: Sequence[int]) -> Tensor | None:
        """Of the errors of these rungs' drops, which are means over the same examples."""
        each = [each for index in tried if (each := self.losses[index].each) is not None]
        if not each or len(each) < len(tried) or len(each[0]) < 2:
            return None
        differences = torch.stack(each)
        spread = torch.cov(differences).reshape(len(tried), len(tried)) / differences.shape[1]
        return spread + self.resolution**2 * torch.eye(len(tried))

    def _holds(self, index: int) -> bool:
        return self.losses[index].drop <= self.budget

    def _allowed(self, curve: Curve) -> int:
        """The boldest rung that holds the budget by the curve, as all gentler ones do."""
        return self._boldest(lambda rung: curve.drop(rung.damage, self.confidence), self._limit)

    def _boldest(self, drop: Callable[[Rung], float], limit: float) -> int:
        for index, rung in enumerate(self.rungs):
            if index > 0 and drop(rung) > limit:
                return index - 1
        return len(self.rungs) - 1

    def _next(self) -> int | None:
        last = len(self.rungs) - 1
        if last < 1:
            return None
        if not self.losses:
            return (last + 1) // 2
        curve, furthest = self.curve, (max(self.losses) + last + 1) // 2
        aim = max(min(self._allowed(curve), furthest), 1)
        if len(self.losses) == 1 and not self._known(aim):
            return aim
        if EVALUATIONS - len(self.losses) > _EDGE:
            beyond = (self._boldest(lambda rung: curve.drop(rung.damage), times * self._limit) for times in _BEYOND)
            more = (min(index, furthest) for index in beyond)
            surer = next((index for index in more if index > 0 and not self._known(index)), None)
            if surer is not None:
                return surer
        return self._at_the_edge(aim)

    def _at_the_edge(self, aim: int) -> int | None:
        """The aim, or where a rung at most as bold lost too much, one between that and the boldest that did not."""
        tried = sorted(self.losses)
        failing = [index for index in tried if self._within(index, aim) and not self._holds(index)]
        if failing:
            held = max((index for index in tried if index < failing[0]), default=0)
            between = math.sqrt(self.rungs[held].damage * self.rungs[failing[0]].damage)
            aim = bisect_right(self.rungs, between, lo=1, key=lambda rung: rung.damage) - 1 if held else failing[0] // 2
            if aim <= held:
                return None
        return None if self._known(aim) else aim

    def _within(self, index: int, other: int) -> bool:
        """Whether a rung is at most as bold as another one, or as good."""
        return index <= other or (other > 0 and self.rungs[index].damage <= _SAME * self.rungs[other].damage)

    def _known(self, index: int) -> bool:
        """Whether this rung, or one as good, was evaluated."""
        return any(self._within(index, other) and self._within(other, index) for other in self.losses)

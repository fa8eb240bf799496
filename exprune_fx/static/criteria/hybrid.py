"""Importance of weights mixed with expressiveness of activations."""

from __future__ import annotations

from dataclasses import dataclass, field

from exprune_fx.errors import ShrinkError
from exprune_fx.static.criteria.base import Criterion, Scene, Scores, relative
from exprune_fx.static.criteria.weights import Magnitude


@dataclass(frozen=True)
class Hybrid:
    """`a * importance + (1 - a) * expressiveness`, each relative to its mean in the group (arXiv 2512.06440).

    Attributes:
        a: weight of importance, from 0 to 1.
        expressiveness: the one criterion, usually `Expressiveness(batches)`.
        importance: the other one.
    """

    a: float
    expressiveness: Criterion
    importance: Criterion = field(default_factory=Magnitude)

    def __post_init__(self) -> None:
        if not 0 <= self.a <= 1:
            raise ShrinkError(f"Hybrid mixes by a = {self.a}", hint="give a number from 0 to 1")

    def scores(self, scene: Scene) -> Scores:
        """The mixture."""
        one, other = self.importance.scores(scene), self.expressiveness.scores(scene)
        return {
            group.name: self.a * relative(one[group.name]) + (1 - self.a) * relative(other[group.name])
            for group in scene.groups
        }

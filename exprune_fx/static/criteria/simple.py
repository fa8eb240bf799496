"""Random scores: what any criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from exprune_fx.static.criteria.base import Scene, Scores


@dataclass(frozen=True)
class Random:
    """Uniform scores from a seed, the same in every run.

    Attributes:
        seed: of the generator.
    """

    seed: int = 0

    def scores(self, scene: Scene) -> Scores:
        """Uniform numbers in [0, 1)."""
        generator = torch.Generator().manual_seed(self.seed)
        return {
            group.name: torch.rand(group.repeats, group.size, dtype=torch.float64, generator=generator)
            for group in scene.groups
        }

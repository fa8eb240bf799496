"""What a criterion is given and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, fx, nn

from exprune_fx.graph import tensor_at
from exprune_fx.static.axes import labels
from exprune_fx.symmetry import SymmetryGroup, SymmetryReport

Scores: TypeAlias = Mapping[str, Tensor]
"""Group name -> float64 scores (repeats, size): higher is kept longer."""


@dataclass(frozen=True)
class Scene:
    """What a criterion looks at.

    Attributes:
        graph: the captured dense graph, its tensors shared with the model; not to be changed.
        report: its symmetries.
        groups: the groups whose members are to be scored.
    """

    graph: fx.GraphModule
    report: SymmetryReport
    groups: tuple[SymmetryGroup, ...]

    def over_parameters(
        self, group: SymmetryGroup, value: Callable[[str, Tensor], Tensor | None]
    ) -> tuple[Tensor, int]:
        """Sums a figure of every weight over all that a member takes with it.

        Args:
            group: the group.
            value: gives, for a parameter's name and values, one number for each of its elements; None to leave it out.

        Returns:
            The sums (repeats, size) in float64, and the number of parameter axes that were summed over.
        """
        total = torch.zeros(group.repeats * group.size, dtype=torch.float64)
        axes_seen = 0
        for member in group.members:
            tensor = tensor_at(self.graph, member.target)
            if not isinstance(tensor, nn.Parameter):
                continue
            figures = value(member.target, tensor.detach())
            if figures is None:
                continue
            for points in labels(self.report, self.report.analysis.parameters[member.target], group, member.dim):
                total += summed(figures, points, len(total))
                axes_seen += 1
        return total.reshape(group.repeats, group.size), axes_seen


def summed(figures: Tensor, points: Tensor, count: int) -> Tensor:
    """Sums of figures by label: (count,), float64 on the CPU; labels broadcast, -1 is left out."""
    reduced = figures.to(torch.float64)
    dims = [dim for dim, size in enumerate(points.shape) if size == 1 and reduced.shape[dim] != 1]
    reduced = (reduced.sum(dims, keepdim=True) if dims else reduced).cpu()
    flat = points.expand(reduced.shape).reshape(-1)
    inside = flat >= 0
    return torch.zeros(count, dtype=torch.float64).index_add_(0, flat[inside], reduced.reshape(-1)[inside])


def relative(scores: Tensor) -> Tensor:
    """Scores as multiples of their group's mean (as they are, where that is zero)."""
    mean = scores.mean()
    return scores / mean if mean > 0 else scores


class Criterion(Protocol):
    """Scores the members of groups; a new criterion is a class with this method."""

    def scores(self, scene: Scene) -> Scores:
        """Scores of every group of the scene."""
        ...

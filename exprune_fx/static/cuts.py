"""How one tensor is cut, as plain data: index steps that a fresh tensor of the old shape can be taken through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from exprune_fx.errors import PlanError
from exprune_fx.static.axes import kept_positions
from exprune_fx.static.units import Removal, in_order, sizes_of
from exprune_fx.symmetry import SymmetryReport
from exprune_fx.symmetry.layouts import Axes


@dataclass(frozen=True)
class Step:
    """One selection along a dim.

    Attributes:
        dim: along which it selects.
        shape: of the index; one number where it is the same for all other positions.
        index: old positions, flat.
    """

    dim: int
    shape: tuple[int, ...]
    index: tuple[int, ...]

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """The selected part, a new tensor."""
        index = torch.tensor(self.index, device=tensor.device).reshape(self.shape)
        if index.dim() == 1:
            return tensor.index_select(self.dim, index)
        sizes = [index.shape[i] if i == self.dim else size for i, size in enumerate(tensor.shape)]
        return torch.take_along_dim(tensor, index.expand(sizes), dim=self.dim)


@dataclass(frozen=True)
class TensorCut:
    """What is left of one parameter or buffer.

    Attributes:
        name: dotted name.
        before: shape of the whole tensor.
        after: shape of what is left.
        steps: the selections that lead there, in order.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    steps: tuple[Step, ...]

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part that is left, a new contiguous tensor.

        Raises:
            PlanError: the tensor has another shape than the one that was cut.
        """
        if tuple(tensor.shape) != self.before:
            raise PlanError(
                f"{self.name} has shape {list(tensor.shape)}, the plan cuts one of {list(self.before)}",
                hint="apply the plan to a model as it was before shrinking",
            )
        result = tensor.detach()
        for step in self.steps:
            result = step(result)
        return result.contiguous()

    def renamed(self, name: str) -> TensorCut:
        """The same cut of another tensor."""
        return replace(self, name=name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        steps = [{"dim": step.dim, "shape": list(step.shape), "index": list(step.index)} for step in self.steps]
        return {"name": self.name, "before": list(self.before), "after": list(self.after), "steps": steps}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TensorCut:
        """The inverse of ``to_dict``."""
        steps = tuple(
            Step(int(s["dim"]), tuple(int(i) for i in s["shape"]), tuple(int(i) for i in s["index"]))
            for s in data["steps"]
        )
        before, after = (tuple(int(size) for size in data[key]) for key in ("before", "after"))
        return cls(str(data["name"]), before, after, steps)


def cut_of(
    report: SymmetryReport, name: str, axes: Axes, shape: tuple[int, ...], removals: Sequence[Removal]
) -> TensorCut | None:
    """How a tensor is cut when members go; None where it is left whole.

    Raises:
        ShrinkError: what is left is no box.
    """
    sizes = sizes_of(removals)
    unifier = report.analysis.unifier
    kept = [kept_positions(unifier, layout, sizes) for layout in axes]
    if all(positions is None for positions in kept):
        return None
    steps = [
        _step(member.dim, source)
        for removal in in_order(removals)
        for member in removal.group.members
        if member.target == name
        for source in [member.source(removal.inverse, shape)]
    ]
    steps += [_step(dim, positions) for dim, positions in enumerate(kept) if positions is not None]
    after = tuple(size if at is None else len(at) for size, at in zip(shape, kept, strict=True))
    return TensorCut(name, shape, after, tuple(_merged(steps)))


def _step(dim: int, source: np.ndarray[Any, np.dtype[np.int64]]) -> Step:
    flat = tuple(int(i) for i in source.reshape(-1))
    simple = source.size == source.shape[dim if source.ndim > 1 else 0]
    return Step(dim, (len(flat),) if simple else source.shape, flat)


def _merged(steps: Iterable[Step]) -> list[Step]:
    """Plain selections along the same dim as one, as far as no dependent selection stands between them."""
    done: list[Step] = []
    for step in steps:
        same = None
        for k in reversed(range(len(done))):
            if len(done[k].shape) > 1:
                break
            if done[k].dim == step.dim:
                same = k
                break
        if len(step.shape) > 1 or same is None:
            done.append(step)
        else:
            before = done[same].index
            done[same] = Step(step.dim, step.shape, tuple(before[i] for i in step.index))
    return done

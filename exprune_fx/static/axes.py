"""Axes as positions: which member of which group stands where, and what is left of an axis when members go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from exprune_fx.errors import ShrinkError
from exprune_fx.symmetry import SymmetryGroup, SymmetryReport
from exprune_fx.symmetry.groups import factor_grid, grid
from exprune_fx.symmetry.layouts import Axes, Layout, Run, Segment
from exprune_fx.symmetry.unify import Unifier

_Index = npt.NDArray[np.int64]
Sizes: TypeAlias = Mapping[int, int]
"""Atom -> how many of its members are kept, the first ones; an atom that is missing keeps all."""
_UNEQUAL = "groups that share one axis would lose different numbers of members"
_LEAVE = "leave the groups along this axis out by ignore="


def is_static(unifier: Unifier, layout: Layout) -> bool:
    """Whether the axis has a number of positions, not a symbolic size."""
    return isinstance(unifier.size(layout), int)


def kept_positions(unifier: Unifier, layout: Layout, sizes: Sizes) -> _Index | None:
    """The positions of an axis that are left when every atom keeps its first members; None where all are.

    Raises:
        ShrinkError: pieces that share positions would be cut differently, so that no box is left.
    """
    if not unifier.leaves(layout) & sizes.keys():
        return None
    length = unifier.size(layout)
    if not isinstance(length, int):
        raise ShrinkError(f"an axis of {length} positions would be cut", hint="leave its group out by ignore=")
    kept = np.full(length, -1)
    for run in unifier.runs(layout):
        places, _ = grid(run)
        inside = np.ones(len(places), dtype=bool)
        for k, (atom, size, _) in enumerate(run.factors):  # an atom may be there twice
            inside &= factor_grid(run, k) < sizes.get(atom, size)
        if ((kept[places] >= 0) & (kept[places] != inside)).any():
            raise ShrinkError(_UNEQUAL, hint=_LEAVE)
        kept[places] = inside
    found: _Index = np.flatnonzero(kept)
    return None if len(found) == length else found


def kept_size(unifier: Unifier, layout: Layout, sizes: Sizes) -> Any:
    """How many positions of an axis are left (a sympy expression for a symbolic size).

    Raises:
        ShrinkError: what is left depends on another axis, so that there is no box.
    """
    if not unifier.leaves(layout) & sizes.keys():
        return unifier.size(layout)
    total = 0
    for segment in unifier.resolve(layout):
        found = {
            sum(math.prod(min(sizes.get(atom, size), size) for atom, size, _ in run.factors) for run in cover)
            for cover in covers(unifier, segment)
        }
        if len(found) != 1:
            raise ShrinkError(_UNEQUAL, hint=_LEAVE)
        total += found.pop()
    return total


def covers(unifier: Unifier, segment: Segment) -> tuple[tuple[Run, ...], ...]:
    """The runs of a resolved segment; where what stands there depends on another axis, those for each index of that.

    Raises:
        ShrinkError: the runs of one index cannot be told from those of another.
    """
    length, runs = unifier.segment_size(segment), unifier.runs((segment,))
    found: list[tuple[Run, ...]] = []
    taken: list[Run] = []
    for run in runs:
        taken.append(run)
        if sum(math.prod(size for _, size, _ in each.factors) for each in taken) == length:
            if overlapping(tuple(taken)):
                break
            found.append(tuple(taken))
            taken = []
    if taken:
        raise ShrinkError("an axis that depends on another one cannot be followed", hint=_LEAVE)
    return tuple(found)


def overlapping(runs: tuple[Run, ...]) -> bool:
    """Whether several runs cover the same positions: what stands there depends on another axis."""
    if len(runs) < 2:
        return False
    places = np.concatenate([grid(run)[0] for run in runs])
    return len(np.unique(places)) < len(places)


def labels(report: SymmetryReport, axes: Axes, group: SymmetryGroup, dim: int) -> tuple[torch.Tensor, ...]:
    """For every position of a value, which point of a group stands there along one of its dims.

    Args:
        report: the analysis.
        axes: layouts of the value's dims.
        group: the group.
        dim: the dim along which the group's members are looked for.

    Returns:
        int64 of the value's rank, of size 1 along dims that do not matter: `row * group.size + member`, or -1 where
        there is none. One for each time that the group is a factor of the dim; none where it is not along it, or cannot
        be told apart there.
    """
    unifier = report.analysis.unifier
    if not set(group.atoms) & unifier.leaves(axes[dim]) or not is_static(unifier, axes[dim]):
        return ()
    runs = tuple(run for run in unifier.runs(axes[dim]) if run.factors)
    others = _elsewhere(report, axes, group, dim)
    if overlapping(runs) or others is None:
        return ()
    times = max(sum(atom == group.atoms[0] for atom, *_ in run.factors) for run in runs)
    return tuple(_labels(report, axes, group, dim, runs, others, turn) for turn in range(times))


def _labels(
    report: SymmetryReport,
    axes: Axes,
    group: SymmetryGroup,
    dim: int,
    runs: tuple[Run, ...],
    others: Mapping[int, Mapping[int, _Index]],
    turn: int,
) -> torch.Tensor:
    """Labels by the group's factor that comes as number `turn` in each run."""
    unifier = report.analysis.unifier
    extents = [len(next(iter(others[i].values()))) if others.get(i) else 1 for i in range(len(axes))]
    extents[dim] = int(unifier.size(axes[dim]))
    found = np.full(extents, -1, dtype=np.int64)
    for run in runs:
        places, coordinates = grid(run)
        factors = [[k for k, (a, *_) in enumerate(run.factors) if a == atom] for atom in group.atoms]
        if any(len(each) <= turn for each in factors):
            continue
        own = [each[turn] for each in factors]
        member = np.ravel_multi_index([factor_grid(run, k) for k in own], [run.factors[k][1] for k in own])
        row: _Index = np.zeros([1] * len(axes), dtype=np.int64)
        for atom in group.indices:
            row = row * unifier.size_of(atom) + _along(atom, coordinates, others, dim, len(axes))
        index: list[Any] = [slice(None)] * len(axes)
        index[dim] = places
        found[tuple(index)] = row * group.size + _spread(member, dim, len(axes))
    return torch.from_numpy(found)


def _spread(values: _Index, dim: int, rank: int) -> _Index:
    return values.reshape([len(values) if i == dim else 1 for i in range(rank)])


def _along(
    atom: int,
    coordinates: Mapping[int, _Index],
    others: Mapping[int, Mapping[int, _Index]],
    dim: int,
    rank: int,
) -> _Index:
    if atom in coordinates:
        return _spread(coordinates[atom], dim, rank)
    where = next(i for i, found in others.items() if atom in found)
    return _spread(others[where][atom], where, rank)


def _elsewhere(
    report: SymmetryReport, axes: Axes, group: SymmetryGroup, dim: int
) -> dict[int, dict[int, _Index]] | None:
    """Coordinates of the group's index atoms along the other dims; None where one is nowhere."""
    unifier = report.analysis.unifier
    own = {atom for run in unifier.runs(axes[dim]) for atom, *_ in run.factors}
    found: dict[int, dict[int, _Index]] = {}
    for atom in group.indices:
        if atom in own:
            continue
        dims = [i for i, axis in enumerate(axes) if i != dim and atom in unifier.leaves(axis)]
        if len(dims) != 1 or not is_static(unifier, axes[dims[0]]):
            return None
        length = int(unifier.size(axes[dims[0]]))
        coordinate: _Index = np.zeros(length, dtype=np.int64)
        for run in unifier.runs(axes[dims[0]]):
            places, coordinates = grid(run)
            if atom in coordinates:
                coordinate[places] = coordinates[atom]
        found.setdefault(dims[0], {})[atom] = coordinate
    return found

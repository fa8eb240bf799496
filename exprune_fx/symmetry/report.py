"""The public face of the analysis: `symmetries(gm)` and the report that it gives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from torch import fx

from exprune_fx.errors import SymmetryError
from exprune_fx.graph import require_graph
from exprune_fx.symmetry.analysis import Analysis, analyse
from exprune_fx.symmetry.groups import Member, SymmetryGroup
from exprune_fx.symmetry.layouts import Layout, Run, Size
from exprune_fx.symmetry.rules.table import KERNEL_POSITION
from exprune_fx.symmetry.wreath import Structure, structures


@dataclass(frozen=True)
class Factor:
    """One factor of a product along an axis.

    Attributes:
        group: name of the group that permutes it, None where it occurs in no parameter.
        size: number of members.
        reason: why it is pinned, None where it is free.
        atom: internal name.
    """

    group: str | None
    size: Size
    reason: str | None
    atom: int = field(repr=False)

    @property
    def free(self) -> bool:
        """Whether its members may be permuted."""
        return self.reason is None


AxisLayout = tuple[tuple[Factor, ...], ...]


@dataclass(frozen=True, eq=False)
class SymmetryReport(Sequence[SymmetryGroup]):
    """All symmetry groups of a graph, in the order in which the graph's parameters meet them.

    Attributes:
        groups: free and pinned ones.
        analysis: the tied axes behind them.
    """

    groups: tuple[SymmetryGroup, ...]
    analysis: Analysis = field(repr=False)

    @overload
    def __getitem__(self, index: int) -> SymmetryGroup: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[SymmetryGroup, ...]: ...
    def __getitem__(self, index: int | slice) -> SymmetryGroup | tuple[SymmetryGroup, ...]:
        """A group by its place."""
        return self.groups[index]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[SymmetryGroup]:
        return iter(self.groups)

    @property
    def free(self) -> tuple[SymmetryGroup, ...]:
        """The free groups."""
        return tuple(group for group in self.groups if group.free)

    def named(self, name: str) -> SymmetryGroup:
        """The group of this name.

        Raises:
            SymmetryError: there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise SymmetryError(
            f"no symmetry group is named {name}", hint=f"names are: {', '.join(g.name for g in self.groups)}"
        )

    def groups_of(self, target: str, dim: int) -> tuple[SymmetryGroup, ...]:
        """All groups that permute positions along an axis of a parameter or buffer."""
        return tuple(g for g in self.groups if any(m.target == target and m.dim == dim for m in g.members))

    def group_of(self, target: str, dim: int) -> SymmetryGroup:
        """The one group along an axis of a parameter or buffer.

        Raises:
            SymmetryError: the axis has no group (size 1, inside a kernel, unknown), or is made of several.
        """
        found = self.groups_of(target, dim)
        if len(found) != 1:
            names = ", ".join(group.name for group in found) or "none"
            raise SymmetryError(f"axis {dim} of {target} has {len(found)} groups: {names}", hint="use groups_of")
        return found[0]

    def group_name_of(self, node: fx.Node | str, dim: int) -> str | None:
        """Name of the one group along an axis of any value; None where it has none, or is made of several.

        Args:
            node: a node of the graph, its name, or the target of a parameter.
            dim: of the value.

        Raises:
            SymmetryError: there is no such tensor value or dim.
        """
        layout = self.layout_of(node, dim)
        names = {factor.group for product in layout for factor in product}
        whole = [g for g in self.groups if g.name in names and len(layout) == 1 and len(g.atoms) == len(layout[0])]
        return whole[0].name if len(names) == 1 and whole else None

    def layout_of(self, node: fx.Node | str, dim: int, result: int = 0) -> AxisLayout:
        """How an axis of a value is made up: a concatenation of products of factors, outer first.

        Args:
            node: a node of the graph, its name, or the target of a parameter.
            dim: of the value.
            result: which result, for a node with several.

        Raises:
            SymmetryError: there is no such tensor value or dim.
        """
        name = node if isinstance(node, str) else node.name
        axes = self.analysis.axes.get(name, self.analysis.parameters.get(name))
        axes = axes[result] if isinstance(axes, list) else axes
        if axes is None or not -len(axes) <= dim < len(axes):
            raise SymmetryError(
                f"{name} has no axis {dim} in the analysed graph", hint="give the name of a tensor node"
            )
        unifier, names = self.analysis.unifier, {a: group.name for group in self.groups for a in group.atoms}
        return tuple(
            tuple(Factor(names.get(a), unifier.size_of(a), unifier.pin_reason(a), a) for a in run)
            for run in unifier.products(axes[dim])
        )


def symmetries(gm: fx.GraphModule) -> SymmetryReport:
    """Find all permutation symmetries that the graph's structure shows.

    Every free group of the result leaves the outputs unchanged when its elements permute the parameters, whatever the
    parameters' values are.

    Args:
        gm: a graph from `exprune_fx.capture`. It is not changed.

    Returns:
        One group for every set of tied axes that touches a parameter or persistent buffer (kernel positions left out).

    Raises:
        CaptureError: it is no graph: the model was not captured.
        SymmetryError: the graph is not in the dialect.
    """
    require_graph(gm)
    analysis = analyse(gm)
    runs = {t: tuple(_runs(analysis, axis) for axis in axes) for t, axes in analysis.parameters.items()}
    atoms = _parameter_atoms(analysis, runs)
    found = structures(analysis, atoms)
    names = _names(found, runs, analysis)
    groups = tuple(_group(analysis, structure, names, runs) for structure in found)
    return SymmetryReport(groups, analysis)


def _runs(analysis: Analysis, axis: Layout) -> tuple[Run, ...]:
    """Runs without their trivial factors."""
    runs = analysis.unifier.runs(axis)
    return tuple(Run(run.offset, tuple(factor for factor in run.factors if factor[1] != 1)) for run in runs)


Runs = dict[str, tuple[tuple[Run, ...], ...]]


def _parameter_atoms(analysis: Analysis, runs: Runs) -> list[int]:
    """Atoms along parameters, in graph order; positions inside kernels and trivial ones are left out."""
    found = {a: s for axes in runs.values() for axis in axes for run in axis for a, s, _ in run.factors}
    return [a for a, size in found.items() if size > 1 and analysis.unifier.pin_reason(a) != KERNEL_POSITION]


def _names(found: list[Structure], runs: Runs, analysis: Analysis) -> dict[int, str]:
    """Name of the group of every atom."""
    names: dict[int, str] = {}
    joint = {atom: structure.atoms for structure in found for atom in structure.atoms}
    taken: Counter[str] = Counter()
    for target, axes in runs.items():
        for dim, axis in enumerate(axes):
            for run in axis:
                for atom, _, _ in run.factors:
                    if atom in names or atom not in joint:
                        continue
                    name = _name(target, dim, analysis.shapes[target][dim], run, joint[atom])
                    taken[name] += 1
                    unique = name if taken[name] == 1 else f"{name}#{taken[name]}"
                    names.update(dict.fromkeys(joint[atom], unique))
    return names


def _name(target: str, dim: int, length: int, run: Run, atoms: tuple[int, ...]) -> str:
    stop = run.offset + 1 + sum((size - 1) * stride for _, size, stride in run.factors)
    place = "" if (run.offset, stop) == (0, length) else f"[{run.offset}:{stop}]"
    factors = "x".join(f"[{size}]" if a in atoms else f"{size}" for a, size, _ in run.factors)
    return f"{target}[{dim}]{place}" + (f":{factors}" if len(run.factors) > len(atoms) else "")


def _group(analysis: Analysis, structure: Structure, names: dict[int, str], runs: Runs) -> SymmetryGroup:
    unifier = analysis.unifier
    atoms = structure.atoms
    reason = unifier.pin_reason(atoms[0])
    indices = tuple((index, unifier.size_of(index)) for index in structure.indices)
    members = tuple(
        _member(target, dim, atoms, axes, indices)
        for target, axes in runs.items()
        for dim, axis in enumerate(axes)
        if any(a in atoms for run in axis for a, _, _ in run.factors)
    )
    indexed_by = tuple(dict.fromkeys(names[index] for index in structure.indices))
    words = "is tied to no input, no output and no op that tells its positions apart"
    if indexed_by:
        words += f"; another permutation for each index of {', '.join(indexed_by)}"
    return SymmetryGroup(
        name=names[atoms[0]],
        size=math.prod(unifier.size_of(atom) for atom in atoms),
        free=reason is None,
        reason=words if reason is None else reason,
        members=members,
        indexed_by=indexed_by,
        repeats=math.prod(size for _, size in indices),
        atoms=atoms,
        indices=structure.indices,
        graph=analysis.fingerprint,
    )


def _member(
    target: str,
    dim: int,
    atoms: tuple[int, ...],
    axes: tuple[tuple[Run, ...], ...],
    indices: tuple[tuple[int, int], ...],
) -> Member:
    own = {a for run in axes[dim] for a, _, _ in run.factors}
    wanted = {a for a, _ in indices} - own
    others = tuple(
        (other, axis)
        for other, axis in enumerate(axes)
        if other != dim and any(a in wanted for run in axis for a, _, _ in run.factors)
    )
    return Member(target, dim, atoms, axes[dim], indices, others)

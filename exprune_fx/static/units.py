"""What can be removed: bundles of groups that lose the same number of members, and the removals themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from exprune_fx.static.axes import Sizes, covers, is_static, labels
from exprune_fx.symmetry import SymmetryGroup, SymmetryReport
from exprune_fx.symmetry.layouts import Axes, Layout, Run

aten = torch.ops.aten
_SPLITS = {
    aten.split.Tensor,
    aten.chunk.default,
    aten.tensor_split.sections,
    aten.unsafe_chunk.default,
    aten.glu.default,
}


@dataclass(frozen=True)
class Bundle:
    """Groups that lose members together, so that sizes which must agree still do.

    Most bundles have one group, which loses one member at a step. Groups stand in one bundle where equal pieces are cut
    from one axis (`chunk`), or where one axis holds now the one, now the other (queries and values of one fused
    projection): then each loses the same fraction at a step.

    Attributes:
        groups: the groups.
        size: how many steps there are; the last one would leave nothing.
        reason: why nothing can be removed; "" where it can.
    """

    groups: tuple[SymmetryGroup, ...]
    size: int
    reason: str = ""

    def per_step(self, group: SymmetryGroup) -> int:
        """Members that a group loses at one step, for each index."""
        return outer_size(group) // self.size

    @property
    def name(self) -> str:
        """The names of its groups, the first ones of many."""
        names = [group.name for group in self.groups]
        return " + ".join(names[:2]) + (f" + {len(names) - 2} more" if len(names) > 2 else "")

    @property
    def targets(self) -> tuple[str, ...]:
        """Every parameter and buffer that is cut."""
        return tuple(dict.fromkeys(member.target for group in self.groups for member in group.members))


@dataclass(frozen=True)
class Removal:
    """The members of one group that go.

    Attributes:
        group: the group.
        removed: for each index, the members that go, ascending; as many for each.
    """

    group: SymmetryGroup
    removed: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Members before (of the outermost factor)."""
        return outer_size(self.group)

    @property
    def kept(self) -> int:
        """Members left for each index."""
        return self.size - len(self.removed[0])

    @property
    def inverse(self) -> npt.NDArray[np.int64]:
        """(repeats, group.size): the permutation that moves what is kept to the front, in order, as sources."""
        inner = self.group.size // self.size
        rows = []
        for gone in self.removed:
            left = np.setdiff1d(np.arange(self.size), gone)
            order = np.concatenate([left, np.asarray(gone, dtype=np.int64)])
            rows.append((order[:, None] * inner + np.arange(inner)).reshape(-1))
        return np.stack(rows).astype(np.int64)

    @property
    def mask(self) -> torch.Tensor:
        """Bool over the group's points, `row * group.size + member`: which go."""
        inner = self.group.size // self.size
        mask = torch.zeros(self.group.repeats, self.size, inner, dtype=torch.bool)
        for row, gone in enumerate(self.removed):
            mask[row, list(gone)] = True
        return mask.reshape(-1)


def outer_size(group: SymmetryGroup) -> int:
    """Members of a group's outermost factor, which are what is removed."""
    if len(group.atoms) == 1:
        return group.size
    runs = [run for member in group.members for run in member.runs]
    return next(size for run in runs for atom, size, _ in run.factors if atom == group.atoms[0])


def sizes_of(removals: Iterable[Removal]) -> Sizes:
    """How many members each atom keeps."""
    return {removal.group.atoms[0]: removal.kept for removal in removals}


def in_order(removals: Sequence[Removal]) -> tuple[Removal, ...]:
    """Inner ones first: a group that has another permutation for each index of a second one comes before that one."""
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(range(len(removals)))
    for i, inner in enumerate(removals):
        for j, outer in enumerate(removals):
            if i != j and set(inner.group.indices) & set(outer.group.atoms):
                graph.add_edge(i, j)
    return tuple(removals[i] for i in nx.lexicographical_topological_sort(graph))


def removed_along(report: SymmetryReport, axes: Axes, dim: int, removals: Iterable[Removal]) -> torch.Tensor | None:
    """Which positions along a dim go: bool of the value's rank, of size 1 along dims that do not matter.

    None where nothing goes. Where it depends on an axis that is not there, nothing is said to go either.
    """
    leaves = report.analysis.unifier.leaves(axes[dim])
    found: torch.Tensor | None = None
    for removal in removals:
        if not leaves & set(removal.group.atoms):
            continue
        for points in labels(report, axes, removal.group, dim):
            gone = removal.mask[points.clamp(min=0)] & (points >= 0)
            found = gone if found is None else found | gone
    return found


# ------------------------------------------------------------------------------------------------------ bundles


def together(parts: Sequence[Bundle]) -> Bundle:
    """One bundle of the groups of several, all of which lose the same fraction."""
    groups = tuple(group for bundle in parts for group in bundle.groups)
    return Bundle(groups, math.gcd(*(outer_size(group) for group in groups)))


def bundles(gm: fx.GraphModule, report: SymmetryReport) -> tuple[Bundle, ...]:
    """Every free group, with those that lose members together with it; in the order of the report."""
    groups = [group for group in report.free if isinstance(group.size, int) and group.size > 1]
    owner = {group.atoms[0]: i for i, group in enumerate(groups)}
    ties = _ties(gm, report)
    graph: nx.Graph = nx.Graph()
    graph.add_nodes_from(range(len(groups)))
    whole: dict[int, str] = {}
    for tie in ties:
        ends = [owner[atom] for atom in tie.atoms if atom in owner]
        nx.add_path(graph, ends)
        if len(ends) < len(tie.atoms):  # the others are pinned, or of no parameter: they lose nothing
            whole.update(dict.fromkeys(ends, "it is cut in equal pieces with what cannot be removed"))
        whole.update({owner[a]: "it is a part of pieces that must stay equal" for a in tie.frozen if a in owner})
    found = []
    for component in sorted(nx.connected_components(graph), key=min):
        members = tuple(groups[i] for i in sorted(component))
        steps = math.gcd(*(outer_size(group) for group in members))
        reason = next((whole[i] for i in sorted(component) if i in whole), "")
        if steps == 1 and not reason:
            reason = "the groups that are cut in equal pieces with it have sizes without a common divisor"
        found.append(Bundle(members, steps, reason))
    return tuple(found)


@dataclass(frozen=True)
class _Tie:
    """Atoms that lose the same fraction of their members, and others that lose none."""

    atoms: tuple[int, ...]
    frozen: tuple[int, ...] = ()


def _ties(gm: fx.GraphModule, report: SymmetryReport) -> list[_Tie]:
    unifier = report.analysis.unifier
    found: list[_Tie] = []
    seen: set[Layout] = set()
    for _, axes in report.analysis.values():
        for layout in axes:
            if layout in seen or not unifier.has_families() or not unifier.loose_families(layout):
                continue
            seen.add(layout)
            if is_static(unifier, layout):
                found.extend(tie for segment in unifier.resolve(layout) for tie in _tied(covers(unifier, segment)))
    for node in gm.graph.nodes:
        if node.target in _SPLITS:
            found.extend(_tied(_pieces(report, node)))
    return found


def _tied(pieces: Sequence[Sequence[Run]]) -> list[_Tie]:
    """What keeps pieces as large as one another: run by run where they are alike, else all by the same fraction."""
    runs = [[[f for f in run.factors if f[1] != 1] for run in piece] for piece in pieces]
    runs = [[factors for factors in piece if factors] for piece in runs]
    shapes = [[[size for _, size, _ in factors] for factors in piece] for piece in runs]
    if all(shape == shapes[0] for shape in shapes):
        columns = [list(zip(*each, strict=True)) for each in zip(*runs, strict=True)]
        found = [tuple(dict.fromkeys(f[0] for f in factors)) for column in columns for factors in column]
        return [_Tie(atoms) for atoms in found if len(atoms) > 1]
    outer = tuple(dict.fromkeys(factors[0][0] for piece in runs for factors in piece))
    inner = tuple(dict.fromkeys(f[0] for piece in runs for factors in piece for f in factors[1:]))
    return [_Tie(outer, inner)]


def _pieces(report: SymmetryReport, node: fx.Node) -> list[tuple[Run, ...]]:
    """Runs of the pieces that `split` or `chunk` cuts off, if they are equal."""
    results = report.analysis.axes.get(node.name)
    if not isinstance(results, list) or not results:
        return []
    dim = _split_dim(node, len(results[0]))
    unifier = report.analysis.unifier
    layouts = [axes[dim] for axes in results]
    if any(not is_static(unifier, layout) for layout in layouts) or len({unifier.size(a) for a in layouts}) > 1:
        return []
    return [unifier.runs(layout) for layout in layouts]


def _split_dim(node: fx.Node, rank: int) -> int:
    dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
    assert isinstance(dim, int)
    return dim % rank

"""Symmetry groups of a graph: what they permute, their elements, and how an element acts on the parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from sympy.combinatorics import Permutation, PermutationGroup
from torch import fx

from exprune_fx.errors import SymmetryError
from exprune_fx.symmetry.analysis import fetch, fingerprint
from exprune_fx.symmetry.layouts import Run

_Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Member:
    """One axis of one parameter or buffer that a group permutes.

    Attributes:
        target: dotted name of the parameter or buffer.
        dim: the axis.
        atoms: internal names of the factors whose joint positions are permuted, outer first.
        runs: the axis as strided runs of positions.
        index_atoms: what the permutation may depend on, outer first.
        index_runs: `(dim, runs)` of the other axes of this parameter that carry an index atom.
    """

    target: str
    dim: int
    atoms: tuple[int, ...] = field(repr=False)
    runs: tuple[Run, ...] = field(repr=False)
    index_atoms: tuple[tuple[int, int], ...] = field(repr=False, default=())
    index_runs: tuple[tuple[int, tuple[Run, ...]], ...] = field(repr=False, default=())

    @cached_property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """For each point of the group, the positions along the axis that belong to it, in corresponding order.

        With `repeats`, point `r * size + i` is member i for index r; where the index is another axis of the parameter,
        the points of every index share their positions.
        """
        sizes = self._sizes()
        size = math.prod(sizes)
        repeats = math.prod(count for _, count in self.index_atoms)
        found: list[list[int]] = [[] for _ in range(repeats * size)]
        for run in self.runs:
            if not any(factor[0] in self.atoms for factor in run.factors):
                continue
            places, coordinates = grid(run)
            member = np.ravel_multi_index([coordinates[atom] for atom in self.atoms], sizes)
            index: _Index | None = np.zeros_like(member)
            for atom, count in self.index_atoms:
                index = None if index is None or atom not in coordinates else index * count + coordinates[atom]
            for r in range(repeats):
                for place, i in zip(places[_rows(index, r)], member[_rows(index, r)], strict=True):
                    found[r * size + int(i)].append(int(place))
        return tuple(tuple(entry) for entry in found)

    def source(self, inverse: _Index, shape: tuple[int, ...]) -> _Index:
        """For each position, where its new content comes from, broadcastable against a parameter of this shape.

        Args:
            inverse: (repeats, size), the inverse permutation for each index.
            shape: of the parameter.
        """
        length, rank = shape[self.dim], len(shape)
        others = {atom: (dim, runs) for dim, runs in self.index_runs for run in runs for atom, *_ in run.factors}
        extents = [1] * rank
        for dim, _ in self.index_runs:
            extents[dim] = shape[dim]
        extents[self.dim] = length
        result = np.broadcast_to(np.arange(length).reshape(_along(self.dim, length, rank)), extents).copy()
        for run in self.runs:
            if not any(factor[0] in self.atoms for factor in run.factors):
                continue
            places, coordinates = grid(run)
            repeat: _Index = np.zeros([1] * rank, dtype=np.int64)
            for atom, count in self.index_atoms:
                if atom in coordinates:
                    along = coordinates[atom].reshape(_along(self.dim, len(places), rank))
                else:
                    dim, runs = others[atom]
                    along = _coordinates(runs, atom, shape[dim]).reshape(_along(dim, shape[dim], rank))
                repeat = repeat * count + along
            origin = np.full([1] * rank, run.offset, dtype=np.int64)
            for k, (atom, _, stride) in enumerate(run.factors):
                moved = self._origin(inverse, repeat, atom, run, k, rank)
                origin = origin + moved * stride
            target = [slice(None)] * rank
            index: list[slice | _Index] = list(target)
            index[self.dim] = places
            result[tuple(index)] = origin
        return result

    def _sizes(self) -> list[int]:
        known = {atom: size for run in self.runs for atom, size, _ in run.factors}
        return [known[atom] for atom in self.atoms]

    def _origin(self, inverse: _Index, repeat: _Index, atom: int, run: Run, k: int, rank: int) -> _Index:
        """Coordinate of factor k at the place where the content of each position of the run comes from."""
        own = factor_grid(run, k)
        along = _along(self.dim, len(own), rank)
        if atom not in self.atoms:
            return own.reshape(along)
        if len(self.atoms) == 1:
            return inverse[repeat, own.reshape(along)]
        sizes, (_, coordinates) = self._sizes(), grid(run)
        cells = np.ravel_multi_index([coordinates[a] for a in self.atoms], sizes).reshape(along)
        return np.unravel_index(inverse[repeat, cells], sizes)[self.atoms.index(atom)]


def _rows(index: _Index | None, repeat: int) -> npt.NDArray[np.bool_] | slice:
    return slice(None) if index is None else index == repeat


def _along(dim: int, length: int, rank: int) -> list[int]:
    return [length if i == dim else 1 for i in range(rank)]


def factor_grid(run: Run, k: int) -> _Index:
    """The coordinate of factor k for every position of a run, in the order of `grid`."""
    sizes = [size for _, size, _ in run.factors]
    flat: _Index = np.indices(sizes)[k].reshape(-1) if sizes else np.zeros(1, dtype=np.int64)
    return flat


def grid(run: Run) -> tuple[_Index, dict[int, _Index]]:
    """Positions of a run, and for every atom its (first) coordinate there."""
    places: _Index = np.full(math.prod(size for _, size, _ in run.factors), run.offset, dtype=np.int64)
    coordinates: dict[int, _Index] = {}
    for k, (atom, _, stride) in enumerate(run.factors):
        own = factor_grid(run, k)
        places = places + own * stride
        coordinates.setdefault(atom, own)
    return places, coordinates


def _coordinates(runs: tuple[Run, ...], atom: int, length: int) -> _Index:
    result: _Index = np.zeros(length, dtype=np.int64)
    for run in runs:
        places, coordinates = grid(run)
        if atom in coordinates:
            result[places] = coordinates[atom]
    return result


@dataclass(frozen=True, eq=False)
class GroupElement:
    """An element of a symmetry group: for every index r, member i goes to `images[r, i]`.

    Attributes:
        group: name of the group.
        images: (repeats, size), int64.
    """

    group: str
    images: torch.Tensor

    def inverse(self) -> GroupElement:
        """The element that undoes this one."""
        return GroupElement(self.group, torch.argsort(self.images, dim=1))

    def __matmul__(self, other: GroupElement) -> GroupElement:
        """The element that does `other` first and then this one."""
        if self.group != other.group or self.images.shape != other.images.shape:
            raise SymmetryError(
                f"elements of {self.group} {tuple(self.images.shape)} and of {other.group} {tuple(other.images.shape)} "
                "do not compose",
                hint="compose elements of one group",
            )
        return GroupElement(self.group, torch.gather(self.images, 1, other.images))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupElement) and self.group == other.group and torch.equal(self.images, other.images)

    def __hash__(self) -> int:
        return hash((self.group, tuple(self.images.flatten().tolist())))

    @property
    def is_identity(self) -> bool:
        """Whether nothing is moved."""
        return bool((self.images == torch.arange(self.images.shape[1])).all())


@dataclass(frozen=True, eq=False)
class SymmetryGroup:
    """A set of tied axes that the graph treats alike, and the permutations that leave the function unchanged.

    Attributes:
        name: from the first parameter that the group permutes: `conv.weight[0]`; with `[start:stop]` where it is a
            segment of the axis, and with `:[8]x64` (or `:8x[64]`) where it is the bracketed factor of a product.
        size: number of members that are permuted.
        free: whether they really may be permuted.
        reason: in words, why it is free or what pins it.
        members: every axis of a parameter or buffer that is permuted.
        indexed_by: names of the groups for each index of which the permutation may be another one (wreath product).
        repeats: number of such indices (1 where there are none).
        atoms: internal names of the factors whose joint positions are permuted, outer first.
        indices: internal names of the factors that number the repeats, outer first.
        graph: fingerprint of the analysed graph.
    """

    name: str
    size: int
    free: bool
    reason: str
    members: tuple[Member, ...] = field(repr=False)
    indexed_by: tuple[str, ...] = ()
    repeats: int = 1
    atoms: tuple[int, ...] = field(repr=False, default=())
    indices: tuple[int, ...] = field(repr=False, default=())
    graph: str = field(repr=False, default="")

    @property
    def order(self) -> int:
        """Number of elements: (size!) ** repeats, 1 where the group is pinned."""
        return math.factorial(self.size) ** self.repeats if self.free else 1

    @cached_property
    def permutation_group(self) -> PermutationGroup:
        """The group on `repeats * size` points, by generators: a swap and a cycle per index (none where pinned)."""
        points = self.repeats * self.size
        generators = [Permutation(list(range(points)))]
        if self.free and self.size > 1:
            generators = []
            for start in range(0, points, self.size):
                generators.append(Permutation([[start, start + 1]], size=points))
                if self.size > 2:
                    generators.append(Permutation([list(range(start, start + self.size))], size=points))
        return PermutationGroup(generators)

    def random_element(self, generator: torch.Generator) -> GroupElement:
        """A uniformly random element (the identity where the group is pinned)."""
        if not self.free:
            return GroupElement(self.name, torch.arange(self.size).expand(self.repeats, -1).clone())
        rows = [torch.randperm(self.size, generator=generator) for _ in range(self.repeats)]
        return GroupElement(self.name, torch.stack(rows))

    def apply_(self, gm: fx.GraphModule, element: GroupElement) -> None:
        """Permute the parameters and buffers of `gm`, by binding new tensors; the shared old ones are not written to.

        Args:
            gm: the analysed graph, or a copy of it.
            element: of this group.

        Raises:
            SymmetryError: the group is pinned, the element is of another group, or `gm` is another graph.
        """
        if not self.free:
            raise SymmetryError(
                f"group {self.name} is pinned: it {self.reason}", hint="apply elements of free groups only"
            )
        images = element.images
        if element.group != self.name or tuple(images.shape) != (self.repeats, self.size):
            raise SymmetryError(
                f"the element of {element.group} with shape {tuple(images.shape)} is not one of {self.name}, which has "
                f"{self.repeats} x {self.size} points",
                hint="draw it with this group's random_element",
            )
        if fingerprint(gm) != self.graph:
            raise SymmetryError(
                f"group {self.name} was found in another graph than the one given",
                hint="call symmetries() on this graph",
            )
        inverse = element.inverse().images.numpy()
        for target in dict.fromkeys(member.target for member in self.members):
            members = [member for member in self.members if member.target == target]
            _rebind(gm, target, _permuted(fetch(gm, target), members, inverse))


def _permuted(tensor: torch.Tensor, members: list[Member], inverse: _Index) -> torch.Tensor:
    """A new tensor with every member axis permuted. The indices of one axis are those before any axis is permuted."""
    result = tensor.detach()
    for member in members:
        source = torch.from_numpy(member.source(inverse, tuple(tensor.shape))).to(tensor.device)
        if source.numel() == tensor.shape[member.dim]:
            result = result.index_select(member.dim, source.reshape(-1))
        else:
            result = torch.take_along_dim(result, source.expand_as(result), dim=member.dim)
    return result


def _rebind(gm: fx.GraphModule, target: str, value: torch.Tensor) -> None:
    """Bind a new tensor of the same kind under every name that the old one has."""
    old = fetch(gm, target)
    new = torch.nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, torch.nn.Parameter) else value
    named = [*gm.named_parameters(remove_duplicate=False), *gm.named_buffers(remove_duplicate=False)]
    for name in [name for name, tensor in named if tensor is old]:
        path, _, leaf = name.rpartition(".")
        setattr(gm.get_submodule(path), leaf, new)

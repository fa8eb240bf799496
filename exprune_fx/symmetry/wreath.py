"""Which axes may be permuted independently for each index of another: wreath products such as heads of head dims.

An atom d may be permuted by another permutation for each index of h when (1) wherever d occurs, exactly one h goes with
it, as a factor of the same axis or as another axis of the same value; (2) every op that ties axes with d ties them
together with their h; and (3) no op mixes h (sums, normalises over it) unless it mixes d together with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from exprune_fx.symmetry.analysis import Analysis
from exprune_fx.symmetry.layouts import Layout
from exprune_fx.symmetry.rules.table import Event

Products = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Structure:
    """What one group permutes.

    Attributes:
        atoms: whose joint positions are permuted (one atom, but where several never go apart and are never told apart).
        indices: atoms for each index of which the permutation may be another one, in graph order.
    """

    atoms: tuple[int, ...]
    indices: tuple[int, ...]


def structures(analysis: Analysis, atoms: Sequence[int]) -> list[Structure]:
    """The groups on these atoms, which occur in parameters and are given in graph order.

    Two atoms each of which may be permuted independently for each index of the other are one: row-wise and column-wise
    permutations of a grid generate all permutations of its cells.
    """
    finder = _Finder(analysis)
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(atoms)
    order = {atom: i for i, atom in enumerate(atoms)}
    for atom in atoms:
        if analysis.unifier.pin_reason(atom) is None:
            graph.add_edges_from((atom, other) for other in finder.candidates(atom) if finder.independent(atom, other))
    joint: dict[int, tuple[int, ...]] = {atom: (atom,) for atom in atoms}
    for component in list(nx.strongly_connected_components(graph)):
        clique = tuple(sorted(component, key=order.__getitem__))
        if finder.always_together(clique) and all(graph.has_edge(a, b) for a in clique for b in clique if a != b):
            joint.update(dict.fromkeys(clique, clique))
            graph.remove_edges_from([(a, b) for a in clique for b in clique])
        else:  # keep the direction from the inner to the outer one, which comes first
            graph.remove_edges_from([(a, b) for a in clique for b in clique if order[a] < order[b]])
    found = []
    for clique in dict.fromkeys(joint.values()):
        common = set.intersection(*(set(graph.successors(atom)) for atom in clique))
        found.append(Structure(clique, tuple(sorted(common, key=order.__getitem__))))
    return found


class _Finder:
    def __init__(self, analysis: Analysis) -> None:
        self._unifier = analysis.unifier
        self._cache: dict[Layout, Products] = {}
        self._parameters = [[self._products(axis) for axis in axes] for axes in analysis.parameters.values()]
        self._values: Mapping[int, list[list[Products]]] = self._by_atom(
            [self._products(axis) for axis in axes] for _, axes in analysis.values()
        )
        self._events: Mapping[int, list[tuple[Event, Mapping[str, Products]]]] = self._events_by_atom(analysis)

    def _products(self, layout: Layout) -> Products:
        if layout not in self._cache:
            self._cache[layout] = self._unifier.products(layout)
        return self._cache[layout]

    def _by_atom(self, values: Iterable[list[Products]]) -> dict[int, list[list[Products]]]:
        found: dict[int, list[list[Products]]] = defaultdict(list)
        for value in values:
            for atom in {atom for axis in value for run in axis for atom in run}:
                found[atom].append(value)
        return found

    def _events_by_atom(self, analysis: Analysis) -> dict[int, list[tuple[Event, Mapping[str, Products]]]]:
        found: dict[int, list[tuple[Event, Mapping[str, Products]]]] = defaultdict(list)
        for event in analysis.state.events:
            letters = {letter: self._products(layout) for letter, layout in event.letters.items()}
            for atom in {atom for axis in letters.values() for run in axis for atom in run}:
                found[atom].append((event, letters))
        return found

    def candidates(self, atom: int) -> list[int]:
        """Atoms that go with `atom` in every parameter that has it."""
        common: set[int] | None = None
        for axes in self._parameters:
            here = {other for axis in axes for run in axis for other in run}
            if atom in here:
                common = here if common is None else common & here
        size_one = {other for other in common or () if self._unifier.size_of(other) == 1}
        return sorted((common or set()) - {atom} - size_one)

    def always_together(self, atoms: tuple[int, ...]) -> bool:
        """Whether the atoms are factors of the same axis, each once, wherever parameters have one of them."""
        runs = [run for axes in self._parameters for axis in axes for run in axis if not {*run}.isdisjoint(atoms)]
        return all(run.count(atom) == 1 for run in runs for atom in atoms)

    def independent(self, atom: int, index: int) -> bool:
        """Whether `atom` may be permuted by another permutation for each index of `index`."""
        return all(_value_allows(value, atom, index) for value in self._values[atom]) and all(
            _event_allows(event, letters, atom, index) for event, letters in self._events[atom]
        )


def _value_allows(value: list[Products], atom: int, index: int) -> bool:
    for dim, axis in enumerate(value):
        for run in axis:
            if atom not in run or run.count(index) == 1:
                continue
            others = [other for i, other in enumerate(value) if i != dim and any(index in each for each in other)]
            if index in run or len(others) != 1 or any(each.count(index) != 1 for each in others[0]):
                return False
    return True


def _event_allows(event: Event, letters: Mapping[str, Products], atom: int, index: int) -> bool:
    for letter, axis in letters.items():
        loose = [run for run in axis if atom in run and index not in run]
        if not loose:
            continue
        partners = {_partner(value, letters, letter, index) for value in event.values if letter in value}
        if len(partners) != 1 or None in partners:
            return False
        partner = partners.pop()
        if any(partner in mixed and letter not in mixed for mixed in event.mixed):
            return False
    return True


def _partner(value: tuple[str, ...], letters: Mapping[str, Products], letter: str, index: int) -> str | None:
    found = [other for other in value if other != letter and any(index in run for run in letters[other])]
    return found[0] if len(found) == 1 else None

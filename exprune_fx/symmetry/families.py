"""Families whose index does not always go with them are no families: their members are tied after all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exprune_fx.symmetry.layouts import Axes, Layout
from exprune_fx.symmetry.rules.table import Event, State
from exprune_fx.symmetry.unify import Unifier


def settle_families(state: State) -> None:
    """Collapse families until every one left is well founded.

    A family may differ along its index only where (1) in a parameter the index is a factor of the same axis, (2) in
    every other value the index is there, beside it or as one other axis, and (3) every op ties axes of the family
    together with those of its index and mixes the index only jointly with the family.
    """
    unifier = state.unifier
    while (family := _unfounded(state, unifier)) is not None:
        unifier.collapse(family)


def _unfounded(state: State, unifier: Unifier) -> int | None:
    if not unifier.has_families():
        return None
    for axes in state.parameters.values():
        for axis in axes:
            for family in unifier.loose_families(axis):
                return family
    values = [each for axes in state.axes.values() for each in (axes if isinstance(axes, list) else [axes])]
    for value in values:
        if (found := _in_value(unifier, value)) is not None:
            return found
    for event in state.events:
        if (found := _in_event(unifier, event)) is not None:
            return found
    return None


def _in_value(unifier: Unifier, axes: Axes) -> int | None:
    for dim, axis in enumerate(axes):
        for family in unifier.loose_families(axis):
            others = [other for i, other in enumerate(axes) if i != dim]
            if _carrier(unifier, others, family) is None:
                return family
    return None


def _carrier(unifier: Unifier, axes: Sequence[Layout], family: int) -> int | None:
    """The one axis that carries the whole index of a family at each of its positions."""
    wanted = unifier.index_leaves(family)
    found = [i for i, axis in enumerate(axes) if unifier.leaves(axis) & wanted]
    if len(found) != 1 or not wanted <= unifier.leaves(axes[found[0]]):
        return None
    whole = all(any(atom in wanted for atom, *_ in run.factors) for run in unifier.runs(axes[found[0]]))
    return found[0] if whole else None


def _in_event(unifier: Unifier, event: Event) -> int | None:
    for letter, axis in event.letters.items():
        for family in unifier.loose_families(axis):
            if not _tied_with_index(unifier, event, event.letters, letter, family):
                return family
    return None


def _tied_with_index(unifier: Unifier, event: Event, letters: Mapping[str, Layout], letter: str, family: int) -> bool:
    partners: set[str] = set()
    for value in event.values:
        if letter in value:
            others = [other for other in value if other != letter]
            carrier = _carrier(unifier, [letters[other] for other in others], family)
            if carrier is None:
                return False
            partners.add(others[carrier])
    return len(partners) == 1 and not any(partners & mixed and letter not in mixed for mixed in event.mixed)

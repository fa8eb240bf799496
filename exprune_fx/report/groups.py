"""Symmetry groups as plain data: what each permutes, how many ways, and whether it is free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from exprune_fx.symmetry import SymmetryGroup

_FEW = 10**6
"""Orders below this are written in digits."""


@dataclass(frozen=True)
class GroupFacts:
    """One symmetry group.

    Attributes:
        name: its name.
        size: how many members it permutes.
        free: it really may be permuted.
        order: the number of its permutations, as "64!" or in digits.
        reason: why it is free or pinned.
        parameters: the parameter axes that move with it, as "features.0.weight axis 0".
        reordered: the plan put its members into another order.
    """

    name: str
    size: str
    free: bool
    order: str
    reason: str
    parameters: tuple[str, ...]
    reordered: bool


def group_facts(groups: Iterable[SymmetryGroup], orders: Mapping[str, tuple[int, ...]]) -> tuple[GroupFacts, ...]:
    """Every group, free ones first, each kind in the order of the graph."""
    facts = [
        GroupFacts(
            name=group.name,
            size=str(group.size),
            free=group.free,
            order=order_text(group),
            reason=group.reason,
            parameters=tuple(f"{member.target} axis {member.dim}" for member in group.members),
            reordered=group.name in orders,
        )
        for group in groups
    ]
    return tuple(sorted(facts, key=lambda group: not group.free))


def order_text(group: SymmetryGroup) -> str:
    """The number of a group's permutations: in digits if there are few, else as a factorial or a power of one."""
    if not group.free or group.order < _FEW:
        return f"{group.order:,}"
    return f"{group.size}!" if group.repeats == 1 else f"({group.size}!)^{group.repeats}"

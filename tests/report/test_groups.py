"""How many permutations a group has, in a form that people read."""

from __future__ import annotations

import pytest

from exprune_fx.report.groups import group_facts, order_text
from exprune_fx.symmetry import SymmetryGroup


def group(size: int, *, free: bool = True, repeats: int = 1, name: str = "g") -> SymmetryGroup:
    return SymmetryGroup(name, size, free, "for a reason", (), (), repeats)


@pytest.mark.parametrize(
    ("size", "repeats", "text"), [(2, 1, "2"), (8, 1, "40,320"), (64, 1, "64!"), (4, 2, "576"), (64, 12, "(64!)^12")]
)
def test_order(size: int, repeats: int, text: str) -> None:
    assert order_text(group(size, repeats=repeats)) == text


def test_a_huge_order_is_never_written_out() -> None:
    assert order_text(group(4096)) == "4096!"


def test_a_pinned_group_has_one_element() -> None:
    assert order_text(group(64, free=False)) == "1"


def test_free_groups_come_first_and_reordered_ones_say_so() -> None:
    facts = group_facts([group(3, free=False, name="a"), group(3, name="b")], {"b": (2, 0, 1)})
    assert [(fact.name, fact.reordered) for fact in facts] == [("b", True), ("a", False)]

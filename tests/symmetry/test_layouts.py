"""Layouts and their unification, by example and against a naive model of positions."""

from __future__ import annotations

import itertools

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exprune_fx.symmetry.layouts import Layout, less, quotient, same_size
from exprune_fx.symmetry.unify import MISALIGNED, Unifier


def sizes(unifier: Unifier, layout: Layout) -> list[list[int]]:
    return [[unifier.size_of(atom) for atom in segment] for segment in unifier.resolve(layout)]


def positions(unifier: Unifier, layout: Layout) -> list[frozenset[tuple[int, int]]]:
    """For every position of an axis: the coordinates of its atoms."""
    found: dict[int, frozenset[tuple[int, int]]] = {}
    for run in unifier.runs(layout):
        for coordinate in itertools.product(*(range(size) for _, size, _ in run.factors)):
            place = run.offset + sum(c * step for c, (_, _, step) in zip(coordinate, run.factors, strict=True))
            assert place not in found, "runs overlap"
            found[place] = frozenset((f[0], c) for c, f in zip(coordinate, run.factors, strict=True) if f[1] != 1)
    assert sorted(found) == list(range(unifier.size(layout))), "runs leave a gap"
    return [found[place] for place in sorted(found)]


def test_atoms_join() -> None:
    unifier = Unifier()
    a, b = unifier.fresh(6), unifier.fresh(6)
    unifier.unify(a, b)
    assert unifier.resolve(a) == unifier.resolve(b)


def test_an_atom_takes_the_composite_everywhere() -> None:
    unifier = Unifier()
    whole, (head, dim) = unifier.atom(6), (unifier.atom(2), unifier.atom(3))
    unifier.unify(((whole,),), ((head, dim),))
    assert unifier.resolve(((whole,), (whole,))) == ((head, dim), (head, dim))


def test_concatenations_are_cut_against_each_other() -> None:
    unifier = Unifier()
    one = (*unifier.fresh(4), *unifier.fresh(8))
    other = (*unifier.fresh(6), *unifier.fresh(6))
    unifier.unify(one, other)
    assert unifier.resolve(one) == unifier.resolve(other)
    assert sizes(unifier, one) == [[4], [2], [6]]


def test_a_cut_at_a_multiple_of_the_inner_size_cuts_the_outer_factor() -> None:
    unifier = Unifier()
    product = ((unifier.atom(6), unifier.atom(4)),)
    pieces = unifier.split(product, (8, 16))
    assert pieces is not None
    assert [sizes(unifier, piece) for piece in pieces] == [[[2, 4]], [[4, 4]]]


def test_a_cut_within_an_inner_factor_takes_one_index_out() -> None:
    unifier = Unifier()
    product = ((unifier.atom(5), unifier.atom(4)),)
    pieces = unifier.split(product, (10, 10))
    assert pieces is not None
    assert [sizes(unifier, piece) for piece in pieces] == [[[2, 4], [2]], [[2], [2, 4]]]


def test_products_are_factored_against_each_other() -> None:
    unifier = Unifier()
    one = ((unifier.atom(6), unifier.atom(4)),)
    other = ((unifier.atom(2), unifier.atom(12)),)
    unifier.unify(one, other)
    assert unifier.resolve(one) == unifier.resolve(other)
    assert sizes(unifier, one) == [[2, 3, 4]]


def test_factorisations_that_do_not_align_are_pinned() -> None:
    unifier = Unifier()
    one, other = ((unifier.atom(2), unifier.atom(3)),), ((unifier.atom(3), unifier.atom(2)),)
    unifier.unify(one, other)
    assert {unifier.pin_reason(atom) for atom in unifier.leaves(one + other)} == {MISALIGNED}


def test_an_inner_concatenation_stays_a_factor() -> None:
    """(h, a + b) is no concatenation: its runs are strided."""
    unifier = Unifier()
    h, d = unifier.atom(3), unifier.atom(5)
    a, b = unifier.split(((d,),), (2, 3)) or ((), ())
    assert [(run.offset, [step for *_, step in run.factors]) for run in unifier.runs(((h, d),))] == [
        (0, [5, 1]),
        (2, [5, 1]),
    ]
    assert unifier.leaves(((h, d),)) == {h, a[0][0], b[0][0]}


def test_an_outer_concatenation_distributes_and_each_piece_may_differ() -> None:
    unifier = Unifier()
    three, heads = unifier.atom(3), unifier.atom(4)
    fused = ((three, heads),)
    pieces = unifier.split(fused, (4, 4, 4))
    assert pieces is not None
    assert len({unifier.resolve(piece) for piece in pieces}) == 3
    unifier.unify(pieces[0], pieces[1])
    assert len({unifier.resolve(piece) for piece in pieces}) == 2
    assert unifier.is_family(heads)
    unifier.collapse(heads)
    assert len({unifier.resolve(piece) for piece in pieces}) == 1


def test_interleaved_pieces_keep_their_members() -> None:
    """Two concatenated parts, viewed as (2, n), transposed and merged: position 2 i + j is member i of part j."""
    unifier = Unifier()
    a, b = unifier.atom(3), unifier.atom(3)
    two, n = unifier.atom(2), unifier.atom(3)
    unifier.unify(((a,), (b,)), ((two, n),))
    shuffled = positions(unifier, ((n, two),))
    parts = [positions(unifier, ((part,),)) for part in (a, b)]
    assert shuffled == [part[i] for i in range(3) for part in parts]
    halves = unifier.split(((n, two),), (2, 4))
    assert halves is not None
    assert sorted(unifier.size_of(atom) for atom in unifier.leaves(halves[1])) == [1, 1, 2, 2]


def test_pins_follow_refinement() -> None:
    unifier = Unifier()
    whole = unifier.atom(6)
    unifier.pin(((whole,),), "is an input")
    pieces = unifier.split(((whole,),), (2, 4))
    assert pieces is not None
    assert all(unifier.pin_reason(atom) == "is an input" for piece in pieces for atom in unifier.leaves(piece))


def test_symbolic_sizes() -> None:
    batch, tokens = sympy.Symbol("s0", positive=True, integer=True), sympy.Symbol("s1")
    assert same_size(batch * (tokens + 1), batch * tokens + batch)
    assert quotient(6 * batch * tokens, 2 * batch) == 3 * tokens
    assert quotient(batch, tokens) is None
    assert less(batch, batch + 1) is True
    assert less(batch, tokens) is None
    unifier = Unifier()
    flat = unifier.fresh(6 * batch)
    parts = ((unifier.atom(batch), unifier.atom(6)),)
    unifier.unify(flat, parts)
    assert unifier.resolve(flat) == parts


def test_a_size_that_cannot_be_compared_pins() -> None:
    unifier = Unifier()
    a, b = sympy.Symbol("a"), sympy.Symbol("b")
    one = (*unifier.fresh(a), *unifier.fresh(b))
    other = (*unifier.fresh(b), *unifier.fresh(a))
    unifier.unify(one, other)
    assert unifier.pinned(one)
    assert unifier.pinned(other)


layouts = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4)


@st.composite
def equal_layouts(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """Two layouts of one length, cut and factored at random."""
    total = draw(st.integers(2, 36))

    def one() -> list[list[int]]:
        cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=3))) if total > 1 else []
        lengths = [b - a for a, b in itertools.pairwise([0, *cuts, total])]
        return [_factored(draw, length) for length in lengths]

    return one(), one()


def _factored(draw: st.DrawFn, length: int) -> list[int]:
    divisors = [d for d in range(1, length + 1) if length % d == 0]
    first = draw(st.sampled_from(divisors))
    second = draw(st.sampled_from([d for d in divisors if (length // first) % d == 0]))
    return [first, second, length // first // second]


def build(unifier: Unifier, spec: list[list[int]]) -> Layout:
    return tuple(tuple(unifier.atom(size) for size in segment) for segment in spec)


@given(equal_layouts())
@settings(max_examples=150, deadline=None)
def test_unification_ties_position_to_position(specs: tuple[list[list[int]], list[list[int]]]) -> None:
    """Afterwards both axes have, position by position, the same coordinates; or both are pinned as a whole."""
    unifier = Unifier()
    one, other = (build(unifier, spec) for spec in specs)
    unifier.unify(one, other)
    for left, right in zip(positions(unifier, one), positions(unifier, other), strict=True):
        free = [{c for c in side if unifier.pin_reason(c[0]) is None} for side in (left, right)]
        assert free[0] == free[1]


@given(layouts, st.data())
@settings(max_examples=100, deadline=None)
def test_a_split_keeps_positions(spec: list[list[int]], data: st.DataObject) -> None:
    unifier = Unifier()
    layout = build(unifier, spec)
    total = int(unifier.size(layout))
    at = data.draw(st.integers(0, total))
    pieces = unifier.split(layout, (at, total - at))
    assert pieces is not None
    assert [unifier.size(piece) for piece in pieces] == [at, total - at]
    whole = positions(unifier, layout)
    assert [*positions(unifier, pieces[0]), *positions(unifier, pieces[1])] == whole


@pytest.mark.parametrize("value", [3, torch.tensor(3).item()])
def test_static_sizes_are_ints(value: int) -> None:
    assert quotient(value * 4, value) == 4
    assert quotient(4, value) is None

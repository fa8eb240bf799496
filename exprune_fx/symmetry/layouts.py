"""Sizes and layouts: how the positions along one axis are laid out over atoms.

A *layout* is a concatenation of segments, a segment a product of factors in mixed radix (outer factor first), and a
factor an *atom*: a variable that stands for a set of `size` members. `((q,), (k,))` reads "first all of q, then all of
k"; `((h, d),)` reads "for each h, all of d". What an atom stands for (itself, or a layout of smaller atoms) is known to
the `exprune_fx.symmetry.unify.Unifier` that made it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch

Size: TypeAlias = Any  # int, or a sympy expression in the symbolic sizes (sympy has no types)
Segment: TypeAlias = tuple[int, ...]
Layout: TypeAlias = tuple[Segment, ...]
Axes: TypeAlias = tuple[Layout, ...]


@dataclass(frozen=True)
class Run:
    """A strided family of positions: `offset + sum(coordinate * stride)` over the atoms of one product.

    Attributes:
        offset: first position.
        factors: `(atom, size, stride)` for every leaf atom, outer first.
    """

    offset: int
    factors: tuple[tuple[int, int, int], ...]


def as_size(value: int | torch.SymInt) -> Size:
    """An int, or the sympy expression of a SymInt (an int again where the expression is constant)."""
    if isinstance(value, torch.SymInt):
        expression = value.node.expr
        return int(expression) if expression.is_Integer else expression
    return int(value)


def simplify(size: Size) -> Size:
    """Expand a sympy expression, to an int where it is constant."""
    if isinstance(size, int):
        return size
    expanded = sympy.expand(size)
    return int(expanded) if expanded.is_Integer else expanded


def same_size(left: Size, right: Size) -> bool:
    """Whether two sizes are provably equal."""
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    return bool(simplify(left - right) == 0)


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes (1 of none)."""
    return math.prod(sizes, start=1)


def quotient(whole: Size, part: Size) -> Size | None:
    """`whole / part` where that is provably a whole number, else None."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and whole % part == 0 else None
    ratio = sympy.cancel(sympy.sympify(whole) / sympy.sympify(part))
    numerator, denominator = sympy.fraction(ratio)
    return simplify(numerator) if denominator == 1 else None


def less(left: Size, right: Size) -> bool | None:
    """Whether left < right, None where that cannot be decided (sizes are taken as positive)."""
    if isinstance(left, int) and isinstance(right, int):
        return left < right
    difference = simplify(sympy.sympify(right) - sympy.sympify(left))
    if isinstance(difference, int):
        return difference > 0
    positive = {symbol: sympy.Dummy(symbol.name, positive=True, integer=True) for symbol in difference.free_symbols}
    replaced = difference.xreplace(positive)
    if replaced.is_positive:
        return True
    return False if replaced.is_nonpositive else None

"""Permutation symmetries of a graph: which axes may be permuted together without changing the function."""

from exprune_fx.symmetry.exchangeability import Exchangeability, exchangeability
from exprune_fx.symmetry.groups import GroupElement, Member, SymmetryGroup
from exprune_fx.symmetry.report import AxisLayout, Factor, SymmetryReport, symmetries

__all__ = [
    "AxisLayout",
    "Exchangeability",
    "Factor",
    "GroupElement",
    "Member",
    "SymmetryGroup",
    "SymmetryReport",
    "exchangeability",
    "symmetries",
]

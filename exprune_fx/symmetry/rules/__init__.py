"""One axis rule for each operator, split by kind of op; importing this package fills the table."""

from exprune_fx.symmetry.rules import (
    attention,
    conv,
    create,
    indexing,
    linear,
    norm,
    pieces,
    pointwise,
    pool,
    reduce,
    shape,
)
from exprune_fx.symmetry.rules.table import RULES

__all__ = [
    "RULES", "attention", "conv", "create", "indexing", "linear", "norm", "pieces", "pointwise",
    "pool", "reduce", "shape",
]  # fmt: skip

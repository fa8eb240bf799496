"""The columns of a row: the model as it is, under Inductor in three settings, and ours under the same three."""

from exprune_fx.compiling import INNER

DENSE = ("eager", *INNER)
OURS = "ours"
COLUMNS = (*DENSE, OURS)

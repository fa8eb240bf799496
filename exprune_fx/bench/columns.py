"""The columns of a row: the model as it is, under Inductor in three settings, and ours under the same three."""

from exprune_fx.compiling import INNER

DENSE = ("eager", *INNER)
OURS = "ours"
STAGED = "staged"  # what the plan stages, timed beside ours where the clock left it dense
COLUMNS = (*DENSE, OURS)

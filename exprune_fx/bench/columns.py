"""The columns of a row: the model as it is, under Inductor in three settings, and the best of ours in the same ways."""

from exprune_fx.compiling import INNER, UNCOMPILED

WAYS = (UNCOMPILED, *INNER)
DENSE = WAYS
OURS = "ours"
STAGED = "staged"  # what the plan stages, timed beside ours where the clock left it dense
COLUMNS = (*DENSE, OURS)

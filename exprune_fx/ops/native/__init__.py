"""The fused CPU operators of staged sites: built on first use, loaded, and described to torch's tracers.

Importing this package builds nothing. `available` is the question to ask before a graph is made to call
``torch.ops.exprune.staged_*``; where it says no, the readable form in `exprune_fx.ops.reference` runs.
"""

from exprune_fx.ops.native.library import available as available
from exprune_fx.ops.native.library import isa as isa

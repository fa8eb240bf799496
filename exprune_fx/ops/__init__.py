"""Operators of staged sites: schema and reference form. Knows tensors, no graphs.

Importing this package registers them as ``torch.ops.exprune.*``.
"""

from exprune_fx.ops.register import OPERATORS as OPERATORS

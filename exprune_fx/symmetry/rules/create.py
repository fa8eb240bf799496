"""Rules of ops that make tensors from sizes alone, and of ops without tensors."""

from __future__ import annotations

import torch

from exprune_fx.symmetry.layouts import Axes
from exprune_fx.symmetry.rules.table import Context, packets, rule

aten = torch.ops.aten

_FILLS = """zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty fill
empty_permuted scalar_tensor empty_strided new_empty_strided"""


@rule(*packets(_FILLS))
def fill(ctx: Context) -> Axes:
    """Every element is the same, so every axis is free and tied to nothing."""
    return tuple(ctx.fresh(size) for size in ctx.shape())


@rule(*packets("arange eye linspace logspace tril_indices triu_indices range"))
def numbered(ctx: Context) -> Axes:
    """Every element is a function of its position."""
    return tuple(ctx.fresh_pinned(size, "is numbered by") for size in ctx.shape())

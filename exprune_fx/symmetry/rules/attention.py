"""The rule of scaled dot-product attention."""

from __future__ import annotations

from typing import Any

import torch

from exprune_fx.symmetry.layouts import Axes
from exprune_fx.symmetry.rules.table import Context, DimSpec, Operand, letters, rule

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention.default)
def attention(ctx: Context) -> Axes:
    """Y[..., t, e] = softmax over s of (q[..., t, d] k[..., s, d] + mask[..., t, s]), times v[..., s, e]."""
    query, key, value, mask = ctx["query"], ctx["key"], ctx["value"], ctx["attn_mask"]
    batch = len(ctx.shape()) - 2
    if ctx["is_causal"]:
        for node in (query, key):
            ctx.pin(ctx.axes(node)[-2], "is ordered by the causal mask of")
    outer = letters(batch)
    shared, sizes = outer, {}
    if ctx["enable_gqa"] and batch:
        head, head_query = ctx.shape(key)[-3], ctx.shape(query)[-3]
        sizes = {"kv": head, "rep": head_query // head}
        outer, shared = [*outer[:-1], ("kv", "rep")], [*outer[:-1], "kv"]
    operands: list[Operand] = [
        (query, [*_last(outer, query, ctx), "t", "d"]),
        (key, [*_last(shared, key, ctx), "s", "d"]),
        (value, [*_last(shared, value, ctx), "s", "e"]),
    ]
    if mask is not None:
        trailing = [*outer, "t", "s"]
        operands.append((mask, trailing[len(trailing) - ctx.rank(mask) :]))
    return ctx.relate(operands, [*outer, "t", "e"], mixed=[["d"], ["s"]], sizes=sizes)


def _last(dims: list[DimSpec], node: Any, ctx: Context) -> list[DimSpec]:
    return dims[len(dims) - (ctx.rank(node) - 2) :]

"""Rules of normalisations: per channel, or jointly over the normalised dims."""

from __future__ import annotations

import torch

from exprune_fx.symmetry.layouts import Axes
from exprune_fx.symmetry.rules.table import Context, DimSpec, Operand, Result, letters, packets, rule

aten = torch.ops.aten


def _per_channel(ctx: Context, *, over_positions: bool, over_batch: bool) -> Axes:
    node = ctx["input"]
    dims = letters(ctx.rank(node))
    vectors = [ctx[name] for name in ("weight", "bias", "running_mean", "running_var")]
    operands: list[Operand] = [(node, dims), *((v, [dims[1]]) for v in vectors if v is not None)]
    mixed = (dims[:1] if over_batch else []) + (dims[2:] if over_positions else [])
    return ctx.relate(operands, dims, mixed=[[d for d in mixed if isinstance(d, str)]])


@rule(aten.batch_norm.default)
def batch_norm(ctx: Context) -> Axes:
    """Scale and shift per channel; in training also statistics over batch and positions."""
    return _per_channel(ctx, over_positions=bool(ctx["training"]), over_batch=bool(ctx["training"]))


@rule(*packets("_native_batch_norm_legit_no_training native_batch_norm"))
def native_batch_norm(ctx: Context) -> Result:
    """The decomposed form, with saved statistics as further results."""
    node, dims = ctx["input"], letters(ctx.rank(ctx["input"]))
    training = bool(ctx["training"])
    vectors = [ctx[name] for name in ("weight", "bias", "running_mean", "running_var")]
    operands: list[Operand] = [(node, dims), *((v, [dims[1]]) for v in vectors if v is not None)]
    mixed: list[list[str]] = [[str(d) for d in dims if d != dims[1]]] if training else []
    axes = ctx.relate(operands, dims, mixed=mixed)
    saved = [axes[1:2] if training else (ctx.fresh(0),) for _ in ctx.node.meta["val"][1:]]
    return [axes, *saved]


@rule(aten.instance_norm.default)
def instance_norm(ctx: Context) -> Axes:
    """Statistics over the positions of each channel."""
    return _per_channel(ctx, over_positions=True, over_batch=False)


@rule(aten.group_norm.default)
def group_norm(ctx: Context) -> Axes:
    """Statistics over the channels and positions of each group: channels are (group, member)."""
    node, groups = ctx["input"], ctx["num_groups"]
    places = letters(ctx.rank(node) - 2, "s")
    channel = ("g", "m")
    dims: list[DimSpec] = ["n", channel, *places]
    operands: list[Operand] = [(node, dims), *((ctx[v], [channel]) for v in ("weight", "bias") if ctx[v] is not None)]
    sizes = {"g": groups, "m": ctx.shape(node)[1] // groups}
    return ctx.relate(operands, dims, mixed=[["m", *map(str, places)]], sizes=sizes)


@rule(aten.layer_norm.default)
def layer_norm(ctx: Context) -> Axes:
    """Statistics jointly over the last dims."""
    node, count = ctx["input"], len(ctx["normalized_shape"])
    dims = letters(ctx.rank(node))
    last = dims[len(dims) - count :]
    operands: list[Operand] = [(node, dims), *((ctx[v], last) for v in ("weight", "bias") if ctx[v] is not None)]
    return ctx.relate(operands, dims, mixed=[map(str, last)])


@rule(*packets("rms_norm _fused_rms_norm"))
def rms_norm(ctx: Context) -> Result:
    """Root mean square jointly over the last dims."""
    axes = layer_norm(ctx)
    if isinstance(ctx.node.meta["val"], torch.Tensor):
        return axes
    count = len(ctx["normalized_shape"])
    kept = axes[: len(axes) - count]
    return [axes, (*kept, *(ctx.fresh(1) for _ in range(count)))]


@rule(aten.native_layer_norm.default)
def native_layer_norm(ctx: Context) -> Result:
    """The decomposed form, with mean and reciprocal deviation as further results."""
    axes = layer_norm(ctx)
    count = len(ctx["normalized_shape"])
    statistics = (*axes[: len(axes) - count], *(ctx.fresh(1) for _ in range(count)))
    return [axes, statistics, statistics]

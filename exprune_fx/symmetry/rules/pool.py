"""Rules of pooling, resampling and padding: positions are told apart, channels are alike."""

from __future__ import annotations

import torch

from exprune_fx.symmetry.layouts import Axes, as_size
from exprune_fx.symmetry.rules.table import Context, DimSpec, Result, packets, rule

aten = torch.ops.aten

_POOLS = "max_pool{0}d avg_pool{0}d max_pool{0}d_with_indices fractional_max_pool{0}d adaptive_avg_pool{0}d"
_POOLS += " adaptive_max_pool{0}d _adaptive_avg_pool{0}d upsample_nearest{0}d _upsample_nearest_exact{0}d"


def _spatial(ctx: Context, count: int) -> Result:
    """Pin the last `count` dims of operand and results; tie the others."""
    node = ctx.node.args[0]
    value = ctx.node.meta["val"]
    kept = ctx.rank(node) - count
    for layout in ctx.axes(node)[kept:]:
        ctx.pin(layout, "has its positions told apart by")
    dims: list[DimSpec] = [f"b{i}" if i < kept else None for i in range(ctx.rank(node))]
    first = value[0] if isinstance(value, (tuple, list)) else value
    places = [ctx.fresh_pinned(as_size(size), "is a position in the output of") for size in first.shape[kept:]]
    axes = (*ctx.relate([(node, dims)], dims)[:kept], *places)
    return [axes] * len(value) if isinstance(value, (tuple, list)) else axes


@rule(*packets(_POOLS.format(1)), *packets("upsample_linear1d lp_pool1d"))
def spatial1(ctx: Context) -> Result:
    """One positional dim."""
    return _spatial(ctx, 1)


@rule(
    *packets(_POOLS.format(2)),
    *packets("upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa"),
)
def spatial2(ctx: Context) -> Result:
    """Two positional dims."""
    return _spatial(ctx, 2)


@rule(*packets(_POOLS.format(3)), *packets("upsample_trilinear3d"))
def spatial3(ctx: Context) -> Result:
    """Three positional dims."""
    return _spatial(ctx, 3)


@rule(*packets("constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d"))
@rule(*packets("replication_pad1d replication_pad2d replication_pad3d"))
def pad(ctx: Context) -> Axes:
    """Padded dims are told apart, the others kept."""
    node = ctx["self"]
    amounts = ctx["pad"] if ctx["pad"] is not None else ctx["padding"]
    rank = ctx.rank(node)
    padded = {rank - 1 - i // 2 for i, amount in enumerate(amounts) if amount != 0}
    for dim in padded:
        ctx.pin(ctx.axes(node)[dim], "is padded by")
    dims: list[DimSpec] = [None if i in padded else f"b{i}" for i in range(rank)]
    axes = ctx.relate([(node, dims)], dims)
    for dim in padded:
        ctx.pin(axes[dim], "is a position in the output of")
    return axes


@rule(aten.pixel_shuffle.default)
def pixel_shuffle(ctx: Context) -> Axes:
    """[..., (c, r, r), H, W] to [..., c, (H, r), (W, r)]: the offsets in a pixel are told apart, c is kept."""
    node, factor = ctx["self"], ctx["upscale_factor"]
    rank = ctx.rank(node)
    batch: list[DimSpec] = [f"b{i}" for i in range(rank - 3)]
    sizes = {"c": ctx.shape()[rank - 3], "r1": factor, "r2": factor}
    return ctx.relate(
        [(node, [*batch, ("c", "r1", "r2"), "h", "w"])], [*batch, "c", ("h", "r1"), ("w", "r2")], sizes=sizes
    )


@rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(ctx: Context) -> Axes:
    """The inverse of pixel_shuffle."""
    node, factor = ctx["self"], ctx["downscale_factor"]
    rank = ctx.rank(node)
    batch: list[DimSpec] = [f"b{i}" for i in range(rank - 3)]
    sizes = {"h": ctx.shape()[rank - 2], "w": ctx.shape()[rank - 1], "r1": factor, "r2": factor}
    return ctx.relate(
        [(node, [*batch, "c", ("h", "r1"), ("w", "r2")])], [*batch, ("c", "r1", "r2"), "h", "w"], sizes=sizes
    )


@rule(aten.channel_shuffle.default)
def channel_shuffle(ctx: Context) -> Axes:
    """Channels (g, c) become (c, g)."""
    node, groups = ctx["self"], ctx["groups"]
    places: list[DimSpec] = [f"s{i}" for i in range(ctx.rank(node) - 2)]
    sizes = {"g": groups, "c": ctx.shape(node)[1] // groups}
    return ctx.relate([(node, ["n", ("g", "c"), *places])], ["n", ("c", "g"), *places], sizes=sizes)

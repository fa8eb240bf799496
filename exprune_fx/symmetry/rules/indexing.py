"""Rules of ops that read or write at positions given by data: the indexed dims are told apart, the others are alike."""

from __future__ import annotations

from typing import Any

import torch

from exprune_fx.symmetry.layouts import Axes
from exprune_fx.symmetry.rules.table import Context, DimSpec, Operand, letters, packets, rule

aten = torch.ops.aten
_BY_INDEX = "is indexed by the data of"


@rule(*packets("embedding"))
def embedding(ctx: Context) -> Axes:
    """Rows are looked up by number; columns are alike."""
    weight, indices = ctx["weight"], ctx["indices"]
    ctx.pin(ctx.axes(weight)[0], _BY_INDEX)
    batch = letters(ctx.rank(indices))
    return ctx.relate([(weight, [None, "c"]), (indices, batch)], [*batch, "c"])


@rule(*packets("index_select"))
def index_select(ctx: Context) -> Axes:
    """The dim is told apart; in its place comes the index's dim."""
    node, index = ctx["self"], ctx["index"]
    dim = ctx.dim(node, ctx["dim"])
    ctx.pin(ctx.axes(node)[dim], _BY_INDEX)
    rest = letters(ctx.rank(node))
    source = [None if i == dim else letter for i, letter in enumerate(rest)]
    out: list[DimSpec] = ["i" if i == dim else letter for i, letter in enumerate(rest)]
    return ctx.relate([(node, source), (index, ["i"][: ctx.rank(index)])], out)


@rule(*packets("index _unsafe_index"))
def index(ctx: Context) -> Axes:
    """Dims with an index tensor are told apart; the (broadcast) dims of the index tensors come in their place."""
    node, indices = ctx["self"], ctx["indices"]
    used = [i for i, entry in enumerate(indices) if entry is not None]
    for i in used:
        ctx.pin(ctx.axes(node)[i], _BY_INDEX)
    if any(indices[i].meta["val"].dtype in (torch.bool, torch.uint8) for i in used):
        for layout in ctx.axes(node):
            ctx.pin(layout, "is masked by the data of")
        return tuple(ctx.fresh_pinned(size, "comes out of") for size in ctx.shape())
    rank = max(ctx.rank(indices[i]) for i in used)
    new = letters(rank, "i")
    source: list[DimSpec] = [None if i in used else f"b{i}" for i in range(ctx.rank(node))]
    at = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    kept = [(i, letter) for i, letter in enumerate(source) if i not in used]
    out = [letter for i, letter in kept if i < at] + new + [letter for i, letter in kept if i >= at]
    return ctx.relate([(node, source), *((indices[i], new[rank - ctx.rank(indices[i]) :]) for i in used)], out)


@rule(*packets("gather"))
def gather(ctx: Context) -> Axes:
    """Result[i, j] = x[index[i, j], j]: the dim of x is told apart, the others are the index's where they are whole."""
    node, index_node = ctx["self"], ctx["index"]
    dim = ctx.dim(node, ctx["dim"])
    ctx.pin(ctx.axes(node)[dim], _BY_INDEX)
    dims = letters(ctx.rank(node))
    source = _whole(ctx, node, index_node, dim)
    return ctx.relate([(index_node, dims), (node, source)], dims)


def _whole(ctx: Context, node: Any, index_node: Any, dim: int) -> list[DimSpec]:
    """Letters for the dims of x that the index covers entirely; the others are pinned on both sides."""
    spec: list[DimSpec] = []
    for i, (one, other) in enumerate(zip(ctx.shape(node), ctx.shape(index_node), strict=True)):
        if i != dim and one == other:
            spec.append(f"b{i}")
            continue
        spec.append(None)
        if i != dim:
            ctx.pin(ctx.axes(node)[i], "is covered in part by the index of")
            ctx.pin(ctx.axes(index_node)[i], "covers a part in")
    return spec


@rule(*packets("scatter scatter_add scatter_reduce"))
def scatter(ctx: Context) -> Axes:
    """Self[index[i, j], j] is combined with src[i, j]: the dim of self is told apart, the others are alike."""
    node, index_node, source = ctx["self"], ctx["index"], ctx["src"]
    dim = ctx.dim(node, ctx["dim"])
    ctx.pin(ctx.axes(node)[dim], "is written to by the data of")
    spec = _whole(ctx, node, index_node, dim)
    index_spec: list[DimSpec] = [f"e{i}" if i == dim else letter for i, letter in enumerate(spec)]
    operands: list[Operand] = [(node, spec), (index_node, index_spec)]
    if source is not None:
        partial = [i for i, (a, b) in enumerate(zip(ctx.shape(source), ctx.shape(index_node), strict=True)) if a != b]
        for i in partial:
            ctx.pin(ctx.axes(source)[i], "is read in part by")
        operands.append((source, [None if i in partial else letter for i, letter in enumerate(index_spec)]))
    axes = list(ctx.relate(operands, spec))
    axes[dim] = ctx.axes(node)[dim]
    return _keep_pinned(ctx, axes, spec)


def _keep_pinned(ctx: Context, axes: list[Any], spec: list[DimSpec]) -> Axes:
    for i, letter in enumerate(spec):
        if letter is None:
            ctx.pin(axes[i], "is written to by the data of")
    return tuple(axes)


@rule(*packets("index_add index_copy index_reduce"))
def index_add(ctx: Context) -> Axes:
    """Rows of self at the index are combined with rows of source."""
    node, index_node, source = ctx["self"], ctx["index"], ctx["source"]
    dim = ctx.dim(node, ctx["dim"])
    ctx.pin(ctx.axes(node)[dim], "is written to by the data of")
    rest = letters(ctx.rank(node))
    spec = [None if i == dim else letter for i, letter in enumerate(rest)]
    rows: list[DimSpec] = ["e" if i == dim else letter for i, letter in enumerate(rest)]
    axes = list(ctx.relate([(node, spec), (index_node, ["e"][: ctx.rank(index_node)]), (source, rows)], spec))
    axes[dim] = ctx.axes(node)[dim]
    return tuple(axes)


@rule(*packets("index_put _unsafe_index_put"))
def index_put(ctx: Context) -> Axes:
    """Written at positions from data in the leading dims; only trailing dims that the values cover are kept."""
    node, values, indices = ctx["self"], ctx["values"], ctx["indices"]
    axes = ctx.axes(node)
    count = len(indices)
    for layout in axes[:count]:
        ctx.pin(layout, "is written to by the data of")
    tail = letters(len(axes) - count)
    for index_node in indices:
        for layout in ctx.axes(index_node):
            ctx.pin(layout, "gives positions to")
    value_rank = ctx.rank(values)
    shared = min(value_rank, len(tail))
    for layout in ctx.axes(values)[: value_rank - shared]:
        ctx.pin(layout, "is written by position in")
    value_spec: list[DimSpec] = [*[None] * (value_rank - shared), *tail[len(tail) - shared :]]
    out = ctx.relate([(node, [*[None] * count, *tail]), (values, value_spec)], [*[None] * count, *tail])
    return (*axes[:count], *out[count:])

"""Rules of ops that put axes together from pieces, or take pieces out: cat, stack, slice, select, split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from exprune_fx.symmetry.layouts import Axes, Layout, Size, as_size, less
from exprune_fx.symmetry.rules.table import Context, DimSpec, Result, packets, rule

aten = torch.ops.aten


def _same_but(ctx: Context, nodes: Sequence[Any], dim: int) -> Axes:
    """Tie all dims of several operands, but one."""
    rank = ctx.rank(nodes[0])
    spec: list[DimSpec] = [None if i == dim else f"b{i}" for i in range(rank)]
    return ctx.relate([(node, spec) for node in nodes], spec)


@rule(*packets("cat concat concatenate"))
def cat(ctx: Context) -> Axes:
    """The dim is the concatenation of the operands' segments."""
    nodes = [node for node in ctx["tensors"] if ctx.shape(node) != (0,)]  # a legacy form allows empty operands
    dim = ctx.dim(nodes[0], ctx["dim"])
    axes = list(_same_but(ctx, nodes, dim))
    axes[dim] = tuple(segment for node in nodes for segment in ctx.axes(node)[dim])
    return tuple(axes)


@rule(*packets("stack"))
def stack(ctx: Context) -> Axes:
    """The new dim has one segment of size 1 for each operand."""
    nodes = ctx["tensors"]
    rank = ctx.rank(nodes[0])
    dim = ctx["dim"] % (rank + 1)
    spec: list[DimSpec] = [f"b{i}" for i in range(rank)]
    axes = list(ctx.relate([(node, spec) for node in nodes], [*spec[:dim], None, *spec[dim:]]))
    axes[dim] = tuple(segment for _ in nodes for segment in ctx.fresh(1))
    return tuple(axes)


def _pieces(ctx: Context, layout: Layout, sizes: Sequence[Size]) -> list[Layout]:
    if len(sizes) == 1:
        return [layout]
    companions = {atom: _companions(ctx, atom) for atom in ctx.unifier.leaves(layout)}
    found = ctx.unifier.split(layout, sizes)
    for atom, inner in companions.items():
        if not ctx.unifier.is_leaf(atom) and not ctx.unifier.is_family(atom):
            pieces = [segment[0] for segment in ctx.unifier.resolve(((atom,),))]
            for other in inner:
                if ctx.unifier.is_leaf(other):
                    ctx.unifier.vary(other, pieces)
    if found is not None:
        return found
    ctx.pin(layout, "has its positions told apart by")
    return [ctx.fresh_pinned(size, "is a piece taken by") for size in sizes]


def _companions(ctx: Context, atom: int) -> list[int]:
    """Free atoms that stand beside this one wherever they occur in parameters: each piece may have its own."""
    runs = [run for axes in ctx.state.parameters.values() for axis in axes for run in ctx.unifier.products(axis)]
    beside = {other for run in runs if run.count(atom) == 1 for other in run} - {atom}
    alone = {other for run in runs if atom not in run for other in run}
    return sorted(other for other in beside - alone if ctx.unifier.pin_reason(other) is None)


def _narrowed(ctx: Context, axes: Axes, dim: int, piece: Layout) -> list[Layout]:
    """Axes of a value of which one piece along `dim` is taken."""
    others = [ctx.unifier.specialise(axis, piece) for axis in axes]
    return [*others[:dim], piece, *others[dim + 1 :]]


@rule(*packets("split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unsafe_split_with_sizes"))
def split(ctx: Context) -> Result:
    """Consecutive segments of one dim."""
    node = ctx.node.args[0]
    dim = ctx.dim(node, ctx["dim"])
    axes = ctx.axes(node)
    sizes = [as_size(value.shape[dim]) for value in ctx.node.meta["val"]]
    return [tuple(_narrowed(ctx, axes, dim, piece)) for piece in _pieces(ctx, axes[dim], sizes)]


@rule(*packets("unbind"))
def unbind(ctx: Context) -> Result:
    """Every position of one dim on its own."""
    node = ctx["self"]
    dim = ctx.dim(node, ctx["dim"])
    axes = ctx.axes(node)
    pieces = _pieces(ctx, axes[dim], [1] * len(ctx.node.meta["val"]))
    narrowed = [_narrowed(ctx, axes, dim, piece) for piece in pieces]
    return [(*each[:dim], *each[dim + 1 :]) for each in narrowed]


@rule(*packets("slice narrow slice_copy"))
def slice_(ctx: Context) -> Axes:
    """A consecutive piece of one dim; steps tell positions apart."""
    node = ctx["self"]
    dim = ctx.dim(node, ctx["dim"] or 0)
    axes = list(ctx.axes(node))
    whole, kept = ctx.shape(node)[dim], ctx.shape()[dim]
    if whole == kept:
        return tuple(axes)
    start = _bound(ctx["start"] or 0, whole)
    if ctx["step"] not in (None, 1) or start is None:
        ctx.pin(axes[dim], "has its positions told apart by")
        axes[dim] = ctx.fresh_pinned(kept, "is a piece taken by")
        return tuple(axes)
    rest = whole - start - kept
    piece = _pieces(ctx, axes[dim], [start, kept, rest])[1]
    return tuple(_narrowed(ctx, tuple(axes), dim, piece))


def _bound(value: Any, whole: Size) -> Size | None:
    if isinstance(value, torch.fx.Node):
        found = value.meta["val"]
        value = as_size(found) if isinstance(found, (int, torch.SymInt)) else None
    if value is None:
        return None
    if not isinstance(value, int):
        return value if less(-1, value) else None
    return value if value >= 0 else whole + value


@rule(*packets("select select_copy"))
def select(ctx: Context) -> Axes:
    """One position of a dim, told apart from the others."""
    node = ctx["self"]
    dim = ctx.dim(node, ctx["dim"])
    axes, whole = ctx.axes(node), ctx.shape(node)[dim]
    index = _bound(ctx["index"], whole)
    if index is None:
        ctx.pin(axes[dim], "has a position chosen by")
        return (*axes[:dim], *axes[dim + 1 :])
    piece = _pieces(ctx, axes[dim], [index, 1, whole - index - 1])[1]
    narrowed = _narrowed(ctx, axes, dim, piece)
    return (*narrowed[:dim], *narrowed[dim + 1 :])

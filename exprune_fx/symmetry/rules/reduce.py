"""Rules of reductions, softmax and the like: the reduced dims are mixed, the others kept."""

from __future__ import annotations

from typing import Any

import torch

from exprune_fx.symmetry.layouts import Axes, as_size
from exprune_fx.symmetry.rules.table import Context, DimSpec, Result, letters, packets, rule

aten = torch.ops.aten


def _dims(ctx: Context, node: Any) -> list[int]:
    argument = ctx["dim"]
    if argument is None or argument == []:
        return list(range(ctx.rank(node)))
    entries = argument if isinstance(argument, (list, tuple)) else [argument]
    return [ctx.dim(node, entry) for entry in entries]


def _reduce(ctx: Context) -> Axes:
    node = ctx.node.args[0]
    dims = letters(ctx.rank(node))
    gone = _dims(ctx, node)
    out: list[DimSpec] = []
    for i, letter in enumerate(dims):
        if i not in gone:
            out.append(letter)
        elif ctx["keepdim"]:
            out.append(None)
    return ctx.relate([(node, dims)], out, mixed=[[str(dims[i]) for i in gone]])


def _results(ctx: Context) -> int:
    value = ctx.node.meta["val"]
    return len(value) if isinstance(value, (tuple, list)) else 1


@rule(
    *packets("sum mean amax amin var std logsumexp any all prod linalg_vector_norm nansum nanmean norm count_nonzero")
)
def reduction(ctx: Context) -> Axes:
    """A symmetric function of the reduced positions."""
    return _reduce(ctx)


@rule(*packets("max min median"))
def extremum(ctx: Context) -> Result:
    """Over everything, of two tensors, or along a dim with the positions (which tells them apart, if used)."""
    if isinstance(ctx["other"], torch.fx.Node):
        dims = letters(len(ctx.shape()))
        return ctx.relate([(n, dims[len(dims) - ctx.rank(n) :]) for n in ctx.tensors()], dims)
    if _results(ctx) == 1:
        return _reduce(ctx)
    return _with_positions(ctx)


def _with_positions(ctx: Context) -> Result:
    node = ctx.node.args[0]
    axes = _reduce(ctx)
    if any(user.args[1] == 1 for user in ctx.node.users):
        for dim in _dims(ctx, node):
            ctx.pin(ctx.axes(node)[dim], "has its positions returned by")
    return [axes, axes]


@rule(*packets("var_mean std_mean aminmax"))
def two_moments(ctx: Context) -> Result:
    """Two symmetric functions of the reduced positions."""
    axes = _reduce(ctx)
    return [axes, axes]


@rule(*packets("argmax argmin"))
def argmax(ctx: Context) -> Axes:
    """Returns positions, so it tells them apart."""
    node = ctx["self"]
    for dim in _dims(ctx, node):
        ctx.pin(ctx.axes(node)[dim], "has its positions returned by")
    return _reduce(ctx)


@rule(*packets("softmax _softmax log_softmax _log_softmax _safe_softmax"))
def softmax(ctx: Context) -> Axes:
    """Normalises jointly over one dim."""
    node = ctx["self"]
    dims = letters(ctx.rank(node))
    over = [str(dims[ctx.dim(node, ctx["dim"])])] if dims else []
    return ctx.relate([(node, dims)], dims, mixed=[over])


def _ordered(ctx: Context, dims_told_apart: list[int]) -> Result:
    """Ops that depend on the order along some dims and treat the others alike."""
    node = ctx.node.args[0]
    for dim in dims_told_apart:
        ctx.pin(ctx.axes(node)[dim], "has its order used by")
    dims: list[DimSpec] = [None if i in dims_told_apart else f"b{i}" for i in range(ctx.rank(node))]
    axes = list(ctx.relate([(node, dims)], dims))
    value = ctx.node.meta["val"]
    first = value[0] if isinstance(value, (tuple, list)) else value
    for dim in dims_told_apart:
        axes[dim] = ctx.fresh_pinned(as_size(first.shape[dim]), "is an ordered result of")
    return [tuple(axes)] * len(value) if isinstance(value, (tuple, list)) else tuple(axes)


@rule(*packets("cumsum cumprod cummax cummin logcumsumexp sort argsort topk flip roll msort"))
def ordered(ctx: Context) -> Result:
    """Running and ordering ops along a dim (all dims where none is given)."""
    node = ctx.node.args[0]
    argument = ctx["dims"] if ctx["dims"] is not None else ctx["dim"]
    if argument is None or argument == []:
        return _ordered(ctx, list(range(ctx.rank(node))))
    entries = argument if isinstance(argument, (list, tuple)) else [argument]
    return _ordered(ctx, [ctx.dim(node, entry) for entry in entries])


@rule(*packets("tril triu"))
def triangle(ctx: Context) -> Result:
    """Compares the positions of the last two dims."""
    rank = ctx.rank(ctx["self"])
    return _ordered(ctx, [rank - 2, rank - 1])

"""Rules of ops that only rearrange: views, permutations, expansion."""

from __future__ import annotations

import operator
from typing import Any

import torch

from exprune_fx.symmetry.layouts import Axes, Layout, Size, less, product, quotient, same_size
from exprune_fx.symmetry.rules.table import Context, Result, merged, packets, rule

aten = torch.ops.aten


@rule(*packets("view reshape _unsafe_view flatten unflatten _reshape_alias"))
def view(ctx: Context) -> Axes:
    """Same elements in the same order: dims are merged and split in blocks of equal products."""
    if ctx["dtype"] is not None and ctx["size"] is None:
        return _opaque(ctx)
    node = ctx.node.args[0]
    axes, old, new = ctx.axes(node), ctx.shape(node), ctx.shape()
    result: list[Layout] = [ctx.fresh(size) for size in new]
    blocks = _blocks(list(old), list(new))
    if blocks is None:
        return _opaque(ctx)
    for sources, targets in blocks:
        if len(sources) == len(targets) == 1:
            result[targets[0]] = axes[sources[0]]
        elif sources and targets:
            whole = merged(ctx.unifier, [axes[i] for i in sources])
            ctx.unifier.unify(whole, merged(ctx.unifier, [result[i] for i in targets]))
    return tuple(result)


def _blocks(old: list[Size], new: list[Size]) -> list[tuple[list[int], list[int]]] | None:
    """Minimal blocks of dims with equal products; None where sizes cannot be compared. Dims of size 1 are left out."""
    left = [i for i, size in enumerate(old) if size != 1]
    right = [i for i, size in enumerate(new) if size != 1]
    blocks: list[tuple[list[int], list[int]]] = []
    while left or right:
        sources, targets = left[:1], right[:1]
        left, right = left[1:], right[1:]
        while True:
            one, other = product(old[i] for i in sources), product(new[i] for i in targets)
            if same_size(one, other):
                break
            grow_left = _grow_left(one, other)
            if grow_left is None or not (left if grow_left else right):
                return None
            if grow_left:
                sources.append(left.pop(0))
            else:
                targets.append(right.pop(0))
        blocks.append((sources, targets))
    return blocks


def _grow_left(one: Size, other: Size) -> bool | None:
    if quotient(other, one) is not None:
        return True
    if quotient(one, other) is not None:
        return False
    return less(one, other)


def _opaque(ctx: Context) -> Axes:
    for layout in ctx.axes(ctx.node.args[0]):
        ctx.pin(layout, "cannot be followed through")
    return tuple(ctx.fresh_pinned(size, "comes out of") for size in ctx.shape())


@rule(*packets("permute"))
def permute(ctx: Context) -> Axes:
    """Dims in another order."""
    axes = ctx.axes(ctx["self"])
    return tuple(axes[i] for i in ctx["dims"])


@rule(*packets("transpose swapaxes swapdims"))
def transpose(ctx: Context) -> Axes:
    """Two dims swapped."""
    axes = list(ctx.axes(ctx["self"]))
    one, other = (ctx.dim(ctx["self"], argument) for argument in ctx.node.args[1:3])  # type: ignore[arg-type]
    if axes:
        axes[one], axes[other] = axes[other], axes[one]
    return tuple(axes)


@rule(*packets("t numpy_T mT adjoint"))
def reverse_dims(ctx: Context) -> Axes:
    """The two dims of a matrix swapped."""
    axes = ctx.axes(ctx["self"])
    return (*axes[:-2], *axes[:-3:-1])


@rule(*packets("movedim moveaxis"))
def movedim(ctx: Context) -> Axes:
    """Dims moved to given places."""
    node = ctx["self"]
    moved = {}
    source, target = ctx["source"], ctx["destination"]
    pairs = zip(source, target, strict=True) if isinstance(source, (list, tuple)) else [(source, target)]
    for one, other in pairs:
        moved[ctx.dim(node, other)] = ctx.dim(node, one)
    rest = iter([i for i in range(ctx.rank(node)) if i not in moved.values()])
    axes = ctx.axes(node)
    return tuple(axes[moved[i] if i in moved else next(rest)] for i in range(len(axes)))


@rule(*packets("unsqueeze"))
def unsqueeze(ctx: Context) -> Axes:
    """A dim of size 1 put in."""
    axes = list(ctx.axes(ctx["self"]))
    axes.insert(ctx["dim"] % (len(axes) + 1), ctx.fresh(1))
    return tuple(axes)


@rule(*packets("squeeze"))
def squeeze(ctx: Context) -> Axes:
    """Dims of size 1 taken out."""
    node = ctx["self"]
    chosen = ctx["dim"]
    entries = range(ctx.rank(node)) if chosen is None else chosen if isinstance(chosen, (list, tuple)) else [chosen]
    dims = {ctx.dim(node, entry) for entry in entries}
    shape = ctx.shape(node)
    return tuple(axis for i, axis in enumerate(ctx.axes(node)) if not (i in dims and shape[i] == 1))


@rule(*packets("expand expand_as broadcast_to"))
def expand(ctx: Context) -> Axes:
    """New members of a dim that was 1 are all alike: a new free axis."""
    node = ctx["self"]
    axes, old, new = ctx.axes(node), ctx.shape(node), ctx.shape()
    lead = len(new) - len(old)
    return tuple(
        ctx.fresh(size) if i < lead or not same_size(old[i - lead], size) else axes[i - lead]
        for i, size in enumerate(new)
    )


@rule(*packets("repeat tile"))
def repeat(ctx: Context) -> Axes:
    """Dim i is laid out as (copy, member)."""
    node = ctx["self"]
    axes, old, new = ctx.axes(node), ctx.shape(node), ctx.shape()
    lead = len(new) - len(old)
    return tuple(
        ctx.fresh(size) if i < lead else _copies(ctx, axes[i - lead], old[i - lead], size, outer=True)
        for i, size in enumerate(new)
    )


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(ctx: Context) -> Axes:
    """One dim is laid out as (member, copy)."""
    node = ctx["self"]
    if ctx["dim"] is None:
        return _opaque(ctx)
    dim = ctx.dim(node, ctx["dim"])
    axes = list(ctx.axes(node))
    axes[dim] = _copies(ctx, axes[dim], ctx.shape(node)[dim], ctx.shape()[dim], outer=False)
    return tuple(axes)


def _copies(ctx: Context, layout: Layout, old: Size, new: Size, *, outer: bool) -> Layout:
    count = quotient(new, old)
    if count == 1:
        return layout
    if count is None:
        ctx.pin(layout, "has copies that cannot be counted in")
        return ctx.fresh_pinned(new, "comes out of")
    copies = ctx.fresh(count)
    return merged(ctx.unifier, [copies, layout] if outer else [layout, copies])


@rule(operator.getitem)
def getitem(ctx: Context) -> Result:
    """One of several results."""
    source: Any = ctx.node.args[0]
    results: Any = ctx.state.axes[source.name]
    chosen: Axes = results[ctx.node.args[1]]
    return chosen

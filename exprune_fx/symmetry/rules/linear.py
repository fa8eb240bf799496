"""Rules of matrix products: linear, matmul, einsum and their relatives."""

from __future__ import annotations

import string

import torch

from exprune_fx.symmetry.layouts import Axes
from exprune_fx.symmetry.rules.table import Context, DimSpec, Operand, Result, aligned, letters, rule

aten = torch.ops.aten


@rule(aten.linear.default)
def linear(ctx: Context) -> Axes:
    """Y[..., o] = sum over k of x[..., k] w[o, k], plus b[o]."""
    batch = letters(ctx.rank(ctx["input"]) - 1)
    weight: list[DimSpec] = ["o", "k"] if ctx.rank(ctx["weight"]) == 2 else ["k"]
    operands: list[Operand] = [(ctx["input"], [*batch, "k"]), (ctx["weight"], weight)]
    if ctx["bias"] is not None:
        operands.append((ctx["bias"], ["o"][: ctx.rank(ctx["bias"])]))
    return ctx.relate(operands, [*batch, "o"] if len(weight) == 2 else batch, mixed=[["k"]])


@rule(aten.mm.default)
def mm(ctx: Context) -> Axes:
    """Z[n, p] = sum over k of x[n, k] y[k, p]."""
    return ctx.relate([(ctx["self"], ["n", "k"]), (ctx["mat2"], ["k", "p"])], ["n", "p"], mixed=[["k"]])


@rule(aten.mv.default)
def mv(ctx: Context) -> Axes:
    """Z[n] = sum over k of x[n, k] y[k]."""
    return ctx.relate([(ctx["self"], ["n", "k"]), (ctx["vec"], ["k"])], ["n"], mixed=[["k"]])


@rule(aten.addmm.default)
def addmm(ctx: Context) -> Axes:
    """Bias (broadcast to [n, p]) plus x[n, k] y[k, p]."""
    bias = ["n", "p"][2 - ctx.rank(ctx["self"]) :]
    operands: list[Operand] = [(ctx["mat1"], ["n", "k"]), (ctx["mat2"], ["k", "p"]), (ctx["self"], bias)]
    return ctx.relate(operands, ["n", "p"], mixed=[["k"]])


@rule(aten.bmm.default)
def bmm(ctx: Context) -> Axes:
    """Batched mm."""
    return ctx.relate([(ctx["self"], ["b", "n", "k"]), (ctx["mat2"], ["b", "k", "p"])], ["b", "n", "p"], mixed=[["k"]])


@rule(aten.baddbmm.default)
def baddbmm(ctx: Context) -> Axes:
    """Batched addmm."""
    bias = ["b", "n", "p"][3 - ctx.rank(ctx["self"]) :]
    operands: list[Operand] = [(ctx["batch1"], ["b", "n", "k"]), (ctx["batch2"], ["b", "k", "p"]), (ctx["self"], bias)]
    return ctx.relate(operands, ["b", "n", "p"], mixed=[["k"]])


@rule(aten.matmul.default, aten.dot.default)
def matmul(ctx: Context) -> Axes:
    """Numpy's matmul: vectors, matrices, and broadcast batches of matrices."""
    one, other = ctx.node.args[0], ctx.node.args[1]
    rank, rank_other = ctx.rank(one), ctx.rank(other)
    batch = max(rank, rank_other, 2) - 2
    left = [*aligned(max(rank - 2, 0), batch), *(["n"] if rank > 1 else []), "k"]
    right = [*aligned(max(rank_other - 2, 0), batch), "k", *(["p"] if rank_other > 1 else [])]
    out = [*letters(batch), *(["n"] if rank > 1 else []), *(["p"] if rank_other > 1 else [])]
    return ctx.relate([(one, left), (other, right)], out, mixed=[["k"]])


@rule(aten.outer.default)
def outer(ctx: Context) -> Axes:
    """Z[i, j] = x[i] y[j]."""
    return ctx.relate([(ctx["self"], ["i"]), (ctx["vec2"], ["j"])], ["i", "j"])


@rule(aten.bilinear.default)
def bilinear(ctx: Context) -> Axes:
    """Y[..., o] = sum over i, j of x[..., i] w[o, i, j] z[..., j], plus b[o]."""
    batch = letters(ctx.rank(ctx["input1"]) - 1)
    operands: list[Operand] = [
        (ctx["input1"], [*batch, "i"]),
        (ctx["input2"], [*batch, "j"]),
        (ctx["weight"], ["o", "i", "j"]),
    ]
    if ctx["bias"] is not None:
        operands.append((ctx["bias"], ["o"]))
    return ctx.relate(operands, [*batch, "o"], mixed=[["i"], ["j"]])


@rule(aten.einsum.default)
def einsum(ctx: Context) -> Result:
    """Letters as the equation gives them; a letter twice in one operand takes a diagonal, which pins it."""
    equation = ctx["equation"].replace(" ", "")
    tensors = ctx["tensors"]
    sources, arrow, target = equation.partition("->")
    terms = sources.split(",")
    ellipsis = max(
        (ctx.rank(n) - len(t.replace("...", "")) for t, n in zip(terms, tensors, strict=True) if "..." in t), default=0
    )
    specs = [
        _letters(t, ctx.rank(n) - len(t.replace("...", "")), ellipsis) for t, n in zip(terms, tensors, strict=True)
    ]
    flat = [letter for spec in specs for letter in spec]
    if not arrow:
        once = sorted(letter for letter in set(flat) if letter in string.ascii_letters and flat.count(letter) == 1)
        target = ("..." if "..." in sources else "") + "".join(once)
    out = _letters(target, ellipsis, ellipsis)
    for spec, node in zip(specs, tensors, strict=True):
        for letter, layout in zip(spec, ctx.axes(node), strict=True):
            if spec.count(letter) > 1:
                ctx.pin(layout, "has its diagonal taken by")
    return ctx.relate(list(zip(tensors, specs, strict=True)), out, mixed=[set(flat) - set(out)])


def _letters(term: str, batch: int, ellipsis: int) -> list[str]:
    before, dots, after = term.partition("...")
    middle = [f"...{i}" for i in range(ellipsis - batch, ellipsis)] if dots else []
    return [*before, *middle, *after]

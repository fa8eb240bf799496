"""Rules of convolutions: channels are summed over within their group, positions are told apart by the kernel."""

from __future__ import annotations

from typing import Any

import torch

from exprune_fx.symmetry.layouts import Axes
from exprune_fx.symmetry.rules.table import KERNEL_POSITION, Context, DimSpec, Operand, packets, rule

aten = torch.ops.aten


@rule(*packets("conv1d conv2d conv3d"))
def conv(ctx: Context) -> Axes:
    """Y[n, (g, o), ...] sums x[n, (g, c), ...] w[(g, o), c, ...] over c."""
    return _convolve(ctx, [("g", "o"), "c"])


@rule(*packets("conv_transpose1d conv_transpose2d conv_transpose3d"))
def conv_transpose(ctx: Context) -> Axes:
    """As a convolution, with the weight as [(g, c), o, ...]."""
    return _convolve(ctx, [("g", "c"), "o"])


@rule(aten.convolution.default)
def convolution(ctx: Context) -> Axes:
    """The general form, with `transposed` as an argument."""
    return conv_transpose(ctx) if ctx["transposed"] else conv(ctx)


def _convolve(ctx: Context, channels: list[DimSpec]) -> Axes:
    node, weight = ctx["input"], ctx["weight"]
    groups: int = ctx["groups"]
    axes, kernel = ctx.axes(node), ctx.axes(weight)
    spatial = len(kernel) - 2
    batch: list[DimSpec] = ["n"] * (len(axes) - spatial - 1)
    dim = len(batch)
    sizes = {
        "g": groups,
        "c": ctx.shape(node)[dim] // groups,
        "o": ctx.shape()[dim] // groups,
    }
    each_alone = _pointwise(ctx, spatial)
    places: list[DimSpec] = [f"s{i}" if each_alone else None for i in range(spatial)]
    if not each_alone:
        for layout in axes[dim + 1 :]:
            ctx.pin(layout, "has its positions told apart by the kernel of")
    for layout in kernel[2:]:
        ctx.unifier.pin(layout, KERNEL_POSITION)
    operands: list[Operand] = [
        (node, [*batch, ("g", "c"), *places]),
        (weight, [*channels, *[None] * spatial]),
    ]
    if ctx["bias"] is not None:
        operands.append((ctx["bias"], [("g", "o")]))
    result = ctx.relate(operands, [*batch, ("g", "o"), *places], mixed=[["c"]], sizes=sizes)
    if not each_alone:
        for layout in result[dim + 1 :]:
            ctx.pin(layout, "is a position in the output of")
    return result


def _pointwise(ctx: Context, spatial: int) -> bool:
    """Whether the kernel sees one position at a time and leaves none out."""
    one = all(size == 1 for size in ctx.shape(ctx["weight"])[2:])
    plain = all(_all(ctx[name], value) for name, value in (("stride", 1), ("padding", 0), ("output_padding", 0)))
    return one and plain and spatial > 0


def _all(argument: Any, value: int) -> bool:
    if argument is None:
        return True
    if isinstance(argument, str):
        return argument == "valid"
    return all(entry == value for entry in (argument if isinstance(argument, (list, tuple)) else [argument]))

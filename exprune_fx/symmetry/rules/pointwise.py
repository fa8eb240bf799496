"""Rules of ops that treat every element alike: equal axes are tied, with broadcasting."""

from __future__ import annotations

import torch

from exprune_fx.symmetry.layouts import Axes
from exprune_fx.symmetry.rules.table import Context, DimSpec, aligned, letters, packets, rule

aten = torch.ops.aten

_UNARY = """
relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu selu celu softplus softsign mish
log_sigmoid hardshrink softshrink tanhshrink threshold logit square exp exp2 expm1 log log2 log10 log1p sqrt rsqrt
reciprocal neg abs sign sgn cos sin tan acos asin atan cosh sinh acosh asinh atanh erf erfc erfinv floor ceil round
trunc frac isnan isinf isfinite nan_to_num logical_not bitwise_not clamp clamp_min clamp_max clip to _to_copy clone
alias detach contiguous dropout feature_dropout alpha_dropout lift_fresh lift_fresh_copy positive deg2rad rad2deg
digamma lgamma sinc i0 _conj conj real
"""
_BINARY = """
add sub mul div rsub true_divide floor_divide remainder fmod maximum minimum fmax fmin pow eq ne lt le gt ge greater
less greater_equal less_equal not_equal logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor atan2
hypot xlogy copysign masked_fill lerp addcmul addcdiv heaviside logaddexp logaddexp2 float_power polar complex
special_xlog1py nextafter
"""


@rule(*packets(_UNARY), *packets(_BINARY))
@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def pointwise(ctx: Context) -> Axes:
    """Each result element is one function of the elements at its position."""
    rank = len(ctx.shape())
    return ctx.relate([(n, aligned(ctx.rank(n), rank)) for n in ctx.tensors()], letters(rank))


@rule(aten.rrelu.default)
def rrelu(ctx: Context) -> Axes:
    """In eval mode a fixed slope."""
    return pointwise(ctx)


@rule(*packets("prelu _prelu_kernel"))
def prelu(ctx: Context) -> Axes:
    """One slope for all, or one per channel (dim 1)."""
    node, weight = ctx.node.args[0], ctx.node.args[1]
    dims = letters(ctx.rank(node))
    if ctx.rank(weight) == len(dims):  # the kernel's form has the weight expanded already
        return ctx.relate([(node, dims), (weight, dims)], dims)
    channel: list[DimSpec] = [dims[1] if len(dims) > 1 else None]
    return ctx.relate([(node, dims), (weight, channel if ctx.rank(weight) else [])], dims)


@rule(*packets("glu"))
def glu(ctx: Context) -> Axes:
    """`a * sigmoid(b)` of the halves of one dim."""
    node = ctx["self"]
    axes = list(ctx.axes(node))
    dim = ctx.dim(node, ctx["dim"])
    half = ctx.shape()[dim]
    halves = ctx.unifier.split(axes[dim], (half, half))
    if halves is None:
        return ctx_unknown(ctx, axes)
    ctx.unifier.unify(*halves)
    axes[dim] = halves[0]
    return tuple(axes)


def ctx_unknown(ctx: Context, axes: list[tuple[tuple[int, ...], ...]]) -> Axes:
    """Pin everything: the shapes cannot be followed."""
    for layout in axes:
        ctx.pin(layout, "has a size that cannot be followed through")
    return tuple(ctx.fresh_pinned(size, "comes from") for size in ctx.shape())

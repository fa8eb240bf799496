"""Proves that values are >= 0 everywhere: a bound may then drop the negative half of the weights that it multiplies."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx

aten = torch.ops.aten

_ALWAYS = {
    aten.relu.default,
    aten.relu6.default,
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    aten.abs.default,
    aten.exp.default,
    aten.square.default,
    aten.softmax.int,
    aten._softmax.default,
    aten.linalg_vector_norm.default,
}
# Each result element is a copy, an average or a maximum of elements of the first operand.
_KEEPS_FIRST = {
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool3d.default,
    aten.max_pool2d_with_indices.default,
    aten.avg_pool1d.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    aten.adaptive_max_pool2d.default,
    aten.mean.dim,
    aten.mean.default,
    aten.sum.dim_IntList,
    aten.amax.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.dropout.default,
    aten.contiguous.default,
    operator.getitem,
}
_SUMS_AND_PRODUCTS = {aten.add.Tensor, aten.mul.Tensor, aten.maximum.default}


def _argument(node: fx.Node, place: int, name: str, default: object = None) -> object:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _clamped(node: fx.Node) -> bool:
    low, high = _argument(node, 1, "min"), _argument(node, 2, "max")
    if high is not None and not (isinstance(high, int | float) and high >= 0):
        return False  # where the bounds cross, the upper one wins
    return isinstance(low, int | float) and low >= 0


def _averaged(node: fx.Node) -> bool:
    divisor = _argument(node, 6, "divisor_override")
    return (divisor is None or (isinstance(divisor, int) and divisor > 0)) and is_nonnegative(node.args[0])


def _even_power(node: fx.Node) -> bool:
    return node.args[1] in (2, 4, 2.0, 4.0)


def _padded(node: fx.Node) -> bool:
    value = _argument(node, 3, "value")
    if _argument(node, 2, "mode", "constant") == "constant" and value is not None:
        return isinstance(value, int | float) and value >= 0 and is_nonnegative(node.args[0])
    return is_nonnegative(node.args[0])  # with zeros, or with copies of elements


def _zero_padded(node: fx.Node) -> bool:
    value = _argument(node, 2, "value", 0)
    return isinstance(value, int | float) and value >= 0 and is_nonnegative(node.args[0])


_BY_ARGUMENTS: dict[object, Callable[[fx.Node], bool]] = {
    aten.clamp.default: _clamped,
    aten.clamp_min.default: _clamped,
    aten.hardtanh.default: _clamped,
    aten.avg_pool2d.default: _averaged,
    aten.avg_pool3d.default: _averaged,
    aten.pow.Tensor_Scalar: _even_power,
    aten.constant_pad_nd.default: _zero_padded,
    aten.pad.default: _padded,
}


def is_nonnegative(value: object) -> bool:
    """True only if every element of the value is proved to be >= 0 (NaN aside).

    Args:
        value: a node, or a Python number that stands as an argument.
    """
    if isinstance(value, bool) or not isinstance(value, fx.Node):
        return isinstance(value, int | float) and value >= 0
    target = value.target
    if target in _ALWAYS or value.meta.get("nonnegative", False):
        return True
    if target in _KEEPS_FIRST:
        return is_nonnegative(value.args[0])
    if target in _SUMS_AND_PRODUCTS:
        alpha = value.kwargs.get("alpha", 1)
        return isinstance(alpha, int | float) and alpha >= 0 and all(is_nonnegative(arg) for arg in value.args)
    if target == aten.cat.default:
        parts = value.args[0]
        return isinstance(parts, list | tuple) and all(is_nonnegative(part) for part in parts)
    rule = _BY_ARGUMENTS.get(target)
    return rule is not None and rule(value)

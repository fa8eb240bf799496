"""The activation of every neuron: exactly zero where it stopped."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from exprune_fx.ops.reference.sums import constant_term, partial_conv, partial_linear


def _activate(z: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return z.relu()
    if activation == "relu6":
        return z.clamp(0, 6)
    if activation == "relu_squared":
        return z.relu().square()
    raise ValueError(f"unknown activation {activation!r}")


def finish_linear_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    partial: Tensor | None,
    stopped: Tensor,
    start: int,
    activation: str,
) -> Tensor:
    """The activation of every neuron: exactly 0 where ``stopped``, else ``partial`` plus the terms from ``start`` on.

    Args:
        x: [..., K].
        weight: [out, K].
        bias: [out] or None.
        residual: [..., out], added before the activation, or None.
        partial: [..., out], the sum of the features before ``start``; None (with start 0) computes survivors whole.
        stopped: bool [..., out].
        start: the first feature that ``partial`` lacks.
        activation: "relu", "relu6" or "relu_squared".

    Returns:
        [..., out] in the dtype of ``x``.
    """
    z = partial_linear(x, weight, start, weight.shape[1], partial)
    return _finish(z, x, bias, residual, stopped, activation, 0)


def finish_conv_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    partial: Tensor | None,
    stopped: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    start: int,
    activation: str,
) -> Tensor:
    """``finish_linear_relu`` for a convolution; shapes as in ``partial_conv``."""
    z = partial_conv(x, weight, stride, padding, dilation, groups, start, weight.shape[1], partial)
    return _finish(z, x, bias, residual, stopped, activation, weight.dim() - 2)


def _finish(
    z: Tensor,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stopped: Tensor,
    activation: str,
    spatial_dims: int,
) -> Tensor:
    if bias is not None or residual is not None:
        z = z + constant_term(bias, residual, spatial_dims)
    y = _activate(z, activation).to(x.dtype)
    return y.masked_fill(stopped, 0.0)


def gated_linear(gate: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``gate * linear(x, weight, bias)``, the row of a neuron being needed only where its gate is not zero.

    Args:
        gate: [..., out], an activation with exact zeros.
        x: [..., K].
        weight: [out, K].
        bias: [out] or None.

    Returns:
        [..., out], exactly 0 where the gate is.
    """
    return (gate * F.linear(x, weight, bias)).masked_fill(gate == 0, 0.0)

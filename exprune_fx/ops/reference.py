"""The readable form of a staged site, in plain PyTorch: the specification that every kernel is held against.

A site's pre-activation is ``z = sum_i term_i + c``: the terms run over the input features (linear) or the input
channels (convolution), and ``c`` is what is known before any term is seen (bias, added residual). The head sums some
terms, the guard looks at that sum, the tail finishes what survived:

    partial = partial_linear(x, weight, 0, k)
    stopped = guard_calibrated(partial, constant, thresholds)
    y       = finish_linear_relu(x, weight, bias, residual, partial, stopped, k, "relu")

Everything here computes densely and masks: it is exact and differentiable, and saves nothing. Sums are at least
float32: half-precision operands are widened before they are multiplied, since a sum that was rounded to half precision
on the way would decide otherwise, and no float32 margin would cover that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _wide(value: Tensor) -> Tensor:
    """At least float32, so that a decision never hangs on a half-precision sum."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _convolve(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    result: Tensor = _CONVOLUTIONS[weight.dim() - 2](x, weight, None, stride, padding, dilation, groups)
    return result


def _channels(x: Tensor, groups: int, start: int, stop: int) -> Tensor:
    """Channels ``start:stop`` of every one of the groups: [N, G*C, *space] -> [N, G*(stop-start), *space]."""
    if groups == 1:
        return x[:, start:stop]
    grouped: Tensor = x.unflatten(1, (groups, -1))
    return grouped[:, :, start:stop].flatten(1, 2)


def partial_linear(x: Tensor, weight: Tensor, start: int, stop: int, partial: Tensor | None = None) -> Tensor:
    """Sum of the terms of input features ``start:stop``, added to ``partial``.

    Args:
        x: [..., K].
        weight: [out, K].
        start: the first feature.
        stop: one past the last feature.
        partial: [..., out], the sum of the features before ``start``; None is zero.

    Returns:
        [..., out], at least float32.
    """
    total = F.linear(_wide(x[..., start:stop]), _wide(weight[:, start:stop]))
    return total if partial is None else partial + total


def squares_linear(
    x: Tensor, weight: Tensor, start: int, stop: int, block: int, squares: Tensor | None = None
) -> Tensor:
    """Sum of the squared terms of features ``start:stop``, a term being ``block`` neighbouring features.

    Args:
        x: [..., K].
        weight: [out, K].
        start: the first feature, a multiple of ``block``.
        stop: one past the last feature, a multiple of ``block``.
        block: features in one term (H*W after a flatten of channels, else 1).
        squares: [..., out], the sum before ``start``; None is zero.

    Returns:
        [..., out], at least float32.
    """
    x, weight = _wide(x[..., start:stop]), _wide(weight[:, start:stop])
    if block == 1:
        total = F.linear(x * x, weight * weight)
    else:
        terms = torch.einsum("...kb,okb->...ok", x.unflatten(-1, (-1, block)), weight.unflatten(-1, (-1, block)))
        total = (terms * terms).sum(-1)
    return total if squares is None else squares + total


def partial_conv(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    start: int,
    stop: int,
    partial: Tensor | None = None,
) -> Tensor:
    """Sum of the terms of input channels ``start:stop`` (of each group), added to ``partial``.

    Args:
        x: [N, groups*K, *space], one to three spatial dimensions.
        weight: [out, K, *kernel].
        stride: per spatial dimension, as in ``torch.nn.functional.conv2d``; so too ``padding`` and ``dilation``.
        padding: see ``stride``.
        dilation: see ``stride``.
        groups: blocks of channels that do not see one another.
        start: the first channel of a group.
        stop: one past the last channel of a group.
        partial: [N, out, *space'], the sum of the channels before ``start``; None is zero.

    Returns:
        [N, out, *space'], at least float32.
    """
    channels, kernels = _wide(_channels(x, groups, start, stop)), _wide(weight[:, start:stop])
    part = _convolve(channels, kernels, stride, padding, dilation, groups)
    return part if partial is None else partial + part


def squares_conv(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    start: int,
    stop: int,
    squares: Tensor | None = None,
) -> Tensor:
    """Sum of the squared terms of input channels ``start:stop``; a term is one channel's convolution.

    Shapes are those of ``partial_conv``.
    """
    x, weight = _wide(x), _wide(weight)
    if stop <= start:
        raise ValueError(f"no channels between {start} and {stop}")
    total: Tensor | None = squares
    for channel in range(start, stop):  # one at a time: all terms at once would not fit into the caches
        term = _one_channel(_channels(x, groups, channel, channel + 1), weight[:, channel], stride, padding, dilation)
        total = term * term if total is None else torch.addcmul(total, term, term)
    assert total is not None
    return total


def _one_channel(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """One channel's convolution: [N, groups, *space] and [out, *kernel] -> [N, out, *space']."""
    groups = x.shape[1]
    if weight.dim() == 3 and groups == 1:  # six times faster than conv2d, which has no kernel for one channel
        patches = F.unfold(x, tuple(weight.shape[1:]), tuple(dilation), tuple(padding), tuple(stride))
        size = (
            (full + 2 * pad - step * (kernel - 1) - 1) // jump + 1
            for full, pad, step, kernel, jump in zip(
                x.shape[2:], padding, dilation, weight.shape[1:], stride, strict=True
            )
        )
        term: Tensor = torch.matmul(weight.flatten(1), patches).unflatten(2, tuple(size))
        return term
    return _convolve(x, weight.unsqueeze(1), stride, padding, dilation, groups)


def principal_linear(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """The first ``r`` terms in a rotated basis: the best rank-``r`` estimate of every pre-activation.

    Args:
        x: [..., K].
        down: [r, K].
        up: [out, r].

    Returns:
        [..., out], at least float32.
    """
    return F.linear(F.linear(_wide(x), _wide(down)), _wide(up))


def principal_conv(
    x: Tensor, down: Tensor, up: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """``principal_linear`` for a convolution: 1x1 from C to r channels, then the kernel from r to ``out``.

    Args:
        x: [N, C, *space].
        down: [r, C].
        up: [out, r, *kernel].
        stride: per spatial dimension; so too ``padding`` and ``dilation``.
        padding: see ``stride``.
        dilation: see ``stride``.

    Returns:
        [N, out, *space'], at least float32.
    """
    spatial = up.dim() - 2
    ones, zeros = [1] * spatial, [0] * spatial
    pointwise = _wide(down).reshape(down.shape[0], down.shape[1], *ones)
    inner = _convolve(_wide(x), pointwise, ones, zeros, ones, 1)
    return _convolve(inner, _wide(up), stride, padding, dilation, 1)


def constant_term(bias: Tensor | None, residual: Tensor | None, spatial_dims: int) -> Tensor:
    """What is known of a pre-activation before any term: bias [out] and residual [N, out, *space], broadcastable.

    Raises:
        ValueError: neither is given.
    """
    if bias is not None:
        bias = _wide(bias).reshape(-1, *[1] * spatial_dims)
    if residual is None:
        if bias is None:
            raise ValueError("constant_term needs a bias or a residual")
        return bias
    return _wide(residual) if bias is None else _wide(residual) + bias


def _plus(partial: Tensor, constant: Tensor | None) -> Tensor:
    return partial if constant is None else partial + constant


def guard_threshold(partial: Tensor, constant: Tensor | None, seen: int, terms: int, threshold: float) -> Tensor:
    """``S/n + c/K < T`` (arXiv 2506.02210, "Threshold")."""
    mean = partial / seen
    return (mean if constant is None else mean + constant / terms) < threshold


def guard_stats_test(
    partial: Tensor, squares: Tensor, constant: Tensor | None, seen: int, terms: int, quantile: float
) -> Tensor:
    """``m / sqrt(v/n) < Phi^-1(alpha)``, ``m = S/n + c/K``, ``v = Q/n - (S/n)^2`` (arXiv 2506.02210, "StatsTest").

    Written without the division, so that no variance at all means: stop when the mean is negative.
    """
    mean = partial / seen
    variance = (squares / seen - mean * mean).clamp_min(0.0)
    shifted = mean if constant is None else mean + constant / terms
    return shifted < quantile * (variance / seen).sqrt()


def guard_finite_population(
    partial: Tensor, squares: Tensor, constant: Tensor | None, seen: int, terms: int, quantile: float
) -> Tensor:
    """``K*S/n + c + z*s*sqrt(K*(K-n)/n) < 0``: the prefix is a sample of K terms *without replacement*.

    The variance of the estimated total ``K*S/n`` is ``K^2 * s^2/n * (K-n)/K`` with ``s^2 = n*v/(n-1)`` (Cochran,
    Sampling Techniques, theorem 2.2); it vanishes as n -> K.
    """
    mean = partial / seen
    variance = (squares / seen - mean * mean).clamp_min(0.0) * (seen / (seen - 1))
    spread = (variance * (terms * (terms - seen) / seen)).sqrt()
    return _plus(terms * mean, constant) + quantile * spread < 0


def guard_calibrated(partial: Tensor, constant: Tensor | None, thresholds: Tensor) -> Tensor:
    """``S + c < t_j``; ``thresholds`` broadcasts against ``partial``: [out] or [out, 1, 1]."""
    return _plus(partial, constant) < thresholds


def guard_bound(
    partial: Tensor,
    constant: Tensor | None,
    rest_weight_norm: Tensor,
    rest_input_norm: Tensor,
    weight_norm: Tensor,
    input_norm: Tensor,
    elements: int,
) -> Tensor:
    """``S + c + |w_rest|*|x_rest| + margin < 0``: by Cauchy-Schwarz the rest cannot bring the sum above zero.

    ``margin`` covers rounding: a float sum of m products errs by at most about ``m*eps*sum|w_i*x_i|``, which the norms
    of the whole vectors bound. Squares below the smallest normal number are lost from an input norm: both get back what
    m of them could have been. ``elements`` is m; weight norms are [out] (or [out, 1, 1]), input norms broadcast.
    """
    known = _plus(partial, constant)
    limits = torch.finfo(known.dtype)
    lost = math.sqrt(elements * limits.tiny)
    scale = weight_norm * (input_norm + lost) + (0.0 if constant is None else constant.abs())
    return known + rest_weight_norm * (rest_input_norm + lost) + (2 * elements * limits.eps) * scale < 0


def input_norm_linear(x: Tensor, start: int, stop: int) -> Tensor:
    """Euclidean norm of features ``start:stop``: [..., K] -> [..., 1]."""
    norm: Tensor = torch.linalg.vector_norm(_wide(x[..., start:stop]), dim=-1, keepdim=True)
    return norm


def input_norm_conv(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    outputs_per_group: int,
    start: int,
    stop: int,
) -> Tensor:
    """Euclidean norm of each output pixel's receptive field in channels ``start:stop`` (of each group).

    A box sum of the per-pixel squared channel norms: [N, groups*K, *space] -> [N, 1, *space'] for one group, else
    [N, groups*outputs_per_group, *space'].
    """
    field = _wide(_channels(x, groups, start, stop))
    field = (field * field).unflatten(1, (groups, stop - start)).sum(2)
    box = torch.ones([groups, 1, *kernel], dtype=field.dtype, device=field.device)
    norm = _convolve(field, box, stride, padding, dilation, groups).clamp_min(0.0).sqrt()
    return norm if groups == 1 else norm.repeat_interleave(outputs_per_group, dim=1)


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

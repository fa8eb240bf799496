"""What a head computes: sums of terms, sums of their squares, the principal estimate, and the constant beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from exprune_fx.ops.reference.walk import channels, convolve, wide


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
    total = F.linear(wide(x[..., start:stop]), wide(weight[:, start:stop]))
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
    x, weight = wide(x[..., start:stop]), wide(weight[:, start:stop])
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
    seen, kernels = wide(channels(x, groups, start, stop)), wide(weight[:, start:stop])
    if stop - start == 1:  # of a channels-last weight, oneDNN reads one channel's numbers from wrong places at times
        kernels = kernels.contiguous()
    part = convolve(seen, kernels, stride, padding, dilation, groups)
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
    x, weight = wide(x), wide(weight)
    if stop <= start:
        raise ValueError(f"no channels between {start} and {stop}")
    total: Tensor | None = squares
    for channel in range(start, stop):  # one at a time: all terms at once would not fit into the caches
        term = _one_channel(channels(x, groups, channel, channel + 1), weight[:, channel], stride, padding, dilation)
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
    return convolve(x, weight.unsqueeze(1), stride, padding, dilation, groups)


def principal_linear(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """The first ``r`` terms in a rotated basis: the best rank-``r`` estimate of every pre-activation.

    Args:
        x: [..., K].
        down: [r, K].
        up: [out, r].

    Returns:
        [..., out], at least float32.
    """
    return F.linear(F.linear(wide(x), wide(down)), wide(up))


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
    pointwise = wide(down).reshape(down.shape[0], down.shape[1], *ones)
    inner = convolve(wide(x), pointwise, ones, zeros, ones, 1)
    return convolve(inner, wide(up), stride, padding, dilation, 1)


def constant_term(bias: Tensor | None, residual: Tensor | None, spatial_dims: int) -> Tensor:
    """What is known of a pre-activation before any term: bias [out] and residual [N, out, *space], broadcastable.

    Raises:
        ValueError: neither is given.
    """
    if bias is not None:
        bias = wide(bias).reshape(-1, *[1] * spatial_dims)
    if residual is None:
        if bias is None:
            raise ValueError("constant_term needs a bias or a residual")
        return bias
    return wide(residual) if bias is None else wide(residual) + bias

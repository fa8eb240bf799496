"""What a guard computes: one formula for each stop rule, and the norms that `Bound` reads."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from exprune_fx.ops.reference.walk import channels, convolve, wide


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


def guard_pooled(
    partial: Tensor,
    constant: Tensor | None,
    thresholds: Tensor,
    margins: Tensor,
    window: list[int],
    stopped: Tensor | None = None,
) -> Tensor:
    """``h < t_j`` or ``h < R - m_j``, with ``h = S + c`` and R its largest value in the pixel's window of a max pool.

    Whoever leads its window is stopped by its threshold alone, and who stands in no window is stopped.

    Args:
        partial: [N, out, H, W].
        constant: broadcasts against ``partial``, or None.
        thresholds: [out, 1, 1].
        margins: [out, 1, 1], at least 0 and finite.
        window: rows and columns; windows lie side by side from the first pixel on.
        stopped: bool [N, out, H, W], who has stopped before: it is nobody's rival. None is nobody.

    Returns:
        bool [N, out, H, W], earlier stops aside.
    """
    known = _plus(partial, constant)
    rivals = known if stopped is None else known.masked_fill(stopped, -math.inf)
    return (known < thresholds) | (known < window_largest(rivals, window) - margins)


def window_largest(values: Tensor, window: list[int]) -> Tensor:
    """For each pixel the largest value in its window: [N, C, H, W] -> [N, C, H, W]; infinity where it has none."""
    rows, columns = window
    largest = F.max_pool2d(values, window)
    spread = largest[:, :, :, None, :, None].expand(-1, -1, -1, rows, -1, columns).flatten(4, 5).flatten(2, 3)
    left = (values.shape[-2] - spread.shape[-2], values.shape[-1] - spread.shape[-1])
    return F.pad(spread, (0, left[1], 0, left[0]), value=math.inf)


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
    norm: Tensor = torch.linalg.vector_norm(wide(x[..., start:stop]), dim=-1, keepdim=True)
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
    field = wide(channels(x, groups, start, stop))
    field = (field * field).unflatten(1, (groups, stop - start)).sum(2)
    box = torch.ones([groups, 1, *kernel], dtype=field.dtype, device=field.device)
    norm = convolve(field, box, stride, padding, dilation, groups).clamp_min(0.0).sqrt()
    return norm if groups == 1 else norm.repeat_interleave(outputs_per_group, dim=1)

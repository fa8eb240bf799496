"""What a head needs of a site's weight: the second factor of the principal basis, and the norms that `Bound` reads."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_up(weight: Tensor, lift: Tensor) -> Tensor:
    """``weight @ lift`` over the input axis: [out, K, *kernel] x [K, r] -> [out, r, *kernel]."""
    up: Tensor = torch.einsum("ok...,kr->or...", weight, lift.to(weight.dtype))
    return up


def _norm_per_output(weight: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(weight.flatten(1).double(), dim=1)
    return norm


def weight_norm(weight: Tensor) -> Tensor:
    """Euclidean norm of each output's weights: [out, ...] -> [out], float64."""
    return _norm_per_output(weight)


def rest_weight_norm(weight: Tensor, start: int, input_nonnegative: bool) -> Tensor:
    """Norm of the weights of inputs from ``start`` on; of their positive part where the inputs are >= 0. [out]."""
    rest = weight[:, start:]
    return _norm_per_output(rest.clamp_min(0) if input_nonnegative else rest)


def principal_rest_norm(weight: Tensor, down: Tensor, up: Tensor, input_nonnegative: bool) -> Tensor:
    """Norm of what the rank-r head leaves out, ``w - up @ down``; its positive part where inputs are >= 0. [out]."""
    rest = weight.double() - torch.einsum("or...,rk->ok...", up.double(), down.double())
    return _norm_per_output(rest.clamp_min(0) if input_nonnegative else rest)


def principal_margin_norm(weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """A norm that bounds the rounding of a principal head and of the sum it estimates: |w| + |up| |down|_F. [out]."""
    down_norm: Tensor = torch.linalg.matrix_norm(down.double())
    return _norm_per_output(weight) + _norm_per_output(up) * down_norm

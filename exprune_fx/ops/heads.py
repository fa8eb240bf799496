"""What a head needs of a site's weight: the second factor of the principal basis, and the norms that `Bound` reads."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_up(weight: Tensor, lift: Tensor) -> Tensor:
    """``weight @ lift`` over the input axis: [out, K, *kernel] x [K, r] -> [out, r, *kernel]."""
    up: Tensor = torch.einsum("ok...,kr->or...", weight, lift.to(weight.dtype))
    return up


def weight_norm(weight: Tensor) -> Tensor:
    """Euclidean norm of each output's weights: [out, ...] -> [out], float64."""
    norm: Tensor = torch.linalg.vector_norm(weight.flatten(1).double(), dim=1)
    return norm


def rest_weight_norm(weight: Tensor, start: int, input_nonnegative: bool) -> Tensor:
    """Norm of the weights of inputs from ``start`` on; of their positive part where the inputs are >= 0. [out]."""
    rest = weight[:, start:]
    return weight_norm(rest.clamp_min(0) if input_nonnegative else rest)


def principal_rest_norm(weight: Tensor, down: Tensor, up: Tensor, input_nonnegative: bool) -> Tensor:
    """Norm of what the rank-r head leaves out, ``w - up @ down``; its positive part where inputs are >= 0. [out]."""
    rest = weight.double() - torch.einsum("or...,rk->ok...", up.double(), down.double())
    return weight_norm(rest.clamp_min(0) if input_nonnegative else rest)


def principal_margin_norm(weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """A norm that bounds the rounding of a principal head and of the sum it estimates: |w| + |up| |down|_F. [out]."""
    down_norm: Tensor = torch.linalg.matrix_norm(down.double())
    return weight_norm(weight) + weight_norm(up) * down_norm


def bound_norms(
    weight: Tensor, start: int, input_nonnegative: bool, factors: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """What `Bound` reads of a weight, rounded up: the norm of what the head has not seen, and the one for its margin.

    Args:
        weight: [out, K, ...].
        start: the first input that a prefix head has not seen.
        input_nonnegative: the inputs are >= 0.
        factors: ``down`` and ``up`` of a principal head.

    Returns:
        Two [out], float64 for a float64 weight, else float32.
    """
    if factors is None:
        rest, whole = rest_weight_norm(weight, start, input_nonnegative), weight_norm(weight)
    else:
        rest = principal_rest_norm(weight, *factors, input_nonnegative)
        whole = principal_margin_norm(weight, *factors)
    return _rounded_up(rest, weight.dtype), _rounded_up(whole, weight.dtype)


def _rounded_up(numbers: Tensor, like: torch.dtype) -> Tensor:
    wide = numbers.to(torch.float64 if like == torch.float64 else torch.float32)
    return torch.nextafter(wide, torch.full_like(wide, torch.inf))

from __future__ import annotations

import pytest
import torch

from exprune_fx.calibration.basis import principal_basis
from exprune_fx.calibration.moments import SecondMoments, Variances
from exprune_fx.ops.heads import principal_up

SHAPES = [(20, 12), (10, 12, 3), (6, 12, 3, 3), (4, 12, 2, 2, 2)]


def _samples(count: int = 400, size: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -2, size, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) * scale @ mixing + 0.3


def _estimate(weight: torch.Tensor, down: torch.Tensor, lift: torch.Tensor) -> torch.Tensor:
    return torch.einsum("or...,rk->ok...", principal_up(weight, lift), down)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_directions_give_the_weight_back(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = _samples()
    basis = principal_basis(weight, rows.T @ rows / len(rows))
    down, lift = basis.truncated(shape[1])
    # float64 through a Cholesky factor of condition 1e3
    torch.testing.assert_close(_estimate(weight, down, lift), weight, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 6, 11])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_the_least_that_any_rank_can_have(shape: tuple[int, ...], rank: int) -> None:
    """Against the singular values of all pre-activations themselves, which need no whitening."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = _samples()
    down, lift = principal_basis(weight, rows.T @ rows / len(rows)).truncated(rank)
    flat = weight.movedim(1, -1).reshape(-1, shape[1])
    outputs = rows @ flat.T
    least = torch.linalg.svdvals(outputs)[rank:].square().sum()
    estimated = rows @ _estimate(weight, down, lift).movedim(1, -1).reshape(-1, shape[1]).T
    error = (outputs - estimated).square().sum()
    # The ridge of 1e-6 bends the optimum a little when the discarded directions are as small as it is.
    assert float(least) * (1 - 1e-9) <= float(error) <= float(least) * 1.001 + 1e-5 * float(outputs.square().sum())


def test_constant_inputs_do_not_break_the_factorisation() -> None:
    rows = _samples()
    rows[:, 3] = 0.0
    rows[:, 5] = rows[:, 4]
    weight = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    basis = principal_basis(weight, rows.T @ rows / len(rows))
    assert bool(torch.isfinite(basis.down).all())
    assert bool(torch.isfinite(basis.lift).all())
    nothing = principal_basis(weight, torch.zeros(12, 12))
    assert bool(torch.isfinite(nothing.down).all())


def test_batches_of_moments_add_up() -> None:
    rows = _samples()
    whole, parts = SecondMoments(), SecondMoments()
    whole.update(rows)
    variance = Variances()
    for part in rows.split(37):
        parts.update(part)
        variance.update(part)
    torch.testing.assert_close(parts.matrix(), whole.matrix(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(variance.variance(), rows.var(0, correction=0), rtol=1e-10, atol=1e-12)


def test_a_large_offset_does_not_drown_the_variance() -> None:
    rows = _samples() + 1e7
    variance = Variances()
    for part in rows.split(50):
        variance.update(part)
    # 1e7 leaves nine digits of a float64 to the samples themselves
    torch.testing.assert_close(variance.variance(), _samples().var(0, correction=0), rtol=1e-6, atol=1e-9)

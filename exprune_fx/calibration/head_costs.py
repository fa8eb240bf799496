"""What a staged prediction head reads and computes for one row of input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from exprune_fx.plan import HeadPlan

_NUMBER = 4  # bytes of one number per class


def _seen_by(entry: HeadPlan, alive: Sequence[float]) -> float:
    """Numbers of codes that are met, for each class."""
    starts, going = (0, *entry.stages[:-1]), (1.0, *alive[:-1])
    return sum(share * (stop - start) for share, start, stop in zip(going, starts, entry.stages, strict=True))


def _on_basis(entry: HeadPlan, count: Callable[[int], float]) -> float:
    square = entry.basis is not None and len(entry.basis.shape) == 2
    return count(entry.weight_shape[1] ** 2) if square else 0.0


def bytes_read(entry: HeadPlan, element_size: int, alive: Sequence[float]) -> float:
    """Of codes, numbers, basis, and the rows of weights of those who are left, for one row of input."""
    classes, features = entry.weight_shape
    numbers = 4 + 2 * sum(alive[:-1])
    whole = alive[-1] * features * element_size
    return classes * (_seen_by(entry, alive) + _NUMBER * numbers + whole) + _on_basis(entry, lambda n: _NUMBER * n)


def head_test_flops(entry: HeadPlan, alive: Sequence[float]) -> float:
    """Of the tests, for each class of one row of input."""
    going = (1.0, *alive[:-1])
    return sum(share * entry.guard.test_flops(seen) for share, seen in zip(going, entry.stages, strict=True))


def flops_staged(entry: HeadPlan, alive: Sequence[float]) -> float:
    """For one row of input, tests counted; a multiply-add of codes counts as any other."""
    classes, features = entry.weight_shape
    work = 2 * classes * (_seen_by(entry, alive) + alive[-1] * features) + _on_basis(entry, lambda n: 2.0 * n)
    return work + classes * head_test_flops(entry, alive)

"""What is asked of a machine before its rows: ceilings, in a time that its user will wait."""

from __future__ import annotations

import pytest
import torch

from exprune_fx.bench import machine
from exprune_fx.bench.machine import measure_machine


@pytest.mark.parametrize(("gflop_per_s", "sizes"), [(100.0, [256, 512, 1024, 2048]), (1.0, [256, 512]), (0.01, [256])])
def test_products_grow_as_long_as_they_are_not_slow(
    gflop_per_s: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def product_s(_dtype: torch.dtype, size: int) -> float:
        asked.append(size)
        return 2 * size**3 / gflop_per_s / 1e9

    monkeypatch.setattr(machine, "_product_s", product_s)
    measured = measure_machine([torch.bfloat16])
    assert asked == sizes
    assert measured.matmul("bfloat16") == pytest.approx(gflop_per_s)


def test_a_machine_is_measured() -> None:
    measured = measure_machine([torch.float32], quick=True)
    assert measured.copy_gb_per_s > 0
    assert measured.read_gb_per_s > 0
    assert (measured.matmul("float32") or 0) > 0
    assert measured.matmul("bfloat16") is None

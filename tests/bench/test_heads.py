"""Rows of prediction heads, on a small head: what is staged, what is counted, and where the trained one comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exprune_fx.bench import heads
from exprune_fx.bench.running import count_forms
from exprune_fx.bench.selection import select_rows
from exprune_fx.bench.touched import count_touched
from exprune_fx.errors import DataError
from exprune_fx.ops import native
from exprune_fx.pipeline import transform


def _said(_: str) -> None:
    """Nobody listens."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "CLASSES", 2000)
    monkeypatch.setattr(heads, "HIDDEN", 64)
    monkeypatch.setattr(heads, "CALIBRATION_TOKENS", 100)


@pytest.mark.usefixtures("small")
def test_a_row_is_staged_and_counted() -> None:
    (spec,) = [row for row in heads.head_specs(dtypes=[torch.float32]) if row.name == "head_falling"]
    subject = spec.make(_said)
    assert (subject.batch, len(subject.inputs)) == (1, heads.TURNS)
    staged = transform(subject.gm, subject.plan)
    assert count_forms(staged) == (
        {"fused": 1, "readable": 0, "dense": 0} if native.available() else {"fused": 0, "readable": 1, "dense": 0}
    )
    touched = count_touched(transform(subject.gm, subject.plan, lower=False), subject.inputs)
    assert touched.flops_dense == 2 * 2000 * 64
    assert touched.bytes_dense == pytest.approx(4 * (2000 * 64 + 64 + 2000))
    assert touched.bytes < 0.5 * touched.bytes_dense
    assert touched.stopped_fraction > 0.95
    with torch.no_grad():
        assert all(torch.equal(staged(*args), subject.model(*args)) for args in subject.inputs)


def test_the_trained_row_is_there_with_its_file(tmp_path: Path) -> None:
    assert "head_trained" not in heads.head_names()
    torch.save({"weight": torch.randn(300, 16), "hidden": torch.randn(64, 16)}, tmp_path / heads.CHECKPOINT)
    (spec,) = [row for row in select_rows(["head_trained"], checkpoints=tmp_path) if row.dtype == torch.float32]
    subject = spec.make(_said)
    assert subject.plan.heads[0].weight_shape == (300, 16)
    torch.save({"weight": torch.randn(300, 16)}, tmp_path / heads.CHECKPOINT)
    with pytest.raises(DataError, match="holds no head"):
        spec.make(_said)

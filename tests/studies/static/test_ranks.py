"""Rank agreement: Spearman as scipy has it, and what must agree does."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from exprune_fx.studies.static.ranks import ranks_section, run_ranks, shared_half, spearman
from tests.studies.static.subjects import made, subject


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_scipys_with_ties(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randint(6, (2, 40), generator=generator).double()
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one.numpy(), other.numpy()).statistic, abs=1e-12)


def test_extremes() -> None:
    rising = torch.arange(10.0)
    assert spearman(rising, rising.exp()) == pytest.approx(1)
    assert spearman(rising, -rising) == pytest.approx(-1)
    assert spearman(rising, torch.ones(10)) == 0, "a constant ranks nothing"
    assert shared_half(rising, rising) == 1
    assert shared_half(rising, -rising) == 0


def test_every_way_is_there_for_every_group() -> None:
    found = run_ranks(subject(), made(80, 5), lambda _: None, draws=2)
    assert set(found.sizes.values()) == {8, 12}
    ways = [each.way for each in found.agreements]
    assert ways[:2] == ["trained, 64 images", "trained, 64 inputs of noise"]
    assert "at initialisation, all images" in ways
    by_way = {each.way: each for each in found.agreements}
    # The made model's "trained" and initial weights are the same: all images must then agree wholly.
    assert by_way["at initialisation, all images"].mean == pytest.approx(1)
    assert by_way["trained, 64 images"].mean > 0.7, "64 of 80 images are most of them"
    for each in found.agreements:
        assert each.correlation.keys() == found.sizes.keys()
    table = ranks_section(found).table
    assert table is not None
    assert [row[0].text for row in table.rows][-2:] == ["mean", "of the lower half, shared"]

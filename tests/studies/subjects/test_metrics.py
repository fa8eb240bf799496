"""Metrics and the interval of a difference."""

from __future__ import annotations

import math

import pytest
import torch

from exprune_fx.errors import DataError
from exprune_fx.studies.subjects import Accuracy, RocAuc, TokenAccuracy
from exprune_fx.studies.subjects.metrics import drop_interval


def test_roc_auc_is_the_share_of_ordered_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (60,), generator=generator).float()  # many ties
    labels = (torch.rand(60, generator=generator) < 0.3).long()
    each = RocAuc().each(scores.unsqueeze(1), labels)
    above, below = scores[labels == 1], scores[labels == 0]
    pairs = (above[:, None] > below).double() + 0.5 * (above[:, None] == below).double()
    assert RocAuc().value(each) == pytest.approx(float(pairs.mean()), abs=1e-12)
    assert RocAuc().value(RocAuc().each(-scores, labels)) == pytest.approx(1 - float(pairs.mean()), abs=1e-12)
    with pytest.raises(DataError, match="one class"):
        RocAuc().value(each[each[:, 1] == 1])


def test_tokens_are_counted_by_window() -> None:
    logits = torch.zeros(2, 3, 4)
    target = torch.tensor([[1, 2, 3], [0, 0, 1]])
    logits[0, torch.arange(3), target[0]] = 5.0
    each = TokenAccuracy().each(logits, target)
    assert each[:, 0].tolist() == pytest.approx([1.0, 2 / 3])  # without a preference the first token wins
    assert float(each[1, 1]) == pytest.approx(math.log(4))
    metric = TokenAccuracy()
    assert metric.extras(each)["perplexity"] == pytest.approx(math.exp(float(each[:, 1].mean())))


def test_interval_is_paired() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = (torch.rand(2000, 1, generator=generator) < 0.8).double()
    staged = dense.clone()
    staged[:40] = 0.0  # 32 or so of the right ones are lost: 1.6 points
    low, high = drop_interval(Accuracy(), dense, staged)
    lost = float((dense - staged).mean())
    assert low < lost < high
    # One standard error of a share of 1.6 % of 2,000 is 0.28 points; of unpaired accuracies it would be 1.3.
    assert high - low < 0.015
    assert drop_interval(Accuracy(), dense, dense) == (0.0, 0.0)


def test_interval_of_roc_auc_passes_over_draws_of_one_class() -> None:
    each = torch.tensor([[0.1, 0], [0.2, 0], [0.3, 1]], dtype=torch.float64)
    low, high = drop_interval(RocAuc(), each, each)
    assert (low, high) == (0.0, 0.0)

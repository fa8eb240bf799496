from __future__ import annotations

import pytest
import torch

from exprune_fx.errors import DataError
from exprune_fx.tuning.report import Judged, Trial, pareto
from exprune_fx.tuning.score import Score, drop_interval


def test_a_number_or_one_for_each_example() -> None:
    assert Score.of(0.5) == Score(0.5)
    assert Score.of(torch.tensor(0.5)) == Score(0.5)
    assert Score.of([1.0, 0.0, 1.0, 1.0]) == Score(0.75, (1.0, 0.0, 1.0, 1.0))
    assert Score.of(torch.tensor([True, False])) == Score(0.5, (1.0, 0.0))


@pytest.mark.parametrize("said", [None, "good", float("nan"), [], torch.ones(2, 2), [1.0, float("inf")]])
def test_anything_else_is_refused(said: object) -> None:
    with pytest.raises(DataError, match=r"evaluate returned"):
        Score.of(said)


def test_the_interval_is_that_of_the_mean_of_paired_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = (torch.rand(4000, generator=generator) < 0.9).double()
    staged = torch.where(torch.rand(4000, generator=generator) < 0.05, 1 - dense, dense)
    interval = drop_interval(Score.of(dense), Score.of(staged))
    assert interval is not None
    difference = dense - staged
    spread = 1.96 * float(difference.std()) / len(difference) ** 0.5
    mean = float(difference.mean())
    # 2,000 resamples know a 2.5 % quantile of the mean to about a tenth of its spread
    assert interval == pytest.approx((mean - spread, mean + spread), abs=0.1 * spread)
    assert drop_interval(Score.of(dense), Score.of(staged)) == interval, "the same seed, the same interval"


def test_there_is_no_interval_without_examples() -> None:
    assert drop_interval(Score(0.9), Score(0.8)) is None
    judged = Judged.of(Score(0.9), Score(0.8), 0)
    assert judged.interval is None
    assert judged.text("test data") == "test data: 0.9000 dense, 0.8000 staged, drop +0.1"


def test_the_front_holds_what_nothing_beats() -> None:
    trials = [Trial("uniform", 0.0, removed, score, 0.0) for removed, score in ((0.1, 0.9), (0.2, 0.95), (0.3, 0.8))]
    assert [trial.fraction_removed for trial in pareto(trials)] == [0.2, 0.3]

"""Curves through noisy drops, and climbing a ladder by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch

from exprune_fx.calibration.frontier import Option
from exprune_fx.plan import SitePlan
from exprune_fx.tuning.climb import EVALUATIONS, Climb, Loss
from exprune_fx.tuning.fit import fit
from exprune_fx.tuning.ladder import Rung

STEPS = 120


def rungs(count: int = STEPS) -> list[Rung]:
    """Each rung saves one more FLOP, at a damage that grows from 1e-4 to 1."""
    damages = [0.0, *torch.logspace(-4, 0, count - 1, dtype=torch.float64).tolist()]
    return [Rung({"a": Option(SitePlan("a", (2, 2)), d, float(i))}, d) for i, d in enumerate(damages)]


def climbed(drop_of: Callable[[Rung], float], budget: float, resolution: float = 0.0, confidence: float = 0.5) -> Climb:
    climb = Climb(rungs(), budget, resolution, confidence)
    climb.run(lambda rung: Loss(drop_of(rung)))
    return climb


def at(drops: Sequence[float], rung: Rung) -> float:
    """What one rung of `rungs` loses."""
    return drops[round(rung.flops_removed)]


@pytest.mark.parametrize("power", [0.6, 0.75, 1.0, 1.2])
def test_a_power_law_is_found(power: float) -> None:
    """Trials may lie 15 % off the curve, and powers near 1 are expected: twelve of them say more than that."""
    damages = torch.logspace(-3, 0, 12, dtype=torch.float64).tolist()
    curve = fit(damages, [0.3 * damage**power for damage in damages], 1.0)
    assert curve.power == pytest.approx(power, abs=0.02)
    for damage in damages:
        assert curve.drop(damage) == pytest.approx(0.3 * damage**power, rel=0.15)


def test_what_is_far_beyond_the_budget_says_nothing() -> None:
    broken = 1.0, 0.7  # loses no more, however damaged
    damages, drops = [0.001, 0.002, 0.004, 0.006], [0.01, 0.02, 0.04, 0.06]
    with_it, without = (fit([*damages, *more], [*drops, *lost], 0.02) for more, lost in (((1.0,), (0.7,)), ((), ())))
    assert broken[1] > 20 * 0.02
    assert with_it == without
    assert with_it.drop(0.002) == pytest.approx(0.02, rel=0.01)


def test_what_errors_share_makes_the_curve_surer() -> None:
    """Four trials of one search, an error that all share and smaller ones of the bolder: known, and taken for independent."""
    generator = torch.Generator().manual_seed(0)
    damages = torch.tensor([0.002, 0.006, 0.02, 0.06], dtype=torch.float64)
    step = torch.tensor([8e-4, 2e-4, 2e-4, 4e-4], dtype=torch.float64)
    joint = torch.minimum(step.square().cumsum(0)[:, None], step.square().cumsum(0))
    errors = []
    for _ in range(200):
        noise = (torch.randn(4, generator=generator, dtype=torch.float64) * step).cumsum(0)
        drops = (0.4 * damages + noise).tolist()
        known, alone = (fit(damages.tolist(), drops, 0.01, each) for each in (joint, joint.diagonal().diag()))
        errors.append([curve.drop(0.002) - 0.0008 for curve in (known, alone)])
    known_error, alone_error = torch.tensor(errors).square().mean(0).sqrt().tolist()
    assert known_error < 0.9 * alone_error


@pytest.mark.parametrize("budget", [0.0005, 0.01, 0.2])
def test_without_noise_the_boldest_rung_is_found(budget: float) -> None:
    def drop(rung: Rung) -> float:
        return 0.5 * math.pow(rung.damage, 0.8)

    climb = climbed(drop, budget)
    best = climb.best
    assert best is not None
    assert drop(best) <= budget
    assert 0.8 * budget < drop(best)  # rungs are 8 % apart, and one within 10 % is as good
    assert len(climb.losses) <= EVALUATIONS


def test_a_metric_that_never_drops_lets_the_boldest_rung_through() -> None:
    best = climbed(lambda _: -0.01, 0.0).best
    assert best is not None
    assert best.flops_removed > 0.95 * STEPS


def test_a_metric_that_always_drops_lets_none_through() -> None:
    climb = climbed(lambda _: 1.0, 0.01)
    assert climb.best is None
    assert len(climb.losses) < EVALUATIONS + 1


def test_less_than_half_an_example_is_no_drop() -> None:
    """At a budget of 0 a curve allows nothing but what cannot be told from nothing."""

    def drop(rung: Rung) -> float:
        return round(1000 * rung.damage) / 1000  # 1,000 examples

    best = climbed(drop, 0.0, resolution=0.0005).best
    assert best is not None
    assert 1e-4 < best.damage <= 0.0005


@pytest.mark.parametrize(("confidence", "least", "most"), [(0.5, 0.15, 0.5), (0.9, 0.0, 0.12)])
def test_a_confident_search_seldom_chooses_a_plan_that_truly_loses_more(
    confidence: float, least: float, most: float
) -> None:
    """Where drops grow as they are expected to, in proportion to the damage; 5,000 answers, a budget of one point."""
    generator = torch.Generator().manual_seed(1)
    budget, ladder = 0.01, rungs()
    damages = torch.tensor([rung.damage for rung in ladder], dtype=torch.float64)
    true, steps = 0.24 * damages, (0.27 * damages.sqrt() / 5000).diff().sqrt()
    too_much = 0
    for _ in range(60):
        noise = torch.randn(STEPS - 1, generator=generator, dtype=torch.float64) * steps
        drops = [0.0, *(true[1:] + noise.cumsum(0)).tolist()]
        best = climbed(partial(at, drops), budget, 1e-4, confidence).best
        assert best is not None
        too_much += float(true[round(best.flops_removed)]) > budget
    assert least <= too_much / 60 <= most


def test_luck_is_worth_less_than_to_who_takes_every_drop_at_its_word() -> None:
    """Searches with a budget as large as the noise of 5,000 answers: what the chosen plans truly lose."""
    generator = torch.Generator().manual_seed(0)
    budget, ladder = 0.001, rungs()
    damages = torch.tensor([rung.damage for rung in ladder], dtype=torch.float64)
    true = 0.24 * damages**0.75
    variance = (
        0.27 * damages.sqrt() / 5000
    )  # of as many answers as turn at this damage; gentler plans turn some of them
    steps = variance.diff().sqrt()
    by_curve, by_word = [], []
    for _ in range(100):
        noise = torch.randn(STEPS - 1, generator=generator, dtype=torch.float64) * steps
        drops = [0.0, *(true[1:] + noise.cumsum(0)).tolist()]
        best = climbed(partial(at, drops), budget).best
        by_curve.append(float(true[round(best.flops_removed)]) if best else 0.0)
        low, high = 0, STEPS
        while high - low > 1:  # what a bisection finds
            middle = (low + high) // 2
            low, high = (middle, high) if drops[middle] <= budget else (low, middle)
        by_word.append(float(true[low]))
    curve, word = sum(by_curve) / 100, sum(by_word) / 100
    assert 0.7 * budget < curve < 1.2 * budget
    assert word > 1.15 * curve

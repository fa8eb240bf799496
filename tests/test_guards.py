"""The stop rules as values: what they refuse, what a test costs, and that they survive being plain data."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from exprune_fx.errors import GuardError, PlanError
from exprune_fx.guards import (
    Bound,
    Calibrated,
    Dominance,
    FinitePopulation,
    Guard,
    StatsTest,
    Threshold,
    guard_from_dict,
)

OPEN_UNIT = st.floats(0, 1, exclude_min=True, exclude_max=True)
GUARDS: st.SearchStrategy[Guard] = st.one_of(
    st.builds(Threshold, st.floats(allow_nan=False)),
    st.builds(StatsTest, OPEN_UNIT),
    st.builds(FinitePopulation, OPEN_UNIT),
    st.builds(Calibrated, st.floats(0, 1, exclude_max=True)),
    st.just(Bound()),
    st.builds(Dominance, st.floats(0, 1, exclude_max=True)),
)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf, "0.1", None, True])
@pytest.mark.parametrize("kind", [StatsTest, FinitePopulation])
def test_an_alpha_outside_the_open_interval_is_refused(kind: type[StatsTest | FinitePopulation], alpha: Any) -> None:
    with pytest.raises(GuardError, match=rf"{kind.__name__}: alpha is .*\n.*strictly between 0 and 1"):
        kind(alpha)


@pytest.mark.parametrize("budget", [-0.01, 1.0, math.nan, "0.1", None])
def test_a_budget_outside_its_interval_is_refused(budget: Any) -> None:
    with pytest.raises(GuardError, match="Calibrated: budget is"):
        Calibrated(budget)
    assert Calibrated(0).budget == 0


@pytest.mark.parametrize("alpha", [-0.01, 1.0, math.nan, "0.1", None, True])
def test_dominance_refuses_an_alpha_outside_its_interval(alpha: Any) -> None:
    with pytest.raises(GuardError, match="Dominance: alpha is"):
        Dominance(alpha)


def test_dominance_is_proved_where_it_takes_the_whole_bound() -> None:
    assert (Dominance().claim, Dominance(0.01).claim) == ("proved", "estimated")


@pytest.mark.parametrize("threshold", [math.nan, "0", None])
def test_a_threshold_that_is_not_a_number_is_refused(threshold: Any) -> None:
    with pytest.raises(GuardError, match="Threshold: threshold is"):
        Threshold(threshold)
    assert Threshold(-math.inf).threshold < Threshold(math.inf).threshold


def test_a_wrong_number_is_also_a_value_error() -> None:
    with pytest.raises(ValueError, match="alpha"):
        StatsTest(2)


@given(alpha=st.floats(1e-6, 1 - 1e-6))
def test_quantiles_are_those_of_the_normal_distribution(alpha: float) -> None:
    assert StatsTest(alpha).quantile == pytest.approx(stats.norm.ppf(alpha), rel=1e-9, abs=1e-9)
    assert FinitePopulation(alpha).quantile == pytest.approx(stats.norm.isf(alpha), rel=1e-6, abs=1e-9)


@given(seen=st.integers(1, 10_000))
def test_a_test_costs_what_the_paper_counts(seen: int) -> None:
    assert Threshold(0.0).test_flops(seen) == 1
    assert Calibrated().test_flops(seen) == 1
    assert StatsTest(0.1).test_flops(seen) == FinitePopulation(0.1).test_flops(seen) == 2 * seen + 6
    assert Bound().test_flops(seen) == 5


def test_what_each_rule_claims_and_needs() -> None:
    rules = (Threshold, StatsTest, FinitePopulation, Calibrated, Bound)
    assert {rule.__name__: rule.claim for rule in rules} == {
        "Threshold": "estimated",
        "StatsTest": "estimated",
        "FinitePopulation": "estimated",
        "Calibrated": "measured",
        "Bound": "proved",
    }
    assert {rule for rule in rules if rule.needs_exchangeability} == {Threshold, StatsTest, FinitePopulation}
    assert {rule for rule in rules if rule.needs_squares} == {StatsTest, FinitePopulation}
    assert {rule for rule in rules if "principal" in rule.heads} == {Calibrated, Bound}
    assert {rule for rule in rules if "coded" in rule.heads} == {Calibrated}
    assert {rule.__name__: rule.min_seen for rule in rules if rule.min_seen > 1} == {"FinitePopulation": 2}


@given(guard=GUARDS)
def test_guards_survive_json(guard: Guard) -> None:
    again = guard_from_dict(json.loads(json.dumps(guard.to_dict())))
    assert again == guard
    assert type(again) is type(guard)
    assert hash(again) == hash(guard)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "Dreamt"}, r"unknown guard 'Dreamt'\n.*StatsTest"),
        ({}, "unknown guard None"),
        ({"name": "StatsTest"}, "guard StatsTest cannot be made from {}"),
        ({"name": "StatsTest", "alpha": 2}, "alpha is 2"),
        ({"name": "StatsTest", "alpha": 0.1, "beta": 1}, "beta"),
        ({"name": "Bound", "alpha": 0.1}, "Bound"),
    ],
)
def test_what_is_no_guard_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        guard_from_dict(data)


def test_reading_leaves_the_data_alone() -> None:
    data = Threshold(0.5).to_dict()
    guard_from_dict(data)
    assert data == {"name": "Threshold", "threshold": 0.5}


def test_guards_print_their_numbers() -> None:
    assert [str(g) for g in (StatsTest(0.05), Calibrated(0.02), Bound())] == [
        "StatsTest(0.05)",
        "Calibrated(0.02)",
        "Bound()",
    ]

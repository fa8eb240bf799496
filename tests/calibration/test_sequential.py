"""Thresholds on staged inputs."""

from __future__ import annotations

import pytest

from exprune_fx.calibration import calibrate
from exprune_fx.errors import PlanError
from exprune_fx.guards import Calibrated, Threshold
from exprune_fx.measurement import measure
from exprune_fx.pipeline import transform
from exprune_fx.plan import Plan
from tests.calibration.models import batches, captured, cnn, images

BUDGET = Calibrated(0.2)


@pytest.fixture(scope="module")
def plans() -> tuple[Plan, Plan]:
    graph = captured(cnn(), images(48))
    return tuple(
        calibrate(graph, batches(images(48)), BUDGET, (1 / 4, 1 / 2), sequential=each) for each in (False, True)
    )  # type: ignore[return-value]


def test_heads_stay_the_first_site_stays_and_later_ones_are_fitted_anew(plans: tuple[Plan, Plan]) -> None:
    before, after = plans
    assert [(e.site, e.head, e.stages) for e in after.sites] == [(e.site, e.head, e.stages) for e in before.sites]
    assert after.orders == before.orders
    first, *later = zip(before.staged, after.staged, strict=True)
    assert first[0].thresholds == first[1].thresholds, "nothing is staged before it"
    assert later
    assert all(dense.thresholds != staged.thresholds for dense, staged in later)


def test_what_it_expects_is_what_the_staged_graph_does(plans: tuple[Plan, Plan]) -> None:
    """Each site is judged on the inputs that it will get, so that shares alive are those of the staged graph."""
    graph = captured(cnn(), images(48))
    found = measure(transform(graph, plans[1], lower=False), batches(images(48)))
    for entry in plans[1].staged:
        assert found.alive_fraction[entry.site] == pytest.approx(entry.alive_fraction[-1], abs=1e-3)
    dense = measure(transform(graph, plans[0], lower=False), batches(images(48)))
    off = [abs(dense.alive_fraction[entry.site] - entry.alive_fraction[-1]) for entry in plans[0].staged]
    assert max(off) > 2e-3, "else the other assertion says nothing"


def test_coded_heads_get_thresholds_on_staged_inputs_too() -> None:
    graph = captured(cnn(), images(32))
    plain, again = (
        calibrate(graph, batches(images(32)), BUDGET, head="coded", sequential=each) for each in (False, True)
    )
    assert [entry.head for entry in again.sites[1:]] == ["coded", "coded"]
    assert plain.sites[2].thresholds != again.sites[2].thresholds
    found = measure(transform(graph, again, lower=False), batches(images(32)))
    for entry in again.staged:
        assert found.alive_fraction[entry.site] == pytest.approx(entry.alive_fraction[-1], abs=1e-3)


def test_a_guard_without_thresholds_is_left_as_it_is() -> None:
    graph = captured(cnn(), images(32))
    plain, again = (calibrate(graph, batches(images(32)), Threshold(0.0), sequential=each) for each in (False, True))
    assert plain == again


def test_it_is_not_for_the_clock() -> None:
    graph = captured(cnn(), images(16))
    with pytest.raises(PlanError, match=r"sequential|native"):
        calibrate(graph, batches(images(16)), objective="latency", sequential=True)

"""Ladders of plans, against trying every plan there is."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from exprune_fx.calibration.frontier import Option
from exprune_fx.plan import SitePlan
from exprune_fx.tuning.ladder import ladder


def option(site: str, energy_lost: float, flops_removed: float) -> Option:
    return Option(SitePlan(site, (2, 2)), energy_lost, flops_removed)


@st.composite
def sites(draw: st.DrawFn) -> dict[str, list[Option]]:
    """Up to three sites with up to four options, each saving and losing more than the one before."""
    found = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        steps = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=3))
        totals = list(itertools.accumulate(steps, lambda a, b: (a[0] + b[0], a[1] + b[1]), initial=(0, 0)))
        found[name] = [option(name, float(lost), float(removed)) for lost, removed in totals]
    return found


@given(sites(), st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=3, max_size=3))
def test_each_rung_saves_most_for_its_damage(options: dict[str, list[Option]], weights: list[float]) -> None:
    sensitivity = dict(zip(options, weights, strict=False))
    rungs = ladder(options, sensitivity)
    for rung in rungs:
        damage = sum(sensitivity[name] * chosen.energy_lost for name, chosen in rung.options.items())
        assert rung.damage == damage
        for every in itertools.product(*options.values()):
            other = sum(sensitivity[name] * each.energy_lost for name, each in zip(options, every, strict=True))
            if other <= damage:  # sums of small integers and halves are exact
                assert sum(each.flops_removed for each in every) <= rung.flops_removed


@given(sites())
def test_rungs_are_nested_from_dense_to_everything(options: dict[str, list[Option]]) -> None:
    rungs = ladder(options, dict.fromkeys(options, 1.0))
    assert [chosen for chosen in rungs[0].options.values()] == [found[0] for found in options.values()]
    assert [chosen for chosen in rungs[-1].options.values()] == [found[-1] for found in options.values()]
    for before, after in itertools.pairwise(rungs):
        assert sum(before.options[name] is not after.options[name] for name in options) == 1
        assert after.flops_removed > before.flops_removed
        assert after.damage >= before.damage


def test_a_sensitive_site_goes_last() -> None:
    options = {name: [option(name, 0, 0), option(name, 1, 1)] for name in ("a", "b")}
    first = ladder(options, {"a": 5.0, "b": 1.0})[1]
    assert (first.options["a"].energy_lost, first.options["b"].energy_lost) == (0, 1)

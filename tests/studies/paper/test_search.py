"""The search over settings, the choice among them, and the guards that a setting means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import exprune_fx as ex
from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.errors import DataError
from exprune_fx.studies.paper.guards import OFF, GuardSpace, heads_of
from exprune_fx.studies.paper.search import Trial, chosen, search_settings
from exprune_fx.studies.paper.store import Store
from exprune_fx.tuning.guard_space import mean_quantiles
from tests.studies.paper.tiny import tiny_subject


def tried(setting: tuple[float, ...]) -> Trial:
    """Removes as much as the numbers say; loses by the second site alone."""
    given_up = setting[1] > 0.4
    return Trial(setting, 0.9 - setting[1] / 10, sum(setting) / 2, given_up)


def test_search_begins_with_the_first_and_finds_better() -> None:
    pytest.importorskip("optuna")
    first = [(0.1, 0.1), (0.3, 0.3)]
    trials = search_settings(first, 0.5, tried, 25, seed=0)
    assert [trial.setting for trial in trials[:2]] == first
    assert all(0 <= number <= 0.5 for trial in trials for number in trial.setting)
    best = chosen(trials, 0.9, 0.011)
    assert best is not None
    assert best.fraction_removed > 0.12  # the diagonal alone has 0.1 within this drop
    assert [t.setting for t in search_settings(first, 0.5, tried, 25, seed=0)] == [t.setting for t in trials]


def test_choice_holds_the_drop_and_leaves_dense_what_saves_nothing() -> None:
    trials = [
        Trial((1.0,), 0.5, 0.9),
        Trial((2.0,), 0.895, 0.3),
        Trial((3.0,), 0.9, 0.2),
        Trial((4.0,), 0.9, 0.8, True),
    ]
    best = chosen(trials, 0.9, 0.005)
    assert best is not None
    assert best.setting == (2.0,)
    assert chosen([Trial((1.0,), 0.9, -0.1)], 0.9, 0.1) is None


def test_settings_become_guards() -> None:
    subject = tiny_subject()
    gm = ex.capture(subject.model, subject.args, dynamic_shapes=subject.dynamic_shapes)
    sites = ex.find_sites(gm)
    heads = heads_of(sites, 2, dict.fromkeys((site.name for site in sites), 1.0))
    assert heads == {"3": 2, "7": 2}  # the first convolution's terms are pixels, and the last layer has no ReLU
    stats = GuardSpace("StatsTest", sites, heads, {})
    plan = stats.plan([0.2, OFF / 2])
    assert [(entry.site, entry.guard, entry.stages) for entry in plan.staged] == [("3", ex.StatsTest(0.2), (2,))]
    assert stats.numbers([0.2, OFF / 2]) == {"3": 0.2, "7": None}
    quantiles = mean_quantiles(Prepared.of(gm), Data(subject.calibration), heads)
    threshold = GuardSpace("Threshold", sites, heads, quantiles)
    found = threshold.numbers([0.25, 0.9])
    assert found["3"] == pytest.approx(float(quantiles["3"][250]))
    assert found["7"] is not None
    assert found["7"] <= 0
    staged = ex.transform(gm, threshold.plan([0.25, 0.0]), lower=False)
    # a quarter of the means lies below it, all of which were looked at
    stopped = 1 - ex.measure(staged, subject.calibration).alive_fraction["3"]
    assert stopped == pytest.approx(0.25, abs=0.02) or found["3"] == 0


def test_a_sparse_site_waits_for_as_many_terms_with_weights() -> None:
    sites = ex.find_sites(ex.capture(tiny_subject().model, tiny_subject().args))
    assert heads_of(sites, 2, {site.name: 0.5 for site in sites}) == {"3": 4, "7": 4}
    assert heads_of(sites, 2, {site.name: 0.2 for site in sites}) == {"7": 10}


def test_store_keeps_results_and_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "one.jsonl"
    store = Store(path, "a")
    assert store.get("x", lambda: {"score": 1.5}) == {"score": 1.5}
    path.write_text(path.read_text() + '{"key": "y", "val')
    again = Store(path, "a")
    assert again.get("x", lambda: pytest.fail("asked again")) == {"score": 1.5}
    assert again.get("y", lambda: {"score": 2.0}) == {"score": 2.0}
    assert Store(path, "a").get("y", lambda: pytest.fail("asked again")) == {"score": 2.0}
    with pytest.raises(DataError, match="other weights"):
        Store(path, "b")
    assert torch.tensor(Store(None, "a").get("z", lambda: {"each": [[1.0]]})["each"]).shape == (1, 1)

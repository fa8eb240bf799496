"""`search_guards` on a small network: its plans do what its trials say, and interrupted work ends the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from exprune_fx.errors import DataError, PlanError
from exprune_fx.measurement import measure
from exprune_fx.pipeline import transform
from exprune_fx.tuning.guard_search import GuardSearch, search_guards
from exprune_fx.tuning.guard_space import GuardChoice
from exprune_fx.tuning.report import Trial
from tests.calibration.models import batches, captured, cnn, images

pytest.importorskip("optuna")
CALIBRATION, SELECTION = images(24), images(16, seed=5)


class Closeness:
    """1 less the relative squared error of the outputs. May be interrupted."""

    def __init__(self, calls: int = 1000) -> None:
        self.left, self.calls = calls, 0
        with torch.no_grad():
            self.expected: Tensor = cnn()(SELECTION)

    def __call__(self, model: fx.GraphModule) -> float:
        if self.calls == self.left:
            raise KeyboardInterrupt
        self.calls += 1
        with torch.no_grad():
            return 1 - float((model(SELECTION) - self.expected).square().sum() / self.expected.square().sum())


def run(guard: GuardChoice, evaluate: Any = None, trials: int = 12, **more: Any) -> GuardSearch:
    graph = captured(cnn(), CALIBRATION)
    return search_guards(graph, batches(CALIBRATION), evaluate or Closeness(), guard, trials=trials, **more)


@pytest.mark.parametrize("guard", ["stats_test", "threshold", "finite_population", "calibrated"])
def test_a_plan_does_what_its_trial_says(guard: GuardChoice) -> None:
    found = run(guard)
    assert len(found.trials) == 12
    assert len({trial.setting for trial in found.trials}) == 12
    graph = captured(cnn(), CALIBRATION)
    trial = max(found.trials, key=lambda each: each.fraction_removed)
    assert trial.fraction_removed > 0.05
    staged = transform(graph, found.plan(trial))
    assert measure(staged, batches(CALIBRATION)[:1]).fraction_removed == pytest.approx(trial.fraction_removed, abs=1e-9)
    assert Closeness()(staged) == pytest.approx(trial.score, abs=1e-4)  # a neuron on its threshold may turn
    assert found.dense == pytest.approx(1.0)
    assert found.front[-1] == trial


def test_a_site_that_a_setting_leaves_out_is_dense_again() -> None:
    """One template serves all settings: a later gentle one forgets what a bold one before it set."""
    found = run("threshold", trials=9)
    gentlest = found.trials[0]
    again = run("threshold", trials=1)
    assert again.trials[0].score == gentlest.score
    assert again.trials[0].fraction_removed == gentlest.fraction_removed


def test_interrupted_work_goes_on_and_ends_with_the_same_trials(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    expected = run("threshold").trials
    with pytest.raises(KeyboardInterrupt):
        run("threshold", Closeness(calls=11), storage=path)  # within the eleventh trial, which Optuna had proposed
    rest = Closeness()
    again = run("threshold", rest, storage=path)
    assert again.trials == expected
    assert again.evaluations == rest.calls == 3  # the dense model and two trials
    assert len(run("threshold", storage=path, trials=5).trials) == 12  # enough: nothing more is tried
    with pytest.raises(DataError, match="searched with"):
        run("threshold", storage=path, seed=1)


def test_the_best_within_a_drop() -> None:
    found = run("calibrated")
    best = found.best(0.02)
    assert best is not None
    assert 0 < best.drop <= 0.02
    assert all(t.fraction_removed <= best.fraction_removed for t in found.trials if t.drop <= 0.02)
    assert found.best(-1.0) is None
    assert found.to_dict()["trials"][0]["setting"] == found.trials[0].setting


def test_what_cannot_be_searched_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot search"):
        run("bound")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="no trial of this search"):
        run("threshold", trials=1).plan(Trial("searched", 0.0, 0.1, 0.5, 0.1))
    with pytest.raises(DataError, match="cannot open the storage"):
        run("threshold", trials=1, storage=tmp_path / "missing" / "trials.db")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(DataError, match=r"exprune_fx\[tune\]"):
        run("threshold")

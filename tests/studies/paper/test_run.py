"""A whole run on a tiny subject: figures, resuming, table, JSON and picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from exprune_fx.errors import DataError
from exprune_fx.studies.paper.plot import plot_reproduction
from exprune_fx.studies.paper.run import reproduce
from exprune_fx.studies.paper.search import Trial, front_of
from exprune_fx.studies.paper.setup import Settings
from exprune_fx.studies.paper.table import reproduction_table
from exprune_fx.studies.subjects import Judge
from tests.studies.paper.tiny import tiny_subject


@pytest.mark.parametrize("sparse", [False, True])
def test_a_whole_run(tmp_path: Path, sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    subject = tiny_subject(sparse)
    trials = 11 if sparse else 4  # the sampler draws ten at random before it learns from them
    own_trials = 0 if sparse else 9
    settings = Settings(trials, own_trials, drops=(0.03, 0.2), judge_front=sparse, study=tmp_path / "study")
    found = reproduce(subject, settings)
    assert [(row.method, row.max_drop) for row in found.rows] == [
        (method, drop)
        for method in ("StatsTest", "Threshold", "Calibrated", "Calibrated, by trials")[: 3 if sparse else 4]
        for drop in (0.03, 0.2)
    ]
    for row in found.rows:
        assert row.selection_drop <= row.max_drop + 1e-12
        assert row.interval[0] <= row.drop <= row.interval[1]
        assert row.fraction_removed < 1
    assert any(row.fraction_removed > 0.02 for row in found.rows)
    assert found.dense_test == pytest.approx(7 / 8)  # one label in eight is wrong on purpose
    assert (found.selection_examples, found.test_examples, found.counted_examples) == (48, 48, 48)
    assert [len(curve.trials) for curve in found.curves][:2] == [trials, trials]

    for curve in found.curves:
        assert curve.effort.evaluations >= len({trial.fraction_removed for trial in curve.trials if trial.setting})
        assert curve.effort.wall_s > 0
        assert curve.effort.cpu_s > 0
    assert [curve.effort.evaluations for curve in found.curves if curve.method != "Calibrated"] == [
        trials,
        trials,
        *([] if sparse else [own_trials]),
    ]
    for curve in found.curves[:2]:
        assert bool(curve.judged) == sparse
        assert (curve.best_judged(1.0) or 0.0) == max([0.0, *(removed for _, removed in curve.judged)])

    # A second run finds everything on file: no example is looked at again.
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "each", lambda *_: pytest.fail("evaluated again"))
        again = reproduce(subject, settings)
    assert again.rows == found.rows
    assert [curve.effort.evaluations for curve in again.curves] == [curve.effort.evaluations for curve in found.curves]
    assert again.curves[0].effort == found.curves[0].effort  # what it took when it was done

    text = json.dumps(found.to_dict())
    assert json.loads(text)["rows"][0]["method"] == "StatsTest"
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(reproduction_table(found, sparse))
    shown = console.export_text()
    assert "Calibrated" in shown
    assert f"StatsTest {trials} plans in " in shown
    assert ("Calibrated, by trials" in shown) != sparse
    assert ("as its code shows it" in shown) == sparse
    assert ("10.24-11.11 % at 0.1" in shown) == sparse

    pytest.importorskip("matplotlib")
    plot_reproduction(found, sparse, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_without_terms_enough_is_refused() -> None:
    subject = tiny_subject()
    object.__setattr__(subject, "head_terms", 64)
    with pytest.raises(DataError, match="more than 64 exchangeable terms"):
        reproduce(subject, Settings(trials=1))


def test_front_is_what_no_other_beats() -> None:
    trials = [Trial((), 0.9, 0.1), Trial((), 0.8, 0.3), Trial((), 0.7, 0.2), Trial((), 0.95, 0.4, True)]
    assert [trial.fraction_removed for trial in front_of(trials)] == [0.1, 0.3]

from __future__ import annotations

from pathlib import Path

import pytest

from exprune_fx.errors import DataError
from exprune_fx.tuning.score import Score
from exprune_fx.tuning.study import Study, model_digest
from tests.calibration.models import captured, mlp, vectors


def never() -> Score:
    raise AssertionError("this is on file")


def test_what_was_evaluated_is_not_evaluated_again(tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    first = Study(path, "model")
    assert first.score("a", lambda: Score(0.5, (1.0, 0.0))) == Score(0.5, (1.0, 0.0))
    assert first.score("a", never) == Score(0.5, (1.0, 0.0))
    again = Study(path, "model")
    assert len(again) == 1
    assert again.score("a", never) == Score(0.5, (1.0, 0.0))


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    study = Study(path, "model")
    study.score("a", lambda: Score(0.5))
    study.score("b", lambda: Score(0.25))
    path.write_text(path.read_text()[:-9])
    again = Study(path, "model")
    assert len(again) == 1
    again.score("b", lambda: Score(0.75))
    assert Study(path, "model").score("b", never) == Score(0.75)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hello\n", "is not a study"),
        ('{"format": "exprune-study", "version": 7, "model": "model"}\n', "has version 7"),
        ('{"format": "exprune-study", "version": 1, "model": "other"}\n', "of another model"),
    ],
)
def test_other_files_are_refused_and_left_alone(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=what):
        Study(path, "model")
    assert path.read_text() == text


def test_a_model_is_known_by_its_weights() -> None:
    model = mlp()
    gm = captured(model, vectors())
    before = model_digest(gm)
    assert model_digest(captured(mlp(), vectors())) == before
    next(model.parameters()).data[0, 0] += 1
    assert model_digest(gm) != before

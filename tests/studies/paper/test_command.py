"""``exprune reproduce`` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exprune_fx.cli.app import app
from exprune_fx.cli.names import SUBJECTS
from exprune_fx.cli.reproduce import Wanted, make_subject
from exprune_fx.errors import DataError
from exprune_fx.studies.paper.setup import Settings
from exprune_fx.studies.subjects.training import Say
from tests.studies.paper.tiny import tiny_subject


def test_wrong_calls_are_one_line(tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["reproduce", "alexnet", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "one of vgg11, resnet18" in result.stderr
    result = runner.invoke(app, ["reproduce", "vgg11", "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "give --weights" in result.stderr


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_subject_says_what_it_lacks(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        make_subject(Wanted(name, tmp_path), lambda _: None)


def test_figures_are_printed_written_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    asked: list[Wanted] = []

    def make(wanted: Wanted, say: Say) -> object:
        asked.append(wanted)
        say("made")
        return tiny_subject()

    monkeypatch.setattr("exprune_fx.cli.reproduce.make_subject", make)
    monkeypatch.setattr(Settings, "drops", (0.2,))
    files = ["--json", str(tmp_path / "f.json"), "--plot", str(tmp_path / "f.svg"), "--study", str(tmp_path / "s")]
    numbers = ["--trials", "2", "--selection", "7", "--seed", "3"]
    result = CliRunner().invoke(app, ["reproduce", "opt", "--data-dir", str(tmp_path), *files, *numbers])
    assert result.exit_code == 0, result.output
    assert "a tiny network" in result.output
    found = json.loads((tmp_path / "f.json").read_text())
    assert [curve["method"] for curve in found["curves"]] == ["StatsTest", "Threshold", "Calibrated"]
    assert len(found["curves"][0]["trials"]) == 2
    assert "<svg" in (tmp_path / "f.svg").read_text()
    assert (asked[0].sizes.selection, asked[0].sizes.test, asked[0].seed) == (7, 400, 3)

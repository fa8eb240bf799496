"""`exprune experiment`: tables on standard output, JSON beside, one line where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exprune_fx.cli import experiment
from exprune_fx.cli.app import app
from tests.studies.static.subjects import subject


def test_a_tiny_run_prints_tables_and_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment.Wanted, "classifier", lambda _self, _name: subject())
    file = tmp_path / "curves.json"
    call = ["experiment", "curves", "--model", "tiny", "--tune", "0", "--removed", "0.5", "--criterion", "Magnitude"]
    result = CliRunner().invoke(app, [*call, "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "Curves: tiny" in result.output
    assert "Parameters removed at a drop" in result.output
    (curves,) = json.loads(file.read_text())["curves"]
    assert [point["criterion"] for point in curves["points"]] == ["dense", "Magnitude"]
    unknown = CliRunner().invoke(app, ["experiment", "curves", "--model", "tiny", "--criterion", "Luck"])
    assert unknown.exit_code == 1
    assert "no criterion is called 'Luck'" in unknown.output


@pytest.mark.parametrize(
    ("call", "status", "text"),
    [
        (["nothing"], 2, "no experiment is called 'nothing'"),
        (["curves", "--removed", "1.5"], 2, "fractions between 0 and 1"),
        (["curves", "--ranking", "best"], 2, "--ranking 'best' is none of global, layer"),
        (["ranks", "--model", "vgg_fashion"], 1, "give --data-dir"),
        (["ranks", "--model", "vgg11_bn_cifar10", "--data-dir", "."], 1, "give --checkpoints"),
        (["curves", "--model", "lenet"], 1, "no classifier is called 'lenet'"),
        (["peers", "--model", "lenet"], 1, "no architecture is called 'lenet'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(call: list[str], status: int, text: str) -> None:
    result = CliRunner().invoke(app, ["experiment", *call])
    assert result.exit_code == status
    assert text in result.output
    assert result.output.count("\n") == 1

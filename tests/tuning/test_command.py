"""``exprune optimize``: what it prints and writes, and that it goes on where it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from exprune_fx.cli.app import app
from exprune_fx.plan import Plan
from exprune_fx.tuning.plot import plot_front
from exprune_fx.tuning.report import Trial
from tests.calibration.models import BATCH, batches, mlp, vectors

HERE = "tests.tuning.test_command"
CALLS = [0]


def subject() -> dict[str, Any]:
    """A model, its data, and a metric with a number for each example."""
    selection, model = vectors(120, seed=5), mlp()

    def evaluate(candidate: Any) -> Tensor:
        CALLS[0] += 1
        with torch.no_grad():
            expected = model(selection)
            error: Tensor = (candidate(selection) - expected).square().sum(1) / expected.square().sum(1)
        return 1 - error

    given = batches(vectors(64))
    return {"model": model, "args": given[0], "dynamic_shapes": BATCH, "batches": given, "evaluate": evaluate}


def nothing() -> str:
    return "nothing"


def call(*words: object) -> Any:
    return CliRunner().invoke(app, ["optimize", *map(str, words)])


def test_a_report_a_plan_a_picture_and_a_study(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = {
        name: tmp_path / f"{name}.{kind}" for name, kind in (("study", "jsonl"), ("plan", "json"), ("plot", "svg"))
    }
    CALLS[0] = 0
    words = [f"{HERE}:subject", "--max-drop", 0.02, "--json", tmp_path / "report.json"]
    done = call(*words, *(word for name, path in files.items() for word in (f"--{name}", path)))
    assert done.exit_code == 0, done.output
    assert "within a drop of 0.02" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["selection"]["drop"] <= 0.02
    assert report["evaluations"] == CALLS[0] > 2
    assert Plan.load(files["plan"]).staged
    assert "FLOPs removed" in files["plot"].read_text()
    again = call(*words, "--study", files["study"])
    assert CALLS[0] == report["evaluations"], "nothing on file is evaluated again"
    assert again.stdout.splitlines()[-2:] == done.stdout.splitlines()[-2:]


def test_what_is_no_subject_is_refused(tmp_path: Path) -> None:
    assert call(f"{HERE}:nothing", "--max-drop", 0.1).exit_code == 1
    assert call("nonsense", "--max-drop", 0.1).exit_code == 2
    assert call(f"{HERE}:subject", "--max-drop", 0.1, "--study", tmp_path / "missing" / "file").exit_code == 2
    refused = call(f"{HERE}:subject", "--max-drop", -1)
    assert refused.exit_code == 1
    assert "max_drop" in refused.stderr


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from exprune_fx.errors import DataError

    with pytest.raises(DataError, match="cannot draw"):
        plot_front([Trial("measured", 0.0, 0.1, 0.9, 0.1)], tmp_path / "front.nonsense")

"""`exprune shrink`: table, files, and one line where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from typer.testing import CliRunner

from exprune_fx.cli.app import app
from exprune_fx.static import ChannelPlan
from tests.static.nets import X, net

MODEL = "tests.static.test_cli:example"


def example() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return net(), (X,)


def test_it_prints_a_table_and_writes_what_can_be_loaded(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("plan.json", "weights.pt", "report.json")}
    call = ["shrink", MODEL, "--target-params", "0.5", "--ranking", "layer", "--ignore", "fc1", "--round-to", "2"]
    call += [
        "--plan",
        str(files["plan.json"]),
        "--weights",
        str(files["weights.pt"]),
        "--json",
        str(files["report.json"]),
    ]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Shrunk by Expressiveness")
    assert "ignored: fc1" in result.output
    fresh = net()
    ChannelPlan.load(files["plan.json"]).apply(fresh)
    fresh.load_state_dict(torch.load(files["weights.pt"]))
    figures = json.loads(files["report.json"].read_text())
    assert fresh.conv1.out_channels % 2 == fresh.conv2.out_channels % 2 == 0, "rounded"
    assert sum(p.numel() for p in fresh.parameters()) == figures["params_after"] <= 0.5 * figures["params_before"]


def test_what_is_wrong_is_said_in_one_line() -> None:
    runner = CliRunner()
    for wrong in (
        ["shrink", MODEL],
        ["shrink", MODEL, "--target-flops", "0.5", "--criterion", "luck"],
        ["shrink", MODEL, "--target-flops", "0.5", "--constants", "kept"],
        ["shrink", "x"],
    ):
        result = runner.invoke(app, wrong)
        assert result.exit_code == 2
    impossible = runner.invoke(app, ["shrink", MODEL, "--target-flops", "0.0001", "--criterion", "random"])
    assert impossible.exit_code == 1
    unlabelled = runner.invoke(app, ["shrink", MODEL, "--target-flops", "0.5", "--criterion", "taylor"])
    assert unlabelled.exit_code == 1
    assert "taylor needs labels" in unlabelled.output
    assert "cannot be met" in impossible.output
    assert impossible.output.count("\n") == 1

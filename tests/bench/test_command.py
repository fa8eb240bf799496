"""``exprune bench`` as people call it, on the smallest row and with the fewest calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from exprune_fx.bench import micro
from exprune_fx.bench.columns import COLUMNS, WAYS
from exprune_fx.cli.app import app


def call(*args: str) -> Any:
    return CliRunner().invoke(app, ["bench", *args])


def test_a_quick_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "CONVOLUTIONS", ((16, 4),))
    path, threads = tmp_path / "bench.json", torch.get_num_threads()
    try:
        done = call("--rows", "conv_16x4x4_prefix", "--quick", "--threads", "1", "--json", str(path))
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    data = json.loads(path.read_text())
    (row,) = data["rows"]
    assert (row["name"], row["kind"], row["dtype"], row["batch"], row["threads"]) == (
        "conv_16x4x4_prefix", "micro", "float32", 1, 1,
    )  # fmt: skip
    assert set(row["seconds"]) == set(COLUMNS)
    assert all(seconds > 0 for seconds in row["seconds"].values())
    assert row["ratio"] == pytest.approx(row["seconds"][row["best_dense"]] / row["seconds"]["ours"])
    assert row["stopped_fraction"] == pytest.approx(0.65, abs=0.01)
    assert row["kernel_error"] < 1e-4  # sums of 144 float32 products of order 1, in another order
    assert set(row["ours_inner_seconds"]) == set(WAYS)
    assert row["ours_inner_seconds"][row["ours_inner"]] == row["seconds"]["ours"]
    assert {f"ours/{way}" for way in WAYS} <= set(row["column_errors"])
    assert data["settings"]["quick"] is True
    assert data["machine"]["copy_gb_per_s"] > 0
    for text in ("1 threads", "conv_16x4x4_prefix", f"{row['ratio']:.2f}x", "geometric mean"):
        assert text in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert "1/1 conv_16x4x4_prefix float32 batch 1" in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--rows", "gemm"], 1, "no row 'gemm'"),
        (["--model", "alexnet"], 1, "no model 'alexnet'"),
        (["--dtype", "int8"], 2, "--dtype 'int8'"),
        (["--json", "/no/such/folder/f.json"], 2, "/no/such/folder/f.json"),
        (["--batch", "0"], 2, "--batch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_fails_before_any_work(args: list[str], status: int, message: str) -> None:
    done = call(*args)
    assert done.exit_code == status
    assert done.stdout == ""
    assert message in done.stderr

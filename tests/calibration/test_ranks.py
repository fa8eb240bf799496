"""Calibration and search in two processes under ``torchrun``: the same as in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
import exprune_fx as ex
from exprune_fx.calibration import ranks
from tests.calibration.models import BATCH, batches, captured, cnn, images
from tests.calibration.statistics import statistics

if "RANK" in __import__("os").environ:
    dist.init_process_group("gloo")
data, selection = images(48), images(31, seed=5)
mine = selection[ranks.my_slice(len(selection))]
model = cnn()

def closeness(candidate):
    with torch.no_grad():
        expected = model(mine)
        return 1 - (candidate(mine) - expected).square().sum(1) / expected.square().sum(1)

graph = captured(cnn(), data)
plan = ex.calibrate(graph, batches(data), ex.Calibrated(0.05), stages=(1 / 4, 1 / 2))
out = Path(sys.argv[1])
best = ex.optimize(
    model, (data[:4],), None, BATCH, batches=batches(data), evaluate=closeness, max_drop=0.02, study=out / "study.jsonl"
)
found = {
    "plan": plan.to_dict(),
    "best": best.plan.to_dict(),
    "trials": [[t.damage, t.fraction_removed, t.score] for t in best.report.trials],
    "examples": best.report.selection.examples,
    "evaluations": best.report.evaluations,
}
(out / f"rank{ranks.index()}.json").write_text(json.dumps(found))
torch.save(statistics(graph, batches(data)), out / f"rank{ranks.index()}.pt")
"""


def run(out: Path, *launcher: str) -> None:
    out.mkdir()
    program = out / "program.py"
    program.write_text(PROGRAM)
    free = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    environment = {**free, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "EXPRUNE_KERNELS": "reference"}
    done = subprocess.run(
        [sys.executable, *launcher, str(program), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def compare_statistics(one: Path, *two: Path) -> None:
    """Before a threshold is chosen nothing is discrete: sums of moments, energies and losses agree far beyond 1e-6."""
    expected = torch.load(one)
    for path in two:
        found = torch.load(path)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype == torch.float64, name
            if name.split()[0] in {"samples", "alive", "lowest", "highest"}:
                assert torch.equal(found[name], value), name
            assert value.abs().max() > 0, name
            # float64 sums of a few thousand products in another order: measured 4e-16 of each number; where terms of
            # both signs cancel, another machine may lose some digits more
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=0.0, msg=name)


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    run(tmp_path / "one")
    run(tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    expected = json.loads((tmp_path / "one" / "rank0.json").read_text())
    first, second = (json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second, "every process knows the same"
    assert first["examples"] == expected["examples"] == 31
    assert first["evaluations"] == expected["evaluations"]
    assert torch.tensor(first["trials"]) == pytest.approx(torch.tensor(expected["trials"]), rel=1e-6, abs=1e-6)
    for which in ("plan", "best"):
        for mine, whole in zip(first[which]["sites"], expected[which]["sites"], strict=True):
            assert (mine["head"], mine["stages"]) == (whole["head"], whole["stages"])
            # counters are exact; sums of float64 differ by rounding, which can move a sample over the edge of a bin
            assert mine["alive_fraction"] == pytest.approx(whole["alive_fraction"], abs=1e-3)
            assert mine["fraction_removed"] == pytest.approx(whole["fraction_removed"], abs=1e-3)
        assert first[which]["examples"] == expected[which]["examples"] == 48
        assert first[which]["orders"] == expected[which]["orders"]
    compare_statistics(*(tmp_path / which for which in ("one/rank0.pt", "two/rank0.pt", "two/rank1.pt")))
    study = (tmp_path / "two" / "study.jsonl").read_text().splitlines()
    assert len(study) == 1 + first["evaluations"], "one process keeps the study"

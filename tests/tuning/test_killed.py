"""Searches that are killed from outside, without a chance to tidy up, go on and end as if they had not been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna")
ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys, time
from pathlib import Path
import torch
import exprune_fx as ex
from tests.calibration.models import BATCH, batches, captured, mlp, vectors

torch.set_num_threads(1)
calibration, selection = vectors(64), vectors(160, seed=5)
dense, out, last = mlp(), Path(sys.argv[1]), int(sys.argv[3])
calls = 0

def closeness(candidate):
    global calls
    calls += 1
    if calls == last:
        print("evaluating", flush=True)
        time.sleep(600)
    with torch.no_grad():
        expected = dense(selection)
        return 1 - (candidate(selection) - expected).square().sum(1) / expected.square().sum(1)

def optimized(study):
    best = ex.optimize(
        mlp(), (calibration[:4],), None, BATCH, batches=batches(calibration), evaluate=closeness, max_drop=0.02,
        study=study,
    )
    return {"plan": best.plan.to_dict(), "trials": [[t.damage, t.fraction_removed, t.score] for t in best.report.trials]}

def searched(storage):
    found = ex.search_guards(
        captured(mlp(), calibration), batches(calibration), lambda model: float(closeness(model).mean()), "threshold",
        trials=12, storage=storage,
    )
    best = found.best(0.02)
    return {"plan": found.plan(best).to_dict(), "trials": [[*t.setting, t.fraction_removed, t.score] for t in found.trials]}

for name in sys.argv[2].split(","):
    make, file = {"optimize": (optimized, "study.jsonl"), "guards": (searched, "trials.db")}[name.removeprefix("whole_")]
    before = calls
    found = make(None if name.startswith("whole_") else out / file)
    (out / f"{name}.json").write_text(json.dumps({**found, "calls": calls - before}))
"""


def start(out: Path, what: str, last: int = 0) -> subprocess.Popen[str]:
    """A process that makes these searches; at this evaluation it says so and waits."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "EXPRUNE_KERNELS": "reference"}
    command = [sys.executable, "-c", PROGRAM, str(out), what, str(last)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_and_kill(out: Path, what: str, last: int) -> None:
    with start(out, what, last) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()
        process.kill()
        assert said == "evaluating\n", process.stderr.read()[-3000:]
        assert process.wait() < 0, "killed, not ended"


def test_killed_searches_end_with_the_same_plan(tmp_path: Path) -> None:
    run_and_kill(tmp_path, "optimize", 4)
    assert not (tmp_path / "optimize.json").exists()
    assert len((tmp_path / "study.jsonl").read_text().splitlines()) == 1 + 3, "a head and three whole evaluations"
    run_and_kill(tmp_path, "guards", 1 + 10)  # within the tenth trial, the second that Optuna has proposed
    with start(tmp_path, "optimize,guards,whole_optimize,whole_guards") as process:
        _, stderr = process.communicate(timeout=600)
        assert process.returncode == 0, stderr[-3000:]
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    for name, spared in (("optimize", 3), ("guards", 9)):
        again, whole = found[name], found[f"whole_{name}"]
        assert whole["calls"] - again["calls"] == spared, "what was on file was not evaluated again"
        assert again["trials"] == whole["trials"]
        assert again["plan"] == whole["plan"]
        assert any(site["guard"] for site in again["plan"]["sites"]), "a plan that stages something"

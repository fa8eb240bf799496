"""Our calibrated guards: by `optimize`, and searched as the paper's are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from exprune_fx.calibration.request import HeadChoice
from exprune_fx.plan import Plan
from exprune_fx.studies.paper.judging import Graphs
from exprune_fx.studies.paper.results import BY_TRIALS, OURS, Curve, Effort, Row
from exprune_fx.studies.paper.search import Trial
from exprune_fx.studies.paper.setup import Setup
from exprune_fx.tuning import optimize, search_guards
from exprune_fx.tuning.study import plan_digest


def ours(setup: Setup) -> tuple[Curve, list[Row]]:
    """Calibrated guards by `optimize`, for each drop."""
    rows, trials, effort = [], [], Effort()
    for drop in setup.settings.drops:
        setup.say(f"{OURS}: optimize within a drop of {100 * drop:g} points")
        key = f"{OURS} {drop}"
        found = setup.store.get(key, partial(_optimized, setup, drop))
        trials += [Trial((), score, removed) for score, removed in found["trials"]]
        took = setup.store.took(key)
        effort += Effort(found["evaluations"], took.wall_s, took.cpu_s)
        rows.append(_planned(setup, OURS, drop, found))
    return Curve(OURS, tuple(trials), effort), rows


def ours_by_trials(setup: Setup) -> tuple[Curve, list[Row]]:
    """The same guard, searched as the paper's are: Optuna's trials, one number a site."""
    found = setup.store.get(f"{BY_TRIALS} {setup.settings.calibrated_trials}", partial(_searched, setup))
    rows = [_planned(setup, BY_TRIALS, drop, found["best"][str(drop)]) for drop in setup.settings.drops]
    trials = tuple(Trial((), score, removed) for score, removed in found["trials"])
    return Curve(BY_TRIALS, trials, Effort(**found["effort"])), rows


def _searched(setup: Setup) -> dict[str, Any]:
    subject, study = setup.subject, setup.settings.study
    numbers = itertools.count(0)

    def evaluate(model: Any) -> float | Tensor:
        setup.say(f"{BY_TRIALS}: evaluation {next(numbers)} of {setup.settings.calibrated_trials}")
        return subject.selection(model)

    found = search_guards(
        setup.gm,
        subject.calibration,
        evaluate,
        "calibrated",
        trials=setup.settings.calibrated_trials,
        head=_head(setup),
        storage=None if study is None else study / f"{subject.name}.trials.db",
        seed=setup.settings.seed,
    )
    best = {}
    for drop in setup.settings.drops:
        trial = found.best(drop)
        plan, lost = (Plan(), 0.0) if trial is None else (found.plan(trial), trial.drop)
        best[str(drop)] = {"plan": plan.to_dict(), "drop": lost}
    return {
        "best": best,
        "trials": [[trial.score, trial.fraction_removed] for trial in found.trials],
        "effort": {"evaluations": len(found.trials), "wall_s": found.wall_s, "cpu_s": found.cpu_s},
    }


def _planned(setup: Setup, method: str, drop: float, found: Mapping[str, Any]) -> Row:
    """The row of a plan on file."""
    plan = Plan.from_dict(found["plan"])
    graphs = Graphs.of_plan(setup.gm, plan) if plan.staged else setup.judging.dense_graphs
    key = plan_digest(plan) if plan.staged else "dense"
    return setup.row(method, drop, key, graphs, found["drop"], {})


def _head(setup: Setup) -> HeadChoice:
    """Principal heads are dense: of pruned weights they would cost more than they save."""
    return "prefix" if setup.subject.sparse else "auto"


def _optimized(setup: Setup, drop: float) -> dict[str, Any]:
    subject = setup.subject
    study = None if setup.settings.study is None else setup.settings.study / f"{subject.name}.optimize.jsonl"
    best = optimize(
        subject.model,
        subject.args,
        dynamic_shapes=subject.dynamic_shapes,
        batches=subject.calibration,
        evaluate=subject.selection,
        max_drop=drop,
        head=_head(setup),
        study=study,
        seed=setup.settings.seed,
    )
    return {
        "plan": best.plan.to_dict(),
        "drop": best.report.selection.drop,
        "evaluations": best.report.evaluations - 1,
        "trials": [[trial.score, trial.fraction_removed] for trial in best.report.trials],
    }

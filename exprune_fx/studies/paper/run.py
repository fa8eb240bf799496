"""Runs one subject: the paper's guards tuned its way, ours by `optimize`, all judged on examples that chose nothing."""

from __future__ import annotations

import time

from exprune_fx.studies.paper.guards import PUBLISHED
from exprune_fx.studies.paper.ours import ours, ours_by_trials
from exprune_fx.studies.paper.results import Reproduction
from exprune_fx.studies.paper.setup import Say, Settings, Setup
from exprune_fx.studies.paper.tuned import tuned
from exprune_fx.studies.subjects import Subject


def reproduce(subject: Subject, settings: Settings, say: Say = lambda _: None) -> Reproduction:
    """All of one subject.

    Raises:
        CaptureError: the model cannot be captured.
        DataError: no site has exchangeable terms enough, a study is of something else, or Optuna is not installed.
    """
    started = time.perf_counter()
    setup = Setup.of(subject, settings, say)
    curves, rows = [], []
    for guard in PUBLISHED:
        curve, found = tuned(setup, guard)
        curves.append(curve)
        rows += found
    for search in (ours, *([ours_by_trials] if settings.calibrated_trials else [])):
        curve, found = search(setup)
        curves.append(curve)
        rows += found
    sizes = [len(target) for target in subject.test.targets[: settings.test_counted]]
    judging = setup.judging
    test = judging.tally("dense", judging.dense_graphs)
    return Reproduction(
        subject=subject.name,
        title=subject.title,
        about=subject.about,
        metric=subject.selection.metric.name,
        dense_selection=setup.dense_score,
        dense_test=subject.test.metric.value(judging.dense_test),
        dense_extras=subject.test.metric.extras(judging.dense_test),
        selection_examples=subject.selection.examples,
        test_examples=subject.test.examples,
        counted_examples=sum(sizes),
        flops_per_example=test.dense / sum(sizes),
        rows=tuple(rows),
        curves=tuple(curves),
        trials=settings.trials,
        wall_s=time.perf_counter() - started,
        resolution=1 / subject.selection.examples if subject.selection.metric.counts else 0.0,
    )

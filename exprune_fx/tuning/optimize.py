"""`optimize`: the cheapest plan within a drop of the caller's own metric."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import fx

from exprune_fx.calibration.data import Batches, check_batches, check_latency_batch, read
from exprune_fx.calibration.frontier import Frontier, Option, find_frontier
from exprune_fx.calibration.latency import decide_sites, machine_text, pieces_to_time
from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.calibration.request import HeadChoice, Request, check_alone, check_objective, check_request
from exprune_fx.calibration.sequential import refit
from exprune_fx.calibration.whole import settle
from exprune_fx.cost import evaluate as evaluate_cost
from exprune_fx.cost import model_flops
from exprune_fx.errors import PlanError
from exprune_fx.graph import capture
from exprune_fx.guards import Calibrated
from exprune_fx.measurement import measure
from exprune_fx.pipeline import transform
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.tuning.budgets import BUDGETS, STAGES
from exprune_fx.tuning.report import Judged, OptimizeReport
from exprune_fx.tuning.score import Evaluate, Score
from exprune_fx.tuning.search import Found, Search
from exprune_fx.tuning.sensitivity import output_sensitivity
from exprune_fx.tuning.study import Study, model_digest

PROBE_EXAMPLES = 256


@dataclass(frozen=True, eq=False)
class Optimized:
    """What `optimize` gives.

    Attributes:
        graph_module: the staged graph.
        plan: by which it was made.
        report: how it was found, and what it keeps of the metric.
    """

    graph_module: fx.GraphModule
    plan: Plan
    report: OptimizeReport


def optimize(
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    batches: Batches,
    evaluate: Evaluate,
    max_drop: float,
    test: Evaluate | None = None,
    confidence: float = 0.5,
    objective: str = "flops",
    head: HeadChoice = "auto",
    sequential: bool = False,
    latency_batch: object | None = None,
    study: str | PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Optimized:
    """Finds the cheapest plan whose metric is at most ``max_drop`` below the dense model's.

    One pass over the calibration data finds, for every site, what each head saves and what energy it loses at every
    threshold; a second, over some of them, what losing energy at each site does to the model's outputs. A ladder of
    plans follows, from the gentlest to the boldest, each saving the most for the error of the outputs that it is
    expected to make. It is climbed, in eight evaluations at most, to the boldest plan that holds the budget: a curve
    through the drops of all plans evaluated says so, and the plan's own drop is within the budget too. The drop of one
    plan alone is so uncertain that the boldest plan within a budget is mostly the luckiest. Where ``evaluate`` gives a
    number for each example, the curve knows what the errors of these drops share. For VGG11-BN on CIFAR-10 (200 times
    5,000 of 10,000 images that neither training nor calibration saw) a budget of 0.1 points costs 0.04 points on all
    10,000 (standard deviation 0.06; more than 0.15 in 2 % of the draws), where taking drops at their word costs 0.13
    (0.12; in 26 %); a budget of 1 point costs 0.92 (0.20), and removes 0.6 % of the FLOPs less than could be.

    Calibration data, what ``evaluate`` looks at and what ``test`` looks at should be three different sets, and the last
    two **must not have trained the model**: what it loses on its training data may be another number (one plan of that
    network: 1.05 points on new images, 1.83 on old ones, standard errors 0.18 and 0.28). Calibration data may have.
    Under ``torchrun`` each process calibrates on its share of the batches, and ``evaluate`` looks at this process's
    share of the examples (`exprune_fx.calibration.ranks.my_slice`) and returns one number for each; every process gets
    the same plan, and the first keeps the study.

    Args:
        model: as `capture` takes it.
        args: example inputs, as `capture` takes them.
        kwargs: example keyword inputs.
        dynamic_shapes: as `capture` takes them.
        batches: calibration data without labels, re-iterable; see `calibrate`.
        evaluate: takes anything that is called like the model; returns the metric, higher is better, or one number for
            each example, whose mean is the metric and which give the report its confidence interval.
        max_drop: in the unit of the metric, at least 0.
        test: as ``evaluate``, on data that select nothing; called twice at the end.
        confidence: how sure the search is to be that new examples lose no more than ``max_drop``, from 0.5 (it is
            expected) to below 1. It counts how little ``evaluate``'s examples know of the drop, not that other examples
            may be of another kind.
        objective: "flops", or "latency": of what the budget allows, only what is faster on this machine, settled on
            whole compiled graphs. What other sites would have cost is spent on those that are.
        head: "prefix", "principal", "coded", or "auto"; see `calibrate`.
        sequential: before a plan is evaluated, make its thresholds again on staged inputs, as `calibrate` can; slow.
        latency_batch: what "latency" times, in the form of a batch: give one as large as those that you will run. By
            default calibration examples, as many at once as ``args`` holds.
        study: a file that keeps every evaluation; a search that was interrupted goes on from it.
        seed: of the bootstrap.
        progress: draw what was found so far on stderr.

    Returns:
        The staged graph, its plan and a report; the dense graph where nothing holds the budget.

    Raises:
        CaptureError: the model cannot be captured.
        CalibrationError: the calibration data are unusable.
        DataError: `evaluate` returned no numbers, or the study is of another model.
        PlanError: an unknown objective or head, a negative ``max_drop``, or a confidence that is none.
    """
    started = time.perf_counter()
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise PlanError(f"max_drop is {max_drop!r}", hint="give a number of at least 0, in the unit of the metric")
    if not 0.5 <= confidence < 1:
        raise PlanError(f"the confidence is {confidence!r}", hint="give a number of at least 0.5, and below 1")
    aim = check_objective(objective)
    request = Request(Calibrated(BUDGETS[-1]), STAGES, head, aim)
    check_request(request)
    check_batches(batches)
    check_alone(aim, sequential)
    gm = capture(model, args, kwargs, dynamic_shapes)
    check_latency_batch(gm, latency_batch)
    data = Data(batches, progress)
    graph, orders = Prepared.of(gm).ordered(data, request)
    frontier = find_frontier(graph, data, request, BUDGETS)
    whole = evaluate_cost(model_flops(graph.gm), data.sizes) / max(data.examples_a_batch, 1)
    kept = Study(None if study is None else Path(study), model_digest(gm))
    redo = partial(refit, graph, Data(batches)) if sequential else None
    search = Search(gm, frontier, orders, evaluate, max_drop, whole, kept, progress, confidence, redo)
    sensitivity = output_sensitivity(gm, frontier.options, search.probes(), orders, batches, PROBE_EXAMPLES)
    found = search.run(sensitivity)
    plan, score = found.plan, found.score
    if aim == "latency":
        given = pieces_to_time(graph.gm, batches, latency_batch)
        plan, score, found = _by_the_clock(search, found, sensitivity, graph, given)
    staged = transform(gm, plan)
    report = OptimizeReport(
        max_drop=max_drop,
        objective=aim,
        fraction_removed=measure(staged, read(batches)).fraction_removed if plan.staged else 0.0,
        selection=Judged.of(search.dense, score, seed),
        test=None if test is None else Judged.of(_score(test, gm), _score(test, staged), seed),
        trials=tuple(search.trials),
        expected_drop=found.expected_drop if plan.staged else 0.0,
        confidence=confidence,
        sure_drop=found.sure_drop if plan.staged else 0.0,
        evaluations=search.evaluations,
        wall_s=time.perf_counter() - started,
        calibration_examples=frontier.examples,
    )
    return Optimized(staged, plan, report)


def _score(evaluate: Evaluate, graph: fx.GraphModule) -> Score:
    return Score.of(evaluate(graph)).gathered()


def _by_the_clock(
    search: Search, found: Found, sensitivity: Mapping[str, float], graph: Prepared, given: Sequence[object]
) -> tuple[Plan, Score, Found]:
    """Of what the budget allows at each site, what is fastest; dense where that does not hold the budget.

    What sites cost that the clock leaves dense is spent on the others: the ladder is climbed again without them.
    """
    plans, slow = _timed(search, found, graph, given)
    if slow:
        search.leave_dense(slow)
        found = search.run(sensitivity)
        plans, _ = _timed(search, found, graph, given)
    settled = settle(graph.gm, graph.groups, graph.sites, plans, given)
    examples = search.frontier.examples
    plan = Plan(settled.sites, dict(search.orders), "latency", examples, machine_text(), settled.timing)
    if not plan.staged:
        return plan, search.dense, found
    assert found.rung is not None  # else nothing was allowed, and the plan is dense
    score = search.score(plan)
    search.tried(score, "clock", found.rung.damage, _removed(plan, search.frontier))
    if search.dense.value - score.value <= search.max_drop:
        return plan, score, found
    dense = search.plan(None).sites
    return Plan(dense, {}, "latency", examples, machine_text(), settled.timing), search.dense, found


def _timed(
    search: Search, found: Found, graph: Prepared, given: Sequence[object]
) -> tuple[dict[str, tuple[SitePlan, ...]], set[str]]:
    """Of ways that lose no more energy at a site than the chosen rung does, the fastest; and where none was faster."""
    options, coded = search.frontier.options, search.frontier.coded
    allowed = {} if found.rung is None else found.rung.options
    candidates = {
        name: _within((*options[name], *coded.get(name, ())), option.energy_lost)
        for name, option in allowed.items()
        if len(options[name]) > 1
    }
    refusals = {
        site.name: "" if candidates.get(site.name) else options[site.name][0].entry.reason for site in graph.sites
    }
    entries = {name: [option.entry for option in some] for name, some in candidates.items() if some}
    plans = decide_sites(graph.gm, graph.groups, graph.sites, entries, refusals, given)
    gaining = {entry.site for chosen in plans.values() for entry in chosen if entry.is_staged}
    return plans, set(entries) - gaining


def _removed(plan: Plan, frontier: Frontier) -> float:
    """FLOPs of one example that a plan of a frontier's entries is expected to save."""
    chosen = {(entry.site, entry.head, entry.stages, entry.guard) for entry in plan.staged}
    found = {
        (option.entry.site, option.entry.head, option.entry.stages, option.entry.guard): option.flops_removed
        for options in (*frontier.options.values(), *frontier.coded.values())
        for option in options
    }
    return sum(found[key] for key in chosen if key in found)


def _within(options: Sequence[Option], energy_lost: float) -> list[Option]:
    """Of each head the boldest option that loses no more than this."""
    best = {(option.entry.head, option.entry.stages): option for option in options if option.energy_lost <= energy_lost}
    return [option for option in best.values() if option.entry.is_staged]

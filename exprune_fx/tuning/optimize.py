"""`optimize`: the cheapest plan within a drop of the caller's own metric."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from torch import fx

from exprune_fx.calibration.data import Batches, check_batches, read
from exprune_fx.calibration.frontier import Frontier, Option, find_frontier
from exprune_fx.calibration.latency import decide_sites, machine_text, pieces_to_time
from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.calibration.request import HeadChoice, Request, check_objective, check_request
from exprune_fx.calibration.whole import settle
from exprune_fx.cost import evaluate as evaluate_cost
from exprune_fx.cost import model_flops
from exprune_fx.errors import PlanError
from exprune_fx.graph import capture
from exprune_fx.guards import Calibrated
from exprune_fx.measurement import measure
from exprune_fx.pipeline import transform
from exprune_fx.plan import Objective, Plan
from exprune_fx.tuning.budgets import BUDGETS, STAGES
from exprune_fx.tuning.ladder import Rung, ladder
from exprune_fx.tuning.report import Judged, OptimizeReport, Trial, pareto
from exprune_fx.tuning.score import Evaluate, Score
from exprune_fx.tuning.sensitivity import output_sensitivity
from exprune_fx.tuning.study import Study, model_digest, plan_digest

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
    objective: str = "flops",
    head: HeadChoice = "auto",
    study: str | PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Optimized:
    """Finds the cheapest plan whose metric is at most ``max_drop`` below the dense model's.

    One pass over the calibration data finds, for every site, what each head saves and what energy it loses at every
    threshold. Two ladders of plans follow, from the gentlest to the boldest: on the first a unit of energy costs the
    same at every site, on the second what it does to the model's outputs, measured with one site staged at a time. On
    both the boldest plan that holds the budget is found by bisection, and of all plans evaluated the one that saves
    most is kept.

    Calibration data, what ``evaluate`` looks at and what ``test`` looks at should be three different sets.

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
        objective: "flops", or "latency": of what the budget allows, only what is faster on this machine, settled on
            whole compiled graphs.
        head: "prefix", "principal", or "auto".
        study: a file that keeps every evaluation; a search that was interrupted goes on from it.
        seed: of the bootstrap.
        progress: draw what was found so far on stderr.

    Returns:
        The staged graph, its plan and a report; the dense graph where nothing holds the budget.

    Raises:
        CaptureError: the model cannot be captured.
        CalibrationError: the calibration data are unusable.
        DataError: `evaluate` returned no numbers, or the study is of another model.
        PlanError: an unknown objective or head, or a negative ``max_drop``.
    """
    started = time.perf_counter()
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise PlanError(f"max_drop is {max_drop!r}", hint="give a number of at least 0, in the unit of the metric")
    aim = check_objective(objective)
    request = Request(Calibrated(BUDGETS[-1]), STAGES, head, "flops")
    check_request(request if aim == "flops" else Request(request.guard, STAGES, head, aim))
    check_batches(batches)
    gm = capture(model, args, kwargs, dynamic_shapes)
    data = Data(batches, progress)
    graph, orders = Prepared.of(gm).ordered(data, request)
    frontier = find_frontier(graph, data, request, BUDGETS)
    whole = evaluate_cost(model_flops(graph.gm), data.sizes) / max(data.examples_a_batch, 1)
    kept = Study(None if study is None else Path(study), model_digest(gm))
    search = _Search(gm, frontier, orders, evaluate, max_drop, whole, kept, progress)
    plan, score = search.run(batches)
    if aim == "latency":
        plan, score = search.by_the_clock(graph, batches)
    staged = transform(gm, plan)
    report = OptimizeReport(
        max_drop=max_drop,
        objective=aim,
        fraction_removed=measure(staged, read(batches)).fraction_removed if plan.staged else 0.0,
        selection=Judged.of(search.dense, score, seed),
        test=None if test is None else Judged.of(Score.of(test(gm)), Score.of(test(staged)), seed),
        trials=tuple(search.trials),
        evaluations=search.evaluations,
        wall_s=time.perf_counter() - started,
        calibration_examples=frontier.examples,
    )
    return Optimized(staged, plan, report)


@dataclass(eq=False)
class _Search:
    """Evaluates plans, and remembers what came of them."""

    gm: fx.GraphModule
    frontier: Frontier
    orders: Mapping[str, tuple[int, ...]]
    evaluate: Evaluate
    max_drop: float
    flops: float
    study: Study
    show_progress: bool
    trials: list[Trial] = field(default_factory=list)
    evaluations: int = 0
    _best: tuple[Rung, Score] | None = None

    def __post_init__(self) -> None:
        self.dense = self.study.score("dense", lambda: self._evaluated(self.gm))

    def run(self, batches: Batches) -> tuple[Plan, Score]:
        """The plan that saves most of those that hold the budget, and its score."""
        options = self.frontier.options
        uniform = self._bisect(ladder(options, dict.fromkeys(options, 1.0)), "uniform")
        probes = {name: _probe(found, uniform.options[name]) for name, found in options.items()}
        sensitivity = output_sensitivity(self.gm, options, probes, self.orders, batches, PROBE_EXAMPLES)
        self._bisect(ladder(options, sensitivity), "measured")
        if self._best is None:
            return self._plan(uniform), self.dense  # the dense rung
        return self._plan(self._best[0]), self._best[1]

    def by_the_clock(self, graph: Prepared, batches: Batches) -> tuple[Plan, Score]:
        """Of what the budget allows at each site, what is fastest; dense where that does not hold the budget."""
        allowed = {} if self._best is None else self._best[0].options
        candidates = {
            name: _within(self.frontier.options[name], option.energy_lost) for name, option in allowed.items()
        }
        refusals = {
            site.name: "" if candidates.get(site.name) else self.frontier.options[site.name][0].entry.reason
            for site in graph.sites
        }
        given = pieces_to_time(graph.gm, batches)
        entries = {name: [option.entry for option in found] for name, found in candidates.items() if found}
        plans = decide_sites(graph.gm, graph.groups, graph.sites, entries, refusals, given)
        settled = settle(graph.gm, graph.groups, graph.sites, plans, given)
        plan = Plan(settled.sites, dict(self.orders), "latency", self.frontier.examples, machine_text(), settled.timing)
        if not plan.staged:
            return plan, self.dense
        assert self._best is not None  # else nothing was allowed, and the plan is dense
        score = self._score(plan, "clock", self._best[0].damage, self._removed(plan))
        if self.dense.value - score.value <= self.max_drop:
            return plan, score
        dense = tuple(found[0].entry for found in self.frontier.options.values())
        return Plan(dense, {}, "latency", self.frontier.examples, machine_text(), settled.timing), self.dense

    def _bisect(self, rungs: Sequence[Rung], allocation: str) -> Rung:
        """The boldest rung that holds the budget, taking it that a bolder one loses more."""
        holds, breaks = 0, len(rungs)
        with Progress(console=Console(stderr=True), disable=not self.show_progress, transient=True) as bar:
            task = bar.add_task(f"optimize: {allocation} plans", total=max(math.ceil(math.log2(breaks)), 1))
            while breaks - holds > 1:
                middle = (holds + breaks) // 2
                rung = rungs[middle]
                score = self._score(self._plan(rung), allocation, rung.damage, rung.flops_removed)
                if self.dense.value - score.value <= self.max_drop:
                    holds = middle
                    if self._best is None or rung.flops_removed > self._best[0].flops_removed:
                        self._best = rung, score
                else:
                    breaks = middle
                front = ", ".join(f"-{100 * t.fraction_removed:.0f} % at {t.drop:+.3g}" for t in pareto(self.trials))
                bar.update(task, advance=1, description=f"optimize: {allocation} plans; so far {front}")
        return rungs[holds]

    def _score(self, plan: Plan, allocation: str, damage: float, flops_removed: float) -> Score:
        score = self.study.score(plan_digest(plan), lambda: self._evaluated(transform(self.gm, plan)))
        share = flops_removed / self.flops if self.flops else 0.0
        self.trials.append(Trial(allocation, damage, share, score.value, self.dense.value - score.value))
        return score

    def _evaluated(self, graph: fx.GraphModule) -> Score:
        self.evaluations += 1
        return Score.of(self.evaluate(graph))

    def _plan(self, rung: Rung) -> Plan:
        entries = tuple(option.entry for option in rung.options.values())
        staged = any(entry.is_staged for entry in entries)
        objective: Objective = "flops"
        return Plan(entries, dict(self.orders) if staged else {}, objective, self.frontier.examples)

    def _removed(self, plan: Plan) -> float:
        """FLOPs of one example that a plan of this frontier's entries is expected to save."""
        chosen = {(entry.site, entry.head, entry.stages, entry.guard) for entry in plan.staged}
        return sum(
            option.flops_removed
            for found in self.frontier.options.values()
            for option in found
            if (option.entry.site, option.entry.head, option.entry.stages, option.entry.guard) in chosen
        )


def _probe(options: Sequence[Option], chosen: Option) -> Option:
    """What a site's sensitivity is measured with: the option that was chosen, or the gentlest that loses anything."""
    return chosen if chosen.energy_lost > 0 else next((o for o in options if o.energy_lost > 0), options[-1])


def _within(options: Sequence[Option], energy_lost: float) -> list[Option]:
    """Of each head the boldest option that loses no more than this."""
    best = {(option.entry.head, option.entry.stages): option for option in options if option.energy_lost <= energy_lost}
    return [option for option in best.values() if option.entry.is_staged]

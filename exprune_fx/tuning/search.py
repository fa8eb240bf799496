"""Evaluates plans from a ladder, remembers what came of them, and chooses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.progress import Progress, TaskID
from torch import fx

from exprune_fx.calibration import ranks
from exprune_fx.calibration.frontier import Frontier, Option
from exprune_fx.pipeline import transform
from exprune_fx.plan import Objective, Plan
from exprune_fx.tuning.climb import EVALUATIONS, Climb, Loss
from exprune_fx.tuning.ladder import Rung, ladder
from exprune_fx.tuning.report import Trial, pareto
from exprune_fx.tuning.score import Evaluate, Score, differences
from exprune_fx.tuning.study import Study, plan_digest

PROBE_ENERGY = 0.01  # of a site's energy: what sensitivities are measured with, on the average of the sites
Refit = Callable[[Plan], Plan]


@dataclass(frozen=True, eq=False)
class Found:
    """What a search chose.

    Attributes:
        rung: None for the dense model.
        plan: of the rung.
        score: on the selection data.
        expected_drop: by the curve through all trials; 0 for the dense model.
        sure_drop: what the curve says that it is at most, with the confidence asked for; likewise.
    """

    rung: Rung | None
    plan: Plan
    score: Score
    expected_drop: float
    sure_drop: float


@dataclass(eq=False)
class Search:
    """One search.

    Attributes:
        gm: the captured graph.
        frontier: what can be done at each site; see `leave_dense`.
        orders: of the terms.
        evaluate: the caller's.
        max_drop: in its unit.
        flops: of the dense model, for one calibration example.
        study: evaluations on file.
        show_progress: draw the front on stderr.
        confidence: see `Climb`.
        refit: makes a plan's thresholds anew before it is evaluated, or None.
        trials: every plan that was evaluated, in order.
        evaluations: calls of `evaluate`.
        dense: score of the dense model.
    """

    gm: fx.GraphModule
    frontier: Frontier
    orders: Mapping[str, tuple[int, ...]]
    evaluate: Evaluate
    max_drop: float
    flops: float
    study: Study
    show_progress: bool = False
    confidence: float = 0.5
    refit: Refit | None = None
    trials: list[Trial] = field(default_factory=list)
    evaluations: int = 0

    def __post_init__(self) -> None:
        """Evaluates the dense model."""
        self.dense = self.study.score("dense", lambda: self._evaluated(self.gm))

    def probes(self) -> dict[str, Option]:
        """What each site's sensitivity is measured with: its option on a gentle uniform plan."""
        options = self.frontier.options
        rungs = ladder(options, dict.fromkeys(options, 1.0))
        gentle = max((rung for rung in rungs if rung.damage <= PROBE_ENERGY * len(options)), key=lambda r: r.damage)
        return {name: _probe(found, gentle.options[name]) for name, found in options.items()}

    def run(self, sensitivity: Mapping[str, float]) -> Found:
        """Climbs the ladder of these sensitivities to the boldest rung that holds the budget."""
        rungs = ladder(self.frontier.options, sensitivity)
        climb = Climb(rungs, self.max_drop, 0.5 / len(self.dense.each) if self.dense.each else 0.0, self.confidence)
        with Progress(console=Console(stderr=True), disable=not self._shows, transient=True) as bar:
            climb.run(self._loss_on(bar, bar.add_task("optimize", total=EVALUATIONS)))
        rung = climb.best
        if rung is None:
            return Found(None, self.plan(None), self.dense, 0.0, 0.0)
        curve = climb.curve
        drops = curve.drop(rung.damage), curve.drop(rung.damage, self.confidence)
        return Found(rung, *self.scored(rung), *drops)

    def leave_dense(self, names: Collection[str]) -> None:
        """Gives the search no other choice at these sites from now on."""
        options = {name: found[:1] if name in names else found for name, found in self.frontier.options.items()}
        self.frontier = replace(self.frontier, options=options)

    def plan(self, rung: Rung | None) -> Plan:
        """The plan of a rung, as the frontier has it; None is the dense one."""
        chosen = {name: found[0] for name, found in self.frontier.options.items()} if rung is None else rung.options
        entries = tuple(option.entry for option in chosen.values())
        staged = any(entry.is_staged for entry in entries)
        objective: Objective = "flops"
        return Plan(entries, dict(self.orders) if staged else {}, objective, self.frontier.examples)

    def scored(self, rung: Rung) -> tuple[Plan, Score]:
        """The plan that a rung is evaluated with, and its score."""
        plan = self.plan(rung)
        if self.refit is not None:
            plan = self.refit(plan)
        return plan, self.score(plan)

    def score(self, plan: Plan) -> Score:
        """Of a plan: the one on file, or what the caller's `evaluate` says."""
        return self.study.score(plan_digest(plan), lambda: self._evaluated(transform(self.gm, plan)))

    def tried(self, score: Score, allocation: str, damage: float, flops_removed: float) -> None:
        """Notes a trial."""
        share = flops_removed / self.flops if self.flops else 0.0
        self.trials.append(Trial(allocation, damage, share, score.value, self.dense.value - score.value))

    @property
    def _shows(self) -> bool:
        return self.show_progress and ranks.index() == 0

    def _loss_on(self, bar: Progress, task: TaskID) -> Callable[[Rung], Loss]:
        def loss(rung: Rung) -> Loss:
            _, score = self.scored(rung)
            self.tried(score, "measured", rung.damage, rung.flops_removed)
            front = ", ".join(f"-{100 * t.fraction_removed:.0f} % at {t.drop:+.3g}" for t in pareto(self.trials))
            bar.update(task, advance=1, description=f"optimize; so far {front}")
            return Loss(self.dense.value - score.value, differences(self.dense, score))

        return loss

    def _evaluated(self, graph: fx.GraphModule) -> Score:
        self.evaluations += 1
        return Score.of(self.evaluate(graph)).gathered()


def _probe(options: Sequence[Option], chosen: Option) -> Option:
    """The option that was chosen, or the gentlest that loses anything."""
    return chosen if chosen.energy_lost > 0 else next((o for o in options if o.energy_lost > 0), options[-1])

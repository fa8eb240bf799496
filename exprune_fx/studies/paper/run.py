"""Runs one subject: the paper's guards tuned its way, ours by `optimize`, all judged on examples that chose nothing."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.calibration.request import HeadChoice
from exprune_fx.errors import DataError
from exprune_fx.graph import capture
from exprune_fx.graph.edits import tensor_at
from exprune_fx.plan import Plan
from exprune_fx.studies.paper.counting import Counting
from exprune_fx.studies.paper.guards import PUBLISHED, SPAN, GuardName, GuardSpace, heads_of
from exprune_fx.studies.paper.judging import Graphs, Judging
from exprune_fx.studies.paper.results import BY_TRIALS, OURS, Curve, Effort, Reproduction, Row
from exprune_fx.studies.paper.search import Trial, chosen, front_of, search_settings
from exprune_fx.studies.paper.store import Store
from exprune_fx.studies.subjects import Subject
from exprune_fx.studies.subjects.subject import Judge
from exprune_fx.timing import Stopwatch
from exprune_fx.tuning import optimize, search_guards
from exprune_fx.tuning.guard_space import mean_quantiles
from exprune_fx.tuning.study import model_digest, plan_digest
from exprune_fx.tuning.template import Template, record_to_stage

Say = Callable[[str], None]
DROPS = (0.001, 0.01)
GIVE_UP = 0.02  # the reference implementation's: a trial this far below the dense model on its first examples ends
FIRST_PART = 4  # these examples are one in so many


@dataclass(frozen=True)
class Settings:
    """How a run is made.

    Attributes:
        trials: settings tried of each of the paper's guards (the reference implementation: 2,000).
        calibrated_trials: settings of our guard that are tried the same way, beside `optimize`; 0 for none.
        drops: of the metric that are allowed on the selection examples, as fractions.
        selection_counted: batches of selection examples that every trial's FLOPs are counted on.
        test_counted: batches of test examples that the chosen plans' FLOPs are counted on.
        judge_front: also judge every setting that no other one beats on the selection examples, as the reference
            implementation does to show the best of them.
        seed: of the searches and the bootstrap.
        study: folder that keeps every evaluation, or None.
    """

    trials: int = 40
    calibrated_trials: int = 0
    drops: tuple[float, ...] = DROPS
    selection_counted: int = 1
    test_counted: int = 4
    judge_front: bool = False
    seed: int = 0
    study: Path | None = None


def reproduce(subject: Subject, settings: Settings, say: Say = lambda _: None) -> Reproduction:
    """All of one subject.

    Raises:
        CaptureError: the model cannot be captured.
        DataError: no site has exchangeable terms enough, a study is of something else, or Optuna is not installed.
    """
    started = time.perf_counter()
    run = _Run.of(subject, settings, say)
    curves, rows = [], []
    for guard in PUBLISHED:
        curve, found = run.published(guard)
        curves.append(curve)
        rows += found
    for search in (run.ours, *([run.ours_by_trials] if settings.calibrated_trials else [])):
        curve, found = search()
        curves.append(curve)
        rows += found
    sizes = [len(target) for target in subject.test.targets[: settings.test_counted]]
    judging = run.judging
    test = judging.tally("dense", judging.dense_graphs)
    return Reproduction(
        subject=subject.name,
        title=subject.title,
        about=subject.about,
        metric=subject.selection.metric.name,
        dense_selection=run.dense_score,
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


@dataclass(eq=False)
class _Run:
    """What the methods share: the graph, the dense model's results, the file that keeps evaluations."""

    subject: Subject
    settings: Settings
    say: Say
    gm: fx.GraphModule
    prepared: Prepared
    heads: dict[str, int]
    store: Store
    judging: Judging
    dense_first: float
    dense_score: float

    @classmethod
    def of(cls, subject: Subject, settings: Settings, say: Say) -> _Run:
        """Captures the model and judges it as it is."""
        say("capture")
        gm = capture(subject.model, subject.args, dynamic_shapes=subject.dynamic_shapes)
        prepared = Prepared.of(gm)
        heads = heads_of(prepared.sites, subject.head_terms, _densities(prepared, subject.sparse))
        if not heads:
            raise DataError(
                f"{subject.title}: no site has more than {subject.head_terms} exchangeable terms",
                hint="the paper's guards have nothing to test; see exprune explain",
            )
        path = None if settings.study is None else settings.study / f"{subject.name}.jsonl"
        store = Store(path, _digest(f"{model_digest(gm)} {subject.about}"))
        dense = GuardSpace("StatsTest", prepared.sites, heads, {}).plan([0.0] * len(heads))
        counting = Counting(gm, subject.sparse)
        judging = Judging(subject, gm, dense, counting, settings.test_counted, store, settings.seed)
        say("the dense model")
        found = store.get("selection dense", lambda: _dense_scores(subject, gm))
        judging.judged("dense", judging.dense_graphs)
        return cls(subject, settings, say, gm, prepared, heads, store, judging, found["first"], found["score"])

    # --- the paper's guards -------------------------------------------------------------------------------------------

    def published(self, guard: GuardName) -> tuple[Curve, list[Row]]:
        """Tunes one of the paper's guards, and judges what it chose for each drop."""
        self.say(f"{guard}: scale of the sites")
        quantiles, effort = self._quantiles() if guard == "Threshold" else ({}, Effort())
        space = GuardSpace(guard, self.prepared.sites, self.heads, quantiles)
        template = Template(record_to_stage(self.prepared.gm), space.plan, space.diagonal[-1])
        numbers = itertools.count(1)

        def try_setting(setting: tuple[float, ...]) -> Trial:
            self.say(f"{guard}: trial {next(numbers)} of {self.settings.trials}")
            found = self.store.get(f"{guard} {list(setting)}", lambda: self._tried(template, setting))
            return Trial(setting, found["score"], found["fraction_removed"], found["given_up"])

        trials = search_settings(
            space.diagonal, SPAN[guard], try_setting, max(self.settings.trials, 1), self.settings.seed
        )
        rows = []
        for drop in self.settings.drops:
            best = chosen(trials, self.dense_score, drop)
            setting = (0.0,) * len(self.heads) if best is None else best.setting
            lost = 0.0 if best is None else self.dense_score - best.score
            key, graphs = plan_digest(space.plan(setting)), Graphs.of_setting(template, setting)
            if best is None:
                key, graphs = "dense", self.judging.dense_graphs
            rows.append(self._row(guard, drop, key, graphs, lost, space.numbers(setting)))
        judged = self._front(guard, space, template, trials) if self.settings.judge_front else ()
        effort = sum((self.store.took(f"{guard} {list(trial.setting)}") for trial in trials), effort)
        return Curve(guard, tuple(trials), effort, judged), rows

    def _quantiles(self) -> tuple[dict[str, Tensor], Effort]:
        """What Threshold's settings are a scale of, and what finding it took."""
        clock = Stopwatch()
        found = mean_quantiles(self.prepared, Data(self.subject.calibration), self.heads)
        return found, Effort(0, **clock.spent)

    def _front(
        self, guard: GuardName, space: GuardSpace, template: Template, trials: Sequence[Trial]
    ) -> tuple[tuple[float, float], ...]:
        """Drop on the test examples, and share removed there, of the best settings of a search."""
        best = [trial for trial in front_of(trials) if self.dense_score - trial.score <= GIVE_UP]
        found = []
        for number, trial in enumerate(best):
            self.say(f"{guard}: judged, {number + 1} of the front's {len(best)}")
            key, graphs = plan_digest(space.plan(trial.setting)), Graphs.of_setting(template, trial.setting)
            drop = self.judging.drop(self.judging.judged(key, graphs))
            found.append((drop, self.judging.tally(key, graphs).fraction_removed))
        return tuple(found)

    def _tried(self, template: Template, setting: Sequence[float]) -> dict[str, Any]:
        """One trial on the selection examples; given up where the first of them lose too much."""
        staged = template.model(setting)
        selection = self.subject.selection
        part = _first_part(selection)
        if selection.metric.is_mean:
            first = selection.metric.value(selection.each(staged, 0, part))
            if first < self.dense_first - GIVE_UP:
                return {"score": first, "fraction_removed": 0.0, "given_up": True}
        score = selection.metric.value(selection.each(staged))
        counted = selection.batches[: self.settings.selection_counted]
        tally = self.judging.counting.tally(template.readable(setting), counted)
        return {"score": score, "fraction_removed": tally.fraction_removed, "given_up": False}

    # --- ours ---------------------------------------------------------------------------------------------------------

    def ours(self) -> tuple[Curve, list[Row]]:
        """Calibrated guards by `optimize`, for each drop."""
        rows, trials, effort = [], [], Effort()
        for drop in self.settings.drops:
            self.say(f"{OURS}: optimize within a drop of {100 * drop:g} points")
            key = f"{OURS} {drop}"
            found = self.store.get(key, partial(self._optimized, drop))
            trials += [Trial((), score, removed) for score, removed in found["trials"]]
            took = self.store.took(key)
            effort += Effort(found["evaluations"], took.wall_s, took.cpu_s)
            rows.append(self._planned(OURS, drop, found))
        return Curve(OURS, tuple(trials), effort), rows

    def ours_by_trials(self) -> tuple[Curve, list[Row]]:
        """The same guard, searched as the paper's are: Optuna's trials, one number a site."""
        found = self.store.get(f"{BY_TRIALS} {self.settings.calibrated_trials}", self._searched)
        rows = [self._planned(BY_TRIALS, drop, found["best"][str(drop)]) for drop in self.settings.drops]
        trials = tuple(Trial((), score, removed) for score, removed in found["trials"])
        return Curve(BY_TRIALS, trials, Effort(**found["effort"])), rows

    def _searched(self) -> dict[str, Any]:
        subject, study = self.subject, self.settings.study
        numbers = itertools.count(0)

        def evaluate(model: Any) -> float | Tensor:
            self.say(f"{BY_TRIALS}: evaluation {next(numbers)} of {self.settings.calibrated_trials}")
            return subject.selection(model)

        found = search_guards(
            self.gm,
            subject.calibration,
            evaluate,
            "calibrated",
            trials=self.settings.calibrated_trials,
            head=self._head,
            storage=None if study is None else study / f"{subject.name}.trials.db",
            seed=self.settings.seed,
        )
        best = {}
        for drop in self.settings.drops:
            trial = found.best(drop)
            plan, lost = (Plan(), 0.0) if trial is None else (found.plan(trial), trial.drop)
            best[str(drop)] = {"plan": plan.to_dict(), "drop": lost}
        return {
            "best": best,
            "trials": [[trial.score, trial.fraction_removed] for trial in found.trials],
            "effort": {"evaluations": len(found.trials), "wall_s": found.wall_s, "cpu_s": found.cpu_s},
        }

    def _planned(self, method: str, drop: float, found: Mapping[str, Any]) -> Row:
        """The row of a plan on file."""
        plan = Plan.from_dict(found["plan"])
        graphs = Graphs.of_plan(self.gm, plan) if plan.staged else self.judging.dense_graphs
        key = plan_digest(plan) if plan.staged else "dense"
        return self._row(method, drop, key, graphs, found["drop"], {})

    @property
    def _head(self) -> HeadChoice:
        """Principal heads are dense: of pruned weights they would cost more than they save."""
        return "prefix" if self.subject.sparse else "auto"

    def _optimized(self, drop: float) -> dict[str, Any]:
        subject = self.subject
        study = None if self.settings.study is None else self.settings.study / f"{subject.name}.optimize.jsonl"
        best = optimize(
            subject.model,
            subject.args,
            dynamic_shapes=subject.dynamic_shapes,
            batches=subject.calibration,
            evaluate=subject.selection,
            max_drop=drop,
            head=self._head,
            study=study,
            seed=self.settings.seed,
        )
        return {
            "plan": best.plan.to_dict(),
            "drop": best.report.selection.drop,
            "evaluations": best.report.evaluations - 1,
            "trials": [[trial.score, trial.fraction_removed] for trial in best.report.trials],
        }

    def _row(
        self, method: str, drop: float, key: str, graphs: Graphs, lost: float, numbers: dict[str, float | None]
    ) -> Row:
        self.say(f"{method}: judged, allowed to lose {100 * drop:g} points")
        return self.judging.row(method, drop, key, graphs, lost, numbers)


def _first_part(selection: Judge) -> int:
    """How many batches are looked at first."""
    return max(len(selection.batches) // FIRST_PART, 1)


def _dense_scores(subject: Subject, model: fx.GraphModule) -> dict[str, Any]:
    selection = subject.selection
    each = selection.each(model)
    first = sum(len(target) for target in selection.targets[: _first_part(selection)])
    value = selection.metric.value
    return {"score": value(each), "first": value(each[:first]) if selection.metric.is_mean else 0.0}


def _densities(prepared: Prepared, sparse: bool) -> dict[str, float]:
    """By site, the share of terms with any weight that is not zero; 1 where all weights are counted."""
    if not sparse:
        return dict.fromkeys((site.name for site in prepared.sites), 1.0)
    found = {}
    for site in prepared.sites:
        weight = tensor_at(prepared.gm, site.weight).detach()
        found[site.name] = float((weight.reshape(len(weight), site.terms, -1) != 0).any(2).double().mean())
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

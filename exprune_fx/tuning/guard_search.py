"""`search_guards`: guards by trial and error, one number a site, proposed by Optuna.

The search of the ExPrune paper (arXiv 2506.02210), open to our guard too, so that both can be compared at equal trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike, fspath
from typing import Any

from rich.console import Console
from torch import fx

from exprune_fx.calibration import ranks
from exprune_fx.calibration.data import Batches, check_batches, read
from exprune_fx.calibration.frontier import find_frontier
from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.calibration.request import HeadChoice, Request, check_request, check_stages
from exprune_fx.errors import DataError, PlanError
from exprune_fx.extras import optional_module
from exprune_fx.guards import Calibrated
from exprune_fx.plan import Plan
from exprune_fx.timing import Stopwatch
from exprune_fx.tuning.budgets import BUDGETS, STAGES
from exprune_fx.tuning.guard_space import GuardChoice, GuardSpace, OptionSpace, check_guard, number_space
from exprune_fx.tuning.report import Trial, pareto
from exprune_fx.tuning.score import Evaluate, Score
from exprune_fx.tuning.study import model_digest
from exprune_fx.tuning.trying import Maker

_SEED_STEP = 1_000_003


@dataclass(frozen=True)
class GuardTrial(Trial):
    """One setting that was tried.

    Attributes:
        setting: one number from 0 (dense) to 1 for each site.
        wall_s: seconds that making, counting and evaluating it took.
        cpu_s: likewise, of all threads.
    """

    setting: tuple[float, ...] = ()
    wall_s: float = field(default=0.0, compare=False)
    cpu_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, eq=False)
class GuardSearch:
    """What `search_guards` found.

    Attributes:
        guard: that was searched over.
        sites: that a setting has a number for.
        dense: score of the dense model.
        trials: every one, those of earlier runs on the same storage too.
        evaluations: calls of `evaluate` that this run made.
        wall_s: seconds that the search took, calibration too; of an earlier run on the same storage, its trials.
        cpu_s: likewise, of all threads.
    """

    guard: GuardChoice
    sites: tuple[str, ...]
    dense: float
    trials: tuple[GuardTrial, ...]
    evaluations: int
    wall_s: float
    cpu_s: float
    _space: GuardSpace = field(repr=False)

    @property
    def front(self) -> tuple[Trial, ...]:
        """The trials that no other one beats in both FLOPs and score, the gentlest first."""
        return pareto(self.trials)

    def plan(self, trial: Trial) -> Plan:
        """The plan of a trial.

        Raises:
            PlanError: it is no trial of this search.
        """
        if not isinstance(trial, GuardTrial) or len(trial.setting) != len(self.sites):
            raise PlanError("this is no trial of this search", hint="give one of its trials or of its front")
        return self._space.plan(trial.setting)

    def best(self, max_drop: float) -> GuardTrial | None:
        """Of the trials within a drop of the metric, the one that removes most; None where none removes anything.

        Best of many on the data that it was selected by, and so optimistic on others.
        """
        within = [trial for trial in self.trials if trial.drop <= max_drop and trial.fraction_removed > 0]
        return max(within, key=lambda trial: trial.fraction_removed, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        trials, front = ([asdict(trial) for trial in found] for found in (self.trials, self.front))
        return {
            "guard": self.guard,
            "sites": list(self.sites),
            "dense": self.dense,
            "evaluations": self.evaluations,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "trials": trials,
            "front": front,
        }


def search_guards(
    gm: fx.GraphModule,
    batches: Batches,
    evaluate: Evaluate,
    guard: GuardChoice = "stats_test",
    *,
    trials: int = 200,
    stages: Sequence[float] = (1 / 4,),
    head: HeadChoice = "auto",
    count_batches: int = 1,
    storage: str | PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> GuardSearch:
    """Searches for guards by trials, one number a site, with two aims: few FLOPs and a high metric.

    Each trial stages the model by one setting, counts its FLOPs on calibration data, and asks ``evaluate`` for the
    metric. First come eight settings that are the same at every site, then what Optuna's tree-structured Parzen
    estimator for several aims proposes (Bergstra et al. 2011; Ozaki et al. 2022). What is proposed follows from the
    seed and the trials before it, so that a search that was interrupted goes on and ends as if it had not been.

    Args:
        gm: a captured graph; it is left as it is.
        batches: calibration data without labels, re-iterable; see `calibrate`. Thresholds and FLOPs come of it.
        evaluate: as for `optimize`, on data that select.
        guard: "stats_test" (alpha of each site), "threshold" (T of each site), "finite_population" (alpha), or
            "calibrated" (head, rank and budget of each site, along the frontier that `optimize` searches too).
        trials: how many there are to be in the end, those on file included.
        stages: fractions of the terms at which a site is tested; not for "calibrated", which tries its own.
        head: for "calibrated".
        count_batches: batches of the calibration data that each trial's FLOPs are counted on.
        storage: an SQLite file, or a URL as Optuna takes it, that keeps the trials; searches over several guards of
            several models fit into one.
        seed: of the estimator.
        progress: say on stderr what was found so far.

    Raises:
        DataError: Optuna is not installed, the storage holds another search, or `evaluate` returned no numbers.
        PlanError: an unknown guard or head, no site that could be staged, or several processes under ``torchrun``.
        GuardError: the stages are not increasing fractions.
        CalibrationError: the calibration data are unusable.
    """
    clock = Stopwatch()
    kind = check_guard(guard)
    check_stages(tuple(stages))
    check_batches(batches)
    if ranks.count() > 1:
        raise PlanError(f"{ranks.count()} processes cannot share one search of trials", hint="use one process")
    optuna = _optuna()
    graph, space = _prepared(gm, kind, Data(batches, progress), stages, head)
    if not space.sites:
        raise PlanError(f"no site of this model can be staged by {kind}", hint="print(find_sites(gm)) says why")
    counted = [batch for _, batch in zip(range(count_batches), read(batches), strict=False)]
    maker = Maker(graph.gm, space, counted)
    dense = Score.of(evaluate(gm)).value
    about = {"model": model_digest(gm), "guard": kind, "stages": list(stages), "head": head, "seed": seed}
    search = _Search(optuna, space, maker, evaluate, dense, seed, progress)
    made = search.run(search.study(storage, about), trials)
    found = tuple(search.trials)
    before = found[: len(found) - made]
    spent = clock.spent
    wall_s = spent["wall_s"] + sum(trial.wall_s for trial in before)
    cpu_s = spent["cpu_s"] + sum(trial.cpu_s for trial in before)
    return GuardSearch(kind, space.sites, dense, found, made + 1, wall_s, cpu_s, space)


def _prepared(
    gm: fx.GraphModule, kind: GuardChoice, data: Data, stages: Sequence[float], head: HeadChoice
) -> tuple[Prepared, GuardSpace]:
    graph = Prepared.of(gm)
    if kind != "calibrated":
        return graph, number_space(kind, graph, data, stages)
    request = Request(Calibrated(BUDGETS[-1]), STAGES, head)
    check_request(request)
    graph, orders = graph.ordered(data, request)
    frontier = find_frontier(graph, data, request, BUDGETS)
    return graph, OptionSpace(frontier.options, orders, frontier.examples)


@dataclass(eq=False)
class _Search:
    optuna: Any
    space: GuardSpace
    maker: Maker
    evaluate: Evaluate
    dense: float
    seed: int
    show: bool
    trials: list[GuardTrial] = field(default_factory=list)

    def study(self, storage: str | PathLike[str] | None, about: dict[str, Any]) -> Any:
        """The Optuna study, opened or made."""
        where = None if storage is None else fspath(storage)
        url = where if where is None or "://" in where else f"sqlite:///{where}"
        name = f"exprune-{about['guard']}-{about['model'][:16]}"
        try:
            study = self.optuna.create_study(
                storage=url, study_name=name, directions=["minimize", "maximize"], load_if_exists=True
            )
        except Exception as error:  # whatever the data base's driver raises
            raise DataError(
                f"cannot open the storage {where!r}: {type(error).__name__}: {error}",
                hint="give the path of an SQLite file, or a URL that Optuna takes",
            ) from error
        known = study.user_attrs.get("about")
        if known is None:
            study.set_user_attr("about", about)
        elif known != about:
            raise DataError(
                f"study {name!r} in {where!r} searched with {known}, and now it is {about}",
                hint="ask for the same search, or give another file",
            )
        return study

    def run(self, study: Any, trials: int) -> int:
        """Tries until there are as many; returns how many were tried now."""
        complete = (self.optuna.trial.TrialState.COMPLETE,)
        self.trials = [self._trial(found) for found in study.get_trials(deepcopy=False, states=complete)]
        before = len(self.trials)
        console = Console(stderr=True)
        while len(self.trials) < trials:
            self._one(study, len(self.trials))
            if self.show:
                front = ", ".join(f"-{100 * t.fraction_removed:.0f} % at {t.drop:+.3g}" for t in pareto(self.trials))
                console.print(f"trial {len(self.trials)} of {trials}; so far {front}", highlight=False)
        return len(self.trials) - before

    def _one(self, study: Any, index: int) -> None:
        """One trial. What is on file when a process is killed is a trial whole, or one that counts for nothing."""
        space = {name: self.optuna.distributions.FloatDistribution(0.0, 1.0) for name in self._names}
        if index < len(self.space.first):
            setting = self.space.first[index]
            params = dict(zip(self._names, setting, strict=True))
            make: Callable[..., Any] = self.optuna.trial.create_trial
            values, took = self._tried(setting)
            study.add_trial(make(params=params, distributions=space, values=values, user_attrs=took))
        else:
            study.sampler = self._sampler(index)
            asked = study.ask(space)
            values, took = self._tried(tuple(asked.params[name] for name in self._names))
            for name, seconds in took.items():
                asked.set_user_attr(name, seconds)
            study.tell(asked, values)
        self.trials.append(self._trial(study.get_trials(deepcopy=False)[-1]))

    @property
    def _names(self) -> list[str]:
        return [f"{place:03d} {name}" for place, name in enumerate(self.space.sites)]

    def _sampler(self, index: int) -> Any:
        """A new one for each trial, so that its random numbers depend on nothing but how many trials there were."""
        return self.optuna.samplers.TPESampler(
            seed=(self.seed * _SEED_STEP + index) % 2**32,
            n_startup_trials=len(self.space.first),
            constant_liar=False,  # else it depends on what a killed process left behind
        )

    def _tried(self, setting: tuple[float, ...]) -> tuple[list[float], dict[str, float]]:
        """Share that remains and metric, and the seconds that this took."""
        clock = Stopwatch()
        made = self.maker.make(setting)
        values = [1 - made.fraction_removed, Score.of(self.evaluate(made.model)).value]
        return values, clock.spent

    def _trial(self, found: Any) -> GuardTrial:
        remains, score = found.values
        setting = tuple(found.params[name] for name in self._names)
        took = (float(found.user_attrs.get(name, 0.0)) for name in ("wall_s", "cpu_s"))
        return GuardTrial("searched", 0.0, 1 - remains, score, self.dense - score, setting, *took)


def _optuna() -> Any:
    optuna = optional_module("optuna", "a search over guards needs Optuna", "'exprune_fx[tune]'")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna

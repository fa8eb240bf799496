"""Optuna trials over one number a site, for two aims: the metric up, the FLOPs down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from exprune_fx.extras import optional_module
from exprune_fx.tuning.report import pareto


@dataclass(frozen=True)
class Trial:
    """One setting.

    Attributes:
        setting: one number a site.
        score: the metric on the selection examples, or on some of them if it was given up.
        fraction_removed: share of all FLOPs, tests counted.
        given_up: the metric was too low on the first examples; the rest were not looked at.
    """

    setting: tuple[float, ...]
    score: float
    fraction_removed: float
    given_up: bool = False


def search_settings(
    first: Sequence[tuple[float, ...]],
    highest: float,
    try_setting: Callable[[tuple[float, ...]], Trial],
    trials: int,
    seed: int,
) -> list[Trial]:
    """Tries settings: first the given ones, then those that a tree-structured Parzen estimator proposes.

    The estimator (Optuna's, for two objectives; Bergstra et al. 2011, Ozaki et al. 2022) sees every trial that was not
    given up. Trials follow from the seed and from what came of those before: with results kept on file, a search that
    was interrupted repeats itself quickly up to where it was.

    Args:
        first: settings to begin with.
        highest: of every number; the lowest is 0.
        try_setting: tries one.
        trials: how many in all.
        seed: of the estimator.

    Raises:
        DataError: Optuna is not installed.
    """
    optuna = _optuna()
    names = [f"site_{i:03d}" for i in range(len(first[0]))]
    space = dict.fromkeys(names, optuna.distributions.FloatDistribution(0.0, highest))
    study = optuna.create_study(
        directions=["maximize", "maximize"], sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=len(first))
    )
    for setting in first:
        study.enqueue_trial(dict(zip(names, setting, strict=True)))
    done = []
    for _ in range(trials):
        asked = study.ask(space)
        trial = try_setting(tuple(asked.params[name] for name in names))
        if trial.given_up:
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(asked, [trial.score, trial.fraction_removed])
        done.append(trial)
    return done


def _optuna() -> Any:
    optuna = optional_module("optuna", "the paper's search needs Optuna", "'exprune_fx[studies]'")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def chosen(trials: Sequence[Trial], dense_score: float, max_drop: float) -> Trial | None:
    """Of the settings within the drop, the one that removes most; None where none removes anything."""
    allowed = [t for t in trials if not t.given_up and dense_score - t.score <= max_drop + 1e-12]
    best = max(allowed, key=lambda t: t.fraction_removed, default=None)
    return best if best is not None and best.fraction_removed > 0 else None


def front_of(trials: Sequence[Trial]) -> list[Trial]:
    """The settings that no other one beats in both score and FLOPs, the gentlest first."""
    return list(pareto([trial for trial in trials if not trial.given_up]))

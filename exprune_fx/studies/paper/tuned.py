"""The paper's guards, tuned its way and judged on examples that chose nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from exprune_fx.calibration.observe import Data
from exprune_fx.studies.paper.guards import SPAN, GuardName, GuardSpace
from exprune_fx.studies.paper.judging import Graphs
from exprune_fx.studies.paper.results import Curve, Effort, Row
from exprune_fx.studies.paper.search import Trial, chosen, front_of, search_settings
from exprune_fx.studies.paper.setup import Setup, first_part
from exprune_fx.timing import Stopwatch
from exprune_fx.tuning.guard_space import mean_quantiles
from exprune_fx.tuning.study import plan_digest
from exprune_fx.tuning.template import Template, record_to_stage

GIVE_UP = 0.02  # the reference implementation's: a trial this far below the dense model on its first examples ends


def tuned(setup: Setup, guard: GuardName) -> tuple[Curve, list[Row]]:
    """Tunes one of the paper's guards, and judges what it chose for each drop."""
    setup.say(f"{guard}: scale of the sites")
    quantiles, effort = _quantiles(setup) if guard == "Threshold" else ({}, Effort())
    space = GuardSpace(guard, setup.prepared.sites, setup.heads, quantiles)
    template = Template(record_to_stage(setup.prepared.gm), space.plan, space.diagonal[-1])
    numbers = itertools.count(1)

    def try_setting(setting: tuple[float, ...]) -> Trial:
        setup.say(f"{guard}: trial {next(numbers)} of {setup.settings.trials}")
        found = setup.store.get(f"{guard} {list(setting)}", lambda: _tried(setup, template, setting))
        return Trial(setting, found["score"], found["fraction_removed"], found["given_up"])

    trials = search_settings(
        space.diagonal, SPAN[guard], try_setting, max(setup.settings.trials, 1), setup.settings.seed
    )
    rows = []
    for drop in setup.settings.drops:
        best = chosen(trials, setup.dense_score, drop)
        setting = (0.0,) * len(setup.heads) if best is None else best.setting
        lost = 0.0 if best is None else setup.dense_score - best.score
        key, graphs = plan_digest(space.plan(setting)), Graphs.of_setting(template, setting)
        if best is None:
            key, graphs = "dense", setup.judging.dense_graphs
        rows.append(setup.row(guard, drop, key, graphs, lost, space.numbers(setting)))
    judged = _front(setup, guard, space, template, trials) if setup.settings.judge_front else ()
    effort = sum((setup.store.took(f"{guard} {list(trial.setting)}") for trial in trials), effort)
    return Curve(guard, tuple(trials), effort, judged), rows


def _quantiles(setup: Setup) -> tuple[dict[str, Tensor], Effort]:
    """What Threshold's settings are a scale of, and what finding it took."""
    clock = Stopwatch()
    found = mean_quantiles(setup.prepared, Data(setup.subject.calibration), setup.heads)
    return found, Effort(0, **clock.spent)


def _front(
    setup: Setup, guard: GuardName, space: GuardSpace, template: Template, trials: Sequence[Trial]
) -> tuple[tuple[float, float], ...]:
    """Drop on the test examples, and share removed there, of the best settings of a search."""
    best = [trial for trial in front_of(trials) if setup.dense_score - trial.score <= GIVE_UP]
    found = []
    for number, trial in enumerate(best):
        setup.say(f"{guard}: judged, {number + 1} of the front's {len(best)}")
        key, graphs = plan_digest(space.plan(trial.setting)), Graphs.of_setting(template, trial.setting)
        drop = setup.judging.drop(setup.judging.judged(key, graphs))
        found.append((drop, setup.judging.tally(key, graphs).fraction_removed))
    return tuple(found)


def _tried(setup: Setup, template: Template, setting: Sequence[float]) -> dict[str, Any]:
    """One trial on the selection examples; given up where the first of them lose too much."""
    staged = template.model(setting)
    selection = setup.subject.selection
    part = first_part(selection)
    if selection.metric.is_mean:
        first = selection.metric.value(selection.each(staged, 0, part))
        if first < setup.dense_first - GIVE_UP:
            return {"score": first, "fraction_removed": 0.0, "given_up": True}
    score = selection.metric.value(selection.each(staged))
    counted = selection.batches[: setup.settings.selection_counted]
    tally = setup.judging.counting.tally(template.readable(setting), counted)
    return {"score": score, "fraction_removed": tally.fraction_removed, "given_up": False}

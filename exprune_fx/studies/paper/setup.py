"""What all methods share on one subject: the graph, the dense model's results, the file that keeps evaluations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx

from exprune_fx.calibration.prepare import Prepared
from exprune_fx.errors import DataError
from exprune_fx.graph import capture
from exprune_fx.graph.edits import tensor_at
from exprune_fx.studies.paper.counting import Counting
from exprune_fx.studies.paper.guards import GuardSpace, heads_of
from exprune_fx.studies.paper.judging import Graphs, Judging
from exprune_fx.studies.paper.results import Row
from exprune_fx.studies.paper.store import Store
from exprune_fx.studies.subjects import Subject
from exprune_fx.studies.subjects.subject import Judge
from exprune_fx.tuning.study import model_digest

Say = Callable[[str], None]
DROPS = (0.001, 0.01)
FIRST_PART = 4  # these selection examples, looked at first, are one in so many


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


@dataclass(frozen=True, eq=False)
class Setup:
    """One subject, ready for the methods.

    Attributes:
        subject: model and data.
        settings: of the run.
        say: is told what is being done.
        gm: the captured model.
        prepared: it, normalised and analysed.
        heads: terms that the paper's guards test after, by site.
        store: keeps the results.
        judging: on the test examples.
        dense_first: the dense model's metric on the first part of the selection examples.
        dense_score: on all of them.
    """

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
    def of(cls, subject: Subject, settings: Settings, say: Say) -> Setup:
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

    def row(
        self, method: str, drop: float, key: str, graphs: Graphs, lost: float, numbers: dict[str, float | None]
    ) -> Row:
        """One method's plan for one allowed drop, judged on the test examples."""
        self.say(f"{method}: judged, allowed to lose {100 * drop:g} points")
        return self.judging.row(method, drop, key, graphs, lost, numbers)


def first_part(selection: Judge) -> int:
    """How many batches are looked at first."""
    return max(len(selection.batches) // FIRST_PART, 1)


def _dense_scores(subject: Subject, model: fx.GraphModule) -> dict[str, Any]:
    selection = subject.selection
    each = selection.each(model)
    first = sum(len(target) for target in selection.targets[: first_part(selection)])
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

"""What a plan loses and saves on examples that chose nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx

from exprune_fx.pipeline import transform
from exprune_fx.plan import Plan
from exprune_fx.studies.paper.counting import Counting, Tally
from exprune_fx.studies.paper.guards import PUBLISHED
from exprune_fx.studies.paper.published import published_figure
from exprune_fx.studies.paper.results import Row
from exprune_fx.studies.paper.store import Store
from exprune_fx.studies.subjects import Subject
from exprune_fx.studies.subjects.metrics import drop_interval
from exprune_fx.tuning.template import Template


@dataclass(frozen=True)
class Graphs:
    """How to make the graphs of one plan: to be evaluated, and to be counted."""

    model: Callable[[], fx.GraphModule]
    readable: Callable[[], fx.GraphModule]

    @staticmethod
    def of_plan(gm: fx.GraphModule, plan: Plan) -> Graphs:
        """Of a captured graph by a plan."""
        return Graphs(partial(transform, gm, plan), partial(transform, gm, plan, lower=False))

    @staticmethod
    def of_setting(template: Template, setting: Sequence[float]) -> Graphs:
        """Of a setting."""
        return Graphs(partial(template.model, setting), partial(template.readable, setting))


@dataclass(frozen=True, eq=False)
class Judging:
    """Judges plans of one model on the test examples; what was judged before is on file.

    Attributes:
        subject: model and data.
        gm: the captured model.
        dense: a plan that leaves every site alone.
        counting: of FLOPs.
        counted: batches of test examples that FLOPs are counted on.
        store: keeps the results.
        seed: of the bootstrap.
    """

    subject: Subject
    gm: fx.GraphModule
    dense: Plan
    counting: Counting
    counted: int
    store: Store
    seed: int

    @property
    def dense_graphs(self) -> Graphs:
        """The model as it is."""
        return Graphs(lambda: self.gm, lambda: transform(self.gm, self.dense, lower=False))

    @cached_property
    def dense_test(self) -> Tensor:
        """What the metric keeps of the test examples, of the model as it is."""
        return self.judged("dense", self.dense_graphs)

    def judged(self, key: str, graphs: Graphs) -> Tensor:
        """What the metric keeps of the test examples."""
        found = self.store.get(f"test {key}", lambda: {"each": self.subject.test.each(graphs.model()).tolist()})
        return torch.tensor(found["each"], dtype=torch.float64)

    def tally(self, key: str, graphs: Graphs) -> Tally:
        """FLOPs on test examples."""

        def count() -> dict[str, Any]:
            return asdict(self.counting.tally(graphs.readable(), self.subject.test.batches[: self.counted]))

        return Tally(**self.store.get(f"flops {key}", count))

    def drop(self, each: Tensor) -> float:
        """Of the metric, from the dense model's."""
        value = self.subject.test.metric.value
        return value(self.dense_test) - value(each)

    def row(
        self, method: str, max_drop: float, key: str, graphs: Graphs, lost: float, numbers: dict[str, float | None]
    ) -> Row:
        """What one method's choice does.

        Args:
            method: its name.
            max_drop: that was allowed.
            key: of the plan, in the store.
            graphs: of the plan.
            lost: on the selection examples.
            numbers: that were chosen, by site.
        """
        each, tally = self.judged(key, graphs), self.tally(key, graphs)
        metric = self.subject.test.metric
        return Row(
            method=method,
            max_drop=max_drop,
            selection_drop=lost,
            score=metric.value(each),
            drop=self.drop(each),
            interval=drop_interval(metric, self.dense_test, each, self.seed),
            fraction_removed=tally.fraction_removed,
            overhead=tally.overhead / tally.dense,
            alive_fraction=dict(tally.alive_fraction),
            numbers=numbers,
            extras=metric.extras(each),
            published=published_figure(self.subject.name, max_drop) if method in PUBLISHED else None,
        )

"""Makes the graphs of many plans of one model, quickly: to be counted, and to be evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from exprune_fx.measurement import measure
from exprune_fx.tuning.guard_space import GuardSpace, NumberSpace
from exprune_fx.tuning.template import Template, quickest_form, record_to_stage, staged_by


@dataclass(frozen=True, eq=False)
class Made:
    """The graphs of one plan.

    Attributes:
        model: to be evaluated; lowered where kernels are there.
        fraction_removed: share of all FLOPs, tests counted, on the examples that the maker counts with.
    """

    model: fx.GraphModule
    fraction_removed: float


class Maker:
    """Makes trial graphs of one model.

    What does not depend on the plan is done once: normalising, ordering, finding symmetries and sites, and, where a
    setting only changes the numbers of the guards, staging too.

    Args:
        dense: the normalised graph, its terms in the plans' order.
        space: the settings.
        counted: batches that FLOPs are counted on.
    """

    def __init__(self, dense: fx.GraphModule, space: GuardSpace, counted: Sequence[object]) -> None:
        self._record = record_to_stage(dense)
        self._space, self._counted = space, counted
        self._template: Template | None = None

    def make(self, setting: Sequence[float]) -> Made:
        """The graphs of one setting."""
        plan = self._space.plan(setting)
        if not plan.staged:
            return Made(self._record.dense, 0.0)
        if isinstance(self._space, NumberSpace):
            if self._template is None:
                self._template = Template(self._record, self._space.plan, (1.0,) * len(self._space.sites))
            readable = self._template.readable(setting)
        else:
            readable = staged_by(self._record, plan)
        return Made(quickest_form(readable), measure(readable, self._counted).fraction_removed)

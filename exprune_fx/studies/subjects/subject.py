"""A model with its data, split in three: for calibration, for selection, and for judging what was selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from exprune_fx.studies.subjects.metrics import Metric

Args = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Judge:
    """Labelled examples, and the metric on them.

    Attributes:
        metric: of the examples.
        batches: positional arguments of the model.
        targets: what is right, one for each batch.
    """

    metric: Metric
    batches: Sequence[Args]
    targets: Sequence[Tensor]

    @property
    def examples(self) -> int:
        """How many there are."""
        return sum(len(target) for target in self.targets)

    def each(self, model: Any, start: int = 0, stop: int | None = None) -> Tensor:
        """What the metric keeps of the examples of some batches: float64, [examples, columns]."""
        with torch.no_grad():
            kept = [
                self.metric.each(model(*batch), target)
                for batch, target in zip(self.batches[start:stop], self.targets[start:stop], strict=True)
            ]
        return torch.cat(kept)

    def __call__(self, model: Any) -> float | Tensor:
        """As `exprune_fx.optimize` wants it: one number for each example where the metric is their mean."""
        each = self.each(model)
        return each[:, 0] if self.metric.is_mean else self.metric.value(each)


@dataclass(frozen=True, eq=False)
class Subject:
    """What one study is about.

    Attributes:
        name: by which it is asked for.
        title: model and data in a few words.
        about: all that decides what was measured: sizes, seeds, splits.
        model: in eval mode, float32.
        args: to capture it with.
        dynamic_shapes: of the capture.
        calibration: inputs without labels, for thresholds and bases.
        selection: by which guards are chosen.
        test: which nothing is chosen by.
        head_terms: terms seen before the one test of the paper's guards.
        sparse: weights that are zero cost nothing; else all weights are counted.
    """

    name: str
    title: str
    about: str
    model: nn.Module
    args: Args
    dynamic_shapes: Any
    calibration: Sequence[Args]
    selection: Judge
    test: Judge
    head_terms: int = 32
    sparse: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

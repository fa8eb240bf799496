"""What a reproduction found: frozen data, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from exprune_fx.studies.paper.search import Trial

OURS = "Calibrated"
BY_TRIALS = "Calibrated, by trials"


@dataclass(frozen=True)
class Effort:
    """What something took.

    Attributes:
        evaluations: of plans; the dense model's are not counted.
        wall_s: seconds.
        cpu_s: of all threads.
    """

    evaluations: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        """Both."""
        return Effort(self.evaluations + other.evaluations, self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


@dataclass(frozen=True)
class Row:
    """One method at one allowed drop.

    Attributes:
        method: "StatsTest" or "Threshold" (the paper's), "Calibrated" (ours, by `exprune_fx.optimize`), or "Calibrated,
            by trials" (the same guard, by `exprune_fx.search_guards`).
        max_drop: of the metric on the selection examples, as a fraction (0.001 is 0.1 points).
        selection_drop: what the choice loses there; negative where it gains.
        score: the metric on the test examples.
        drop: there, from the dense model's.
        interval: that this drop lies in with 95 % confidence, by the paired bootstrap.
        fraction_removed: share of all FLOPs on test examples, counted the paper's way, tests counted.
        overhead: share of the dense FLOPs that the tests cost.
        alive_fraction: by site, share of neurons that went on.
        numbers: by site, alpha or T; None where it is dense, empty for ours.
        extras: further figures of the test examples.
        published: share of FLOPs that the paper reports removed at this drop; None where it gives no figure.
    """

    method: str
    max_drop: float
    selection_drop: float
    score: float
    drop: float
    interval: tuple[float, float]
    fraction_removed: float
    overhead: float
    alive_fraction: Mapping[str, float]
    numbers: Mapping[str, float | None]
    extras: Mapping[str, float]
    published: float | None


@dataclass(frozen=True)
class Curve:
    """What one method's search saw on the selection examples.

    Attributes:
        method: see `Row`.
        trials: every setting that was tried, with its drop there.
        effort: what the search took, with its calibration, for all drops together.
        judged: drop on the test examples and share of FLOPs removed, for the settings that no other one beats on the
            selection examples; empty if that was not asked for.
    """

    method: str
    trials: tuple[Trial, ...]
    effort: Effort
    judged: tuple[tuple[float, float], ...] = ()

    def best_judged(self, max_drop: float) -> float | None:
        """The largest share removed within a drop on the test examples themselves; None if nothing was judged."""
        within = [removed for drop, removed in self.judged if drop <= max_drop + 1e-12]
        return max([0.0, *within]) if self.judged else None


@dataclass(frozen=True)
class Reproduction:
    """One subject, all methods.

    Attributes:
        subject: its name.
        title: model and data.
        about: all that decides what was measured.
        metric: its name.
        dense_selection: the dense model's metric on the selection examples.
        dense_test: on the test examples.
        dense_extras: further figures there.
        selection_examples: how many.
        test_examples: how many.
        counted_examples: test examples that FLOPs were counted on.
        flops_per_example: of the dense model, counted the paper's way.
        rows: a method and a drop each.
        curves: the searches.
        trials: how many settings of each of the paper's guards were asked for.
        wall_s: seconds of this run; what was on file took none.
        resolution: the least that the selection examples can tell of the metric; 0 where that is not one example.
        fine_tuned: never: the weights are used as they are.
    """

    subject: str
    title: str
    about: str
    metric: str
    dense_selection: float
    dense_test: float
    dense_extras: Mapping[str, float]
    selection_examples: int
    test_examples: int
    counted_examples: int
    flops_per_example: float
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    trials: int
    wall_s: float
    resolution: float = 0.0
    fine_tuned: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

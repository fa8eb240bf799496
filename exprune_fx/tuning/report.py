"""What a search found, as data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from exprune_fx.tuning.score import Score, drop_interval


@dataclass(frozen=True)
class Trial:
    """One plan that was evaluated.

    Attributes:
        allocation: how the plan spread the damage: "measured" (by what it does to the outputs), "clock" (of the best of
            these, what is faster on this machine), or "searched" (by `search_guards`).
        damage: expected relative squared error of the outputs; 0 where nothing is expected.
        fraction_removed: expected share of all FLOPs, tests counted, on the calibration examples.
        score: the metric on the selection data.
        drop: of the metric, from the dense model's; negative where the staged model is better.
    """

    allocation: str
    damage: float
    fraction_removed: float
    score: float
    drop: float


@dataclass(frozen=True)
class Judged:
    """The dense and the staged model on one set of data.

    Attributes:
        dense: score.
        staged: score.
        drop: dense - staged.
        interval: that the drop lies in with 95 % confidence; None where `evaluate` gives no number for each example.
        examples: how many numbers there were; 0 where `evaluate` gives the metric alone.
    """

    dense: float
    staged: float
    drop: float
    interval: tuple[float, float] | None
    examples: int

    @classmethod
    def of(cls, dense: Score, staged: Score, seed: int) -> Judged:
        """Compares two scores."""
        interval = drop_interval(dense, staged, seed)
        return cls(dense.value, staged.value, dense.value - staged.value, interval, len(dense.each))

    def text(self, what: str) -> str:
        """One line."""
        sure = "" if self.interval is None else f", 95 % interval {self.interval[0]:+.4g} to {self.interval[1]:+.4g}"
        count = f", {self.examples:,} examples" if self.examples else ""
        return f"{what}: {self.dense:.4f} dense, {self.staged:.4f} staged, drop {self.drop:+.4g}{sure}{count}"


@dataclass(frozen=True)
class OptimizeReport:
    """What `optimize` did.

    Attributes:
        max_drop: what was allowed.
        objective: what was minimised.
        fraction_removed: share of all FLOPs on the calibration examples, counted by running the chosen graph.
        selection: on what the plan was selected by: a little optimistic, for the best of several was taken.
        test: on what it was not; None if no test was given.
        trials: every plan that was evaluated, in order.
        expected_drop: of the chosen plan, by the curve through all trials of its ladder, which luck has less of a hand
            in than in the drop on the selection data.
        confidence: that was asked for.
        sure_drop: what the drop is at most, by the same curve, with this confidence.
        evaluations: calls of `evaluate` that this run made; what was found in the study is not among them.
        wall_s: seconds that this run took.
        calibration_examples: that thresholds and bases were made on.
    """

    max_drop: float
    objective: str
    fraction_removed: float
    selection: Judged
    test: Judged | None
    trials: tuple[Trial, ...]
    expected_drop: float
    confidence: float
    sure_drop: float
    evaluations: int
    wall_s: float
    calibration_examples: int

    @property
    def front(self) -> tuple[Trial, ...]:
        """The trials that no other one beats in both FLOPs and score, the gentlest first."""
        return pareto(self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "front": [asdict(trial) for trial in self.front]}

    def __str__(self) -> str:
        """A few lines, and the front as a table."""
        sure = f", at most {self.sure_drop:+.4g} with {self.confidence:.0%} confidence" if self.confidence > 0.5 else ""
        lines = [
            f"{100 * self.fraction_removed:.1f} % of the FLOPs removed within a drop of {self.max_drop:g}, "
            "no fine-tuning",
            f"{self.calibration_examples:,} calibration examples, {self.evaluations} evaluations, {self.wall_s:.0f} s; "
            f"expected drop {self.expected_drop:+.4g}{sure}",
            self.selection.text("selection data"),
            *([self.test.text("test data")] if self.test is not None else ["test data: none were given"]),
            "",
            f"{'FLOPs removed':>13}  {'score':>8}  {'drop':>9}  allocation",
        ]
        lines += [
            f"{100 * trial.fraction_removed:>11.1f} %  {trial.score:>8.4f}  {trial.drop:>+9.4g}  {trial.allocation}"
            for trial in self.front
        ]
        return "\n".join(lines)


class Found(Protocol):
    """What was tried and counted."""

    @property
    def fraction_removed(self) -> float:
        """Share of all FLOPs."""

    @property
    def score(self) -> float:
        """The metric, higher is better."""


FoundT = TypeVar("FoundT", bound=Found)


def pareto(trials: Sequence[FoundT]) -> tuple[FoundT, ...]:
    """Those that no other one beats in both FLOPs and score, by rising FLOPs removed."""
    best: list[FoundT] = []
    for trial in sorted(trials, key=lambda each: (-each.fraction_removed, -each.score)):
        if not best or trial.score > best[-1].score:
            best.append(trial)
    return tuple(reversed(best))

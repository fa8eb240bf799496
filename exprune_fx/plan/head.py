"""What was decided for one prediction head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exprune_fx.errors import PlanError
from exprune_fx.guards import Dominance, guard_from_dict
from exprune_fx.plan.array import AGAIN, Array
from exprune_fx.plan.timing import SiteTiming

MOST_STAGES = 4


@dataclass(frozen=True)
class HeadPlan:
    """What was decided for one prediction head.

    Attributes:
        head: the head's name.
        weight_shape: [classes, features] of the head that it was made for.
        winners: how many classes win there.
        guard: the stop rule.
        stages: features of the turned weight that are seen after each stage, increasing; none for a head left dense.
        reach: by stage, the share of the bound that is taken; all 1 for a sound one.
        reason: why this was chosen, in words.
        center: [2, features]: what is subtracted of inputs, and of all rows of the weight; None for nothing.
        basis: [features, features], or [features] if it is diagonal: what inputs are multiplied with; None for nothing.
        alive_fraction: expected share of classes that go on after each stage, on the calibration examples.
        agreement: share of the calibration examples of which the winners are the dense layer's; None if not measured.
        fraction_removed: expected share of the layer's dense FLOPs saved, overhead counted.
        fraction_read: expected share of the layer's dense bytes that are read.
        timing: what was measured, where the objective is latency.
    """

    head: str
    weight_shape: tuple[int, ...]
    winners: int
    guard: Dominance
    stages: tuple[int, ...] = ()
    reach: tuple[float, ...] = ()
    reason: str = ""
    center: Array | None = None
    basis: Array | None = None
    alive_fraction: tuple[float, ...] = ()
    agreement: float | None = None
    fraction_removed: float = 0.0
    fraction_read: float = 1.0
    timing: SiteTiming | None = None

    @property
    def is_staged(self) -> bool:
        """Whether classes are stopped."""
        return bool(self.stages)

    def __post_init__(self) -> None:
        """Refuses what no head could be rewritten by."""
        at = f"plan of head {self.head!r} (weight {list(self.weight_shape)})"
        stages, features = list(self.stages), self.weight_shape[1]
        if stages != sorted(set(stages)) or len(stages) > MOST_STAGES or not all(0 < n <= features for n in stages):
            raise PlanError(
                f"{at}: stages {stages} are not one to {MOST_STAGES} increasing numbers of its {features} features",
                hint=AGAIN,
            )
        if len(self.reach) != len(stages) or not all(0 < share <= 1 for share in self.reach):
            raise PlanError(f"{at}: reach is {list(self.reach)}, not a share of the bound for each stage", hint=AGAIN)
        if self.guard.claim == "proved" and any(share < 1 for share in self.reach):
            raise PlanError(f"{at}: {self.guard} takes the whole bound, reach is {list(self.reach)}", hint=AGAIN)
        shapes = {"center": ((2, features),), "basis": ((features,), (features, features))}
        for name, allowed in shapes.items():
            array = getattr(self, name)
            if array is not None and array.shape not in allowed:
                raise PlanError(f"{at}: {name} has shape {list(array.shape)}", hint=AGAIN)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "head": self.head,
            "weight_shape": list(self.weight_shape),
            "winners": self.winners,
            "guard": self.guard.to_dict(),
            "stages": list(self.stages),
            "reach": list(self.reach),
            "reason": self.reason,
            "center": self.center.to_dict() if self.center else None,
            "basis": self.basis.to_dict() if self.basis else None,
            "alive_fraction": list(self.alive_fraction),
            "agreement": self.agreement,
            "fraction_removed": self.fraction_removed,
            "fraction_read": self.fraction_read,
            "timing": self.timing.to_dict() if self.timing else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HeadPlan:
        """The inverse of ``to_dict``."""
        guard = guard_from_dict(data["guard"])
        if not isinstance(guard, Dominance):
            raise PlanError(f"plan of head {data['head']!r}: guard {guard} is of sites", hint=AGAIN)
        agreement, timing = data.get("agreement"), data.get("timing")
        return cls(
            head=str(data["head"]),
            weight_shape=tuple(int(size) for size in data["weight_shape"]),
            winners=int(data["winners"]),
            guard=guard,
            stages=tuple(int(stage) for stage in data["stages"]),
            reach=tuple(float(share) for share in data["reach"]),
            reason=str(data["reason"]),
            center=Array.from_dict(data["center"]) if data["center"] else None,
            basis=Array.from_dict(data["basis"]) if data["basis"] else None,
            alive_fraction=tuple(float(share) for share in data["alive_fraction"]),
            agreement=None if agreement is None else float(agreement),
            fraction_removed=float(data["fraction_removed"]),
            fraction_read=float(data["fraction_read"]),
            timing=SiteTiming.from_dict(timing) if timing else None,
        )

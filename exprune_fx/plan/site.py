"""What was decided for one site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from exprune_fx.errors import PlanError
from exprune_fx.guards import Calibrated, Guard, HeadKind, guard_from_dict
from exprune_fx.ops import coded
from exprune_fx.plan.array import AGAIN, Array
from exprune_fx.plan.timing import SiteTiming

Head = Literal["prefix", "principal", "coded", "none", "dense"]


@dataclass(frozen=True)
class SitePlan:
    """What was decided for one site.

    Attributes:
        site: the site's name.
        weight_shape: of the site that it was made for.
        head: what the guard looks at; "none" computes every neuron, and lets the linear layer that alone reads them
            skip those that are zero (in lowered graphs only, and exact); "dense" leaves the site alone.
        reason: why this was chosen, in words.
        guard: the stop rule; None when nothing is tested.
        stages: terms seen at each test, increasing, below K (prefix); or the rank (principal); or K (coded, which sees
            all terms in 8 bits).
        thresholds: [stages, out], for Calibrated.
        down: [r, K], the principal basis, for a principal head.
        lift: [K, r], back from the basis: the head's second factor is ``weight @ lift``.
        alive_fraction: expected share of neurons that go on after each stage, on the calibration examples.
        fraction_removed: expected share of the site's dense FLOPs saved, overhead counted.
        timing: what was measured, where the objective is latency.
        margins: [stages, out], for Calibrated where a max pool alone reads the site: how far below the largest of its
            window a neuron may be and go on. At least 0; None where neurons are no rivals.
        window: of that max pool, rows and columns; empty without margins.
    """

    site: str
    weight_shape: tuple[int, ...]
    head: Head = "dense"
    reason: str = ""
    guard: Guard | None = None
    stages: tuple[int, ...] = ()
    thresholds: Array | None = None
    down: Array | None = None
    lift: Array | None = None
    alive_fraction: tuple[float, ...] = ()
    fraction_removed: float = 0.0
    timing: SiteTiming | None = None
    margins: Array | None = None
    window: tuple[int, ...] = ()

    @property
    def is_staged(self) -> bool:
        """Whether a guard stops neurons of this site."""
        return self.head in get_args(HeadKind)

    @property
    def looks_at(self) -> HeadKind:
        """The head of an entry that is staged."""
        assert self.head != "none"
        assert self.head != "dense"
        return self.head

    def __post_init__(self) -> None:
        """Refuses what no site could be rewritten by."""
        if not self.is_staged:
            return
        at = f"plan of site {self.site!r} (weight {list(self.weight_shape)})"
        if self.guard is None or not self.stages:
            raise PlanError(f"{at}: a {self.head} head needs a guard and at least one stage", hint=AGAIN)
        if self.head not in self.guard.heads:
            raise PlanError(
                f"{at}: {self.guard} cannot look at a {self.head} head",
                hint=f"it looks at {' or '.join(self.guard.heads)} heads",
            )
        if list(self.stages) != sorted(set(self.stages)) or self.stages[0] < self.guard.min_seen:
            raise PlanError(
                f"{at}: stages {list(self.stages)} are not increasing from at least {self.guard.min_seen}",
                hint="give increasing numbers of terms",
            )
        if isinstance(self.guard, Calibrated):
            expected = (len(self.stages), self.weight_shape[0])
            if self.thresholds is None or self.thresholds.shape != expected:
                found = None if self.thresholds is None else list(self.thresholds.shape)
                raise PlanError(f"{at}: thresholds have shape {found}, not {list(expected)}", hint=AGAIN)
        self._check_margins(at)
        if self.head == "principal" and (self.down is None or self.lift is None or len(self.stages) != 1):
            raise PlanError(f"{at}: a principal head needs its basis and exactly one rank", hint=AGAIN)
        if self.head == "coded":
            self._check_coded(at)

    def _check_coded(self, at: str) -> None:
        if reason := coded.obstacle(self.weight_shape, groups=1):
            raise PlanError(f"{at}: no coded head: {reason}", hint="use a prefix head")
        if self.stages != self.weight_shape[1:2]:
            raise PlanError(f"{at}: a coded head sees all terms, stages are {list(self.stages)}", hint=AGAIN)

    def _check_margins(self, at: str) -> None:
        if self.margins is None and not self.window:
            return
        if self.margins is None or not isinstance(self.guard, Calibrated) or self.thresholds is None:
            raise PlanError(
                f"{at}: rivals in a window need margins and a Calibrated guard, not {self.guard}", hint=AGAIN
            )
        if self.margins.shape != self.thresholds.shape or len(self.window) != 2 or min(self.window) < 1:
            found = f"margins {list(self.margins.shape)} in windows of {list(self.window)}"
            raise PlanError(f"{at}: {found} beside thresholds {list(self.thresholds.shape)}", hint=AGAIN)
        margins = self.margins.tensor()
        if not bool((margins.isfinite() & (margins >= 0)).all()):
            raise PlanError(f"{at}: its margins are not all finite and at least 0", hint=AGAIN)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "site": self.site,
            "weight_shape": list(self.weight_shape),
            "head": self.head,
            "reason": self.reason,
            "guard": self.guard.to_dict() if self.guard else None,
            "stages": list(self.stages),
            "thresholds": self.thresholds.to_dict() if self.thresholds else None,
            "margins": self.margins.to_dict() if self.margins else None,
            "window": list(self.window),
            "down": self.down.to_dict() if self.down else None,
            "lift": self.lift.to_dict() if self.lift else None,
            "alive_fraction": list(self.alive_fraction),
            "fraction_removed": self.fraction_removed,
            "timing": self.timing.to_dict() if self.timing else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SitePlan:
        """The inverse of ``to_dict``."""
        if data["head"] not in get_args(Head):
            raise PlanError(f"plan of site {data['site']!r}: unknown head {data['head']!r}", hint=AGAIN)
        timing = data.get("timing")
        names = ("thresholds", "margins", "down", "lift")
        arrays = {name: Array.from_dict(data[name]) if data.get(name) else None for name in names}
        return cls(
            site=str(data["site"]),
            weight_shape=tuple(int(size) for size in data["weight_shape"]),
            head=data["head"],
            reason=str(data["reason"]),
            guard=guard_from_dict(data["guard"]) if data["guard"] else None,
            stages=tuple(int(stage) for stage in data["stages"]),
            window=tuple(int(size) for size in data.get("window", ())),
            alive_fraction=tuple(float(fraction) for fraction in data["alive_fraction"]),
            fraction_removed=float(data["fraction_removed"]),
            timing=SiteTiming.from_dict(timing) if timing else None,
            **arrays,
        )

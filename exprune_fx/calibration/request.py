"""What a caller of `calibrate` asks for, checked, and what it means for one site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from exprune_fx.calibration import ranks
from exprune_fx.errors import GuardError, PlanError
from exprune_fx.guards import Guard
from exprune_fx.ops import coded, native
from exprune_fx.plan import Objective
from exprune_fx.sites import Site

HeadChoice = Literal["auto", "prefix", "principal", "coded"]

RANKS = (1 / 16, 1 / 8, 1 / 4)
MAX_FEATURES = 4096  # of a principal head: its [K, K] moments take 8*K^2 bytes, and their factorisation K^3 steps


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        guard: the stop rule.
        stages: fractions of the terms.
        head: what the guard may look at.
        objective: what is minimised.
    """

    guard: Guard
    stages: tuple[float, ...]
    head: HeadChoice
    objective: Objective = "flops"

    @property
    def wants_prefix(self) -> bool:
        """Prefix heads are to be tried."""
        return self.head in ("auto", "prefix") or not (self.wants_principal or self.wants_coded)

    @property
    def wants_principal(self) -> bool:
        """Principal heads are to be tried."""
        return self.head in ("auto", "principal") and "principal" in self.guard.heads

    @property
    def wants_coded(self) -> bool:
        """Coded heads are to be tried: unasked only by the clock, since what 8-bit products cost is the machine's."""
        asked = self.head == "coded" or (self.head == "auto" and self.objective == "latency")
        return asked and "coded" in self.guard.heads

    def refusal(self, site: Site) -> str:
        """Why this site stays dense whatever the data say; "" if it may be staged."""
        if site.obstacle:
            return site.obstacle
        if self.guard.needs_exchangeability and not site.exchangeable:
            return f"{self.guard} needs exchangeable terms, and {site.reason}"
        if site.terms < 2:
            return "it has one term only"
        if not self.prefix_stages(site):
            return f"none of its {site.terms} terms can be seen alone by {self.guard} at stages {list(self.stages)}"
        return ""

    def no_principal(self, site: Site) -> str:
        """Why this site gets no principal head; "" if it may."""
        if site.geometry is not None and site.geometry.groups > 1:
            return "its convolution is grouped"
        if site.weight_shape[1] > MAX_FEATURES:
            return f"it reads {site.weight_shape[1]} features, more than the {MAX_FEATURES} of a principal head"
        return ""

    def no_coded(self, site: Site) -> str:
        """Why this site gets no coded head; "" if it may."""
        return coded.obstacle(site.weight_shape, 1 if site.geometry is None else site.geometry.groups)

    def prefix_stages(self, site: Site) -> tuple[int, ...]:
        """Terms seen at each test."""
        return _whole_numbers(self.stages, site.terms, self.guard.min_seen)

    def prefix_variants(self, site: Site) -> list[tuple[int, ...]]:
        """The lists of stages to try: as asked, and by the clock also the shorter lists that need fewer tests."""
        stages = self.prefix_stages(site)
        if self.objective == "flops":
            return [stages]
        lists = {stages[:count] for count in range(1, len(stages) + 1)} | {(stage,) for stage in stages[:2]}
        return sorted(lists, key=lambda each: (len(each), each))

    def ranks(self, site: Site) -> tuple[int, ...]:
        """Ranks to try."""
        return _whole_numbers(RANKS, site.weight_shape[1], 1)


def _whole_numbers(shares: Sequence[float], whole: int, least: int) -> tuple[int, ...]:
    numbers = {max(round(share * whole), 1) for share in shares}
    return tuple(sorted(number for number in numbers if least <= number < whole))


def check_stages(stages: object) -> None:
    """Refuses what are no increasing fractions.

    Raises:
        GuardError: they are not.
    """
    shares = list(stages) if isinstance(stages, list | tuple) else []
    fractions = all(isinstance(share, int | float) and 0 < share < 1 for share in shares)
    if not shares or not fractions or shares != sorted(set(shares)):
        raise GuardError(
            f"stages {shares or stages!r} are not increasing fractions of the terms",
            hint="give fractions strictly between 0 and 1, such as (1/8, 1/4, 1/2)",
        )


def check_objective(objective: object) -> Objective:
    """The objective.

    Raises:
        PlanError: it is none.
    """
    if objective == "flops":
        return "flops"
    if objective == "latency":
        return "latency"
    raise PlanError(f"unknown objective {objective!r}", hint='use "flops" or "latency"')


def check_alone(objective: Objective, sequential: bool) -> None:
    """Refuses what timing cannot be joined with.

    Raises:
        PlanError: "latency" with thresholds on staged inputs, or in several processes.
    """
    if objective == "latency" and sequential:
        raise PlanError(
            "sequential calibration and timing cannot be joined: what is staged before a site is not known",
            hint='use objective="flops" with sequential=True',
        )
    if objective == "latency" and ranks.count() > 1:
        raise PlanError(f"{ranks.count()} processes cannot time one machine", hint="use one process for latency")


def check_request(request: Request) -> None:
    """Refuses what cannot be searched for.

    Raises:
        GuardError: the guard is none.
        PlanError: an unknown head, or an objective that needs kernels which are not there.
    """
    if not isinstance(request.guard, Guard):
        raise GuardError(f"the guard is a {type(request.guard).__name__}", hint="give one, e.g. Calibrated(0.02)")
    if not request.guard.heads:
        raise GuardError(f"{request.guard} is for prediction heads", hint="calibrate_heads(gm, batches, guard)")
    if request.head not in get_args(HeadChoice):
        raise PlanError(f"unknown head {request.head!r}", hint='use "auto", "prefix", "principal" or "coded"')
    if request.objective == "latency" and not native.available():
        raise PlanError(
            'objective "latency" is decided by timing native kernels, and there are none: EXPRUNE_KERNELS forbids '
            "them, or they could not be built (the log says why)",
            hint='use objective="flops"; EXPRUNE_KERNELS=native shows what the compiler says',
        )

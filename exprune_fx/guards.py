"""The stop rules: each a small frozen value with its numbers, its cost and the claim that it rests on.

Notation: K terms, n seen; S their sum, Q the sum of their squares; c what is known of the rest (bias, folded batch
norm, residual). What a rule computes is `exprune_fx.ops.reference.guard_<name>`; this module decides nothing per input.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from statistics import NormalDist
from typing import Any, ClassVar, Literal

from exprune_fx.errors import GuardError, PlanError

Claim = Literal["proved", "estimated", "measured"]
HeadKind = Literal["prefix", "principal", "coded"]


@dataclass(frozen=True)
class Guard(ABC):
    """Base of the stop rules.

    Class attributes:
        needs_squares: the rule reads Q.
        needs_exchangeability: the rule holds only where the terms are exchangeable.
        claim: what a saving rests on: a proof, an estimate with its alpha, or a measurement on examples.
        heads: the kinds of head that the rule can look at.
        min_seen: the fewest terms that the rule can be computed from.
    """

    needs_squares: ClassVar[bool] = False
    needs_exchangeability: ClassVar[bool] = False
    claim: ClassVar[Claim]
    heads: ClassVar[tuple[HeadKind, ...]] = ("prefix",)
    min_seen: ClassVar[int] = 1

    @abstractmethod
    def test_flops(self, seen: int) -> int:
        """FLOPs of one test of one neuron after ``seen`` terms, counted as the ExPrune paper counts them."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the rule's name and its numbers."""
        return {"name": type(self).__name__, **asdict(self)}

    def __str__(self) -> str:
        numbers = ", ".join(f"{getattr(self, field.name):g}" for field in fields(self))
        return f"{type(self).__name__}({numbers})"


def _check_open_unit_interval(guard: str, name: str, value: float) -> None:
    if not (isinstance(value, int | float) and 0 < value < 1):
        raise GuardError(f"{guard}: {name} is {value!r}", hint=f"choose {name} strictly between 0 and 1")


@dataclass(frozen=True)
class Threshold(Guard):
    """Stop when ``S/n + c/K < threshold`` (arXiv 2506.02210). ``-inf`` never stops, ``inf`` always.

    Raises:
        GuardError: the threshold is not a number.
    """

    threshold: float

    needs_exchangeability: ClassVar[bool] = True
    claim: ClassVar[Claim] = "estimated"

    def __post_init__(self) -> None:
        """Refuses what is not a number."""
        if not isinstance(self.threshold, int | float) or math.isnan(self.threshold):
            raise GuardError(f"Threshold: threshold is {self.threshold!r}", hint="give a number, or -inf for never")

    def test_flops(self, seen: int) -> int:  # noqa: ARG002 - the same for any number of terms
        """One comparison."""
        return 1


@dataclass(frozen=True)
class StatsTest(Guard):
    """Stop when ``m / sqrt(v/n) < Phi^-1(alpha)`` with ``m = S/n + c/K`` (arXiv 2506.02210).

    Raises:
        GuardError: alpha is not strictly between 0 and 1.
    """

    alpha: float

    needs_squares: ClassVar[bool] = True
    needs_exchangeability: ClassVar[bool] = True
    claim: ClassVar[Claim] = "estimated"

    def __post_init__(self) -> None:
        """Refuses an alpha outside (0, 1)."""
        _check_open_unit_interval("StatsTest", "alpha", self.alpha)

    @property
    def quantile(self) -> float:
        """``Phi^-1(alpha)``: negative for alpha below one half."""
        return NormalDist().inv_cdf(self.alpha)

    def test_flops(self, seen: int) -> int:
        """``2n + 6``: the squares and their sum, then the test."""
        return 2 * seen + 6


@dataclass(frozen=True)
class FinitePopulation(Guard):
    """Stop when ``K*S/n + c + z*s*sqrt(K*(K-n)/n) < 0`` with ``z = Phi^-1(1 - alpha)``.

    The prefix is a sample without replacement of K terms, so its error vanishes as n -> K.

    Raises:
        GuardError: alpha is not strictly between 0 and 1.
    """

    alpha: float

    needs_squares: ClassVar[bool] = True
    needs_exchangeability: ClassVar[bool] = True
    claim: ClassVar[Claim] = "estimated"
    min_seen: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Refuses an alpha outside (0, 1)."""
        _check_open_unit_interval("FinitePopulation", "alpha", self.alpha)

    @property
    def quantile(self) -> float:
        """``Phi^-1(1 - alpha)``: positive for alpha below one half."""
        return NormalDist().inv_cdf(1.0 - self.alpha)

    def test_flops(self, seen: int) -> int:
        """As StatsTest: ``2n + 6``."""
        return 2 * seen + 6


@dataclass(frozen=True)
class Calibrated(Guard):
    """Stop when ``S + c < t_j``: one threshold a neuron, the largest that loses ``budget`` of its energy at most.

    The energy of neuron j is the sum of ``activation(z_j)^2`` over the calibration examples; where a max-pool alone
    reads the activation, over the elements that win a window. Where its windows do not overlap, neurons are rivals too:
    one stops also when ``S + c < R - m_j``, R being the largest ``S + c`` in its window; its energy is that of what the
    pool passes on, and what is lost of it the squared error there. Budget 0 stops only neurons below everything that
    ever came alive.

    Raises:
        GuardError: budget is not in [0, 1).
    """

    budget: float = 0.02

    claim: ClassVar[Claim] = "measured"
    heads: ClassVar[tuple[HeadKind, ...]] = ("prefix", "principal", "coded")

    def __post_init__(self) -> None:
        """Refuses a budget outside [0, 1)."""
        if not (isinstance(self.budget, int | float) and 0 <= self.budget < 1):
            raise GuardError(
                f"Calibrated: budget is {self.budget!r}", hint="choose the share of energy to lose, at least 0, below 1"
            )

    def test_flops(self, seen: int) -> int:  # noqa: ARG002 - the same for any number of terms
        """One comparison."""
        return 1


@dataclass(frozen=True)
class Bound(Guard):
    """Stop when ``S + c + |w_rest| * |x_rest| < 0``: sound, outputs equal the dense model's to rounding.

    Where the inputs are known to be non-negative, only the positive part of ``w_rest`` counts.
    """

    claim: ClassVar[Claim] = "proved"
    heads: ClassVar[tuple[HeadKind, ...]] = ("prefix", "principal")

    def test_flops(self, seen: int) -> int:  # noqa: ARG002 - the norms of the inputs are counted apart
        """Two multiply-adds and the comparison; the norms of the inputs are shared by all neurons and counted apart."""
        return 5


@dataclass(frozen=True)
class Dominance(Guard):
    """Of a prediction head: stop a class when ``estimate + reach * |w_rest| * |x_rest|`` is below what a winner has.

    With alpha 0 the reach is 1, the Cauchy-Schwarz bound: sound, the winners are the dense layer's. Else the reach is
    taken from examples by split conformal prediction (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World,
    2005): the least that keeps all winners of a share ``1 - alpha`` of n examples, rounded up to one of n + 1. For a
    new example a winner is then stopped with probability alpha at most, if it is exchangeable with those examples;
    nothing is assumed of weights or inputs.

    Raises:
        GuardError: alpha is not in [0, 1).
    """

    alpha: float = 0.0

    heads: ClassVar[tuple[HeadKind, ...]] = ()

    @property
    def claim(self) -> Claim:  # type: ignore[override] # of this rule it depends on alpha
        """Proved for alpha 0."""
        return "proved" if self.alpha == 0 else "estimated"

    def __post_init__(self) -> None:
        """Refuses an alpha outside [0, 1)."""
        if isinstance(self.alpha, bool) or not (isinstance(self.alpha, int | float) and 0 <= self.alpha < 1):
            raise GuardError(f"Dominance: alpha is {self.alpha!r}", hint="choose 0 for a proof, or less than 1")

    def test_flops(self, seen: int) -> int:  # noqa: ARG002 - the same for any number of terms
        """Two multiply-adds, the slack and the comparison; the norms of the inputs are shared by all classes."""
        return 6


_GUARDS: dict[str, type[Guard]] = {
    kind.__name__: kind for kind in (Threshold, StatsTest, FinitePopulation, Calibrated, Bound, Dominance)
}


def guard_from_dict(data: dict[str, Any]) -> Guard:
    """The rule that ``Guard.to_dict`` described.

    Raises:
        PlanError: no such rule, or its numbers are not the ones that it takes.
    """
    numbers = dict(data)
    name = numbers.pop("name", None)
    if name not in _GUARDS:
        raise PlanError(f"unknown guard {name!r}", hint=f"one of {', '.join(_GUARDS)}")
    try:
        return _GUARDS[name](**numbers)
    except (TypeError, GuardError) as error:
        raise PlanError(f"guard {name} cannot be made from {numbers}: {error}", hint="make the plan again") from error

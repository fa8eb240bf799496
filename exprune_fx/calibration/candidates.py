"""Candidates: the ways in which a site could be staged, and what each decides on given values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from exprune_fx.calibration.observe import SiteValues
from exprune_fx.errors import GuardError
from exprune_fx.guards import Bound, Calibrated, FinitePopulation, Guard, HeadKind, StatsTest, Threshold
from exprune_fx.ops import coded, heads, reference
from exprune_fx.sites import Site


@dataclass(frozen=True)
class Candidate:
    """One way to stage one site.

    Attributes:
        site: the site.
        head: what the guard looks at.
        stages: terms seen at each test, or the rank, or all terms of a coded head.
        guard: the stop rule.
        weight: the site's weight.
        down: [r, K], for a principal head, in the weight's dtype.
        lift: [K, r], for a principal head, in the weight's dtype.
    """

    site: Site
    head: HeadKind
    stages: tuple[int, ...]
    guard: Guard
    weight: Tensor
    down: Tensor | None = None
    lift: Tensor | None = None

    @property
    def key(self) -> tuple[str, str, tuple[int, ...]]:
        """What tells candidates apart."""
        return self.site.name, self.head, self.stages

    @property
    def window(self) -> tuple[int, ...]:
        """Of the max pool in which neurons are rivals under this guard; empty where they are none."""
        pool = self.site.pool
        return () if pool is None or not isinstance(self.guard, Calibrated) else pool.kernel

    @property
    def label(self) -> str:
        """In words, for a reason."""
        if self.head == "principal":
            return f"principal head of rank {self.stages[0]}"
        if self.head == "coded":
            return "coded head"
        return f"prefix stages at {', '.join(map(str, self.stages))} of {self.site.terms} terms"

    @cached_property
    def up(self) -> Tensor:
        """[out, r, *kernel], the second factor of a principal head."""
        assert self.lift is not None
        return heads.principal_up(self.weight, self.lift)

    @cached_property
    def codes(self) -> tuple[Tensor, Tensor]:
        """Of a coded head: int8 of the weight's shape, and their scales [out]."""
        return coded.codes_of(self.weight)

    def per_output(self, numbers: Tensor) -> Tensor:
        """[out] shaped to stand against the site's output."""
        return numbers.to(self.weight.device).reshape(-1, *[1] * self.site.spatial_dims)

    @cached_property
    def bound_norms(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """For `Bound`: the norm of the unseen weights after each stage, and the norm that rounding is measured by."""
        factors = None if self.down is None else (self.down, self.up)
        starts = [0] if factors else [seen * self.site.block for seen in self.stages]
        norms = [heads.bound_norms(self.weight, start, self.site.input_nonnegative, factors) for start in starts]
        return tuple(self.per_output(rest) for rest, _ in norms), self.per_output(norms[0][1])


@dataclass(frozen=True)
class HeadSum:
    """What a guard may look at after one stage.

    Attributes:
        index: of the stage.
        partial: S, in the shape of the site's output.
        squares: Q, if the guard needs it.
        constant: c, or None where it is zero.
    """

    index: int
    partial: Tensor
    squares: Tensor | None
    constant: Tensor | None

    @property
    def known(self) -> Tensor:
        """S + c."""
        return self.partial if self.constant is None else self.partial + self.constant


def _geometry(site: Site) -> tuple[list[int], list[int], list[int]]:
    assert site.geometry is not None
    return list(site.geometry.stride), list(site.geometry.padding), list(site.geometry.dilation)


def head_sums(candidate: Candidate, values: SiteValues) -> Iterator[HeadSum]:
    """What the candidate's guard sees after each stage, in order; a later stage is computed only when asked for."""
    site, x, weight = candidate.site, values.x, values.weight
    constant = None
    if values.bias is not None or values.residual is not None:
        constant = reference.constant_term(values.bias, values.residual, site.spatial_dims)
    if candidate.head == "principal":
        assert candidate.down is not None
        if site.geometry is None:
            partial = reference.principal_linear(x, candidate.down, candidate.up)
        else:
            partial = reference.principal_conv(x, candidate.down, candidate.up, *_geometry(site))
        yield HeadSum(0, partial, None, constant)
        return
    if candidate.head == "coded":
        yield HeadSum(0, reference.coded_conv(x, *candidate.codes, *_geometry(site)), None, constant)
        return
    sums: Tensor | None = None
    squares: Tensor | None = None
    start = 0
    for index, seen in enumerate(candidate.stages):
        stop = seen * site.block
        if site.geometry is None:
            sums = reference.partial_linear(x, weight, start, stop, sums)
            if candidate.guard.needs_squares:
                squares = reference.squares_linear(x, weight, start, stop, site.block, squares)
        else:
            walk = (*_geometry(site), site.geometry.groups)
            sums = reference.partial_conv(x, weight, *walk, start, stop, sums)
            if candidate.guard.needs_squares:
                squares = reference.squares_conv(x, weight, *walk, start, stop, squares)
        start = stop
        yield HeadSum(index, sums, squares, constant)


def stopped_at(
    candidate: Candidate, values: SiteValues, head: HeadSum, limits: Tensor | None, stopped: Tensor | None
) -> Tensor:
    """Whom the guard stops after one stage, earlier stages aside: bool in the shape of the site's output.

    Args:
        candidate: what is tried.
        values: the site's values.
        head: the sums after the stage.
        limits: this stage's, for `Calibrated`: thresholds [out], or thresholds and margins [2, out] for rivals.
        stopped: who stopped at an earlier stage, or None.

    Raises:
        GuardError: there is no rule for the candidate's guard.
    """
    guard, seen, terms = candidate.guard, candidate.stages[head.index], candidate.site.terms
    if isinstance(guard, Calibrated):
        assert limits is not None
        if not candidate.window:
            return reference.guard_calibrated(head.partial, head.constant, candidate.per_output(limits))
        thresholds, margins = (candidate.per_output(row) for row in limits)
        window = list(candidate.window)
        return reference.guard_pooled(head.partial, head.constant, thresholds, margins, window, stopped)
    if isinstance(guard, Threshold):
        return reference.guard_threshold(head.partial, head.constant, seen, terms, guard.threshold)
    if isinstance(guard, StatsTest | FinitePopulation):
        assert head.squares is not None
        rule = reference.guard_stats_test if isinstance(guard, StatsTest) else reference.guard_finite_population
        return rule(head.partial, head.squares, head.constant, seen, terms, guard.quantile)
    if isinstance(guard, Bound):
        rests, whole = candidate.bound_norms
        first = 0 if candidate.head == "principal" else seen * candidate.site.block
        unseen, everything = _input_norm(candidate.site, values.x, first), _input_norm(candidate.site, values.x, 0)
        elements = candidate.site.elements
        return reference.guard_bound(
            head.partial, head.constant, rests[head.index], unseen, whole, everything, elements
        )
    raise GuardError(f"calibration does not know the guard {guard}", hint="use one of exprune_fx.guards")


def _input_norm(site: Site, x: Tensor, first: int) -> Tensor:
    last = site.terms * site.block
    if site.geometry is None:
        return reference.input_norm_linear(x, first, last)
    groups, kernel = site.geometry.groups, list(site.weight_shape[2:])
    return reference.input_norm_conv(x, kernel, *_geometry(site), groups, site.out_features // groups, first, last)

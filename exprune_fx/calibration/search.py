"""`calibrate`: finds, on data, how each site is best staged under one guard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from exprune_fx.calibration.basis import principal_basis
from exprune_fx.calibration.candidates import Candidate
from exprune_fx.calibration.counting import Outcome, count_outcomes
from exprune_fx.calibration.data import Batches, check_batches
from exprune_fx.calibration.fit import Thresholds, fit_thresholds
from exprune_fx.calibration.moments import MomentObserver, VarianceObserver, falling_order
from exprune_fx.calibration.observe import Data
from exprune_fx.cost import dense_flops, evaluate
from exprune_fx.errors import GuardError, PlanError
from exprune_fx.graph.edits import tensor_at
from exprune_fx.guards import Calibrated, Guard
from exprune_fx.passes.reorder_terms import ReorderTermsPass
from exprune_fx.pipeline import normalise, record_of
from exprune_fx.plan import Array, Plan, SitePlan
from exprune_fx.sites import Site, find_sites
from exprune_fx.symmetry import SymmetryReport, symmetries

HeadChoice = Literal["auto", "prefix", "principal"]

DEFAULT_GUARD = Calibrated(0.02)
RANKS = (1 / 16, 1 / 8, 1 / 4)
MAX_FEATURES = 4096  # of a principal head: its [K, K] moments take 8*K^2 bytes, and their factorisation K^3 steps


@dataclass(frozen=True)
class _Request:
    guard: Guard
    stages: tuple[float, ...]
    head: HeadChoice

    @property
    def wants_prefix(self) -> bool:
        return self.head != "principal" or not self.wants_principal

    @property
    def wants_principal(self) -> bool:
        return self.head != "prefix" and "principal" in self.guard.heads

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

    def prefix_stages(self, site: Site) -> tuple[int, ...]:
        """Terms seen at each test."""
        return _whole_numbers(self.stages, site.terms, self.guard.min_seen)

    def ranks(self, site: Site) -> tuple[int, ...]:
        """Ranks to try."""
        return _whole_numbers(RANKS, site.weight_shape[1], 1)


def _whole_numbers(shares: Sequence[float], whole: int, least: int) -> tuple[int, ...]:
    numbers = {max(round(share * whole), 1) for share in shares}
    return tuple(sorted(number for number in numbers if least <= number < whole))


def calibrate(
    gm: fx.GraphModule,
    batches: Batches,
    guard: Guard = DEFAULT_GUARD,
    stages: Sequence[float] = (1 / 8, 1 / 4, 1 / 2),
    objective: str = "flops",
    *,
    head: HeadChoice = "auto",
    reorder: bool = True,
    progress: bool = False,
) -> Plan:
    """Decides on data how each site is staged, and leaves dense what staging would not make cheaper.

    Streams the batches several times and holds one at a time: once for the order of terms, once for the principal
    bases, one more than there are stages for `Calibrated` thresholds, once to count. Terms of free groups are ordered
    by falling variance, summed over the sites on the group with their share of the FLOPs. The same data give the same
    plan, however they are cut into batches, up to rounding.

    Args:
        gm: a captured graph; it is left as it is.
        batches: re-iterable (a list, a DataLoader, a function that returns an iterator); each item a tuple of
            positional arguments or a pair ``(args, kwargs)``.
        guard: the stop rule for every site.
        stages: increasing fractions of a site's terms, each strictly between 0 and 1, at which a prefix head is tested.
        objective: "flops". ("latency" needs kernels to measure, which this release does not have.)
        head: what the guard looks at: "prefix", "principal" (of rank 1/16, 1/8 or 1/4 of the features), or "auto", the
            cheaper for each site. Where a guard or a site allows no principal head, a prefix is used.
        reorder: put the terms of free groups into the better order; the plan holds it. Guards that take the prefix for
            a random sample of the terms (those that need exchangeability) keep the order that training left: the first
            terms by variance are no random sample.
        progress: draw a progress bar on stderr.

    Returns:
        The plan, with one entry for each site of the normalised graph; empty if there is none.

    Raises:
        GuardError: the stages are not increasing fractions, or ``guard`` is no guard.
        PlanError: an unknown head, an objective that this release cannot measure, or a graph that is staged already.
        CalibrationError: batches that can be read once only, are empty, not finite, or that the model refuses.
    """
    _check_stages(stages)
    request = _Request(guard, tuple(stages), head)
    _check_request(request, objective)
    _check_unstaged(gm)
    check_batches(batches)
    dense = normalise(gm)
    groups = symmetries(dense)
    sites = find_sites(dense, groups)
    data = Data(batches, progress)
    chosen = [site for site in sites if not request.refusal(site)]
    if not chosen:
        return _untouched(sites, request)
    orders: dict[str, tuple[int, ...]] = {}
    if reorder and request.wants_prefix and not guard.needs_exchangeability:
        orders = _find_orders(data, dense, groups, chosen)
        dense = ReorderTermsPass(orders)(dense).graph_module
        sites = find_sites(dense)
        chosen = [site for site in sites if not request.refusal(site)]
    candidates = _make_candidates(data, dense, chosen, request)
    thresholds = fit_thresholds(data, dense, candidates)
    outcomes = count_outcomes(data, dense, candidates, thresholds)
    tried: defaultdict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes.values():
        tried[outcome.candidate.site.name].append(outcome)
    entries = tuple(_decide(site, request, tried[site.name], thresholds) for site in sites)
    staged = any(entry.head != "dense" for entry in entries)
    return Plan(entries, orders if staged else {}, "flops", data.examples)


def _check_stages(stages: object) -> None:
    shares = list(stages) if isinstance(stages, list | tuple) else []
    fractions = all(isinstance(share, int | float) and 0 < share < 1 for share in shares)
    if not shares or not fractions or shares != sorted(set(shares)):
        raise GuardError(
            f"stages {shares or stages!r} are not increasing fractions of the terms",
            hint="give fractions strictly between 0 and 1, such as (1/8, 1/4, 1/2)",
        )


def _check_unstaged(gm: fx.GraphModule) -> None:
    if record_of(gm) is not None:
        raise PlanError("this graph is staged already", hint="calibrate the graph that was given to transform")


def _check_request(request: _Request, objective: str) -> None:
    if not isinstance(request.guard, Guard):
        raise GuardError(f"the guard is a {type(request.guard).__name__}", hint="give one, e.g. Calibrated(0.02)")
    if objective == "latency":
        raise PlanError(
            'objective "latency" is decided by measuring kernels, which this release does not have',
            hint='use objective="flops"',
        )
    if objective != "flops":
        raise PlanError(f"unknown objective {objective!r}", hint='use "flops"')
    if request.head not in ("auto", "prefix", "principal"):
        raise PlanError(f"unknown head {request.head!r}", hint='use "auto", "prefix" or "principal"')


def _untouched(sites: Sequence[Site], request: _Request) -> Plan:
    return Plan(tuple(_decide(site, request, [], {}) for site in sites))


# --- the order of terms -----------------------------------------------------------------------------------------------


def _find_orders(
    data: Data, gm: fx.GraphModule, groups: SymmetryReport, sites: Sequence[Site]
) -> dict[str, tuple[int, ...]]:
    """For each group that sites run over, its members by falling variance of their terms."""
    sizes = {group.name: group.size for group in groups if group.free and group.repeats == 1}
    on_groups = [site for site in sites if site.input_group in sizes and sizes[site.input_group] == site.terms]
    if not on_groups:
        return {}
    observer = VarianceObserver({site.name for site in on_groups})
    data.walk(gm, sites, observer, "variances")  # all sites: the first that is not finite is the one to name
    nodes = {node.name: node for node in gm.graph.nodes}
    scores: dict[str, Tensor] = {}
    for site in on_groups:
        variance = observer.term_variances(site)
        flops = evaluate(dense_flops(nodes[site.node]), data.sizes)
        share = variance * (flops / variance.sum().clamp_min(torch.finfo(torch.float64).tiny))
        assert site.input_group is not None
        scores[site.input_group] = scores.get(site.input_group, torch.zeros_like(share)) + share
    return {name: falling_order(score.tolist()) for name, score in scores.items()}


# --- candidates -------------------------------------------------------------------------------------------------------


def _make_candidates(data: Data, gm: fx.GraphModule, sites: Sequence[Site], request: _Request) -> list[Candidate]:
    """What is worth trying: everything that would be cheaper than dense if every neuron stopped at once."""
    principal = [site for site in sites if request.wants_principal and not request.no_principal(site)]
    moments = MomentObserver()
    if principal:
        data.walk(gm, principal, moments, "moments")
    with_basis = {site.name for site in principal}
    candidates: list[Candidate] = []
    for site in sites:
        weight = tensor_at(gm, site.weight).detach()
        if request.wants_prefix or site.name not in with_basis:
            candidates.append(Candidate(site, "prefix", request.prefix_stages(site), request.guard, weight))
        if site.name in with_basis:
            candidates += _principal_candidates(site, weight, moments.moments.pop(site.name).matrix(), request)
    return candidates


def _principal_candidates(site: Site, weight: Tensor, moments: Tensor, request: _Request) -> list[Candidate]:
    basis = principal_basis(weight, moments)
    candidates = []
    for rank in request.ranks(site):
        # Rounded as the plan will hold them, so that thresholds are those of the head that will run.
        down, lift = (factor.float().to(weight.dtype) for factor in basis.truncated(rank))
        candidates.append(Candidate(site, "principal", (rank,), request.guard, weight, down, lift))
    return candidates


# --- the decision -----------------------------------------------------------------------------------------------------


def _decide(site: Site, request: _Request, outcomes: Sequence[Outcome], thresholds: Thresholds) -> SitePlan:
    refusal = request.refusal(site)
    if refusal:
        return SitePlan(site.name, site.weight_shape, reason=f"dense: {refusal}")
    best = min(outcomes, key=lambda outcome: outcome.relative_cost)
    candidate = best.candidate
    if best.relative_cost >= 1:
        reason = f"dense: the best head ({candidate.label}) would cost {_percent(best.relative_cost)} of it"
        return SitePlan(site.name, site.weight_shape, reason=reason)
    fitted = thresholds.get(candidate.key)
    return SitePlan(
        site=site.name,
        weight_shape=site.weight_shape,
        head=candidate.head,
        reason=_reason(best, outcomes, request, site),
        guard=candidate.guard,
        stages=candidate.stages,
        thresholds=None if fitted is None else Array.of(fitted),
        down=None if candidate.down is None else Array.of(candidate.down),
        lift=None if candidate.lift is None else Array.of(candidate.lift),
        alive_fraction=best.alive_fraction,
        fraction_removed=1 - best.relative_cost,
    )


def _reason(best: Outcome, outcomes: Sequence[Outcome], request: _Request, site: Site) -> str:
    words = f"{best.candidate.label}: {_percent(1 - best.relative_cost)} of the FLOPs removed"
    words += f", {100 * best.energy_lost:.2g} % of the activations' energy lost"
    others = [outcome for outcome in outcomes if outcome.candidate.head != best.candidate.head]
    if others:
        other = min(others, key=lambda outcome: outcome.relative_cost)
        removed = 1 - other.relative_cost
        would = f"removed {_percent(removed)}" if removed > 0 else f"cost {_percent(other.relative_cost)} of it"
        words += f"; {other.candidate.label} would have {would}"
    elif request.wants_principal and request.no_principal(site):
        words += f"; no principal head: {request.no_principal(site)}"
    return words


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"

"""Turns what candidates do, and what they take, into the plan's entry for a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from exprune_fx.calibration.counting import Outcome
from exprune_fx.calibration.fit import Thresholds
from exprune_fx.calibration.request import Request
from exprune_fx.plan import Array, SitePlan, SiteTiming
from exprune_fx.sites import Site
from exprune_fx.wording import count_text, fine_percent_text, milliseconds_text, percent_text


@dataclass(frozen=True)
class Margin:
    """What staging a site must win at least.

    Attributes:
        share: of the dense time.
        seconds: a call.
        name: of the plan that it makes.
    """

    share: float
    seconds: float
    name: str


# Timings of one run differ by a few percent; and a compiled graph spares a dense layer more than it spares a fused
# operator: calls, copies between layouts, the pooling that it joins to a convolution. How much more depends on the
# model, so both plans are timed whole.
EVERY_GAIN = Margin(0.05, 5e-6, "every site that gains")
CLEAR_GAIN = Margin(0.25, 20e-6, "sites that gain a quarter")
MARGINS = (EVERY_GAIN, CLEAR_GAIN)


def dense_entry(site: Site, reason: str) -> SitePlan:
    """The entry of a site that stays as it is."""
    return SitePlan(site.name, site.weight_shape, reason=f"dense: {reason}")


def staged_entry(outcome: Outcome, thresholds: Thresholds, reason: str = "") -> SitePlan:
    """The entry that stages a site by a candidate."""
    candidate = outcome.candidate
    fitted = thresholds.get(candidate.key)
    return SitePlan(
        site=candidate.site.name,
        weight_shape=candidate.site.weight_shape,
        head=candidate.head,
        reason=reason,
        guard=candidate.guard,
        stages=candidate.stages,
        thresholds=None if fitted is None else Array.of(fitted[:, 0] if candidate.window else fitted),
        down=None if candidate.down is None else Array.of(candidate.down),
        lift=None if candidate.lift is None else Array.of(candidate.lift),
        alive_fraction=outcome.alive_fraction,
        fraction_removed=1 - outcome.relative_cost,
        margins=Array.of(fitted[:, 1]) if fitted is not None and candidate.window else None,
        window=() if fitted is None else candidate.window,
    )


def decide_by_flops(site: Site, request: Request, outcomes: Sequence[Outcome], thresholds: Thresholds) -> SitePlan:
    """The candidate with the fewest FLOPs, tests counted, or dense where none has fewer than the dense site."""
    refusal = request.refusal(site)
    if refusal:
        return dense_entry(site, refusal)
    best = min(outcomes, key=lambda outcome: outcome.relative_cost)
    if best.relative_cost >= 1:
        return dense_entry(
            site, f"the best head ({best.candidate.label}) would cost {percent_text(best.relative_cost, 0)} of it"
        )
    return staged_entry(best, thresholds, _reason(best, outcomes, request, site))


def _reason(best: Outcome, outcomes: Sequence[Outcome], request: Request, site: Site) -> str:
    words = f"{best.candidate.label}: {percent_text(1 - best.relative_cost, 0)} of the FLOPs removed"
    words += f", {fine_percent_text(best.energy_lost)} of the activations' energy lost"
    others = [outcome for outcome in outcomes if outcome.candidate.head != best.candidate.head]
    if others:
        other = min(others, key=lambda outcome: outcome.relative_cost)
        cost = other.relative_cost
        would = f"removed {percent_text(1 - cost, 0)}" if cost < 1 else f"cost {percent_text(cost, 0)} of it"
        words += f"; {other.candidate.label} would have {would}"
    elif request.wants_principal and request.no_principal(site):
        words += f"; no principal head: {request.no_principal(site)}"
    elif request.wants_coded and request.no_coded(site):
        words += f"; no coded head: {request.no_coded(site)}"
    return words


# --- by the clock -----------------------------------------------------------------------------------------------------


def decide_by_time(
    site: Site, entries: Mapping[str, SitePlan], timing: SiteTiming, margin: Margin = CLEAR_GAIN
) -> SitePlan:
    """The fastest candidate, or dense where it does not beat the best dense form by more than the margin.

    Args:
        site: the site.
        entries: the candidates' entries, by the names that `timing` knows them by.
        timing: what everything took.
        margin: what it must win.
    """
    staged = f"{timing.staged_form}: {milliseconds_text(timing.staged_s)}"
    dense = f"{timing.dense_form}: {milliseconds_text(timing.dense_s)}"
    at = f"({count_text(timing.examples, 'example')}, {count_text(timing.threads, 'thread')})"
    if not pays(timing.staged_s, timing.dense_s, margin):
        words = f"dense: {dense}, the fastest way to stage it, {staged} {at}"
        return SitePlan(site.name, site.weight_shape, reason=words, timing=timing)
    chosen = entries[timing.staged_form]
    words = f"{staged}, {dense}, {timing.speedup:.2f} times as fast {at}"
    if chosen.is_staged:
        words += f"; {percent_text(chosen.fraction_removed, 0)} of the FLOPs removed"
    return replace(chosen, reason=words, timing=timing)


def pays(staged_s: float, dense_s: float, margin: Margin) -> bool:
    """Whether a staged form is faster than a dense one by more than a margin."""
    return staged_s < dense_s * (1 - margin.share) and staged_s < dense_s - margin.seconds

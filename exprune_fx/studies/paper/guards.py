"""The paper's two guards on a model: one number a site, one test after the first terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from exprune_fx.guards import Guard, StatsTest, Threshold
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.sites import Site

GuardName = Literal["StatsTest", "Threshold"]
PUBLISHED: tuple[GuardName, ...] = ("StatsTest", "Threshold")

OFF = 0.01  # below it a site is left dense: an alpha so small would pay for tests that stop nobody
SPAN = {"StatsTest": 0.5, "Threshold": 0.9}
DIAGONAL = {
    "StatsTest": (0.01, 0.02, 0.04, 0.06, 0.09, 0.13, 0.18, 0.24, 0.32, 0.4),
    "Threshold": (0.02, 0.06, 0.1, 0.15, 0.2, 0.27, 0.34, 0.42, 0.5, 0.6),
}
"""Settings, the same at every site, that a search tries first."""


@dataclass(frozen=True, eq=False)
class GuardSpace:
    """All settings of one of the paper's guards on one model.

    A setting has one number a site. For StatsTest it is alpha, up to 0.5 as in the reference implementation. For
    Threshold it is the share of the site's neurons whose mean of the first terms lies below T on the calibration
    examples, T being at most 0: the same T for each site as in the paper, but in a scale that is right for every layer,
    where the reference implementation searches one interval for all. Below `OFF` a site is dense.

    Attributes:
        guard: which.
        sites: all sites of the model.
        heads: terms seen before the test, by the name of each site that may be staged.
        quantiles: for Threshold, 1,001 quantiles of the mean that is tested, by site.
    """

    guard: GuardName
    sites: Sequence[Site]
    heads: Mapping[str, int]
    quantiles: Mapping[str, Tensor]

    @property
    def diagonal(self) -> list[tuple[float, ...]]:
        """Settings that are the same at every site, the gentlest first."""
        return [(number,) * len(self.heads) for number in DIAGONAL[self.guard]]

    def plan(self, numbers: Sequence[float]) -> Plan:
        """The plan of one setting."""
        given = dict(zip(self.heads, numbers, strict=True))
        return plan_with(self.sites, self.heads, lambda name: self._guard(name, given[name]))

    def numbers(self, setting: Sequence[float]) -> dict[str, float | None]:
        """Alpha or T of every site; None where it is dense."""
        guards = {name: self._guard(name, number) for name, number in zip(self.heads, setting, strict=True)}
        return {name: _number(guard) for name, guard in guards.items()}

    def _guard(self, name: str, number: float) -> Guard | None:
        if number < OFF:
            return None
        if self.guard == "StatsTest":
            return StatsTest(min(number, 0.4999))
        place = self.quantiles[name]
        return Threshold(min(float(place[round(number * (len(place) - 1))]), 0.0))


def _number(guard: Guard | None) -> float | None:
    if isinstance(guard, StatsTest):
        return guard.alpha
    return guard.threshold if isinstance(guard, Threshold) else None


def plan_with(sites: Sequence[Site], heads: Mapping[str, int], guard_of: Callable[[str], Guard | None]) -> Plan:
    """A plan with one test at each of these sites, where there is a guard."""
    entries = []
    for site in sites:
        guard = guard_of(site.name) if site.name in heads else None
        if guard is None:
            entries.append(SitePlan(site.name, site.weight_shape, reason="left as it is by this setting"))
        else:
            reason = "one test after the first terms, as in the paper"
            entries.append(SitePlan(site.name, site.weight_shape, "prefix", reason, guard, (heads[site.name],)))
    return Plan(tuple(entries))


def heads_of(sites: Iterable[Site], head_terms: int, density: Mapping[str, float]) -> dict[str, int]:
    """How many terms each site's test sees, for the sites that the paper's guards apply to.

    Those with exchangeable terms, more of them than the test wants to see. Where weights are pruned, the test waits
    until it has seen ``head_terms`` terms with any weight, on the average of the site's neurons (the reference
    implementation waits for each neuron apart).

    Args:
        sites: of the model.
        head_terms: wanted.
        density: by site, share of terms with any weight that is not zero.
    """
    heads = {}
    for site in sites:
        seen = round(head_terms / max(density[site.name], 1e-6))
        if site.exchangeable and not site.obstacle and seen < site.terms:
            heads[site.name] = seen
    return heads

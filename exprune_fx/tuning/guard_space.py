"""What a search over guards may choose: one number from 0 to 1 a site, and the plan that the numbers stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from exprune_fx.calibration import ranks
from exprune_fx.calibration.candidates import Candidate, head_sums
from exprune_fx.calibration.decide import dense_entry
from exprune_fx.calibration.fit import by_site
from exprune_fx.calibration.frontier import Option
from exprune_fx.calibration.observe import Data, SiteValues
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.calibration.request import Request
from exprune_fx.errors import PlanError
from exprune_fx.graph.edits import tensor_at
from exprune_fx.guards import FinitePopulation, Guard, StatsTest, Threshold
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.sites import Site

GuardChoice = Literal["stats_test", "threshold", "finite_population", "calibrated"]
OFF = 0.01  # below it a site is dense: tests that stop nobody cost what they cost
_LARGEST_ALPHA = 0.4999
_LARGEST_SHARE = 0.9
_QUANTILES = 1001
_KEPT = 20_000  # means of one batch and site that the quantiles are read from


class GuardSpace(Protocol):
    """The settings of one kind of guard on one model.

    Attributes:
        sites: names of those that may be staged, in graph order; a setting has one number for each.
        first: settings that a search tries first, the gentlest first.
    """

    @property
    def sites(self) -> tuple[str, ...]: ...  # noqa: D102 - above

    @property
    def first(self) -> tuple[tuple[float, ...], ...]: ...  # noqa: D102 - above

    def plan(self, setting: Sequence[float]) -> Plan:
        """The plan of one setting."""


def check_guard(guard: object) -> GuardChoice:
    """The kind of guard.

    Raises:
        PlanError: it is none that can be searched.
    """
    for known in get_args(GuardChoice):
        if guard == known:
            return known  # type: ignore[no-any-return] # get_args forgets the literal
    raise PlanError(f"cannot search over the guard {guard!r}", hint=f"one of {', '.join(get_args(GuardChoice))}")


@dataclass(frozen=True, eq=False)
class NumberSpace:
    """A guard with one number a site, and the same stages at each.

    For StatsTest and FinitePopulation a setting's number, halved, is alpha. For Threshold it is the share of the
    site's neurons whose mean of the first terms lies below T on the calibration data, 0.9 at most, T being at most 0:
    one interval of T does not suit every layer, one interval of shares does.

    Attributes:
        kind: of guard.
        all_sites: of the model.
        stages: terms seen at each test, by the name of each site that may be staged.
        quantiles: for Threshold, of the mean that the first test looks at, by site.
    """

    kind: GuardChoice
    all_sites: Sequence[Site]
    stages: Mapping[str, tuple[int, ...]]
    quantiles: Mapping[str, Tensor]

    @property
    def sites(self) -> tuple[str, ...]:
        """Of those that may be staged."""
        return tuple(self.stages)

    @property
    def first(self) -> tuple[tuple[float, ...], ...]:
        """The same number everywhere."""
        return tuple((number,) * len(self.stages) for number in (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8))

    def guard(self, site: str, number: float) -> Guard:
        """The guard of one site."""
        if self.kind == "threshold":
            place = round(_LARGEST_SHARE * number * (_QUANTILES - 1))
            return Threshold(min(float(self.quantiles[site][place]), 0.0))
        alpha = min(number / 2, _LARGEST_ALPHA)
        return StatsTest(alpha) if self.kind == "stats_test" else FinitePopulation(alpha)

    def plan(self, setting: Sequence[float]) -> Plan:
        """The plan of one setting; a site whose number is below `OFF` is dense."""
        given = dict(zip(self.stages, setting, strict=True))
        entries = []
        for site in self.all_sites:
            number = given.get(site.name, 0.0)
            if number < OFF:
                entries.append(dense_entry(site, "left out by this setting"))
                continue
            guard, stages = self.guard(site.name, number), self.stages[site.name]
            entries.append(SitePlan(site.name, site.weight_shape, "prefix", "as searched", guard, stages))
        return Plan(tuple(entries))


@dataclass(frozen=True, eq=False)
class OptionSpace:
    """`Calibrated` guards: how far each site goes along its own frontier of heads and budgets.

    Attributes:
        options: by site, in graph order, the first leaves it dense.
        orders: of the terms.
        examples: that calibration saw.
    """

    options: Mapping[str, Sequence[Option]]
    orders: Mapping[str, tuple[int, ...]]
    examples: int

    @property
    def sites(self) -> tuple[str, ...]:
        """Of those with a choice."""
        return tuple(name for name, found in self.options.items() if len(found) > 1)

    @property
    def first(self) -> tuple[tuple[float, ...], ...]:
        """The same share of each site's way."""
        return tuple((number,) * len(self.sites) for number in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8))

    def plan(self, setting: Sequence[float]) -> Plan:
        """The plan of one setting."""
        given = dict(zip(self.sites, setting, strict=True))
        entries = tuple(
            found[round(given.get(name, 0.0) * (len(found) - 1))].entry for name, found in self.options.items()
        )
        staged = any(entry.is_staged for entry in entries)
        return Plan(entries, dict(self.orders) if staged else {}, "flops", self.examples)


def number_space(kind: GuardChoice, graph: Prepared, data: Data, stages: Sequence[float]) -> NumberSpace:
    """The settings of one of the guards that rest on exchangeability.

    Args:
        kind: "stats_test", "threshold" or "finite_population".
        graph: the normalised graph.
        data: calibration data; read for "threshold" only.
        stages: fractions of the terms at which a site is tested.
    """
    request = Request(_example(kind), tuple(stages), "prefix")
    chosen = graph.chosen(request)
    terms = {site.name: request.prefix_stages(site) for site in chosen}
    first = {name: seen[0] for name, seen in terms.items()}
    quantiles = mean_quantiles(graph, data, first) if kind == "threshold" and chosen else {}
    return NumberSpace(kind, graph.sites, terms, quantiles)


def mean_quantiles(graph: Prepared, data: Data, seen: Mapping[str, int]) -> dict[str, Tensor]:
    """1,001 quantiles of ``S/n + c/K`` of the dense model, which `Threshold` looks at: float64 [1001], by site.

    Args:
        graph: the normalised graph.
        data: calibration data.
        seen: n, the terms that the test sees, by the name of each site that counts.
    """
    sites = [site for site in graph.sites if site.name in seen]
    means = _Means(
        [
            Candidate(site, "prefix", (seen[site.name],), Threshold(0.0), tensor_at(graph.gm, site.weight).detach())
            for site in sites
        ]
    )
    data.walk(graph.gm, sites, means, "means")
    levels = torch.linspace(0, 1, _QUANTILES, dtype=torch.float64)
    return {name: torch.quantile(torch.cat(found), levels) for name, found in means.seen.items()}


def _example(kind: GuardChoice) -> Guard:
    examples: dict[str, Guard] = {"stats_test": StatsTest(0.1), "finite_population": FinitePopulation(0.1)}
    return examples.get(kind, Threshold(0.0))


class _Means:
    """Keeps some thousands of each batch's ``S/n + c/K``, by site."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self.seen: dict[str, list[Tensor]] = {candidate.site.name: [] for candidate in candidates}
        self._by_site = by_site(candidates)

    def __call__(self, site: Site, values: SiteValues) -> None:
        """Adds one batch."""
        for candidate in self._by_site[site.name]:
            head = next(iter(head_sums(candidate, values)))
            mean = head.partial / candidate.stages[0]
            if head.constant is not None:
                mean = mean + head.constant / site.terms
            flat = mean.double().flatten()
            step = -(-flat.numel() // _KEPT)
            self.seen[site.name].append(flat[:: step + 1 - step % 2])  # an odd step meets every column of a picture

    def merge(self) -> None:
        """Puts together what all processes saw."""
        self.seen = {
            name: [part for parts in ranks.gathered(found) for part in parts] for name, found in self.seen.items()
        }

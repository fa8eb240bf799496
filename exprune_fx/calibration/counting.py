"""Counts what each candidate would do on the calibration examples, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import sympy
import torch
from torch import fx

from exprune_fx.calibration import ranks
from exprune_fx.calibration.candidates import Candidate, head_sums, stopped_at
from exprune_fx.calibration.energy import activate, energy
from exprune_fx.calibration.fit import Key, Thresholds, by_site, sites_of
from exprune_fx.calibration.observe import Data, SiteValues
from exprune_fx.calibration.rivals import pooled_error
from exprune_fx.cost import site_cost
from exprune_fx.errors import CalibrationError
from exprune_fx.sites import Site


@dataclass
class _Count:
    alive: list[int]
    neurons: int = 0
    nonzero: int = 0
    energy: float = 0.0
    energy_lost: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a candidate does on the calibration examples.

    Attributes:
        candidate: the candidate.
        alive_fraction: share of neurons that go on after each stage.
        relative_cost: FLOPs of head, tests and tail over those of the dense site.
        energy_lost: share of the site's energy that is stopped; where a max pool alone reads the site, of what that
            passes on, the squared error.
    """

    candidate: Candidate
    alive_fraction: tuple[float, ...]
    relative_cost: float
    energy_lost: float


class _CountObserver:
    def __init__(self, candidates: Iterable[Candidate], thresholds: Thresholds) -> None:
        self._candidates, self._thresholds = by_site(candidates), thresholds
        self.counts = {c.key: _Count([0] * len(c.stages)) for group in self._candidates.values() for c in group}

    def __call__(self, site: Site, values: SiteValues) -> None:
        activation = activate(site, values.z)
        worth = energy(site, values.z, values.pool)
        for candidate in self._candidates[site.name]:
            count, fitted = self.counts[candidate.key], self._thresholds.get(candidate.key)
            alive = torch.ones_like(values.z, dtype=torch.bool)
            for head in head_sums(candidate, values):
                limits, before = None if fitted is None else fitted[head.index], ~alive if head.index else None
                alive &= ~stopped_at(candidate, values, head, limits, before)
                count.alive[head.index] += int(alive.sum())
            count.neurons += alive.numel()
            count.nonzero += int(((activation != 0) & alive).sum())
            whole, lost = (
                pooled_error(activation, alive, site.pool.kernel)
                if site.pool is not None
                else (float(worth.sum()), float(worth.masked_fill(alive, 0.0).sum()))
            )
            count.energy += whole
            count.energy_lost += lost

    def merge(self) -> None:
        """Adds up what all processes saw."""
        for count in self.counts.values():
            parts = ranks.gathered(count)
            count.alive = [sum(stage) for stage in zip(*(part.alive for part in parts), strict=True)]
            count.neurons, count.nonzero = sum(part.neurons for part in parts), sum(part.nonzero for part in parts)
            count.energy = sum(part.energy for part in parts)
            count.energy_lost = sum(part.energy_lost for part in parts)


class Price:
    """FLOPs of a candidate at the sizes of the calibration examples.

    Attributes:
        dense: of the site as it stands, for one batch of these sizes.

    Raises:
        CalibrationError: a symbolic size of the site cannot be told from the inputs' shapes.
    """

    def __init__(self, gm: fx.GraphModule, candidate: Candidate, sizes: dict[sympy.Expr, int]) -> None:
        cost = site_cost(gm, candidate.site, candidate.head, candidate.stages, candidate.guard, candidate.window)
        # sizes first, and once: what is left to do for each share alive is a sum of a few products
        self._cost = replace(cost, work=cost.work.subs(sizes), overhead=cost.overhead.subs(sizes))
        try:
            self._whole = cost.dense.subs(sizes)
            self.dense = float(self._whole)
        except TypeError as error:
            raise CalibrationError(
                f"site {candidate.site.name!r} (node {candidate.site.node!r}): its FLOPs, {cost.dense}, depend on a "
                "size that no input's shape gives",
                hint="capture with dynamic sizes that are sizes of the inputs",
            ) from error

    def relative(self, alive: Iterable[float], nonzero: float) -> float:
        """FLOPs of the candidate, tests included, over those of its dense site."""
        work, overhead = self._cost.at(tuple(alive), nonzero)
        return float((work + overhead) / self._whole)


def count_outcomes(
    data: Data, gm: fx.GraphModule, candidates: Iterable[Candidate], thresholds: Thresholds
) -> dict[Key, Outcome]:
    """One streaming pass: what every candidate does, stages joined as at run time."""
    candidates = list(candidates)
    if not candidates:
        return {}
    observer = _CountObserver(candidates, thresholds)
    data.walk(gm, sites_of(candidates), observer, "counting")
    return {c.key: _outcome(gm, c, observer.counts[c.key], data.sizes) for c in candidates}


def _outcome(gm: fx.GraphModule, candidate: Candidate, count: _Count, sizes: dict[sympy.Expr, int]) -> Outcome:
    neurons = max(count.neurons, 1)
    alive = tuple(going / neurons for going in count.alive)
    cost = Price(gm, candidate, sizes).relative(alive, count.nonzero / neurons)
    return Outcome(candidate, alive, cost, count.energy_lost / count.energy if count.energy else 0.0)

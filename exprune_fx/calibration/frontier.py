"""Finds, for each site, the ways to stage it that nothing beats: fewer FLOPs for no more energy lost.

One pass over the data finds what each head would lose and save at every budget at once: the histogram from which a
threshold is read for one budget holds the thresholds for all of them, and who goes on beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from exprune_fx.calibration import ranks
from exprune_fx.calibration.candidates import Candidate, head_sums
from exprune_fx.calibration.counting import Outcome, Price
from exprune_fx.calibration.decide import dense_entry, staged_entry
from exprune_fx.calibration.energy import activate, by_neuron, energy
from exprune_fx.calibration.fit import Key, by_site, histogram_of, ranges_of, sites_of, windows_of
from exprune_fx.calibration.observe import Data, SiteValues
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.calibration.propose import make_candidates
from exprune_fx.calibration.request import Request
from exprune_fx.calibration.rivals import RivalHistogram, Windows
from exprune_fx.calibration.thresholds import BINS, EnergyHistogram, Living
from exprune_fx.guards import Calibrated
from exprune_fx.plan import SitePlan
from exprune_fx.sites import Site
from exprune_fx.wording import fine_percent_text, percent_text

Histogram = EnergyHistogram | RivalHistogram
_AT_ONCE = 2**22  # samples that are binned at once: their indices take 8 bytes each


@dataclass(frozen=True)
class Option:
    """One way to stage one site.

    Attributes:
        entry: for a plan; "dense" where the site is left alone.
        energy_lost: share of the site's energy that it stops.
        flops_removed: of one calibration example, tests counted.
    """

    entry: SitePlan
    energy_lost: float
    flops_removed: float


@dataclass(frozen=True)
class Frontier:
    """What could be done with each site.

    Attributes:
        options: by site, in graph order; the first leaves it dense, each next one saves more and loses more.
        examples: that calibration saw.
        coded: by site, its coded head at every budget, where it was tried: by FLOPs others may save more, and by the
            clock less.
    """

    options: Mapping[str, tuple[Option, ...]]
    examples: int
    coded: Mapping[str, tuple[Option, ...]] = field(default_factory=dict)


def find_frontier(graph: Prepared, data: Data, request: Request, budgets: Sequence[float]) -> Frontier:
    """Every site's best options at these budgets.

    Args:
        graph: the dense graph, its terms in their order.
        data: calibration data.
        request: heads and stages; each fraction is a head of one stage. Its guard's budget is not looked at.
        budgets: shares of a neuron's energy that a threshold may lose, increasing, strictly between 0 and 1.
    """
    sites = graph.chosen(request)
    made = make_candidates(data, graph.gm, sites, request)
    candidates = list({single.key: single for c in made for single in _single_stages(c)}.values())
    ranges = ranges_of(data, graph.gm, candidates)
    empty = {key: histogram_of(found, budgets[0], budgets[-1]) for (key, _), found in ranges.items()}
    observer = _Observer(candidates, empty)
    if candidates:
        data.walk(graph.gm, sites_of(candidates), observer, "frontier")
    options, coded = {}, {}
    for site in graph.sites:
        dense = Option(dense_entry(site, request.refusal(site) or "nothing pays"), 0.0, 0.0)
        found = [
            option
            for candidate in observer.by_site.get(site.name, ())
            for option in _options(graph.gm, data, candidate, observer.tallies[candidate.key], budgets)
        ]
        options[site.name] = _undominated(dense, found)
        coded[site.name] = tuple(option for option in found if option.entry.head == "coded")
    return Frontier(options, data.examples, coded)


def _single_stages(candidate: Candidate) -> list[Candidate]:
    return [replace(candidate, stages=(stage,)) for stage in candidate.stages]


class _Tally:
    """What one head does at every threshold: histograms of energy, samples and nonzero activations over ``S + c``."""

    def __init__(self, histogram: EnergyHistogram) -> None:
        self.energy = histogram
        shape = (len(histogram.energy), BINS + 2)
        self._samples, self._nonzero = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))

    def update(self, known: Tensor, living: Living, nonzero: Tensor) -> None:
        """Adds samples: ``S + c``, those that have energy, and whose activation is not zero; [out, samples]."""
        self.energy.update(known, living)
        rows = max(_AT_ONCE // max(known.shape[1], 1), 1)
        for first in range(0, len(known), rows):
            part = slice(first, first + rows)
            index = self.energy.bins_of(known[part], part)
            flat = (torch.arange(len(index)).unsqueeze(1) * (BINS + 2) + index).reshape(-1)
            size = len(index) * (BINS + 2)
            self._samples[part] += flat.bincount(minlength=size).reshape(-1, BINS + 2)
            chosen = flat[nonzero[part].reshape(-1)]
            self._nonzero[part] += chosen.bincount(minlength=size).reshape(-1, BINS + 2)

    def merge(self) -> None:
        """Adds up what all processes saw."""
        self.energy.merge()
        self._samples, self._nonzero = ranks.total(self._samples), ranks.total(self._nonzero)

    def at(self, budget: float) -> tuple[Tensor, float, float, float]:
        """Thresholds [out], and the shares of neurons alive, of nonzero activations and of energy lost."""
        interval = self.energy.interval
        thresholds, lost = self.energy.thresholds(budget * interval.energy)
        stopped = self.energy.stopped_bins(budget * interval.energy)
        alive, nonzero = (
            float(counts.masked_fill(stopped, 0).sum()) / max(float(self._samples.sum()), 1.0)
            for counts in (self._samples, self._nonzero)
        )
        whole = float(interval.energy.sum())
        return thresholds, alive, nonzero, float(lost.sum()) / whole if whole else 0.0


class _RivalTally:
    """The same where neurons are rivals in the windows of a max pool."""

    def __init__(self, histogram: RivalHistogram) -> None:
        self._histogram = histogram
        self._neurons = 0

    def update(self, windows: Windows, neurons: int) -> None:
        """Adds samples, of so many neurons in all."""
        self._histogram.update(windows)
        self._neurons += neurons

    def merge(self) -> None:
        """Adds up what all processes saw."""
        self._histogram.merge()
        self._neurons = sum(ranks.gathered(self._neurons))

    def at(self, budget: float) -> tuple[Tensor, float, float, float]:
        """Limits [2, out], and the shares of neurons alive, of activations that may be nonzero and of energy lost."""
        energy = self._histogram.energy
        choice, whole = self._histogram.choose(budget * energy), float(energy.sum())
        alive = float(choice.alive.sum()) / max(self._neurons, 1)
        return choice.limits, alive, alive, float(choice.lost.sum()) / whole if whole else 0.0


class _Observer:
    def __init__(self, candidates: Iterable[Candidate], histograms: Mapping[Key, Histogram]) -> None:
        self.by_site = by_site(candidates)
        self.tallies = {c.key: _tally(histograms[c.key]) for group in self.by_site.values() for c in group}

    def __call__(self, site: Site, values: SiteValues) -> None:
        living = Living.of(by_neuron(site, energy(site, values.z, values.pool)))
        nonzero = by_neuron(site, activate(site, values.z) != 0)
        for candidate in self.by_site[site.name]:
            (head,) = head_sums(candidate, values)
            tally = self.tallies[candidate.key]
            if isinstance(tally, _RivalTally):
                tally.update(windows_of(candidate, values, head), values.z.numel())
            else:
                tally.update(by_neuron(site, head.known), living, nonzero)

    def merge(self) -> None:
        """Adds up what all processes saw."""
        for tally in self.tallies.values():
            tally.merge()


def _tally(histogram: Histogram) -> _Tally | _RivalTally:
    return _RivalTally(histogram) if isinstance(histogram, RivalHistogram) else _Tally(histogram)


def _options(
    gm: fx.GraphModule, data: Data, candidate: Candidate, tally: _Tally | _RivalTally, budgets: Iterable[float]
) -> Iterator[Option]:
    """What one head does at each budget; its price does not depend on the budget."""
    price = Price(gm, candidate, data.sizes)
    for budget in budgets:
        guarded = replace(candidate, guard=Calibrated(budget))
        limits, alive, nonzero, lost = tally.at(budget)
        cost = price.relative((alive,), nonzero)
        words = f"{candidate.label}: {percent_text(1 - cost, 0)} of the FLOPs removed"
        words += f", {fine_percent_text(lost)} of the energy lost"
        entry = staged_entry(Outcome(guarded, (alive,), cost, lost), {candidate.key: limits.unsqueeze(0)}, words)
        yield Option(entry, lost, (1 - cost) * price.dense / data.examples_a_batch)


def _undominated(dense: Option, found: Iterable[Option]) -> tuple[Option, ...]:
    """Those that save more than every option that loses less."""
    kept = [dense]
    for option in sorted(found, key=lambda each: (each.energy_lost, -each.flops_removed)):
        if option.flops_removed > kept[-1].flops_removed:
            kept.append(option)
    return tuple(kept)

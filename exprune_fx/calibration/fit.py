"""Fits the thresholds of all candidates at once, one streaming pass per stage after one for the intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, fx

from exprune_fx.calibration.candidates import Candidate, HeadSum, head_sums, stopped_at
from exprune_fx.calibration.energy import activate, by_neuron, energy
from exprune_fx.calibration.observe import Data, SiteValues
from exprune_fx.calibration.rivals import RivalHistogram, RivalRange, Windows
from exprune_fx.calibration.thresholds import EnergyHistogram, EnergyRange, Living
from exprune_fx.guards import Calibrated
from exprune_fx.sites import Site

Key = tuple[str, str, tuple[int, ...]]
Thresholds = dict[Key, Tensor]  # [stages, out], or thresholds and margins [stages, 2, out] where neurons are rivals
Range = EnergyRange | RivalRange


def by_site(candidates: Iterable[Candidate]) -> Mapping[str, list[Candidate]]:
    """Candidates by the name of their site."""
    grouped: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        grouped[candidate.site.name].append(candidate)
    return grouped


def sites_of(candidates: Iterable[Candidate]) -> list[Site]:
    """The sites of the candidates, each once."""
    return list({candidate.site.name: candidate.site for candidate in candidates}.values())


def _living(site: Site, values: SiteValues) -> Living:
    return Living.of(by_neuron(site, energy(site, values.z, values.pool)))


def windows_of(candidate: Candidate, values: SiteValues, head: HeadSum, stopped: Tensor | None = None) -> Windows:
    """What the rivals of a candidate see after one stage."""
    return Windows.of(head.known, activate(candidate.site, values.z), candidate.window, stopped)


class _RangeObserver:
    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self._candidates = by_site(candidates)
        self.ranges: dict[tuple[Key, int], Range] = {}

    def __call__(self, site: Site, values: SiteValues) -> None:
        living = _living(site, values)
        for candidate in self._candidates[site.name]:
            for head in head_sums(candidate, values):
                place, kind = (candidate.key, head.index), RivalRange if candidate.window else EnergyRange
                if place not in self.ranges:
                    self.ranges[place] = kind(site.out_features, values.z.device)
                found = self.ranges[place]
                if isinstance(found, RivalRange):
                    found.update(windows_of(candidate, values, head))
                else:
                    found.update(by_neuron(site, head.known), living)

    def merge(self) -> None:
        """Adds up what all processes saw."""
        for each in self.ranges.values():
            each.merge()


def histogram_of(found: Range, least: float, most: float) -> EnergyHistogram | RivalHistogram:
    """An empty histogram for thresholds that may lose any share between these two."""
    if isinstance(found, RivalRange):
        return RivalHistogram(found.intervals(least, most))
    return EnergyHistogram(found.interval(least, most))


class _HistogramObserver:
    """Fills the histograms of one stage with what no earlier stage stops."""

    def __init__(
        self,
        candidates: Iterable[Candidate],
        stage: int,
        known: Thresholds,
        budget: Mapping[Key, float],
        ranges: Mapping[tuple[Key, int], Range],
    ) -> None:
        chosen = [candidate for candidate in candidates if len(candidate.stages) > stage]
        self._candidates, self._stage, self._known = by_site(chosen), stage, known
        self.histograms = {
            c.key: histogram_of(ranges[c.key, stage], budget[c.key] / len(c.stages), budget[c.key]) for c in chosen
        }

    def __call__(self, site: Site, values: SiteValues) -> None:
        living = _living(site, values)
        for candidate in self._candidates[site.name]:
            stopped: Tensor | None = None
            for head in head_sums(candidate, values):
                if head.index == self._stage:
                    self._fill(candidate, values, head, living, stopped)
                    break
                gone = stopped_at(candidate, values, head, self._known[candidate.key][head.index], stopped)
                stopped = gone if stopped is None else stopped | gone

    def _fill(
        self, candidate: Candidate, values: SiteValues, head: HeadSum, living: Living, stopped: Tensor | None
    ) -> None:
        histogram, site = self.histograms[candidate.key], candidate.site
        if isinstance(histogram, RivalHistogram):
            histogram.update(windows_of(candidate, values, head, stopped))
            return
        left = living if stopped is None else living.without(by_neuron(site, stopped))
        histogram.update(by_neuron(site, head.known), left)

    def merge(self) -> None:
        """Adds up what all processes saw."""
        for histogram in self.histograms.values():
            histogram.merge()


def ranges_of(data: Data, gm: fx.GraphModule, candidates: Collection[Candidate]) -> dict[tuple[Key, int], Range]:
    """One streaming pass: statistics of what every candidate's guard sees after each stage."""
    ranging = _RangeObserver(candidates)
    if candidates:
        data.walk(gm, sites_of(candidates), ranging, "ranges")
    return ranging.ranges


def fit_thresholds(data: Data, gm: fx.GraphModule, candidates: Iterable[Candidate]) -> Thresholds:
    """Thresholds, and margins of rivals, float32, for every candidate whose guard is `Calibrated`.

    With m stages, at most j/m of the budget is gone after stage j. A later stage is charged only for the energy that no
    earlier one stopped, and inherits what the earlier ones left unspent.
    """
    fitted = [candidate for candidate in candidates if isinstance(candidate.guard, Calibrated)]
    if not fitted:
        return {}
    budget = {c.key: c.guard.budget for c in fitted if isinstance(c.guard, Calibrated)}
    ranges = ranges_of(data, gm, fitted)
    thresholds: Thresholds = {}
    lost: dict[Key, Tensor] = {}
    for stage in range(max(len(candidate.stages) for candidate in fitted)):
        due = [candidate for candidate in fitted if len(candidate.stages) > stage]
        filling = _HistogramObserver(due, stage, thresholds, budget, ranges)
        data.walk(gm, sites_of(due), filling, f"thresholds of stage {stage + 1}")
        for candidate in due:
            key, histogram = candidate.key, filling.histograms[candidate.key]
            share = budget[key] * ((stage + 1) / len(candidate.stages))
            spent = lost.get(key, torch.zeros_like(histogram.energy))
            new, loss = chosen(histogram, share * histogram.energy - spent)
            lost[key] = spent + loss
            thresholds[key] = torch.cat([thresholds[key], new[None]]) if key in thresholds else new[None]
    return thresholds


def chosen(histogram: EnergyHistogram | RivalHistogram, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """The limits of one stage for at most so much energy [out], and what they lose [out]."""
    if isinstance(histogram, EnergyHistogram):
        return histogram.thresholds(allowed)
    choice = histogram.choose(allowed)
    return choice.limits, choice.lost

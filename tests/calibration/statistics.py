"""All that calibration sums up over batches, before anything is chosen by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from exprune_fx.calibration.candidates import Candidate, head_sums
from exprune_fx.calibration.counting import count_outcomes
from exprune_fx.calibration.energy import activate, by_neuron, energy
from exprune_fx.calibration.fit import ranges_of
from exprune_fx.calibration.frontier import Option, _Tally
from exprune_fx.calibration.moments import MomentObserver, VarianceObserver
from exprune_fx.calibration.observe import Data, SiteValues
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.calibration.thresholds import EnergyHistogram, EnergyRange, Interval, Living
from exprune_fx.graph.edits import tensor_at
from exprune_fx.guards import Calibrated, Threshold
from exprune_fx.plan import Array, SitePlan
from exprune_fx.sites import Site
from exprune_fx.tuning.sensitivity import output_sensitivity


class Tallies:
    """Histograms of energy, samples and nonzero activations in bins that no data decide."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = {candidate.site.name: candidate for candidate in candidates}
        self.tallies = {
            name: _Tally(EnergyHistogram(fixed_interval(c.site.out_features))) for name, c in self.candidates.items()
        }

    def __call__(self, site: Site, values: SiteValues) -> None:
        living = Living.of(by_neuron(site, energy(site, values.z, values.pool)))
        nonzero = by_neuron(site, activate(site, values.z) != 0)
        (head,) = head_sums(self.candidates[site.name], values)
        self.tallies[site.name].update(by_neuron(site, head.known), living, nonzero)

    def merge(self) -> None:
        for tally in self.tallies.values():
            tally.merge()


def fixed_interval(neurons: int) -> Interval:
    ones = torch.ones(neurons, dtype=torch.float64)
    return Interval(-3 * ones, ones / 64, ones, 3 * ones)


def statistics(gm: fx.GraphModule, batches: Sequence[object]) -> dict[str, Tensor]:
    """By what they are, float64; the same however many processes share the batches, up to rounding."""
    graph, data = Prepared.of(gm), Data(batches)
    moments, variances = MomentObserver(), VarianceObserver({site.name for site in graph.sites})
    data.walk(graph.gm, graph.sites, moments, "moments")
    data.walk(graph.gm, graph.sites, variances, "variances")
    found = {f"moments {name}": each.matrix() for name, each in moments.moments.items()}
    found |= {f"term variances {site.name}": variances.term_variances(site) for site in graph.sites}
    candidates = [
        Candidate(site, "prefix", (site.terms // 2,), Threshold(0.0), tensor_at(graph.gm, site.weight).detach())
        for site in graph.sites
    ]
    for (key, _), each in ranges_of(data, graph.gm, candidates).items():
        name = key[0]
        assert isinstance(each, EnergyRange), "no pool in these models"
        found |= {f"energy {name}": each.energy, f"first {name}": each._first, f"second {name}": each._second}
        found |= {f"lowest {name}": each._lowest_alive, f"highest {name}": each._highest}
    tallies = Tallies(candidates)
    data.walk(graph.gm, graph.sites, tallies, "tallies")
    for name, tally in tallies.tallies.items():
        found |= {f"bins {name}": tally.energy._bins, f"samples {name}": tally._samples.double()}
    for key, outcome in count_outcomes(data, graph.gm, candidates, {}).items():
        found[f"alive {key[0]}"] = torch.tensor(outcome.alive_fraction, dtype=torch.float64)
        found[f"lost {key[0]}"] = torch.tensor([outcome.energy_lost, outcome.relative_cost], dtype=torch.float64)
    return found | losses(graph, batches)


def losses(graph: Prepared, batches: Sequence[object]) -> dict[str, Tensor]:
    """What losing energy at each site does to the outputs."""
    options, probes = {}, {}
    for site in graph.sites:
        thresholds = Array.of(torch.zeros(1, site.out_features))
        entry = SitePlan(
            site.name, site.weight_shape, "prefix", "", Calibrated(0.1), (site.terms // 2,), thresholds=thresholds
        )
        dense = Option(SitePlan(site.name, site.weight_shape), 0.0, 0.0)
        options[site.name], probes[site.name] = (dense,), Option(entry, 0.1, 1.0)
    sensitivity = output_sensitivity(graph.gm, options, probes, {}, batches, 48)
    return {f"sensitivity {name}": torch.tensor(value, dtype=torch.float64) for name, value in sensitivity.items()}

from __future__ import annotations

import pytest
import torch

from exprune_fx.calibration.thresholds import BINS, EnergyHistogram, EnergyRange, Living

NEURONS, SAMPLES = 12, 4000


def _data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """S + c, and the energy of a pre-activation that it foretells; heavy tails and different scales."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-3, 3, NEURONS)[:, None]
    known = torch.randn(NEURONS, SAMPLES, generator=generator) ** 3 * scale
    z = known + scale * torch.randn(NEURONS, SAMPLES, generator=generator) - 0.5 * scale
    return known, z.relu().double().square()


def _fit(
    known: torch.Tensor, energy: torch.Tensor, budget: float, parts: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ranges = EnergyRange(NEURONS, known.device)
    for k, e in zip(known.chunk(parts, 1), energy.chunk(parts, 1), strict=True):
        ranges.update(k, Living.of(e))
    interval = ranges.interval(budget, budget)
    histogram = EnergyHistogram(interval)
    for k, e in zip(known.chunk(parts, 1), energy.chunk(parts, 1), strict=True):
        histogram.update(k, Living.of(e))
    thresholds, lost = histogram.thresholds(budget * interval.energy)
    return thresholds, lost, interval.width


def _best(known: torch.Tensor, energy: torch.Tensor, budget: float) -> torch.Tensor:
    """By sorting all living samples: the largest of them that may be a threshold."""
    best = []
    for all_known, all_energy in zip(known, energy, strict=True):
        k, e = all_known[all_energy > 0], all_energy[all_energy > 0]
        order = k.argsort()
        before = e[order].cumsum(0) - e[order]
        best.append(k[order][before <= budget * e.sum()].max())
    return torch.stack(best)


@pytest.mark.parametrize("budget", [0.0, 0.001, 0.02, 0.3, 0.9])
def test_thresholds_keep_the_budget_and_are_within_a_bin_of_the_best(budget: float) -> None:
    known, energy = _data()
    thresholds, lost, width = _fit(known, energy, budget)
    stopped = known < thresholds[:, None]
    gone = (energy * stopped).sum(1)
    assert bool((gone <= budget * energy.sum(1)).all())
    # what the histogram says is lost can exceed what is lost by nothing but what lies on the threshold's rounding
    assert bool((gone <= lost * (1 + 1e-12)).all())
    best = _best(known, energy, budget).double()
    assert bool((thresholds <= best * (1 + 1e-6 * best.sign())).all())
    # one bin, half a bin's clearance below the lowest sample, and float32's rounding
    assert bool((best - thresholds <= 1.5 * width + 1e-6 * best.abs()).all())


def test_most_of_a_generous_budget_is_used() -> None:
    known, energy = _data()
    _, lost, _ = _fit(known, energy, 0.1)
    assert float((lost / energy.sum(1)).mean()) > 0.08


def test_streaming_equals_one_batch() -> None:
    known, energy = _data()
    whole, _, _ = _fit(known, energy, 0.02)
    parts, _, _ = _fit(known, energy, 0.02, parts=7)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)


def test_budget_zero_stops_only_below_all_that_came_alive() -> None:
    known, energy = _data()
    thresholds, lost, width = _fit(known, energy, 0.0)
    lowest = known.masked_fill(energy == 0, torch.inf).amin(1)
    assert bool((thresholds <= lowest).all())
    assert bool((lowest - thresholds <= width).all())
    assert float(lost.sum()) == 0.0


def test_a_neuron_that_never_lived_stops_up_to_the_largest_value_seen() -> None:
    known, energy = _data()
    energy[4] = 0.0
    thresholds, lost, _ = _fit(known, energy, 0.02)
    assert bool((known[4] < thresholds[4]).all())
    assert float(thresholds[4]) <= float(known[4].max()) + 1e-6 * float(known[4].abs().max())
    assert float(lost[4]) == 0.0


def test_one_living_sample_is_never_given_up() -> None:
    known, energy = _data()
    energy[2] = 0.0
    energy[2, 7] = 1.0
    thresholds, _, _ = _fit(known, energy, 0.5)
    assert float(known[2, 7]) >= float(thresholds[2])


def test_long_tails_do_not_coarsen_the_bins() -> None:
    """One wild sample a thousand times beyond the rest: the bins stay as fine as the spread of the energy asks."""
    known, energy = _data()
    known[0, 0], energy[0, 0] = 1e6 * known[0].std(), 1e-12
    _, _, width = _fit(known, energy, 0.02)
    assert float(width[0]) * BINS < 20 * float(known[0].std())

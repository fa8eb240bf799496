"""Thresholds for `Calibrated`: per neuron, the largest that loses at most a share of its energy.

The energy of a neuron is the sum of ``activation(z)^2`` over all examples and pixels; where a max-pool alone reads it,
over those that win a window. Two streaming passes: the first finds, per neuron, an interval that must hold the
threshold; the second fills a histogram of the energy over ``S + c`` in that interval. Only the bins' edges can become
thresholds, so a bin is given up whole or not at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from exprune_fx.calibration import ranks

BINS = 512


@dataclass(frozen=True)
class Living:
    """The samples that have energy: the only ones that a threshold can lose.

    Attributes:
        place: [living], index into the flattened [out, samples].
        neuron: [living].
        energy: [living], float64, positive.
    """

    place: Tensor
    neuron: Tensor
    energy: Tensor

    @classmethod
    def of(cls, energy: Tensor) -> Living:
        """From the energy of all samples: [out, samples]."""
        flat = energy.reshape(-1)
        (place,) = torch.nonzero(flat, as_tuple=True)
        return cls(place, place // energy.shape[1], flat[place].double())

    def select(self, values: Tensor) -> Tensor:
        """[living], float64, of [out, samples]."""
        return values.reshape(-1)[self.place].double()

    def without(self, stopped: Tensor) -> Living:
        """Those that are not stopped: bool [out, samples]."""
        going = ~stopped.reshape(-1)[self.place]
        return Living(self.place[going], self.neuron[going], self.energy[going])


@dataclass(frozen=True)
class Interval:
    """Where a neuron's threshold lies.

    Attributes:
        low: [out], the lowest edge; energy below it is within the budget of the first stage.
        width: [out], of one bin.
        energy: [out], all of the neuron's energy.
        highest: [out], the largest ``S + c`` seen, alive or not.
    """

    low: Tensor
    width: Tensor
    energy: Tensor
    highest: Tensor

    def edges(self, index: Tensor) -> Tensor:
        """[out], the edge of this index, 0 to BINS."""
        return self.low + index * self.width


class EnergyRange:
    """Streaming statistics of one candidate's ``S + c`` at one stage, weighted by energy."""

    def __init__(self, neurons: int, device: torch.device) -> None:
        zeros = torch.zeros(neurons, dtype=torch.float64, device=device)
        self.energy, self._first, self._second = zeros, zeros.clone(), zeros.clone()
        self._lowest_alive, self._highest_alive, self._highest = zeros + math.inf, zeros - math.inf, zeros - math.inf

    def update(self, known: Tensor, living: Living) -> None:
        """Adds samples.

        Args:
            known: [out, samples], ``S + c``.
            living: those of them that have energy.
        """
        values, neuron, count = living.select(known), living.neuron, len(self.energy)
        weighted = living.energy * values
        self.energy += torch.bincount(neuron, living.energy, minlength=count)
        self._first += torch.bincount(neuron, weighted, minlength=count)
        self._second += torch.bincount(neuron, weighted * values, minlength=count)
        self._lowest_alive.scatter_reduce_(0, neuron, values, "amin")
        self._highest_alive.scatter_reduce_(0, neuron, values, "amax")
        self._highest = self._highest.maximum(known.amax(1).double())

    def merge(self) -> None:
        """Adds up what all processes saw."""
        self.energy, self._first, self._second = map(ranks.total, (self.energy, self._first, self._second))
        self._lowest_alive = ranks.smallest(self._lowest_alive)
        self._highest_alive, self._highest = map(ranks.largest, (self._highest_alive, self._highest))

    def interval(self, least: float, most: float, bins: int = BINS) -> Interval:
        """The interval in which the threshold lies, whatever share of the energy between these two it may lose.

        By Cantelli's inequality the quantile at q of a distribution with mean m and deviation s lies between
        ``m - s*sqrt((1-q)/q)`` and ``m + s*sqrt(q/(1-q))``; no bins are spent outside, however long its tails.
        """
        energy = self.energy.clamp_min(torch.finfo(torch.float64).tiny)
        mean = self._first / energy
        deviation = (self._second / energy - mean.square()).clamp_min(0.0).sqrt()
        below = math.sqrt((1 - least) / least) if least > 0 else math.inf
        low = self._lowest_alive
        if math.isfinite(below):
            low = low.maximum(mean - below * deviation)
        high = self._highest_alive.minimum(mean + math.sqrt(most / (1 - most)) * deviation).maximum(low)
        scale = torch.maximum(low.abs(), high.abs()).clamp_min(1e-30)
        # Never thinner than float32 can tell apart; the lowest edge keeps half a bin clear of the lowest living sample.
        width = ((high - low) / bins).maximum(scale * 1e-6)
        dead = self.energy == 0
        low = (low - width / 2).masked_fill(dead, 0.0)
        return Interval(low, width.masked_fill(dead, 1.0), self.energy, self._highest)


class EnergyHistogram:
    """Streaming histogram of one candidate's energy over ``S + c`` at one stage; the end bins are open."""

    def __init__(self, interval: Interval) -> None:
        self.interval = interval
        self._bins = torch.zeros(len(interval.low), BINS + 2, dtype=torch.float64, device=interval.low.device)
        self._below: Tensor | None = None  # the energy below each edge, once it was asked for

    @property
    def energy(self) -> Tensor:
        """[out], all of each neuron's."""
        return self.interval.energy

    def update(self, known: Tensor, living: Living) -> None:
        """Adds samples: ``S + c``, [out, samples], and those of them that have energy and did not stop before."""
        neuron = living.neuron
        index = self._bins_at(living.select(known), self.interval.low[neuron], self.interval.width[neuron])
        flat = torch.bincount(neuron * (BINS + 2) + index, living.energy, minlength=self._bins.numel())
        self._bins += flat.reshape(self._bins.shape)
        self._below = None

    def merge(self) -> None:
        """Adds up what all processes saw."""
        self._bins, self._below = ranks.total(self._bins), None

    def thresholds(self, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """The largest edges below which at most ``allowed`` energy lies, and the energy that lies there.

        A neuron that never came alive stops wherever ``S + c`` is at most the largest value seen: beyond that there is
        no evidence.

        Args:
            allowed: [out], float64.

        Returns:
            thresholds [out], float32, rounded down; energy lost [out], float64.
        """
        below, index = self._lost_below(allowed)
        lost = below.gather(1, index.clamp_min(0).unsqueeze(1)).squeeze(1)
        edges = just(self.interval.edges(index), -math.inf)
        edges = edges.masked_fill(index < 0, -math.inf)
        dead = self.interval.energy == 0
        return torch.where(dead, just(self.interval.highest, math.inf), edges), lost.masked_fill(index < 0, 0.0)

    def stopped_bins(self, allowed: Tensor) -> Tensor:
        """Whose samples the thresholds of ``allowed`` stop: bool, [out, BINS + 2], as `bins_of` numbers them."""
        _, index = self._lost_below(allowed)
        last = index.masked_fill(self.interval.energy == 0, BINS + 1)
        return torch.arange(BINS + 2) <= last.unsqueeze(1)

    def bins_of(self, known: Tensor, neurons: slice) -> Tensor:
        """The bins, 0 to BINS + 1, of samples [neurons, samples] of some neurons."""
        low, width = (numbers[neurons].unsqueeze(1) for numbers in (self.interval.low, self.interval.width))
        return self._bins_at(known.double(), low, width)

    @staticmethod
    def _bins_at(values: Tensor, low: Tensor, width: Tensor) -> Tensor:
        return ((values - low) / width).floor().clamp(-1, BINS).long() + 1

    def _lost_below(self, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """The energy below each edge, and the index of the largest edge below which no more than ``allowed`` lies."""
        if self._below is None:
            self._below = self._bins.cumsum(1)[:, : BINS + 1]
        below = self._below
        return below, (below <= allowed.unsqueeze(1)).sum(1) - 1


def just(values: Tensor, towards: float) -> Tensor:
    """The float32 next to these values, on the side of ``towards``."""
    near = values.float()
    return torch.nextafter(near, torch.full_like(near, towards))

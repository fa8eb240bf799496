"""Thresholds and margins for `Calibrated` where a max pool alone reads a site: who cannot win a window stops.

With h the head's value at a pixel, R the largest in its window, a the activation and A the largest of the window's: a
neuron goes on if ``h >= t_j`` and ``h >= R - m_j``. By falling h, those of a window who go on are its first ones, n of
them, and what the pool passes on errs by ``A - max(a_1 .. a_n)`` (0 being the largest of nobody). So the squared error
is a sum over neurons: the i-th, stopping, adds ``d_i = (A - max(a_1 .. a_i-1))^2 - (A - max(a_1 .. a_i))^2``, whatever
stops it. One histogram of d over (h, R - h), and one of the samples beside it, therefore tell for every t and m at once
what they lose and who goes on: the best pair for a budget is the one with which the fewest go on. Where neither of two
stops can be had cheaper, both cost the same energy for a neuron stopped: t and m are at equal marginal loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from exprune_fx.calibration import ranks
from exprune_fx.calibration.thresholds import EnergyRange, Interval, Living, just

HEAD_BINS = 96  # between the lowest and the highest threshold
GAP_BINS = 30
NEVER = torch.finfo(torch.float32).max  # a margin that stops no rival
_AT_ONCE = 2**20  # samples that are binned at once: their indices take 8 bytes each
_SHARE = 1 / 16  # of a budget: the least that is worth telling thresholds apart by


@dataclass(frozen=True)
class Windows:
    """The windows of one batch, seen by one head; pixels that stand in none are left out.

    Attributes:
        known: [out, samples], ``h = S + c``.
        gap: [out, samples], float64, ``R - h``; 0 for those that lead.
        loss: [out, samples], float64, d: what stopping a neuron, and those behind it, adds to the squared error.
        going: bool [out, samples], who had not stopped before.
    """

    known: Tensor
    gap: Tensor
    loss: Tensor
    going: Tensor

    @classmethod
    def of(cls, known: Tensor, activation: Tensor, window: tuple[int, ...], stopped: Tensor | None = None) -> Windows:
        """From [N, out, H, W] each; who has ``stopped`` before is nobody's rival."""
        gone = torch.zeros_like(known, dtype=torch.bool) if stopped is None else stopped
        heads, values, out = (_by_window(each, window) for each in (known, activation.double(), gone))
        order = heads.masked_fill(out, -math.inf).argsort(dim=1, descending=True, stable=True)
        heads, values, out = (each.gather(1, order) for each in (heads, values, out))
        largest = values.amax(1, keepdim=True)
        reached = values.masked_fill_(out, 0.0)  # activations are at least 0
        for last in range(1, reached.shape[1]):  # windows are small, and cummax is slow there
            torch.maximum(reached[:, last], reached[:, last - 1], out=reached[:, last])
        lacking = (largest - reached).square_()
        loss = torch.cat([largest.square(), lacking[:, :-1]], dim=1).sub_(lacking)
        gap = (heads[:, :1].double() - heads).masked_fill_(out, 0.0)
        return cls(*(each.flatten(1) for each in (heads, gap, loss, ~out)))

    @property
    def living(self) -> Living:
        """Those whose stop loses something."""
        return Living.of(self.loss)

    @property
    def behind(self) -> Living:
        """Those of them that do not lead."""
        return Living.of(self.loss.masked_fill(self.gap == 0, 0.0))


def _by_window(values: Tensor, window: tuple[int, ...]) -> Tensor:
    """[N, C, H, W] -> [C, pixels of a window, windows of all images]."""
    rows, columns = window
    down, across = values.shape[2] // rows, values.shape[3] // columns
    cut = values[:, :, : down * rows, : across * columns].unflatten(3, (across, columns)).unflatten(2, (down, rows))
    windows: Tensor = cut.permute(1, 3, 5, 0, 2, 4).flatten(3).flatten(1, 2)
    return windows


def pooled_error(activation: Tensor, alive: Tensor, window: tuple[int, ...]) -> tuple[float, float]:
    """What the pool passes on, squared, and the square of what it lacks where only those alive are computed."""
    whole = F.max_pool2d(activation.double(), window)
    left = F.max_pool2d(activation.double().masked_fill(~alive, 0.0), window)
    return float(whole.square().sum()), float((whole - left).square().sum())


class RivalRange:
    """Streaming statistics of one head's values and gaps, weighted by what stopping loses."""

    def __init__(self, neurons: int, device: torch.device) -> None:
        self._known, self._gap = EnergyRange(neurons, device), EnergyRange(neurons, device)

    def update(self, windows: Windows) -> None:
        """Adds one batch."""
        self._known.update(windows.known, windows.living)
        self._gap.update(-windows.gap, windows.behind)

    def merge(self) -> None:
        """Adds up what all processes saw."""
        self._known.merge()
        self._gap.merge()

    def intervals(self, least: float, most: float) -> tuple[Interval, Interval]:
        """Where thresholds, and margins below zero, lie; either may get a small part of the budget alone."""
        share = least * _SHARE
        return self._known.interval(share, most, HEAD_BINS), self._gap.interval(share, most, GAP_BINS)


@dataclass(frozen=True)
class Choice:
    """Thresholds and margins of one stage.

    Attributes:
        limits: [2, out], float32: thresholds, then margins, at least 0 and finite.
        lost: [out], float64, the squared error that they add.
        alive: [out], int64, how many samples go on.
    """

    limits: Tensor
    lost: Tensor
    alive: Tensor


class RivalHistogram:
    """Streaming histograms of one head over ``(h, R - h)``: of what stopping loses, and of who could stop."""

    def __init__(self, intervals: tuple[Interval, Interval]) -> None:
        self._known, self._gap = intervals
        shape = (len(self._known.low), HEAD_BINS + 2, GAP_BINS + 2)
        self._loss = torch.zeros(shape, dtype=torch.float64, device=self._known.low.device)
        self._samples = torch.zeros(shape, dtype=torch.int64, device=self._known.low.device)
        self._summed: tuple[Tensor, Tensor] | None = None

    @property
    def energy(self) -> Tensor:
        """[out], of all that the pool passes on."""
        return self._known.energy

    def update(self, windows: Windows) -> None:
        """Adds one batch."""
        self._summed = None
        step = max(_AT_ONCE // max(windows.known.shape[1], 1), 1)
        for first in range(0, len(self._loss), step):
            part = slice(first, first + step)
            index = self._places(windows, part)[windows.going[part]]
            shape, size = self._loss[part].shape, self._loss[part].numel()
            self._loss[part] += index.bincount(windows.loss[part][windows.going[part]], size).view(shape)
            self._samples[part] += index.bincount(minlength=size).view(shape)

    def _places(self, windows: Windows, part: slice) -> Tensor:
        """Index into the histogram of some neurons: [neurons, samples]."""
        gaps = windows.gap[part]
        behind = _bins(-gaps, self._gap, part, GAP_BINS).masked_fill_(gaps == 0, GAP_BINS + 1)  # the last: who leads
        neuron = torch.arange(len(gaps), device=gaps.device).unsqueeze(1) * (HEAD_BINS + 2)
        return (neuron + _bins(windows.known[part], self._known, part, HEAD_BINS)) * (GAP_BINS + 2) + behind

    def merge(self) -> None:
        """Adds up what all processes saw."""
        self._loss, self._samples, self._summed = ranks.total(self._loss), ranks.total(self._samples), None

    def choose(self, allowed: Tensor) -> Choice:
        """The pair for each neuron with which the fewest go on, for at most ``allowed`` squared error.

        A neuron whose stops lose nothing stops wherever ``h`` is at most the largest value seen.

        Args:
            allowed: [out], float64.
        """
        if self._summed is None:
            self._summed = _from_here_on(self._loss), _from_here_on(self._samples)
        kept, going = self._summed
        lost = (kept[:, :1, :1] - kept).clamp_min(0.0)
        scale = 2 * kept[:, :1, :1].clamp_min(torch.finfo(torch.float64).tiny)
        cost = going + lost / scale  # of equals the one that loses less
        cost = cost.masked_fill(lost > allowed.clamp_min(0.0)[:, None, None], math.inf)
        cost[:, 0, 0] = going[:, 0, 0]  # nobody stops: always to be had
        best = cost.flatten(1).argmin(1)
        first, second = best // (GAP_BINS + 2) - 1, best % (GAP_BINS + 2) - 1
        thresholds = just(self._known.edges(first), -math.inf).masked_fill(first < 0, -math.inf)
        margins = just(-self._gap.edges(second), math.inf).clamp(0.0, NEVER).masked_fill(second < 0, NEVER)
        dead = self._known.energy == 0
        thresholds = torch.where(dead, just(self._known.highest, math.inf), thresholds)
        chosen_lost, alive = (each.flatten(1).gather(1, best[:, None])[:, 0] for each in (lost, going))
        return Choice(torch.stack([thresholds, margins]), chosen_lost, alive.masked_fill(dead, 0))


def _bins(values: Tensor, interval: Interval, neurons: slice, bins: int) -> Tensor:
    """0 below the lowest edge, ``bins + 1`` from the highest on: int64 in the shape of values [neurons, samples]."""
    low, width = interval.low[neurons, None], interval.width[neurons, None]
    return ((values.double() - low) / width).floor().clamp(-1, bins).long() + 1


def _from_here_on(counts: Tensor) -> Tensor:
    """Sums over all bins from each pair of bins on: [out, head bins, gap bins]."""
    return counts.flip(1, 2).cumsum(1).cumsum(2).flip(1, 2)

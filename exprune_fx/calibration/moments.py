"""Second moments of what sites read, accumulated in float64 over batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exprune_fx.calibration import ranks
from exprune_fx.calibration.observe import SiteValues
from exprune_fx.sites import Site


def features_of(site: Site, x: Tensor) -> Tensor:
    """A reduction's input as float64 samples: [..., K] -> [samples, K], [N, C, *space] -> [N*pixels, C]."""
    rows = x.reshape(-1, x.shape[-1]) if site.geometry is None else x.transpose(0, 1).flatten(1).t()
    return rows.double()


@dataclass
class Variances:
    """Mean and variance of each feature (channel) of one site's input; batches add up.

    Sums are taken about the first batch's mean, so that a large common offset cancels nothing.
    """

    count: int = 0
    shift: Tensor | None = None
    total: Tensor | None = None
    squares: Tensor | None = None

    def update(self, rows: Tensor) -> None:
        """Adds samples [samples, K]."""
        if self.shift is None:
            self.shift = rows.mean(0)
            self.total = torch.zeros_like(self.shift)
            self.squares = torch.zeros_like(self.shift)
        assert self.total is not None
        assert self.squares is not None
        centred = rows - self.shift
        self.count += rows.shape[0]
        self.total += centred.sum(0)
        self.squares += centred.square().sum(0)

    def merge(self) -> None:
        """Adds up what all processes saw, each about its own first batch's mean (Chan, Golub and LeVeque 1979)."""
        assert self.shift is not None
        assert self.total is not None
        assert self.squares is not None
        mean = self.shift + self.total / self.count
        within = self.squares - self.total.square() / self.count
        whole = sum(ranks.gathered(self.count))
        centre = ranks.total(mean * self.count) / whole
        self.squares = ranks.total(within + self.count * (mean - centre).square())
        self.count, self.shift, self.total = whole, centre, torch.zeros_like(centre)

    def variance(self) -> Tensor:
        """[K], the population variance of what was seen."""
        assert self.total is not None
        assert self.squares is not None
        mean = self.total / self.count
        return (self.squares / self.count - mean.square()).clamp_min(0.0)


@dataclass
class SecondMoments:
    """The uncentred second moment of one site's input features: [K, K]."""

    count: int = 0
    total: Tensor | None = None

    def update(self, rows: Tensor) -> None:
        """Adds samples [samples, K]."""
        product = rows.t() @ rows
        self.total = product if self.total is None else self.total + product
        self.count += rows.shape[0]

    def merge(self) -> None:
        """Adds up what all processes saw."""
        assert self.total is not None
        self.total = ranks.total(self.total)
        self.count = sum(ranks.gathered(self.count))

    def matrix(self) -> Tensor:
        """[K, K], the mean of x x^T."""
        assert self.total is not None
        return self.total / self.count


class MomentObserver:
    """Collects the second moments of the sites that it is shown."""

    def __init__(self) -> None:
        self.moments: dict[str, SecondMoments] = {}

    def __call__(self, site: Site, values: SiteValues) -> None:
        """Adds one batch."""
        self.moments.setdefault(site.name, SecondMoments()).update(features_of(site, values.x))

    def merge(self) -> None:
        """Adds up what all processes saw."""
        if ranks.count() > 1:
            for moments in self.moments.values():
                moments.merge()


class VarianceObserver:
    """Collects the variances of the input features of some sites, and of each term.

    Args:
        names: of the sites that count.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self.variances: dict[str, Variances] = {}
        self.column_norms: dict[str, Tensor] = {}

    def __call__(self, site: Site, values: SiteValues) -> None:
        """Adds one batch."""
        if site.name not in self._names:
            return
        self.variances.setdefault(site.name, Variances()).update(features_of(site, values.x))
        if site.name not in self.column_norms:
            weight = values.weight.double().transpose(0, 1).flatten(1)
            self.column_norms[site.name] = weight.square().sum(1)

    def merge(self) -> None:
        """Adds up what all processes saw."""
        if ranks.count() > 1:  # the formula rounds, and one process keeps what it has
            for variances in self.variances.values():
                variances.merge()

    def term_variances(self, site: Site) -> Tensor:
        """[terms]: what each term varies, summed over the neurons (features of one term count as uncorrelated)."""
        variance = self.variances[site.name].variance() * self.column_norms[site.name]
        return variance.reshape(site.terms, -1).sum(1)


def falling_order(scores: Sequence[float]) -> tuple[int, ...]:
    """Indices by falling score, ties by index."""
    return tuple(sorted(range(len(scores)), key=lambda index: (-scores[index], index)))

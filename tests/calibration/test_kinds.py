"""Sites that are not a plain reduction and a ReLU: counted by calibration as the staged graph runs them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.calibration import calibrate
from exprune_fx.guards import Calibrated
from exprune_fx.measurement import measure
from exprune_fx.pipeline import transform
from exprune_fx.plan import Plan, SitePlan
from tests.calibration.models import batches, captured, vectors


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Linear(12, 32), nn.Linear(32, 64), nn.Linear(64, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = (x + self.outer(self.inner(x).relu())).relu()
        return y


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 64), nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x).relu().square())
        return y


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.up = nn.Linear(12, 32), nn.Linear(32, 64), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.gate(x).relu() * self.up(x)
        return y


@pytest.mark.parametrize("kind", [Residual, Squared, Gated])
@pytest.mark.parametrize("head", ["prefix", "principal"])
def test_each_kind_is_counted_as_it_runs(kind: type[nn.Module], head: str) -> None:
    torch.manual_seed(0)
    gm = captured(kind().eval(), vectors())
    plan = calibrate(gm, batches(vectors()), Calibrated(0.02), head=head)  # type: ignore[arg-type]
    assert plan.staged
    for kept in plan.staged:
        only = tuple(entry if entry is kept else SitePlan(entry.site, entry.weight_shape) for entry in plan.sites)
        (found,) = measure(transform(gm, Plan(only, plan.orders), lower=False), batches(vectors())).sites
        # the same float operations, so the same decisions, but for gates that round to zero
        assert found.alive_fraction == pytest.approx(kept.alive_fraction, abs=1e-9)
        assert found.fraction_removed == pytest.approx(kept.fraction_removed, abs=1e-4)

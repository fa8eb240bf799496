"""Rivals behind torch.compile: in one graph, and where a graph break puts the max pool into another one."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.backend.matching import plan_for_graph
from exprune_fx.calibration import calibrate
from exprune_fx.graph import capture
from exprune_fx.guards import Calibrated
from exprune_fx.pipeline import normalise, transform
from exprune_fx.plan import Array, Plan
from exprune_fx.sites import find_sites
from exprune_fx.symmetry import symmetries
from tests.backend.models import BATCH
from tests.calibration.models import batches, images


class Cut(nn.Module):
    """conv -> ReLU -> conv -> ReLU -> max pool, the pool left out if asked."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.pool: nn.Module = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(self.conv2(self.conv1(x).relu()).relu())
        return out


def _planned() -> tuple[Cut, Plan]:
    torch.manual_seed(0)
    model, data = Cut().eval(), images(48)
    gm = capture(model, (data[:4],), dynamic_shapes=({0: BATCH},))
    return model, calibrate(gm, batches(data), Calibrated(0.05), (1 / 2,), head="principal")


def test_a_compiled_model_has_rivals() -> None:
    model, plan = _planned()
    gm = capture(model, (images(4),), dynamic_shapes=({0: BATCH},))
    torch._dynamo.reset()
    options: dict[str, Any] = {"plan": plan, "inner": "eager", "freeze": True}
    fast = torch.compile(model, backend="exprune", options=options)
    x = images(6, seed=9)
    with torch.inference_mode():
        found, dense = fast(x), model(x)
    # the same decisions, and float32 sums in another order
    torch.testing.assert_close(found, transform(gm, plan)(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, dense, rtol=1e-4, atol=1e-4), "some winners stop"


def test_without_the_pool_in_the_graph_thresholds_decide_alone(caplog: pytest.LogCaptureFixture) -> None:
    model, plan = _planned()
    entry = plan.for_site("conv2")
    assert entry is not None
    assert entry.window == (2, 2)
    model.pool = nn.Identity()
    gm = normalise(capture(model, (images(4),), dynamic_shapes=({0: BATCH},)))
    groups = symmetries(gm)
    with caplog.at_level(logging.INFO):
        adapted = plan_for_graph(plan, find_sites(gm, groups), groups)
    assert adapted.for_site("conv2") == replace(entry, margins=None, window=())
    assert "its max pool is in another graph" in caplog.text
    transform(gm, adapted)(images(4))


class Widened(nn.Module):
    """The pooled convolution is followed by another one: its neurons are a free group."""

    def __init__(self, inner: Cut) -> None:
        super().__init__()
        self.conv1, self.conv2, self.pool = inner.conv1, inner.conv2, inner.pool
        self.out = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.pool(self.conv2(self.conv1(x).relu()).relu()))
        return out


def test_margins_follow_the_neurons_that_a_plan_reorders() -> None:
    """A plan for reordered neurons, on a graph in which that order is not applied."""
    inner, plan = _planned()
    entry = plan.for_site("conv2")
    assert entry is not None
    assert entry.thresholds is not None
    assert entry.margins is not None
    gm = normalise(capture(Widened(inner).eval(), (images(4),), dynamic_shapes=({0: BATCH},)))
    groups = symmetries(gm)
    (group,) = groups.groups_of("conv2.weight", 0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    thresholds, margins = (Array.of(rows.tensor()[:, order]) for rows in (entry.thresholds, entry.margins))
    moved = replace(entry, thresholds=thresholds, margins=margins)
    sites = tuple(moved if each is entry else each for each in plan.sites)
    reordered = replace(plan, sites=sites, orders={group.name: tuple(order.tolist())})
    adapted = plan_for_graph(reordered, find_sites(gm, groups), groups)
    assert adapted.orders == {}
    found = adapted.for_site("conv2")
    assert found is not None
    assert (found.thresholds, found.margins) == (entry.thresholds, entry.margins)

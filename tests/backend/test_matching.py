"""A plan of a whole model, and the graphs that Dynamo makes of it: paths, shapes, orders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from exprune_fx.backend.matching import plan_for_graph
from exprune_fx.errors import PlanError
from exprune_fx.guards import Bound, Calibrated
from exprune_fx.pipeline import normalise, transform
from exprune_fx.plan import Plan
from exprune_fx.sites import find_sites
from exprune_fx.symmetry import symmetries
from tests.backend.models import Blocks, SmallCnn, captured, images, plan_of, randomised, tokens


def _adapted(model: nn.Module, x: torch.Tensor, plan: Plan) -> tuple[Any, Plan]:
    gm = normalise(captured(model, x))
    groups = symmetries(gm)
    return gm, plan_for_graph(plan, find_sites(gm, groups), groups)


@pytest.mark.parametrize("head", ["prefix", "principal", "auto"])
@pytest.mark.parametrize(("kind", "data"), [(SmallCnn, images), (Blocks, lambda n: tokens(n, 5))])
def test_an_entry_that_does_without_its_order_decides_the_same(kind: type[nn.Module], data: Any, head: str) -> None:
    model = randomised(kind())
    plan = plan_of(model, data(32), head=head)
    prefixes = {entry.site for entry in plan.staged if entry.head == "prefix"}
    gm, adapted = _adapted(model, data(4), plan)
    assert [(a.site, a.head, a.stages) for a in adapted.sites] == [(b.site, b.head, b.stages) for b in plan.sites]
    assert adapted.orders.items() <= plan.orders.items()
    assert bool(adapted.orders) == bool(prefixes and plan.orders)
    x = data(6)
    # Sums in another order: float32 rounding.
    torch.testing.assert_close(transform(gm, adapted)(x), transform(gm, plan)(x), rtol=1e-4, atol=1e-4)


def test_orders_that_no_prefix_needs_are_written_into_the_entries() -> None:
    model = randomised(Blocks())
    plan = plan_of(model, tokens(32, 5), head="principal")
    order = tuple(torch.randperm(32, generator=torch.Generator().manual_seed(0)).tolist())
    entries = [replace(entry) for entry in plan.sites]
    moved = torch.tensor(order)
    assert entries[0].thresholds is not None
    entries[0] = replace(
        entries[0], thresholds=type(entries[0].thresholds).of(entries[0].thresholds.tensor()[:, moved])
    )
    reordered = Plan(tuple(entries), {"layers.0.fc1.weight[0]": order}, plan.objective, plan.examples)
    gm, adapted = _adapted(model, tokens(4, 5), reordered)
    assert adapted.orders == {}
    assert adapted.sites[0].thresholds == plan.sites[0].thresholds
    x = tokens(6, 5)
    torch.testing.assert_close(transform(gm, reordered)(x), transform(gm, plan)(x))


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        return out


def test_a_model_that_another_one_holds_takes_the_plan() -> None:
    model = randomised(Blocks())
    plan = plan_of(model, tokens(32, 5), head="prefix")
    assert plan.orders
    gm, adapted = _adapted(Holder(model), tokens(4, 5), plan)
    assert [entry.site for entry in adapted.sites] == ["inner.layers.0.fc1", "inner.layers.1.fc1"]
    assert list(adapted.orders) == [f"inner.{name}" for name in plan.orders]
    x = tokens(3, 5)
    bare = captured(model, tokens(4, 5))
    torch.testing.assert_close(transform(gm, adapted)(x), transform(bare, plan)(x))


def test_a_part_takes_its_own_entry_where_there_is_but_one() -> None:
    model = randomised(Blocks(count=1))
    plan = plan_of(model, tokens(32, 5), head="principal")
    part = model.layers[0]
    x = torch.randn(4, 5, 16)
    gm, adapted = _adapted(part, x, plan)
    assert adapted.sites == tuple(replace(entry, site="fc1") for entry in plan.sites)
    assert adapted.staged
    transform(gm, adapted)


def test_a_part_whose_terms_are_reordered_elsewhere_stays_dense(caplog: pytest.LogCaptureFixture) -> None:
    model = randomised(Blocks(count=1))
    plan = plan_of(model, tokens(32, 5), head="prefix")
    assert list(plan.orders) == ["embed.weight[0]"]
    with caplog.at_level("INFO", logger="exprune_fx"):
        _, adapted = _adapted(model.layers[0], torch.randn(4, 5, 16), plan)
    assert adapted.sites[0].head == "dense"
    assert "the plan may reorder axis 1 of its weight" in caplog.text


def test_one_graph_for_two_modules_takes_only_what_the_plan_decides_alike() -> None:
    model = randomised(Blocks())
    x = torch.randn(4, 5, 16)
    differing = plan_of(model, tokens(32, 5), Calibrated(0.05), head="principal")
    assert all(entry.is_staged for entry in differing.sites)
    _, adapted = _adapted(model.layers[0], x, differing)
    assert adapted.sites[0].head == "dense"
    assert "one graph serves 2 modules" in adapted.sites[0].reason

    alike = [
        replace(e, head="prefix", guard=Bound(), stages=(8,), thresholds=None, down=None, lift=None)
        for e in differing.sites
    ]
    _, adapted = _adapted(model.layers[0], x, Plan(tuple(alike)))
    assert adapted.sites[0].is_staged


def test_a_plan_of_another_model_is_refused_with_every_difference() -> None:
    plan = plan_of(randomised(Blocks()), tokens(32, 5))
    with pytest.raises(PlanError, match=r"site 'conv1' is in the model(.|\n)*'layers.1.fc1' is in the plan"):
        _adapted(randomised(SmallCnn()), images(4), plan)
    wide = randomised(Blocks(hidden=40))
    with pytest.raises(PlanError, match=r"'layers.0.fc1' has weight \[40, 16\] in the model, \[32, 16\] in the plan"):
        _adapted(wide, tokens(4, 5), plan)

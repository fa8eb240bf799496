"""Small staged graphs to save."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from exprune_fx.guards import Calibrated, Guard
from exprune_fx.pipeline import normalise, transform
from exprune_fx.plan import Plan
from exprune_fx.symmetry import symmetries
from tests.captures import captured_alike
from tests.passes.staging import GatedNet, ResidualNet, SquaredNet, plan_for, randomised

MODELS: list[tuple[type[nn.Module], tuple[int, ...]]] = [
    (ResidualNet, (3, 8, 8)),
    (GatedNet, (7, 6)),
    (SquaredNet, (7, 6)),
]


def reordered_plan(gm: fx.GraphModule, guard: Guard, *, principal: bool = False, coded: bool = False) -> Plan:
    """Stages what ``guard`` may stage, after every free group was put into another order; one order is a swap."""
    normal = normalise(gm)
    generator = torch.Generator().manual_seed(2)
    orders: dict[str, tuple[int, ...]] = {}
    for group in symmetries(normal):
        if group.free and group.repeats == 1:
            order = torch.randperm(group.size, generator=generator).tolist()
            orders[group.name] = tuple(order) if orders else (1, 0, *range(2, group.size))
    assert orders
    plan = plan_for(normal, guard, threshold=0.3, principal=principal, coded=coded)
    return Plan(plan.sites, orders)


def staged(
    kind: type[nn.Module],
    shape: tuple[int, ...],
    *,
    lower: bool = False,
    guard: Guard | None = None,
    principal: bool = False,
    coded: bool = False,
) -> tuple[nn.Module, fx.GraphModule, Tensor]:
    """A float32 model with random statistics, its staged graph, and a batch of five."""
    model = randomised(kind()).float()
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    gm = captured_alike(model, x, ({0: torch.export.Dim("batch")},))
    plan = reordered_plan(gm, Calibrated(0.1) if guard is None else guard, principal=principal, coded=coded)
    return model, transform(gm, plan, lower=lower), x


def fresh(kind: type[nn.Module]) -> nn.Module:
    """Another instance with other weights, in train mode."""
    return randomised(kind(), seed=9).float().train()

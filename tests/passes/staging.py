"""Small models and hand-made plans for the tests of staging."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from exprune_fx.guards import Bound, Calibrated, FinitePopulation, Guard, HeadKind, StatsTest, Threshold
from exprune_fx.ops import coded as coded_heads
from exprune_fx.plan import Array, Plan, SitePlan
from exprune_fx.sites import Site, find_sites
from tests.captures import captured_alike


class ResidualNet(nn.Module):
    """conv -> BN -> ReLU -> conv -> BN -> + -> ReLU -> flatten -> linear -> ReLU6 -> linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * 4 * 4, 12)
        self.fc2 = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.bn1(self.conv1(x)).relu()
        x = (self.bn2(self.conv2(y)) + x).relu()
        hidden = nn.functional.relu6(self.fc1(nn.functional.max_pool2d(x, 2).flatten(1)))
        out: Tensor = self.fc2(hidden)
        return out


class GatedNet(nn.Module):
    """linear -> ReLU -> relu(gate) * up -> down, in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.gate = nn.Linear(16, 24, bias=False)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        out: Tensor = self.down(self.gate(x).relu() * self.up(x))
        return out


class SquaredNet(nn.Module):
    """linear -> squared ReLU -> linear."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 16)
        self.fc2 = nn.Linear(16, 24)
        self.fc3 = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc2(self.fc1(x)).relu() ** 2
        out: Tensor = self.fc3(hidden)
        return out


class OneConv(nn.Module):
    """One convolution that a coded head may look at, unless it is grouped or has other channels."""

    def __init__(self, channels: int = 4, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x).relu()
        return y


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, eval mode, every parameter and statistic random: identity statistics would hide a forgotten fold."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for name, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise * 0.4)
    return model


def captured(model: nn.Module, *shape: int, seed: int = 1) -> tuple[fx.GraphModule, Tensor]:
    """The captured graph with a symbolic batch, and a batch of five."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    return captured_alike(model, x, ({0: torch.export.Dim("batch")},)), x


def stages_of(site: Site, count: int) -> tuple[int, ...]:
    """Up to ``count`` increasing stages of at least two terms, short of all."""
    return tuple(
        sorted({max(2, site.terms * (i + 1) // (count + 1)) for i in range(count)} & set(range(2, site.terms)))
    )


def may_be_coded(site: Site) -> bool:
    """Whether a coded head may look at it."""
    return site.geometry is not None and not coded_heads.obstacle(site.weight_shape, site.geometry.groups)


def plan_for(
    gm: fx.GraphModule,
    guard: Guard,
    *,
    count: int = 2,
    threshold: float = 0.0,
    principal: bool = False,
    coded: bool = False,
) -> Plan:
    """A plan that stages every site that ``guard`` may stage; ``threshold`` is that of Calibrated for all neurons.

    ``coded`` heads are where they may be, prefixes elsewhere.
    """
    entries = []
    for site in find_sites(gm):
        stages = stages_of(site, count)
        allowed = not site.obstacle and stages and (site.exchangeable or not guard.needs_exchangeability)
        if not allowed:
            entries.append(SitePlan(site.name, site.weight_shape, reason="not for this guard"))
            continue
        down = lift = None
        head: HeadKind = "principal" if principal else "prefix"
        if coded and may_be_coded(site):
            head, stages = "coded", (site.terms,)
        if head == "principal":
            width = site.weight_shape[1]
            rank = max(2, width // 4)
            rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(3)))[0]
            stages, down, lift = (rank,), Array.of(rotation[:, :rank].T), Array.of(rotation[:, :rank])
        thresholds = torch.full((len(stages), site.out_features), threshold)
        entries.append(
            SitePlan(
                site.name,
                site.weight_shape,
                head=head,
                guard=guard,
                stages=stages,
                thresholds=Array.of(thresholds) if isinstance(guard, Calibrated) else None,
                down=down,
                lift=lift,
            )
        )
    return Plan(tuple(entries))


EVERY_GUARD: tuple[Guard, ...] = (Threshold(-0.01), StatsTest(0.1), FinitePopulation(0.1), Calibrated(0.1), Bound())

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.calibration import calibrate
from exprune_fx.calibration.energy import energy, pool_after
from exprune_fx.guards import Calibrated
from exprune_fx.pipeline import normalise, transform
from exprune_fx.sites import find_sites
from tests.calibration.models import Chain, batches, captured, images


class Branching(nn.Module):
    """A second reader beside the max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        return nn.functional.max_pool2d(y, 2) + nn.functional.avg_pool2d(y, 2)


def _pooled(pool: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 16, 3, padding=1)
    return Chain(conv, nn.ReLU(), pool, nn.Conv2d(16, 8, 3, padding=1), nn.ReLU()).eval()


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 1), nn.MaxPool2d(3, 2, ceil_mode=True)],
    ids=str,
)
def test_only_the_winners_of_a_window_count(pool: nn.Module) -> None:
    """The truth is the pool's gradient: it flows to the winners and to nobody else."""
    gm = normalise(captured(_pooled(pool), images()))
    first = find_sites(gm)[0]
    after = pool_after(next(node for node in gm.graph.nodes if node.name == first.activation_node))
    assert after is not None
    z = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pool(z.relu()).sum().backward()
    assert z.grad is not None
    expected = z.detach().relu().double().square() * (z.grad > 0)
    torch.testing.assert_close(energy(first, z.detach(), after), expected, atol=0, rtol=0)


def test_a_second_reader_makes_everybody_count() -> None:
    gm = normalise(captured(Branching().eval(), images()))
    (site,) = find_sites(gm)
    assert pool_after(next(node for node in gm.graph.nodes if node.name == site.activation_node)) is None


def _sparse(*tail: nn.Module) -> nn.Module:
    """A convolution over 16 channels whose bias silences most neurons."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)]
    nn.init.constant_(convs[1].bias, -0.2)  # type: ignore[arg-type] # it has one
    return Chain(convs[0], nn.ReLU(), convs[1], nn.ReLU(), *tail).eval()


def test_losers_of_windows_are_stopped_and_the_output_stays() -> None:
    pooled, bare = captured(_sparse(nn.MaxPool2d(2)), images()), captured(_sparse(), images())
    data = batches(images())
    plan, without = (calibrate(gm, data, Calibrated(0.0)) for gm in (pooled, bare))
    assert plan.sites[1].head != "dense"
    assert plan.sites[1].fraction_removed > without.sites[1].fraction_removed + 0.01
    # the order of summation differs
    with torch.no_grad():
        torch.testing.assert_close(
            transform(pooled, plan, lower=False)(images()), pooled(images()), atol=1e-5, rtol=1e-5
        )

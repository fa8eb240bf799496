"""Constants of removed channels: folded where exact, as means where asked, and never invented."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from exprune_fx.graph import capture
from exprune_fx.static import Random, shrink
from tests.static.masked import masked
from tests.symmetry.probes import normal


class TwoConvolutions(nn.Module):
    """A 1x1 convolution, an activation, and a 3x3 convolution with the given padding and bias."""

    def __init__(self, activation: nn.Module, **wanted: Any) -> None:
        super().__init__()
        self.first, self.activation = nn.Conv2d(3, 6, 1), activation
        self.second = nn.Conv2d(6, 4, 3, **wanted)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.activation(self.first(x)))
        return y


X = normal(2, 3, 7, 9)


def made(activation: nn.Module | None = None, **wanted: Any) -> TwoConvolutions:
    torch.manual_seed(0)
    return TwoConvolutions(activation or nn.ReLU(), **wanted).double().eval()


def weights_zeroed(model: TwoConvolutions, removed: tuple[int, ...]) -> TwoConvolutions:
    """The dense model with the removed channels' producing weights zero: they give their constant everywhere."""
    dense = copy.deepcopy(model)
    with torch.no_grad():
        dense.first.weight[list(removed)] = 0.0
    return dense


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.Hardtanh(-0.3, 0.4), nn.ELU()]
)
@pytest.mark.parametrize("wanted", [{}, {"bias": False}, {"stride": 2, "dilation": 2}])
def test_unpadded_convolutions_take_the_constant_exactly(activation: nn.Module, wanted: dict[str, Any]) -> None:
    model = made(activation, **wanted)
    small = shrink(capture(model, (X,)), criterion=Random(2), fraction_removed=0.5)
    reference = weights_zeroed(model, small.plan.rounds[0].groups[0].removed[0])
    assert torch.allclose(small.model(X), reference(X), rtol=0, atol=1e-12)  # rounding of float64
    assert bool(small.plan.rounds[0].biases) is (not wanted.get("bias", True))


@pytest.mark.parametrize(
    "wanted", [{"padding": 1}, {"padding": (1, 2), "stride": 2}, {"padding": "same", "dilation": 2}]
)
def test_padded_convolutions_read_zero_or_the_mean(wanted: dict[str, Any]) -> None:
    model = made(**wanted)
    gm = capture(model, (X,))
    exact = shrink(gm, criterion=Random(2), fraction_removed=0.5)
    if wanted["padding"] != "same":
        assert torch.allclose(exact.model(X), masked(model, exact.plan)(X), rtol=0, atol=1e-12)
    mean = shrink(gm, criterion=Random(2), fraction_removed=0.5, constants="mean")
    reference = weights_zeroed(model, mean.plan.rounds[0].groups[0].removed[0])
    got, want = mean.model(X).mean((2, 3)), reference(X).mean((2, 3))
    if wanted["padding"] == "same":  # a padding that is given in words is not followed
        assert torch.equal(mean.model(X), exact.model(X))
    else:
        assert torch.allclose(got, want, rtol=0, atol=1e-12)
        assert not torch.allclose(exact.model(X).mean((2, 3)), want, rtol=0, atol=1e-3)


def test_drop_counts_constants_as_zero() -> None:
    model = made()
    small = shrink(capture(model, (X,)), criterion=Random(2), fraction_removed=0.5, constants="drop")
    dense = weights_zeroed(model, small.plan.rounds[0].groups[0].removed[0])
    with torch.no_grad():
        dense.first.bias[list(small.plan.rounds[0].groups[0].removed[0])] = 0.0  # type: ignore[index]
    assert torch.allclose(small.model(X), dense(X), rtol=0, atol=1e-12)


class TwiceRead(nn.Module):
    """One linear layer that reads a channel which is constant, and the same one after something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z: torch.Tensor = self.shared(torch.relu(y)) + self.shared(torch.sigmoid(y))
        return z


def test_one_bias_never_takes_two_constants() -> None:
    torch.manual_seed(0)
    model, x = TwiceRead().double(), normal(4, 5)
    small = shrink(capture(model, (x,)), criterion=Random(0), fraction_removed=0.5)
    assert torch.equal(small.model.get_parameter("shared.bias"), model.shared.bias)


class Grid(nn.Module):
    """Features that are looked at as a grid, of which whole rows can go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last((torch.relu(self.first(x)).view(x.shape[0], 3, 4) * 2).flatten(1))
        return y


def test_a_group_of_joint_factors_loses_rows() -> None:
    torch.manual_seed(0)
    model, x = Grid().double(), normal(4, 5)
    small = shrink(capture(model, (x,)), criterion=Random(0), fraction_removed=1 / 3)
    assert small.model.get_parameter("first.weight").shape == (8, 5)
    assert torch.allclose(small.model(x), masked(model, small.plan)(x), rtol=0, atol=1e-12)

"""Group norm, grouped convolutions, and one-dimensional convolutions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.symmetry.architectures.common import Architecture, batched, free, image, into, out_b, pinned, randomise


class GroupedNet(nn.Module):
    def __init__(self, width: int, norm_groups: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm1 = nn.GroupNorm(norm_groups, width)
        self.conv = nn.Conv2d(width, hidden, 3, padding=1, groups=groups)
        self.norm2 = nn.GroupNorm(norm_groups, hidden)
        self.fc = nn.Linear(hidden, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        x = F.relu(self.norm2(self.conv(x)))
        y: torch.Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


def grouped_same(generator: torch.Generator) -> Architecture:
    """Norm groups and convolution groups coincide: 3 blocks that move as wholes, 4 and 6 channels inside."""
    x = image(generator, size=4)
    return Architecture(
        randomise(GroupedNet(12, 3, 3, 18), generator),
        (x,),
        batched(x),
        (
            free(3, out_b("stem", "norm1", "conv", "norm2"), into("fc")),
            free(4, out_b("stem", "norm1"), into("conv"), repeats=3),
            free(6, out_b("conv", "norm2"), into("fc"), repeats=3),
            pinned(3, "stem.weight", 1),
            pinned(10, "fc.weight", 0),
        ),
    )


def grouped_nested(generator: torch.Generator) -> Architecture:
    """2 norm groups, each of 3 convolution groups: the convolution groups move within their norm group."""
    x = image(generator, size=4)
    return Architecture(
        randomise(GroupedNet(24, 2, 6, 30), generator),
        (x,),
        batched(x),
        (
            free(2, out_b("stem", "norm1", "conv", "norm2"), into("fc")),
            free(3, out_b("stem", "norm1", "conv", "norm2"), into("fc"), repeats=2),
            free(4, out_b("stem", "norm1"), into("conv"), repeats=6),
            free(5, out_b("conv", "norm2"), into("fc"), repeats=6),
            pinned(3, "stem.weight", 1),
            pinned(10, "fc.weight", 0),
        ),
    )


class Conv1dNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 5, 3)
        self.norm = nn.GroupNorm(1, 5)
        self.conv2 = nn.Conv1d(5, 6, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm1d(6)
        self.fc1 = nn.Linear(6 * 3, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        x = F.avg_pool1d(F.leaky_relu(self.bn(self.conv2(x)), 0.1), 2)
        y: torch.Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return y


def conv1d(generator: torch.Generator) -> Architecture:
    """One norm group treats all channels alike."""
    x = torch.randn(2, 4, 14, dtype=torch.float64, generator=generator)
    statistics = [("bn.running_mean", 0), ("bn.running_var", 0)]
    return Architecture(
        randomise(Conv1dNet(), generator),
        (x,),
        batched(x),
        (
            free(5, out_b("conv1", "norm"), into("conv2")),
            free(6, out_b("conv2", "bn"), statistics, into("fc1")),
            free(7, out_b("fc1"), into("fc2")),
            pinned(4, "conv1.weight", 1),
            pinned(3, "fc2.weight", 0),
        ),
    )

"""ShuffleNet: channel shuffles between grouped convolutions (v1) and between splits (v2)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.symmetry.architectures.common import Architecture, batched, bn, free, image, into, out, pinned, randomise


def channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleNetV1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(12)
        self.conv1 = nn.Conv2d(12, 18, 1, groups=3, bias=False)
        self.bn1 = nn.BatchNorm2d(18)
        self.conv2 = nn.Conv2d(18, 18, 3, padding=1, groups=18, bias=False)
        self.bn2 = nn.BatchNorm2d(18)
        self.conv3 = nn.Conv2d(18, 12, 1, groups=3, bias=False)
        self.bn3 = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = channel_shuffle(F.relu(self.bn1(self.conv1(x))), 3)
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        z: torch.Tensor = self.fc(F.relu(x + y).mean((2, 3)))
        return z


def shufflenet_v1(generator: torch.Generator) -> Architecture:
    """Three groups of 4 become three groups of 6, shuffled, and become three groups of 4 again.

    A middle channel is (a, b, i): made by group i of conv1 as its j = 2a + b, standing at place 3j + i after the
    shuffle, so read by group a of conv3 as its input (b, i). A permutation has to keep both partitions: a goes to
    sigma(a), i to tau(i), and b moves freely within each of the 9 cells (a, i). The residual makes sigma = tau.
    """
    x = image(generator, size=4)
    return Architecture(
        randomise(ShuffleNetV1(), generator),
        (x,),
        batched(x),
        (
            free(
                3,
                out("stem", "conv1", "conv2", "conv3"),
                bn("bn0", "bn1", "bn2", "bn3"),
                into("conv3", "fc"),
            ),
            free(4, out("stem", "conv3"), bn("bn0", "bn3"), into("conv1", "fc"), repeats=3),
            free(2, out("conv1", "conv2"), bn("bn1", "bn2"), into("conv3"), repeats=9),
            pinned(3, "stem.weight", 1),
            pinned(10, "fc.weight", 0),
        ),
    )


class ShuffleV2Unit(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keep, change = x.chunk(2, dim=1)
        change = F.relu(self.bn1(self.conv1(change)))
        change = F.relu(self.bn3(self.conv3(self.bn2(self.conv2(change)))))
        return channel_shuffle(torch.cat((keep, change), 1), 2)


class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(12)
        self.unit1 = ShuffleV2Unit(6, 5)
        self.unit2 = ShuffleV2Unit(6, 7)
        self.conv5 = nn.Conv2d(12, 8, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.unit2(self.unit1(F.relu(self.bn0(self.stem(x)))))
        x = F.relu(self.bn5(self.conv5(x)))
        y: torch.Tensor = self.fc(x.mean((2, 3)))
        return y


def shufflenet_v2(generator: torch.Generator) -> Architecture:
    """What the first unit keeps (stem's first 6) and makes (its conv3's 6) interleave and are cut again in halves.

    Of each the first 3 are kept by the second unit and go to conv5, and the last 3 go into its conv1: four groups
    of 3. The stem's other 6 are read by unit1.conv1 alone, unit2.conv3's by conv5 alone.
    """
    x = image(generator, size=4)
    return Architecture(
        randomise(ShuffleNetV2(), generator),
        (x,),
        batched(x),
        (
            free(6, out("stem"), bn("bn0"), into("unit1.conv1")),
            free(3, out("stem"), bn("bn0"), into("conv5")),
            free(3, out("stem"), bn("bn0"), into("unit2.conv1")),
            free(5, out("unit1.conv1", "unit1.conv2"), bn("unit1.bn1", "unit1.bn2"), into("unit1.conv3")),
            free(3, out("unit1.conv3"), bn("unit1.bn3"), into("conv5")),
            free(3, out("unit1.conv3"), bn("unit1.bn3"), into("unit2.conv1")),
            free(7, out("unit2.conv1", "unit2.conv2"), bn("unit2.bn1", "unit2.bn2"), into("unit2.conv3")),
            free(6, out("unit2.conv3"), bn("unit2.bn3"), into("conv5")),
            free(8, out("conv5"), bn("bn5"), into("fc")),
            pinned(3, "stem.weight", 1),
            pinned(10, "fc.weight", 0),
        ),
    )

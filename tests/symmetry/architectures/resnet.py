"""ResNet with basic and with bottleneck blocks; every branch has a width of its own."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.symmetry.architectures.common import (
    Architecture,
    batched,
    bn,
    free,
    image,
    into,
    out,
    out_b,
    pinned,
    randomise,
)


class Block(nn.Module):
    """conv-bn-relu chain of the given kernel sizes with a shortcut, as in He et al. 2015."""

    def __init__(self, widths: tuple[int, ...], kernels: tuple[int, ...], stride: int = 1) -> None:
        super().__init__()
        self.depth = len(kernels)
        for i, (a, b, k) in enumerate(zip(widths[:-1], widths[1:], kernels, strict=True), start=1):
            s = stride if i == self.depth - 1 else 1
            self.add_module(f"conv{i}", nn.Conv2d(a, b, k, stride=s, padding=k // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        self.downsample: nn.Module | None = None
        if stride != 1 or widths[0] != widths[-1]:
            conv = nn.Conv2d(widths[0], widths[-1], 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(widths[-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            if i < self.depth:
                x = F.relu(x)
        x += shortcut
        return F.relu_(x)


class ResNet(nn.Module):
    def __init__(self, stem: int, stages: tuple[tuple[Block, ...], ...], last: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for i, blocks in enumerate(stages, start=1):
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.stages = len(stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for i in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{i}")(x)
        y: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return y


def resnet_basic(generator: torch.Generator) -> Architecture:
    """The stream of a stage ties the last convolution of all its blocks with the stem or the downsample."""
    k = (3, 3)
    stages = (
        (Block((5, 4, 5), k), Block((5, 6, 5), k)),
        (Block((5, 7, 8), k, stride=2), Block((8, 9, 8), k)),
    )
    x = image(generator)
    return Architecture(
        randomise(ResNet(5, stages, 8), generator),
        (x,),
        batched(x),
        (
            free(
                5,
                out("conv1", "layer1.0.conv2", "layer1.1.conv2"),
                bn("bn1", "layer1.0.bn2", "layer1.1.bn2"),
                into("layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0"),
            ),
            free(4, out("layer1.0.conv1"), bn("layer1.0.bn1"), into("layer1.0.conv2")),
            free(6, out("layer1.1.conv1"), bn("layer1.1.bn1"), into("layer1.1.conv2")),
            free(7, out("layer2.0.conv1"), bn("layer2.0.bn1"), into("layer2.0.conv2")),
            free(
                8,
                out("layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"),
                bn("layer2.0.bn2", "layer2.0.downsample.1", "layer2.1.bn2"),
                into("layer2.1.conv1", "fc"),
            ),
            free(9, out("layer2.1.conv1"), bn("layer2.1.bn1"), into("layer2.1.conv2")),
            pinned(3, "conv1.weight", 1),
            pinned(10, "fc.weight", 0),
        ),
    )


def resnet_bottleneck(generator: torch.Generator) -> Architecture:
    """As above with 1x1, 3x3, 1x1 blocks; the first stage widens, so that the stem is a group of its own."""
    k = (1, 3, 1)
    stages = (
        (Block((4, 5, 6, 12), k), Block((12, 7, 8, 12), k)),
        (Block((12, 9, 11, 14), k, stride=2),),
    )
    x = image(generator)
    return Architecture(
        randomise(ResNet(4, stages, 14), generator),
        (x,),
        batched(x),
        (
            free(4, out("conv1"), bn("bn1"), into("layer1.0.conv1", "layer1.0.downsample.0")),
            free(5, out("layer1.0.conv1"), bn("layer1.0.bn1"), into("layer1.0.conv2")),
            free(6, out("layer1.0.conv2"), bn("layer1.0.bn2"), into("layer1.0.conv3")),
            free(
                12,
                out("layer1.0.conv3", "layer1.0.downsample.0", "layer1.1.conv3"),
                bn("layer1.0.bn3", "layer1.0.downsample.1", "layer1.1.bn3"),
                into("layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0"),
            ),
            free(7, out("layer1.1.conv1"), bn("layer1.1.bn1"), into("layer1.1.conv2")),
            free(8, out("layer1.1.conv2"), bn("layer1.1.bn2"), into("layer1.1.conv3")),
            free(9, out("layer2.0.conv1"), bn("layer2.0.bn1"), into("layer2.0.conv2")),
            free(11, out("layer2.0.conv2"), bn("layer2.0.bn2"), into("layer2.0.conv3")),
            free(
                14,
                out("layer2.0.conv3", "layer2.0.downsample.0"),
                bn("layer2.0.bn3", "layer2.0.downsample.1"),
                into("fc"),
            ),
            pinned(3, "conv1.weight", 1),
            pinned(10, "fc.weight", 0),
        ),
    )


class ResNeXtBlock(nn.Module):
    """1x1, grouped 3x3, 1x1 with an identity shortcut (Xie et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 1)
        self.conv1 = nn.Conv2d(7, 12, 1, bias=False)
        self.conv2 = nn.Conv2d(12, 15, 3, padding=1, groups=3)
        self.conv3 = nn.Conv2d(15, 7, 1)
        self.fc = nn.Linear(7, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
        y: torch.Tensor = self.fc(x.mean((2, 3)))
        return y


def resnext(generator: torch.Generator) -> Architecture:
    """Groups move as wholes with all that they read and write; inside each, inputs and outputs move on their own."""
    x = image(generator, size=6)
    return Architecture(
        randomise(ResNeXtBlock(), generator),
        (x,),
        batched(x),
        (
            free(7, out_b("stem", "conv3"), into("conv1", "fc")),
            free(3, out("conv1"), out_b("conv2"), into("conv3")),
            free(4, out("conv1"), into("conv2"), repeats=3),
            free(5, out_b("conv2"), into("conv3"), repeats=3),
            pinned(3, "stem.weight", 1),
            pinned(10, "fc.weight", 0),
        ),
    )

"""DenseNet-BC: later layers read the concatenation of all earlier ones."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.symmetry.architectures.common import Architecture, batched, bn, free, image, into, out, pinned, randomise


class DenseLayer(nn.Module):
    def __init__(self, width: int, bottleneck: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, bottleneck, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck)
        self.conv2 = nn.Conv2d(bottleneck, growth, 3, padding=1, bias=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        y: torch.Tensor = self.conv2(F.relu(self.norm2(x)))
        return y


class DenseBlock(nn.Module):
    def __init__(self, width: int, layers: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for bottleneck, growth in layers:
            self.layers.append(DenseLayer(width, bottleneck, growth))
            width += growth

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(6)
        self.block1 = DenseBlock(6, ((7, 4), (8, 2)))
        self.norm_t = nn.BatchNorm2d(12)
        self.conv_t = nn.Conv2d(12, 5, 1, bias=False)
        self.block2 = DenseBlock(5, ((9, 4), (11, 3)))
        self.norm5 = nn.BatchNorm2d(12)
        self.classifier = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.norm0(self.conv0(x))), 2)
        x = self.conv_t(F.relu(self.norm_t(self.block1(x))))
        x = F.relu(self.norm5(self.block2(F.avg_pool2d(x, 2))))
        y: torch.Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


def densenet(generator: torch.Generator) -> Architecture:
    """Each growth is a group of its own, and a segment of every norm and convolution that reads it."""
    x = image(generator)
    b1l0, b1l1, b2l0, b2l1 = "block1.layers.0", "block1.layers.1", "block2.layers.0", "block2.layers.1"
    return Architecture(
        randomise(DenseNet(), generator),
        (x,),
        batched(x),
        (
            free(
                6,
                out("conv0"),
                bn("norm0", f"{b1l0}.norm1", f"{b1l1}.norm1", "norm_t"),
                into(f"{b1l0}.conv1", f"{b1l1}.conv1", "conv_t"),
            ),
            free(7, out(f"{b1l0}.conv1"), bn(f"{b1l0}.norm2"), into(f"{b1l0}.conv2")),
            free(4, out(f"{b1l0}.conv2"), bn(f"{b1l1}.norm1", "norm_t"), into(f"{b1l1}.conv1", "conv_t")),
            free(8, out(f"{b1l1}.conv1"), bn(f"{b1l1}.norm2"), into(f"{b1l1}.conv2")),
            free(2, out(f"{b1l1}.conv2"), bn("norm_t"), into("conv_t")),
            free(
                5,
                out("conv_t"),
                bn(f"{b2l0}.norm1", f"{b2l1}.norm1", "norm5"),
                into(f"{b2l0}.conv1", f"{b2l1}.conv1", "classifier"),
            ),
            free(9, out(f"{b2l0}.conv1"), bn(f"{b2l0}.norm2"), into(f"{b2l0}.conv2")),
            free(4, out(f"{b2l0}.conv2"), bn(f"{b2l1}.norm1", "norm5"), into(f"{b2l1}.conv1", "classifier")),
            free(11, out(f"{b2l1}.conv1"), bn(f"{b2l1}.norm2"), into(f"{b2l1}.conv2")),
            free(3, out(f"{b2l1}.conv2"), bn("norm5"), into("classifier")),
            pinned(3, "conv0.weight", 1),
            pinned(10, "classifier.weight", 0),
        ),
    )

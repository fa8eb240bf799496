"""DenseNet-121 (Huang et al., arXiv 1608.06993): every layer reads all that came before it in its block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEPTHS, GROWTH, NARROW = (6, 12, 24, 16), 32, 4


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution of what came before."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        inner = NARROW * GROWTH
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, GROWTH, 3, padding=1, bias=False)

    def forward(self, before: list[Tensor]) -> Tensor:
        """Maps of N x any x H x W, joined; gives N x GROWTH x H x W."""
        x = self.conv1(F.relu(self.norm1(torch.cat(before, 1))))
        y: Tensor = self.conv2(F.relu(self.norm2(x)))
        return y


class DenseBlock(nn.Module):
    """Dense layers, and all of their results joined."""

    def __init__(self, inputs: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(inputs + index * GROWTH) for index in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x (inputs + depth * GROWTH) x H x W."""
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet121() -> nn.Sequential:
    """7.98 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for depth in DEPTHS:
        if channels != 64:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            channels //= 2
        layers.append(DenseBlock(channels, depth))
        channels += depth * GROWTH
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*layers)

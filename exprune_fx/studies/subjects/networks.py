"""ResNet-18 for 32 x 32 images (He et al., arXiv 1512.03385, with the stem of its CIFAR networks)."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((1, 1), (2, 2), (4, 2), (8, 2))
"""Channels in widths, and the stride of the first block, of each pair of blocks."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the input, by a 1x1 convolution where shapes change, is added before the last ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H/stride x W/stride."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + cast(Tensor, self.shortcut(x)))


def resnet18(width: int, classes: int = 10) -> nn.Sequential:
    """The network; the published one is 64 channels wide at its first stage.

    Input: float32, N x 3 x 32 x 32, normalised. Output: float32 logits, N x classes.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for factor, stride in STAGES:
        layers += [
            ResidualBlock(channels, width * factor, stride),
            ResidualBlock(width * factor, width * factor, 1),
        ]
        channels = width * factor
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

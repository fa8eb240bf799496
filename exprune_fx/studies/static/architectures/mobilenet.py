"""MobileNetV2 (Sandler et al., arXiv 1801.04381): depthwise convolutions between a wider and a narrower 1x1."""

from __future__ import annotations

from torch import Tensor, nn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, output channels, blocks, and stride of the first block."""


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Widens, filters each channel, narrows; adds the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [*_normed(inputs, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        layers += [*_normed(hidden, hidden, 3, stride, hidden), nn.ReLU6(), *_normed(hidden, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H/stride x W/stride."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def mobilenet_v2() -> nn.Sequential:
    """3.50 million parameters."""
    layers: list[nn.Module] = [*_normed(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expansion, outputs, count, stride in STAGES:
        for index in range(count):
            layers.append(InvertedResidual(channels, outputs, 1 if index else stride, expansion))
            channels = outputs
    layers += [*_normed(channels, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, 1000))

"""Tiny seeded networks and data for the calibration tests."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from tests.captures import captured_alike

BATCH = {"x": {0: torch.export.Dim.DYNAMIC}}


class Chain(nn.Sequential):
    """A sequential model whose input is called x, so that its batch can be dynamic."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


def cnn() -> nn.Module:
    """Three convolutions, one strided, with batch norm: 3 -> 16 -> 24 -> 16 channels on 8x8 pixels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 16, 1), (16, 24, 2), (24, 16, 1)):
        norm = nn.BatchNorm2d(after)
        norm.running_mean, norm.running_var = torch.randn(after) * 0.1, torch.rand(after) + 0.5
        layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), norm, nn.ReLU()]
    return Chain(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """12 -> 32 -> 32 -> 4."""
    torch.manual_seed(1)
    return Chain(nn.Linear(12, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 4)).eval()


def images(count: int = 32, seed: int = 2) -> Tensor:
    """[count, 3, 8, 8], smooth, so that channels correlate as they do in real images."""
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, scale_factor=2, mode="bilinear")


def vectors(count: int = 200, seed: int = 3) -> Tensor:
    """[count, 12] with correlated features."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(12, 12, generator=generator) * torch.logspace(0, -1.5, 12)[:, None]
    return torch.randn(count, 12, generator=generator) @ mixing


def captured(model: nn.Module, example: Tensor) -> fx.GraphModule:
    return captured_alike(model, example[:4], BATCH)


def batches(data: Tensor, size: int = 16) -> list[tuple[Tensor]]:
    return [(part,) for part in data.split(size)]

"""YOLOv8n, rebuilt from its published configuration (depth 1/3, width 1/4; C2f, SPPF, a split head on three scales).

Without the 16 fixed numbers of its distribution-to-box convolution, which belong to decoding: the head gives raw maps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

REG_MAX = 16
"""Bins of the distribution of each of a box's four distances."""
PRIOR = -4.6
"""Logit that every cell starts with for every class: an object in one cell of a hundred."""


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn, self.act = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H/stride x W/stride."""
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, added to their input where `residual`."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.residual = Conv(channels, channels, 3), Conv(channels, channels, 3), residual

    def forward(self, x: Tensor) -> Tensor:
        """N x channels x H x W to the same."""
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.residual else y


class C2f(nn.Module):
    """Halves; one half runs through bottlenecks, and everything is joined."""

    def __init__(self, inputs: int, outputs: int, depth: int, residual: bool = False) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2 = Conv(inputs, outputs), Conv((2 + depth) * half, outputs)
        self.m = nn.ModuleList(Bottleneck(half, residual) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H x W."""
        parts = list(self.cv1(x).chunk(2, 1))
        parts.extend(each(parts[-1]) for each in self.m)
        y: Tensor = self.cv2(torch.cat(parts, 1))
        return y


class SPPF(nn.Module):
    """Max-pools one after another, all joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels // 2), Conv(channels * 2, channels)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """N x channels x H x W to the same."""
        parts = [self.cv1(x)]
        parts.extend(self.m(parts[-1]) for _ in range(3))
        y: Tensor = self.cv2(torch.cat(parts, 1))
        return y


class Detect(nn.Module):
    """For each scale and cell, four distributions of distances and a logit for each class."""

    def __init__(self, classes: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        boxes = max(16, channels[0] // 4, 4 * REG_MAX)
        scores = max(channels[0], min(classes, 100))
        self.cv2 = nn.ModuleList(_branch(width, boxes, 4 * REG_MAX) for width in channels)
        self.cv3 = nn.ModuleList(_branch(width, scores, classes) for width in channels)
        for each in self.cv3:
            nn.init.constant_(each[-1].bias, PRIOR)  # type: ignore[index] # a Sequential

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        """Maps of each scale to N x (4 * REG_MAX + classes) x H x W of each."""
        return [torch.cat((a(x), b(x)), 1) for a, b, x in zip(self.cv2, self.cv3, scales, strict=True)]


def _branch(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Conv(inputs, width, 3), Conv(width, width, 3), nn.Conv2d(width, outputs, 1))


class YOLOv8(nn.Module):
    """The backbone, the two ways of the neck, and the head.

    Args:
        classes: how many.
        width: channels of the first convolution; 16 is YOLOv8n.
        depths: bottlenecks of the four C2f of the backbone; those of the neck have as many as the first.
    """

    strides = (8, 16, 32)

    def __init__(self, classes: int = 80, width: int = 16, depths: tuple[int, int, int, int] = (1, 2, 2, 1)) -> None:
        super().__init__()
        w1, w2, w3, w4, w5 = (width * 2**k for k in range(5))
        neck = depths[0]
        self.stem = nn.Sequential(Conv(3, w1, 3, 2), Conv(w1, w2, 3, 2), C2f(w2, w2, depths[0], residual=True))
        self.p3 = nn.Sequential(Conv(w2, w3, 3, 2), C2f(w3, w3, depths[1], residual=True))
        self.p4 = nn.Sequential(Conv(w3, w4, 3, 2), C2f(w4, w4, depths[2], residual=True))
        self.p5 = nn.Sequential(Conv(w4, w5, 3, 2), C2f(w5, w5, depths[3], residual=True), SPPF(w5))
        self.up = nn.Upsample(scale_factor=2)
        self.up4, self.up3 = C2f(w5 + w4, w4, neck), C2f(w4 + w3, w3, neck)
        self.down3, self.out4 = Conv(w3, w3, 3, 2), C2f(w3 + w4, w4, neck)
        self.down4, self.out5 = Conv(w4, w4, 3, 2), C2f(w4 + w5, w5, neck)
        self.head = Detect(classes, (w3, w4, w5))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images N x 3 x H x W to one raw map for each of the strides 8, 16 and 32."""
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        up4 = self.up4(torch.cat((self.up(p5), p4), 1))
        out3 = self.up3(torch.cat((self.up(up4), p3), 1))
        out4 = self.out4(torch.cat((self.down3(out3), up4), 1))
        out5 = self.out5(torch.cat((self.down4(out4), p5), 1))
        found: list[Tensor] = self.head([out3, out4, out5])
        return found


def yolov8n(classes: int = 80) -> YOLOv8:
    """3.157 million parameters with 80 classes."""
    return YOLOv8(classes)
